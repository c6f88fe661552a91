//! What stands on disk and how it gets there: every file is complete or absent, and nothing read from one is believed unchecked.
//!
//! * [`write_atomic`]: the one way in which this crate replaces a file.
//! * [`save_tensors`], [`load_tensors`]: a model, one `.safetensors`.
//! * [`save_checkpoint`], [`load_checkpoint`], [`CheckpointDir`]: the whole state of a training run.
//! * [`ModelFile`]: all that is in a model's file; [`Baseline`] with it, what the model was validated with.
//! * [`History`]: the curves of a run as JSON, under Keras's names.
//!
//! Readers trust no length that a file states about itself: each is held against the size of the file before memory is asked for.

mod atomic;
mod baseline;
mod checkpoint;
mod folder;
mod history;
pub(crate) mod model;
mod weights;

pub use atomic::{sweep, write_atomic};
pub use baseline::Baseline;
pub(crate) use baseline::Tally;
pub use checkpoint::{load_checkpoint, save_checkpoint};
pub use folder::CheckpointDir;
pub use history::History;
pub use model::{ModelFile, load_model, save_model};
pub use weights::{MAX_MODEL_BYTES, NamedTensor, load_tensors, save_tensors};

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// The whole of a regular file, which may have at most `limit` bytes. Memory is asked for by the size of the file.
///
/// # Errors
///
/// [`Error::Io`] when it cannot be read, [`Error::Model`] of this `kind` when it is no regular file or larger than `limit`.
fn read_whole(path: &Path, kind: &'static str, limit: u64) -> Result<Vec<u8>> {
    let refuse = |found: String, expected: String| Error::Model { path: path.to_path_buf(), kind, found, expected };
    // Asked before opening: opening a named pipe would wait for a writer.
    let status = std::fs::metadata(path).map_err(Error::io(path, "cannot open"))?;
    if !status.is_file() {
        let found = if status.is_dir() { "a folder" } else { "a device or a pipe" };
        return Err(refuse(found.to_owned(), "a regular file".to_owned()));
    }
    let size = status.len();
    if size > limit {
        return Err(refuse(format!("{size} bytes"), format!("at most {limit} bytes")));
    }
    let mut bytes = Vec::new();
    let room = usize::try_from(size).ok().and_then(|n| bytes.try_reserve_exact(n.saturating_add(1)).ok());
    room.ok_or_else(|| refuse(format!("{size} bytes"), "a file that fits into memory".to_owned()))?;
    let file = File::open(path).map_err(Error::io(path, "cannot open"))?;
    // One byte more than expected is asked for, so that a file which grows meanwhile is noticed and cannot grow memory.
    file.take(size + 1).read_to_end(&mut bytes).map_err(Error::io(path, "cannot read"))?;
    if bytes.len() as u64 != size {
        return Err(refuse(format!("{} bytes or more", bytes.len()), format!("{size} bytes, as when it was opened")));
    }
    Ok(bytes)
}
