//! Our image: this very program, the shared libraries it needs and the configured models, and nothing else.
//!
//! The file system is a tar archive that depends on its content alone, and the image's tag is the hash of that, so
//! that an image is made once, by whoever needs it first, and never confused with another version's. The libraries
//! are those the program's own loader names (`--list`, which is what `ldd` asks), at the paths it names.
//!
//! What this module must not do: speak to an engine, or run on the async runtime: reading takes its time.

use super::plan::MODELS_DIR;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository of our images.
const REPOSITORY: &str = "straightline-serve";
/// Where the program lies in them.
const PROGRAM: &str = "straightline";
/// Most files of the models' folder that go into an image.
const FILES_MAX: usize = 10_000;
/// Bytes of the hash in a tag.
const TAG_BYTES: usize = 12;

/// Why an image of ours cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    /// A file that belongs in it.
    #[error("{path} cannot be read: {error}")]
    Unreadable { path: PathBuf, error: io::Error },
    /// What the program needs cannot be told.
    #[error("libraries of {path} cannot be told: {reason}")]
    Libraries { path: PathBuf, reason: String },
    /// More than anybody means to.
    #[error("{0} has more than {FILES_MAX} files: configure a folder that holds models only")]
    TooMany(PathBuf),
}

/// What goes into an image of ours: paths in it, without the leading slash, and the files here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    files: BTreeMap<String, PathBuf>,
    library_dirs: BTreeSet<String>,
    user: String,
}

impl Contents {
    /// Of `program` and the models in `models_dir`.
    pub(super) fn gather(program: &Path, models_dir: Option<&Path>, user: &str) -> Result<Self, ImageError> {
        let mut files = BTreeMap::from([(PROGRAM.to_owned(), program.to_owned())]);
        let mut library_dirs = BTreeSet::new();
        if let Some(loader) = interpreter(program).map_err(|error| unreadable(program, error))? {
            for library in libraries(&loader, program)?.into_iter().chain([loader]) {
                let inside = library.to_string_lossy().trim_start_matches('/').to_owned();
                if let Some((dir, _)) = inside.rsplit_once('/') {
                    library_dirs.insert(format!("/{dir}"));
                }
                files.insert(inside, library);
            }
        }
        if let Some(dir) = models_dir {
            add_folder(dir, MODELS_DIR.trim_start_matches('/'), &mut files)?;
        }
        Ok(Self { files, library_dirs, user: user.to_owned() })
    }

    /// The image's name, which tells its contents.
    pub(super) fn name(&self) -> Result<String, ImageError> {
        let mut hash = Sha256::new();
        self.write(&mut hash)?;
        for instruction in self.instructions() {
            hash.update(instruction.as_bytes());
            hash.update([0]);
        }
        let hash = hash.finalize();
        let tag: String = hash.iter().take(TAG_BYTES).map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("{REPOSITORY}:{tag}"))
    }

    /// What the image says of itself.
    pub(super) fn instructions(&self) -> Vec<String> {
        let dirs: Vec<&str> = self.library_dirs.iter().map(String::as_str).collect();
        let mut instructions = vec![
            format!("ENTRYPOINT [\"/{PROGRAM}\", \"serve\"]"),
            format!("USER {}", self.user),
            "WORKDIR /".to_owned(),
            "LABEL straightline.image=serve".to_owned(),
        ];
        if !dirs.is_empty() {
            instructions.push(format!("ENV LD_LIBRARY_PATH={}", dirs.join(":")));
        }
        instructions
    }

    /// Writes the file system as a tar archive: the same bytes for the same contents.
    pub(super) fn write(&self, to: impl Write) -> Result<(), ImageError> {
        let mut archive = tar::Builder::new(to);
        for (inside, path) in &self.files {
            append(&mut archive, inside, path).map_err(|error| unreadable(path, error))?;
        }
        archive.finish().map_err(|error| unreadable(Path::new("archive"), error))
    }
}

fn append(archive: &mut tar::Builder<impl Write>, inside: &str, path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    let mut head = tar::Header::new_gnu();
    head.set_size(found.len());
    // Readable by the user it runs as, whoever owned it here; nothing else of its owner or age gets in.
    head.set_mode(if found.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 });
    head.set_mtime(0);
    archive.append_data(&mut head, inside, file.take(found.len()))
}

/// Every file under `dir`, at `inside` in the image. Links are followed: what they point at may not be there.
fn add_folder(dir: &Path, inside: &str, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    let mut folders = vec![(dir.to_owned(), inside.to_owned(), 0)];
    while let Some((folder, inside, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| unreadable(&folder, error))? {
            let path = entry.map_err(|error| unreadable(&folder, error))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let inside = format!("{inside}/{name}");
            let found = path.metadata().map_err(|error| unreadable(&path, error))?;
            // A model's folder is flat; deeper ones hold what no model names. So a link to itself ends here, too.
            if found.is_dir() && depth == 0 {
                folders.push((path, inside, 1));
            } else if found.is_file() {
                files.insert(inside, path);
            }
            if files.len() > FILES_MAX {
                return Err(ImageError::TooMany(dir.to_owned()));
            }
        }
    }
    Ok(())
}

/// The loader that an ELF program names; none for a program that needs none.
fn interpreter(program: &Path) -> io::Result<Option<PathBuf>> {
    const PROGRAM_INTERPRETER: u32 = 3;
    let mut file = File::open(program)?;
    let mut head = [0; 64];
    file.read_exact(&mut head)?;
    // 64 bits, little-endian: what this is built for.
    if head[..6] != *b"\x7fELF\x02\x01" {
        return Err(io::Error::other("it is no ELF program of 64 bits"));
    }
    let short = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let long = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight bytes"))
    };
    let (at, size, count) = (long(&head, 32), short(&head, 54), short(&head, 56));
    if usize::from(size) < 56 {
        return Err(io::Error::other("its program headers make no sense"));
    }
    for number in 0..u64::from(count) {
        let mut entry = [0; 56];
        file.seek(SeekFrom::Start(at.saturating_add(number * u64::from(size))))?;
        file.read_exact(&mut entry)?;
        if u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) == PROGRAM_INTERPRETER {
            let (from, length) = (long(&entry, 8), long(&entry, 32));
            file.seek(SeekFrom::Start(from))?;
            let mut path = String::new();
            (&mut file).take(length.min(4096)).read_to_string(&mut path)?;
            return Ok(Some(PathBuf::from(path.trim_end_matches('\0'))));
        }
    }
    Ok(None)
}

/// The libraries that `loader` would map for `program`.
fn libraries(loader: &Path, program: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let fail = |reason: String| ImageError::Libraries { path: program.to_owned(), reason };
    let output = Command::new(loader).arg("--list").arg(program).output();
    let output = output.map_err(|error| fail(format!("{} cannot be run: {error}", loader.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(fail(String::from_utf8_lossy(&output.stderr).trim().chars().take(300).collect()));
    }
    text.lines().filter_map(|line| listed(line).transpose()).collect::<Result<_, _>>().map_err(fail)
}

/// The path in a line such as `libc.so.6 => /lib/libc.so.6 (0x7f…)`; none for what the kernel brings.
fn listed(line: &str) -> Result<Option<PathBuf>, String> {
    let Some((name, found)) = line.trim().split_once(" => ") else { return Ok(None) };
    if found.starts_with("not found") {
        return Err(format!("{name} is not found"));
    }
    let path = found.rsplit_once(" (").map_or(found, |(path, _)| path);
    Ok(path.starts_with('/').then(|| PathBuf::from(path)))
}

fn unreadable(path: &Path, error: io::Error) -> ImageError {
    ImageError::Unreadable { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests;
