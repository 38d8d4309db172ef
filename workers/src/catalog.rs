//! The models a worker can run: contracts and files, read once at start.
//!
//! A model is a folder with a `model.toml` (a [`ModelContract`]) and its file, or the same two compiled into the
//! binary; of one that others run only the contract is here. What this module owns: finding them and refusing what is
//! wrong, with the file and the field in the message. What it must not do: understand the file, which is the runtime's.
//!
//! Invariants: names are unique; a folder's name is its contract's; no file lies outside its model's folder, by
//! `..`, an absolute path or a symbolic link; names under [`RESERVED_PREFIX`] are ours.

mod contract;

use crate::runtime::diagnose::Diagnostic;
use schemas::model::REMOTE;
use schemas::{ModelContract, ModelName};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// The file that holds a model's contract.
pub const CONTRACT_FILE: &str = "model.toml";
/// Longest `model.toml`, in bytes.
pub const CONTRACT_BYTES_MAX: u64 = 64 * 1024;
/// Largest model file, in bytes: what ONNX's own encoding can hold.
pub const MODEL_BYTES_MAX: u64 = 2 << 30;
/// Most models in one catalog: each is resident, and each is a metric label.
pub const MODELS_MAX: usize = 256;
/// Names that begin so belong to the diagnostic models.
pub const RESERVED_PREFIX: &str = "diagnose.";

/// A set of models.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    entries: BTreeMap<ModelName, Entry>,
    /// Contracts of models that others run.
    remote: BTreeMap<ModelName, Arc<ModelContract>>,
    diagnostics: bool,
}

/// One model: what it promises, and its bytes.
#[derive(Clone)]
pub struct Entry {
    /// What it takes and gives.
    pub contract: Arc<ModelContract>,
    /// Its file.
    pub file: Cow<'static, [u8]>,
    /// Where it came from, for messages.
    pub origin: String,
}

/// Why a model was refused.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A file or folder that cannot be read.
    #[error("{path} cannot be read: {error}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// A contract that is not TOML, or misses, misspells or invents a key.
    #[error("{origin}: {error}")]
    Malformed {
        /// The contract.
        origin: String,
        /// Where in it, and what.
        error: Box<toml::de::Error>,
    },
    /// A contract that cannot be kept.
    #[error("{origin}: {field} {problem}")]
    Contract {
        /// The contract.
        origin: String,
        /// The key.
        field: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// A folder with nothing in it to run.
    #[error("{0} has no models: give each a folder of its own with a {CONTRACT_FILE} in it")]
    Empty(PathBuf),
    /// A model file that nothing describes.
    #[error("{0} has a model.onnx and no {CONTRACT_FILE}: write what it takes and gives there")]
    NoContract(PathBuf),
    /// A model that was asked for by name.
    #[error("model {name} is not here: there are {known}")]
    NoSuchModel {
        /// The name.
        name: ModelName,
        /// What there is.
        known: String,
    },
    /// More than [`MODELS_MAX`].
    #[error("there are more than {MODELS_MAX} models: spread them over several workers")]
    TooMany,
}

impl Catalog {
    /// No models.
    pub fn new() -> Self {
        Self::default()
    }

    /// Models compiled into the binary: pairs of a `model.toml` and the file it names.
    pub fn builtin(models: &[(&'static str, &'static [u8])]) -> Result<Self, CatalogError> {
        let mut catalog = Self::new();
        for (contract, file) in models {
            let origin = "built-in model".to_owned();
            let contract = contract::read(contract, &origin)?;
            let origin = format!("built-in model {}", contract.name);
            catalog.insert(Entry { contract: Arc::new(contract), file: Cow::Borrowed(file), origin })?;
        }
        Ok(catalog)
    }

    /// And the diagnostic models: `diagnose.echo`, `diagnose.sleep` (parameter `ms`), `diagnose.fail` (parameter
    /// `times`), `diagnose.hang`, `diagnose.panic` and `diagnose.abort`, which kills the worker.
    #[must_use]
    pub fn with_diagnostics(mut self) -> Self {
        self.diagnostics = true;
        self
    }

    /// Whether the diagnostic models are there.
    pub fn diagnostics(&self) -> bool {
        self.diagnostics
    }

    /// And every model in `folder`: one folder per model. One of the same name as a built-in takes its place. What
    /// holds no model is passed over.
    pub fn with_folder(mut self, folder: &Path) -> Result<Self, CatalogError> {
        let listed = std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))?;
        let mut folders = Vec::new();
        for entry in listed {
            let path = entry.map_err(|error| unreadable(folder, error))?.path();
            if path.join(CONTRACT_FILE).exists() {
                folders.push(path);
            } else if path.join("model.onnx").exists() {
                return Err(CatalogError::NoContract(path));
            }
        }
        if folders.is_empty() {
            return Err(CatalogError::Empty(folder.to_owned()));
        }
        // The order of a directory is anyone's guess; the first error should be the same one every time.
        folders.sort();
        for folder in &folders {
            let (contract, origin) = read_contract(folder)?;
            if contract.platform == REMOTE {
                self.check_room()?;
                self.entries.remove(&contract.name);
                self.remote.insert(contract.name.clone(), Arc::new(contract));
            } else {
                self.insert(read_model(folder, contract, &origin)?)?;
            }
        }
        Ok(self)
    }

    /// And nothing but the models of these names, which are to be run here; one that is not there is an error. Diagnostic
    /// models stay.
    pub fn only(mut self, names: &[ModelName]) -> Result<Self, CatalogError> {
        let diagnostic = |name: &ModelName| self.diagnostics && name.as_str().starts_with(RESERVED_PREFIX);
        self.remote.clear();
        let missing = names.iter().find(|name| !self.entries.contains_key(*name) && !diagnostic(name));
        if let Some(name) = missing {
            let known = self.entries.keys().map(ModelName::as_str).collect::<Vec<_>>().join(", ");
            return Err(CatalogError::NoSuchModel { name: name.clone(), known });
        }
        self.entries.retain(|name, _| names.contains(name));
        Ok(self)
    }

    /// The models that can be run here, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The contracts of models that others run.
    pub fn remote(&self) -> impl Iterator<Item = &Arc<ModelContract>> {
        self.remote.values()
    }

    /// The contracts of all models but the diagnostic ones, whoever runs them.
    pub fn known(&self) -> impl Iterator<Item = &Arc<ModelContract>> {
        self.entries().map(|entry| &entry.contract).chain(self.remote())
    }

    /// The contracts of all models that can be run here, the diagnostic ones among them: those take anything, as opaque
    /// bytes.
    pub fn contracts(&self) -> Vec<ModelContract> {
        let diagnostic = |name| ModelContract {
            name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            description: "for drills and benchmarks".to_owned(),
            platform: "straightline".to_owned(),
            file: String::new(),
            batch: false,
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        let names = Diagnostic::all().filter(|_| self.diagnostics).map(|(name, _)| name);
        let entries = self.entries().map(|entry| ModelContract::clone(&entry.contract));
        entries.chain(names.map(diagnostic)).collect()
    }

    /// The contract of one model.
    pub fn contract(&self, name: &ModelName) -> Option<&Arc<ModelContract>> {
        self.entries.get(name).map(|entry| &entry.contract).or_else(|| self.remote.get(name))
    }

    /// How many can be run here.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether that is none, or only the diagnostic ones.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn check_room(&self) -> Result<(), CatalogError> {
        if self.entries.len() + self.remote.len() < MODELS_MAX { Ok(()) } else { Err(CatalogError::TooMany) }
    }

    fn insert(&mut self, entry: Entry) -> Result<(), CatalogError> {
        self.check_room()?;
        let (name, origin) = (entry.contract.name.clone(), entry.origin.clone());
        if let Some(before) = self.entries.insert(name.clone(), entry) {
            tracing::info!(model = %name, from = origin, "serving this in place of {}", before.origin);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("model", &self.contract.name)
            .field("file_bytes", &self.file.len())
            .field("origin", &self.origin)
            .finish()
    }
}

/// The contract in `folder`, and where it is.
fn read_contract(folder: &Path) -> Result<(ModelContract, String), CatalogError> {
    let path = folder.join(CONTRACT_FILE);
    let origin = path.display().to_string();
    let text = read_bounded(&path, CONTRACT_BYTES_MAX)
        .and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other))
        .map_err(|error| unreadable(&path, error))?;
    let contract = contract::read(&text, &origin)?;
    if folder.file_name().and_then(|name| name.to_str()) != Some(contract.name.as_str()) {
        let problem = format!("{:?} is not its folder's name: rename one", contract.name.as_str());
        return Err(CatalogError::Contract { origin, field: "name".to_owned(), problem });
    }
    Ok((contract, origin))
}

fn read_model(folder: &Path, contract: ModelContract, origin: &str) -> Result<Entry, CatalogError> {
    let refuse =
        |problem| CatalogError::Contract { origin: origin.to_owned(), field: "file".to_owned(), problem };
    let file = inside(folder, &contract.file).map_err(refuse)?;
    let bytes = read_bounded(&file, MODEL_BYTES_MAX).map_err(|error| unreadable(&file, error))?;
    Ok(Entry { contract: Arc::new(contract), file: Cow::Owned(bytes), origin: folder.display().to_string() })
}

/// Where `file` is, if it is a plain name of something that really lies in `folder`.
fn inside(folder: &Path, file: &str) -> Result<PathBuf, String> {
    let mut components = Path::new(file).components();
    let (Some(Component::Normal(name)), None) = (components.next(), components.next()) else {
        return Err(format!("{file:?} leaves the model's folder: name a file in it"));
    };
    let path = folder.join(name);
    let resolve =
        |path: &Path| path.canonicalize().map_err(|error| format!("{file:?} cannot be read: {error}"));
    // A symbolic link may point anywhere; only where it ends counts.
    if resolve(&path)?.starts_with(resolve(folder)?) {
        Ok(path)
    } else {
        Err(format!("{file:?} is a link that leaves the model's folder: put the file itself there"))
    }
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, std::io::Error> {
    let length = std::fs::metadata(path)?.len();
    if length > limit {
        return Err(std::io::Error::other(format!("it has {length} bytes: at most {limit}")));
    }
    std::fs::read(path)
}

fn unreadable(path: &Path, error: std::io::Error) -> CatalogError {
    CatalogError::Unreadable { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests;
