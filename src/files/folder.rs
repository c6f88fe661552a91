//! The folder of a training run: who may write there, and that at every moment one whole checkpoint stands in it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::atomic::{folder_of, link_atomic, put_in_place, sync_folder};
use super::checkpoint::{is_whole, load_checkpoint, write_checkpoint};
use super::sweep;
use crate::{Error, Result};

/// The checkpoints of one training run, locked against any other process until this is dropped.
///
/// | file | what |
/// |---|---|
/// | `last.ckpt` | the latest state, to resume from |
/// | `previous.ckpt` | the one before it, in case `last.ckpt` is damaged |
/// | `best.safetensors`, `last.safetensors` | the models, written by the trainer |
/// | `lock` | empty; locked while a run uses the folder, and never removed |
#[derive(Debug)]
pub struct CheckpointDir {
    folder: PathBuf,
    /// What is known of `last.ckpt`. The mutex also keeps two saves of one process apart.
    last: Mutex<Last>,
    /// Its lock goes with it: when this is dropped, and so also when the process is killed.
    lock: File,
}

/// Decides whether `last.ckpt` may become `previous.ckpt`: a damaged one must never displace a whole one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Last {
    Unknown,
    Loadable,
    Unusable,
}

impl Drop for CheckpointDir {
    // A process that another thread is just starting has the file open too, until its program runs: closing alone would leave the
    // folder locked for that long.
    fn drop(&mut self) {
        let _ = self.lock.unlock(); // what fails here is done by closing
    }
}

impl CheckpointDir {
    /// Creates the folder if there is none, locks it and removes what killed runs left unfinished.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when another run holds the folder, [`Error::Io`] when it cannot be created, locked or read.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder, "cannot create the checkpoint folder"))?;
        sync_folder(folder_of(folder))?;
        let path = folder.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io(&path, "cannot open"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("checkpoint folder {}", folder.display());
                return Err(Error::invalid(what, "it in use by another training run", "a folder of its own for each run"));
            }
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                log::warn!("{}: this file system has no locks; keep other training runs out of it", folder.display());
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, "cannot lock")(e)),
        }
        let removed = sweep(folder)?;
        if removed > 0 {
            log::info!("{}: removed {removed} unfinished files of an interrupted run", folder.display());
        }
        Ok(Self { folder: folder.to_path_buf(), last: Mutex::new(Last::Unknown), lock })
    }

    /// The folder, as it was given.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// `last.ckpt`: the latest state.
    pub fn last_path(&self) -> PathBuf {
        self.folder.join("last.ckpt")
    }

    /// `previous.ckpt`: the state before the latest.
    pub fn previous_path(&self) -> PathBuf {
        self.folder.join("previous.ckpt")
    }

    /// `best.safetensors`: the model of the best epoch so far.
    pub fn best_model_path(&self) -> PathBuf {
        self.folder.join("best.safetensors")
    }

    /// `last.safetensors`: the model of the latest epoch.
    pub fn last_model_path(&self) -> PathBuf {
        self.folder.join("last.safetensors")
    }

    /// Saves a state as `last.ckpt`; the one that was there becomes `previous.ckpt`.
    ///
    /// A process killed at any point leaves a folder from which [`load_last`](Self::load_last) returns this state or the
    /// one saved before it; after this has returned, this state. See the comments for each step.
    ///
    /// # Errors
    ///
    /// As [`save_checkpoint`](super::save_checkpoint). What could be loaded before can then still be loaded.
    pub fn save_last<T: Serialize>(&self, value: &T) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, previous) = (self.last_path(), self.previous_path());
        // 1. The new state is whole and synced under a temporary name. Killed before or here: both old files stand.
        let temporary = write_checkpoint(&path, value)?;
        // 2. The old state gets its second name in one step, unless it is damaged: then `previous.ckpt` may be the only
        //    whole file. Killed here: both names are the old state.
        //    Whatever fails from here on, the next save looks at the files again.
        let keep = match std::mem::replace(&mut *last, Last::Unknown) {
            Last::Loadable => true,
            Last::Unusable => false,
            Last::Unknown => is_whole(&path),
        };
        if keep {
            keep_as(&path, &previous)?;
        }
        // 3. The new state replaces the old one in one step, and the folder is synced.
        put_in_place(temporary, &path)?;
        *last = Last::Loadable;
        Ok(())
    }

    /// The latest state that can be loaded, or `None` when the folder holds none at all. When `last.ckpt` is missing or
    /// damaged, `previous.ckpt` is loaded and a warning logged.
    ///
    /// # Errors
    ///
    /// That of [`load_checkpoint`] for the first file there is, when no file can be loaded.
    pub fn load_last<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let first = load_if_there(&self.last_path());
        *last = if matches!(first, Ok(Some(_))) { Last::Loadable } else { Last::Unusable };
        let problem = match first {
            Ok(Some(value)) => return Ok(Some(value)),
            Ok(None) => None,
            Err(e) => Some(e),
        };
        match (load_if_there(&self.previous_path()), problem) {
            (Ok(Some(value)), problem) => {
                let why = problem.map_or_else(|| format!("{} is missing", self.last_path().display()), |e| e.to_string());
                log::warn!("{why}; taking the checkpoint before it, {}", self.previous_path().display());
                Ok(Some(value))
            }
            (_, Some(problem)) | (Err(problem), None) => Err(problem),
            (Ok(None), None) => Ok(None),
        }
    }
}

/// Lets the file at `path` be found as `previous`; it also keeps its name where the file system has hard links.
fn keep_as(path: &Path, previous: &Path) -> Result<()> {
    let Err(refusal) = link_atomic(path, previous) else { return Ok(()) };
    // Without hard links the old state moves, and until the new one is in place it is found as `previous.ckpt`.
    log::debug!("{}: cannot link ({refusal}), renaming", previous.display());
    match fs::rename(path, previous) {
        // Somebody removed it under the running trainer: then there is nothing to keep.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved.map_err(Error::io(previous, "cannot keep the former checkpoint")),
    }
}

fn load_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match load_checkpoint(path) {
        Ok(value) => Ok(Some(value)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_free_once_its_run_is_dropped_though_a_starting_process_has_the_file_open() {
        let folder = tempfile::tempdir().unwrap();
        let run = CheckpointDir::open(folder.path()).unwrap();
        let copy = run.lock.try_clone().unwrap();
        assert!(CheckpointDir::open(folder.path()).is_err());
        drop(run);
        CheckpointDir::open(folder.path()).unwrap();
        drop(copy);
    }
}
