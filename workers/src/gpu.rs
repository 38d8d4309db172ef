//! The GPUs of this machine, as NVIDIA's management library (NVML) tells of them. The library comes with the driver
//! and is loaded at run time; a machine without one has no GPU, and says why.
//!
//! What the library does not tell is `None`, never zero: many devices do not tell their load, and some no memory.
//! Asking takes milliseconds and may wait for a driver: do it off the async runtime.

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use schemas::heartbeat::Gpu;
use std::collections::BTreeSet;
use std::path::Path;

/// The library, opened.
pub struct Gpus {
    nvml: Nvml,
}

/// Why there is no GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no GPU: {0}")]
pub struct NoGpu(String);

impl Gpus {
    /// Opens the library: that of the system, or the one at `library`.
    pub fn open(library: Option<&Path>) -> Result<Self, NoGpu> {
        let mut builder = Nvml::builder();
        if let Some(library) = library {
            builder.lib_path(library.as_os_str());
        }
        let nvml = builder.init().map_err(|error| match error {
            NvmlError::LibloadingError(_) => {
                let library = library.unwrap_or(Path::new("libnvidia-ml.so"));
                NoGpu(format!("{} cannot be loaded; it comes with NVIDIA's driver", library.display()))
            }
            error => NoGpu(error.to_string()),
        })?;
        match nvml.device_count() {
            Ok(0) => Err(NoGpu("the driver is there and knows no device".to_owned())),
            Ok(_) => Ok(Self { nvml }),
            Err(error) => Err(NoGpu(error.to_string())),
        }
    }

    /// Every device; one that does not answer is there, and unknown.
    pub fn sample(&self) -> Vec<Gpu> {
        let count = self.nvml.device_count().unwrap_or(0);
        (0..count).map(|index| look(index, self.nvml.device_by_index(index).ok().as_ref())).collect()
    }
}

fn look(index: u32, device: Option<&Device<'_>>) -> Gpu {
    let memory = device.and_then(|device| device.memory_info().ok());
    let load = device.and_then(|device| device.utilization_rates().ok());
    Gpu {
        index,
        uuid: device.and_then(|device| device.uuid().ok()),
        name: device.and_then(|device| device.name().ok()),
        memory_bytes: memory.as_ref().map(|memory| memory.total),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        used: load.map(|load| (f64::from(load.gpu) / 100.0).min(1.0)),
    }
}

/// What was shown of devices.
#[derive(Debug, Default)]
pub struct Shown(BTreeSet<(u32, &'static str)>);

/// Shows what is known of `gpus` as metrics. What was never known is left out; what is known no more is no number.
pub fn publish(gpus: &[Gpu], shown: &mut Shown) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    let bytes = |bytes: u64| bytes as f64;
    for gpu in gpus {
        let index = gpu.index.to_string();
        let known = [
            ("straightline_gpu_memory_bytes", gpu.memory_bytes.map(bytes)),
            ("straightline_gpu_memory_used_bytes", gpu.memory_used_bytes.map(bytes)),
            ("straightline_gpu_used_ratio", gpu.used),
        ];
        for (name, value) in known {
            if value.is_some() {
                shown.0.insert((gpu.index, name));
            }
            if shown.0.contains(&(gpu.index, name)) {
                metrics::gauge!(name, "gpu" => index.clone()).set(value.unwrap_or(f64::NAN));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    /// Builds the stand-in library; `define` chooses what is wrong with it.
    fn stand_in(dir: &Path, define: &str) -> PathBuf {
        let library = dir.join(format!("libstand-in-nvml-{define}.so"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand_in_nvml.c");
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-D", define, "-o"]).arg(&library).arg(source);
        let output = compiler.output().expect("a C compiler, which Rust needs as well");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        library
    }

    #[test]
    fn what_a_device_does_not_tell_is_unknown_and_never_zero() {
        let dir = tempfile::tempdir().unwrap();
        let gpus = Gpus::open(Some(&stand_in(dir.path(), "WELL"))).unwrap().sample();
        let known = Gpu {
            index: 0,
            uuid: Some("GPU-stand-in-0".to_owned()),
            name: Some("Stand-in 9000".to_owned()),
            memory_bytes: Some(16 << 30),
            memory_used_bytes: Some(5 << 30),
            used: Some(0.37),
        };
        let idle = Gpu { index: 1, uuid: Some("GPU-stand-in-1".to_owned()), used: None, ..known.clone() };
        let lost =
            Gpu { index: 2, uuid: None, name: None, memory_bytes: None, memory_used_bytes: None, used: None };
        assert_eq!(gpus, [known, idle, lost]);
    }

    #[test]
    fn without_one_it_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let open = |library: &Path| Gpus::open(Some(library)).map(drop).unwrap_err().to_string();
        let missing = open(&dir.path().join("none.so"));
        assert!(missing.starts_with("no GPU: ") && missing.contains("none.so"), "{missing}");
        let unloaded = open(&stand_in(dir.path(), "NO_DRIVER"));
        assert!(unloaded.starts_with("no GPU: ") && unloaded.contains("driver"), "{unloaded}");
        let none = open(&stand_in(dir.path(), "NO_DEVICE"));
        assert_eq!(none, "no GPU: the driver is there and knows no device");
    }
}
