//! The file of what was found: one for each device and driver, as JSON that a person can read.
//!
//! It is a cache: what cannot be read is found out again, and what cannot be written costs a warning.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files::write_atomic;

/// What was found of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Found {
    /// The kernel to run.
    pub(super) kernel: String,
    /// Whether all were tried, at length.
    pub(super) full: bool,
    /// Microseconds of those that were tried.
    pub(super) us: BTreeMap<String, f64>,
}

/// By the steps' keys.
pub(super) type Known = BTreeMap<String, Found>;

#[derive(Serialize, Deserialize)]
struct Content {
    shadernet_kernels: u32,
    device: String,
    steps: Known,
}

/// A changed meaning of the file is a new version.
const VERSION: u32 = 1;

/// The most bytes of a file that is read: thousands of steps.
const LARGEST: u64 = 16 << 20;

/// What is known of this device.
pub(super) fn read(folder: &Path, device: &str) -> Known {
    let path = path(folder, device);
    let ignored = |why: String| {
        log::warn!("{}: {why}; the choice of kernels in it is ignored", path.display());
        Known::new()
    };
    let mut text = Vec::new();
    match fs::File::open(&path).and_then(|file| file.take(LARGEST).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Known::new(),
        Err(error) => return ignored(error.to_string()),
    }
    match serde_json::from_slice::<Content>(&text) {
        Ok(content) if content.shadernet_kernels != VERSION => ignored(format!("version {}", content.shadernet_kernels)),
        Ok(content) if content.device != device => ignored(format!("of {}", content.device)),
        Ok(content) => content.steps,
        Err(error) => ignored(error.to_string()),
    }
}

/// Keeps what is known of this device, with what other processes have found meanwhile.
pub(super) fn write(folder: &Path, device: &str, known: &Known) {
    let path = path(folder, device);
    let made = fs::create_dir_all(folder).map_err(Error::io(folder, "cannot make the folder"));
    let written = made.and_then(|()| {
        let mut steps = if path.exists() { read(folder, device) } else { Known::new() };
        steps.extend(known.clone());
        let content = Content { shadernet_kernels: VERSION, device: device.to_owned(), steps };
        write_atomic(&path, |out| Ok(serde_json::to_writer_pretty(out, &content)?))
    });
    if let Err(error) = written {
        log::warn!("the choice of kernels is not kept, and may be another one next time: {error}");
    }
}

/// A file for each device: its name may hold anything, so a checksum stands for it.
fn path(folder: &Path, device: &str) -> PathBuf {
    folder.join(format!("choices-{:08x}.json", crc32fast::hash(device.as_bytes())))
}
