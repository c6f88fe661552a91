//! Which data a user gets: what was asked for, else what the cache holds, else a download, else the sample.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::download::{self, CIFAR10, Progress, Source};
use super::{Origin, Splits, archive, cache, cifar, images, sample};
use crate::{Error, Result};

/// The environment variable that, set to `1`, forbids the download.
const OFFLINE: &str = "SHADERNET_OFFLINE";
/// How many names an error lists of a folder without data.
const LISTED: usize = 8;

/// Finds training and test data: at `path` if one is given; else CIFAR-10 in the user's cache (see [`cache`]), else by
/// download into it (unless `SHADERNET_OFFLINE=1`), else, with a warning in the log that says why, [`sample`].
///
/// `path` is a folder with the official binary files, an archive of them, or a folder of class folders (see [`images`]).
/// `progress` is told the bytes that a download has and will have.
///
/// # Errors
/// [`Error::Invalid`] for a folder that is none of these; [`Error::Io`] and [`Error::Data`] from reading and storing. A failed
/// download is no error, a damaged one is.
pub fn find(path: Option<&Path>, progress: &mut Progress<'_>) -> Result<Splits> {
    let offline = env::var_os(OFFLINE).is_some_and(|value| value == "1");
    find_in(path, cache::folder().as_deref(), (!offline).then_some(&CIFAR10), progress)
}

/// [`find`] with the cache folder and the download given; `None` for either goes without.
///
/// # Errors
/// As [`find`].
pub fn find_in(path: Option<&Path>, cache: Option<&Path>, source: Option<&Source<'_>>, progress: &mut Progress<'_>) -> Result<Splits> {
    if let Some(path) = path {
        return load(path);
    }
    let Some(folder) = cache else {
        log::warn!("there is no cache folder to download CIFAR-10 to: using the built-in sample (set {} to choose one)", cache::VARIABLE);
        return Ok(sample());
    };
    if let Some(found) = cache::lookup(folder) {
        return Ok(Splits { origin: Origin::Cache(found.clone()), ..load(&found)? });
    }
    let Some(source) = source else {
        log::warn!("{OFFLINE}=1: CIFAR-10 is not downloaded, using the built-in sample");
        return Ok(sample());
    };
    match download::fetch(source, folder, progress) {
        Ok(archive) => Ok(Splits { origin: Origin::Downloaded(archive.clone()), ..load(&archive)? }),
        Err(error @ Error::Download { .. }) => {
            log::warn!("CIFAR-10 could not be downloaded, using the built-in sample: {error}");
            Ok(sample())
        }
        Err(error) => Err(error),
    }
}

/// Reads whatever kind of data is at `path`.
fn load(path: &Path) -> Result<Splits> {
    let metadata = fs::metadata(path).map_err(Error::io(path, "cannot open"))?;
    let own = path.to_path_buf();
    let ((train, test), origin) = if !metadata.is_dir() {
        check_gzip(path)?;
        (archive::load_archive(path)?, Origin::Archive(own))
    } else if cifar::is_binary_folder(path) {
        (cifar::load_folder(path)?, Origin::Folder(own))
    } else if images::is_image_folder(path) {
        (images::load_image_folder(path)?, Origin::ImageFolder(own))
    } else if path.join(CIFAR10.name).is_file() {
        let archive = path.join(CIFAR10.name);
        (archive::load_archive(&archive)?, Origin::Archive(archive))
    } else {
        return Err(Error::invalid(format!("data folder {}", path.display()), contents(path)?, expected_folder()));
    };
    Ok(Splits { train, test, origin })
}

/// A file that is no archive at all deserves a better answer than a decoder's.
fn check_gzip(path: &Path) -> Result<()> {
    cifar::file_size(path)?;
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io(path, "cannot open"))?;
    file.take(2).read_to_end(&mut start).map_err(Error::io(path, "cannot read"))?;
    if start == [0x1f, 0x8b] {
        return Ok(());
    }
    let found = if start.is_empty() { "an empty file".to_owned() } else { format!("bytes {start:02x?}") };
    Err(cifar::data(path, 0, found, format!("{} (bytes 1f 8b), or a folder in its place", CIFAR10.name)))
}

fn expected_folder() -> String {
    let [first, .., last] = cifar::TRAIN_FILES;
    format!("{first} to {last} and {}, or {}, or train/CLASS and test/CLASS with PNG or JPEG files", cifar::TEST_FILE, CIFAR10.name)
}

/// The first names in a folder.
fn contents(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder, "cannot list"))?;
    let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    Ok(match (names.is_empty(), more) {
        (true, _) => "an empty folder".to_owned(),
        (_, 0) => names.join(", "),
        (_, more) => format!("{} and {more} more", names.join(", ")),
    })
}
