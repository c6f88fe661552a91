//! Which models there are, and which of their versions serve.
//!
//! A client's name for a model is only ever compared with names found here, never made into a path. Loading a model again
//! builds its new versions beside the old ones, which go on serving if anything about the new ones fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use super::refusal::Refusal;
use super::version::{Running, Version, sha256_of};
use crate::error::{Error, Result};

/// Where models come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One file under a name.
    File {
        /// The name in addresses.
        name: String,
        /// A `.safetensors` file as `train --out` writes it.
        path: PathBuf,
    },
    /// A folder with `NAME.safetensors` files, `NAME/VERSION/…safetensors`, or, if the folder is itself a model, `VERSION/…safetensors`.
    /// It is read anew when a model is loaded.
    Folder(PathBuf),
}

impl std::str::FromStr for Source {
    type Err = Error;

    /// `PATH` or `NAME=PATH`. Without a name, the file's own is taken.
    fn from_str(text: &str) -> Result<Self> {
        let named = text.split_once('=').filter(|(name, _)| !name.contains(std::path::MAIN_SEPARATOR));
        let path = PathBuf::from(named.map_or(text, |(_, path)| path));
        if named.is_none() && path.is_dir() {
            return Ok(Self::Folder(path));
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name = named.map_or(stem, |(name, _)| name).to_owned();
        match is_name(&name) {
            true => Ok(Self::File { name, path }),
            false => Err(Error::invalid(format!("the name of model {text}"), format!("{name:?}"), NAME)),
        }
    }
}

const NAME: &str = "1 to 128 letters, digits, '-', '_' and '.', not '.' first (NAME=PATH gives one)";

/// Whether it can be the name of a model.
pub(super) fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The files of a model's versions.
type Files = BTreeMap<u64, PathBuf>;

/// All models.
pub(super) struct Repository {
    sources: Vec<Source>,
    running: Running,
    models: RwLock<BTreeMap<String, Entry>>,
    /// Held while a model is loaded: two at a time would need the memory of both.
    loading: Mutex<()>,
}

#[derive(Clone, Default)]
struct Entry {
    versions: BTreeMap<u64, Arc<Version>>,
    /// Why the last load failed.
    problem: Option<String>,
}

/// A line of the index: name, version, and why it does not serve, or nothing if it does.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) ready: bool,
    pub(super) reason: String,
}

impl Repository {
    pub(super) fn new(sources: Vec<Source>, running: Running) -> Self {
        Self { sources, running, models: RwLock::default(), loading: Mutex::default() }
    }

    /// Loads everything there is.
    ///
    /// # Errors
    /// The first model that cannot be loaded, two of the same name, or no model at all.
    pub(super) fn load_all(&self) -> Result<()> {
        let found = self.scan()?;
        if found.is_empty() {
            return Err(Error::invalid("models to serve", format!("none in {:?}", self.sources), "at least one .safetensors file"));
        }
        found.keys().try_for_each(|name| self.load(name))
    }

    /// Loads every model again that serves now or is there now; a failure leaves the versions of that model as they are.
    pub(super) fn reload_all(&self) {
        let names = self.scan().map(|found| found.into_keys().collect::<Vec<_>>());
        match names {
            Ok(names) => names.iter().for_each(|name| drop(self.load(name))),
            Err(error) => log::error!("cannot reload: {error}"),
        }
    }

    /// Loads a model, or loads it again. Versions whose file did not change go on as they are.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no such model; whatever is wrong with a file of it. What served before still does.
    pub(super) fn load(&self, name: &str) -> Result<()> {
        let _one = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = self.versions(name);
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok(versions) => {
                // Dropping a version that no request holds any more ends it; one that is held ends after its last request.
                models.insert(name.to_owned(), Entry { versions, problem: None });
                Ok(())
            }
            Err(error) => {
                log::error!(model = name; "not loaded: {error}");
                if let Some(entry) = models.get_mut(name) {
                    entry.problem = Some(error.to_string());
                }
                Err(error)
            }
        }
    }

    fn versions(&self, name: &str) -> Result<BTreeMap<u64, Arc<Version>>> {
        let files = self.scan()?.remove(name).ok_or_else(|| Error::invalid("a model to load", name, "one in the repository"))?;
        let old = self.entry(name).unwrap_or_default().versions;
        let load = |(number, path): (u64, PathBuf)| {
            let began = Instant::now();
            let sha256 = sha256_of(&path)?;
            if let Some(same) = old.get(&number).filter(|same| same.sha256 == sha256) {
                return Ok((number, same.clone()));
            }
            let version = Version::load(name, number, &path, &self.running)?;
            log::info!(model = name, version = number, sha256 = version.sha256, device = version.device, seconds = began.elapsed().as_secs_f64();
                "loaded {}", path.display());
            Ok((number, version))
        };
        files.into_iter().map(load).collect()
    }

    /// Takes a model out of service. Requests under way are answered.
    pub(super) fn unload(&self, name: &str) -> bool {
        let gone = self.models.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        gone.inspect(|_| log::info!(model = name; "unloaded")).is_some()
    }

    /// The version that an address means: a number, or the highest.
    pub(super) fn get(&self, name: &str, version: Option<&str>) -> Result<Arc<Version>, Refusal> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let entry = models.get(name).ok_or_else(|| Refusal::not_found(format_args!("model {}", printable(name))))?;
        let found = match version {
            None | Some("") => entry.versions.values().next_back(),
            Some(text) => text.parse().ok().and_then(|number: u64| entry.versions.get(&number)),
        };
        found.cloned().ok_or_else(|| Refusal::not_found(format_args!("version {} of model {name}", printable(version.unwrap_or_default()))))
    }

    /// The highest version of the first model.
    pub(super) fn default(&self) -> Result<Arc<Version>, Refusal> {
        let name = match self.sources.first() {
            Some(Source::File { name, .. }) => Some(name.clone()),
            _ => self.models.read().unwrap_or_else(PoisonError::into_inner).keys().next().cloned(),
        };
        self.get(&name.ok_or_else(|| Refusal::not_found("any model"))?, None)
    }

    /// Every version that serves, by name and number.
    pub(super) fn serving(&self) -> Vec<Arc<Version>> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.values().flat_map(|entry| entry.versions.values().cloned()).collect()
    }

    /// The versions of a model that serve.
    pub(super) fn numbers(&self, name: &str) -> Vec<u64> {
        self.entry(name).unwrap_or_default().versions.into_keys().collect()
    }

    /// Whether there are models, and all can answer.
    pub(super) fn is_ready(&self) -> bool {
        let serving = self.serving();
        !serving.is_empty() && serving.iter().all(|version| version.is_ready())
    }

    /// Every model there is, those that do not serve included.
    pub(super) fn index(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner).clone();
        let found = self.scan().unwrap_or_default();
        for (name, entry) in &models {
            for version in entry.versions.values() {
                let reason =
                    entry.problem.as_ref().map_or(String::new(), |problem| format!("serving, but the last load failed: {problem}"));
                lines.push(Line { name: name.clone(), version: version.number.to_string(), ready: version.is_ready(), reason });
            }
        }
        for (name, files) in found {
            for number in files.into_keys().filter(|number| !models.get(&name).is_some_and(|entry| entry.versions.contains_key(number))) {
                lines.push(Line { name: name.clone(), version: number.to_string(), ready: false, reason: "not loaded".to_owned() });
            }
        }
        lines
    }

    /// Ends all models: what is under way is answered, until the deadline.
    pub(super) fn close(&self, deadline: Instant) {
        let serving = self.serving();
        serving.iter().for_each(|version| version.close());
        serving.iter().for_each(|version| version.join(deadline));
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// What is on disk now.
    fn scan(&self) -> Result<BTreeMap<String, Files>> {
        let mut found: BTreeMap<String, Files> = BTreeMap::new();
        for source in &self.sources {
            let models = match source {
                Source::File { name, path } => vec![(name.clone(), Files::from([(1, path.clone())]))],
                Source::Folder(folder) => scan_folder(folder)?,
            };
            for (name, files) in models {
                if found.insert(name.clone(), files).is_some() {
                    return Err(Error::invalid("models to serve", format!("{name} twice"), "a name of its own for each (NAME=PATH)"));
                }
            }
        }
        Ok(found)
    }
}

/// The models of a folder.
fn scan_folder(folder: &Path) -> Result<Vec<(String, Files)>> {
    let own = versions_in(folder)?;
    if !own.is_empty() {
        let whole = folder.canonicalize().map_err(Error::io(folder, "cannot open"))?;
        let name = whole.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        return Ok(if is_name(&name) { vec![(name, own)] } else { Vec::new() });
    }
    let mut models = Vec::new();
    for path in entries(folder)? {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() && is_name(&name) {
            let files = versions_in(&path)?;
            if !files.is_empty() {
                models.push((name, files));
            }
        } else if is_model_file(&path) && is_name(&stem) {
            models.push((stem, Files::from([(1, path)])));
        }
    }
    Ok(models)
}

/// The versions in a model's folder: of each folder named by a number, the first model file.
fn versions_in(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    for path in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if let Some(number) = number
            && let Some(file) = entries(&path)?.into_iter().find(|file| is_model_file(file))
        {
            files.insert(number, file);
        }
    }
    Ok(files)
}

fn is_model_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors") && !path.is_dir()
}

/// What is in a folder, by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || Error::io(folder, "cannot list");
    let entries = std::fs::read_dir(folder).map_err(failed())?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed())?;
    paths.sort();
    Ok(paths)
}

/// A client's word, shortened and without what a terminal or a log would obey.
pub(super) fn printable(word: &str) -> String {
    word.chars().take(64).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_out_of_a_folder() {
        for name in ["a", "cifar10_cnn", "model-1.5", "9"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a\\b", "a%2fb", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn sources_are_files_with_names_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().to_str().unwrap();
        assert_eq!(text.parse::<Source>().unwrap(), Source::Folder(folder.path().to_owned()));
        let named = Source::File { name: "b".to_owned(), path: "x/a.safetensors".into() };
        assert_eq!("b=x/a.safetensors".parse::<Source>().unwrap(), named);
        assert_eq!("x/b.safetensors".parse::<Source>().unwrap(), Source::File { name: "b".to_owned(), path: "x/b.safetensors".into() });
        assert!("=x".parse::<Source>().is_err());
        assert!("a b=x".parse::<Source>().is_err());
    }

    #[test]
    fn folder_gives_files_and_numbered_versions() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["a.safetensors", "b/1/m.safetensors", "b/12/m.safetensors", "b/x/m.safetensors", "c/readme.txt", ".d.safetensors"] {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found: Vec<(String, Vec<u64>)> =
            scan_folder(folder.path()).unwrap().into_iter().map(|(name, files)| (name, files.into_keys().collect())).collect();
        assert_eq!(found, [("a".to_owned(), vec![1]), ("b".to_owned(), vec![1, 12])]);
        let own: Vec<u64> = scan_folder(&folder.path().join("b")).unwrap().remove(0).1.into_keys().collect();
        assert_eq!(own, [1, 12]);
    }
}
