//! How a file is replaced: whoever opens the name sees the whole old file or the whole new one, whatever happens in between.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Stands between the name of the file that will be replaced and the random part of a temporary name.
const MARK: &str = ".tmp-";
/// Random characters that end a temporary name.
const RANDOM: usize = 8;

/// Replaces the file at `path` by what `write` writes, or leaves it as it is.
///
/// The bytes go, through a buffer, to `.NAME.tmp-XXXXXXXX` in the same folder. It is synced, renamed over `path`, and on
/// Unix the folder is synced, so that the new file outlives a loss of power. When anything fails before the rename,
/// also a panic in `write`, the old file is untouched and the temporary file is removed. A killed process leaves its
/// temporary file behind; [`sweep`] removes those.
///
/// A file that is replaced keeps its permissions; a new one gets those that the process gives to any new file.
///
/// A symbolic link at `path` is itself replaced, so nothing is written where it points to. A folder, a device or a
/// pipe is refused, also behind a link: renaming over `/dev/stdout` would remove it.
///
/// # Errors
///
/// [`Error::Invalid`] when `path` names no file that could be replaced, [`Error::Io`] for everything that the system
/// refuses and for what `write` returns.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let temporary = write_temporary(path, write)?;
    put_in_place(temporary, path)
}

/// The first half of [`write_atomic`]: a complete, synced temporary file beside `path`, removed when it is dropped.
pub(super) fn write_temporary(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<NamedTempFile> {
    let old = old_file(path)?;
    let mut builder = tempfile::Builder::new();
    let prefix = temporary_prefix(path)?;
    builder.prefix(&prefix).rand_bytes(RANDOM);
    // The crate's own default lets nobody else read the file, which surprises whoever shares a model.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder_of(path)).map_err(Error::io(path, "cannot create a temporary file beside it"))?;
    if let Some(old) = old {
        temporary.as_file().set_permissions(old.permissions()).map_err(Error::io(path, "cannot keep its permissions"))?;
    }
    let mut buffer = BufWriter::with_capacity(1 << 16, temporary.as_file());
    write(&mut buffer).and_then(|()| buffer.flush()).map_err(Error::io(path, "cannot write"))?;
    // Dropped here, or its own drop would write again after an error.
    drop(buffer);
    temporary.as_file().sync_all().map_err(Error::io(path, "cannot write to the disk"))?;
    Ok(temporary)
}

/// The second half of [`write_atomic`]: gives a complete temporary file its name.
pub(super) fn put_in_place(temporary: NamedTempFile, path: &Path) -> Result<()> {
    // On failure the error owns the temporary file, and dropping it removes that file.
    temporary.persist(path).map_err(|e| Error::io(path, "cannot replace")(e.error))?;
    sync_folder(folder_of(path))
}

/// A further name for `from`, or a copy of nothing: `to` is replaced in one step and `from` stays.
///
/// # Errors
///
/// The system's, for example on a file system without hard links; `to` is then as it was.
pub(super) fn link_atomic(from: &Path, to: &Path) -> io::Result<()> {
    let prefix = temporary_prefix(to).map_err(io::Error::other)?;
    let link = tempfile::Builder::new().prefix(&prefix).rand_bytes(RANDOM).make_in(folder_of(to), |name| fs::hard_link(from, name))?;
    let name = link.into_temp_path();
    // Renaming one name of a file to another name of the same file does nothing, by POSIX: then dropping `name` removes it.
    fs::rename(&name, to)
}

/// Removes what killed processes left of [`write_atomic`] in this folder, and returns how many files that were.
///
/// Call it only while no other process writes into the folder (as [`CheckpointDir`](super::CheckpointDir) does, under its
/// lock): a temporary file in use looks the same. Only regular files whose name has the form `.NAME.tmp-XXXXXXXX`
/// are touched. One that cannot be removed is logged and left.
///
/// # Errors
///
/// [`Error::Io`] when the folder cannot be read.
pub fn sweep(folder: &Path) -> Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "cannot list"))? {
        let entry = entry.map_err(Error::io(folder, "cannot list"))?;
        let ours = is_temporary_name(&entry.file_name().to_string_lossy()) && entry.file_type().is_ok_and(|t| t.is_file());
        if !ours {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Ok(()) => removed += 1,
            Err(e) => log::warn!("{}: cannot remove this left-over temporary file: {e}", entry.path().display()),
        }
    }
    Ok(removed)
}

fn is_temporary_name(name: &str) -> bool {
    let Some((stem, random)) = name.rsplit_once(MARK) else { return false };
    stem.len() > 1 && stem.starts_with('.') && random.len() == RANDOM && random.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// `.NAME.tmp-`, with NAME cut so that the whole stays below the 255 bytes that file systems allow.
fn temporary_prefix(path: &Path) -> Result<OsString> {
    let wrong = || Error::invalid("name of the file to write", path.display(), "a path that ends in a file name");
    let name = path.file_name().ok_or_else(wrong)?.to_string_lossy();
    let short: String = name.chars().take(50).collect();
    Ok(format!(".{short}{MARK}").into())
}

/// What is known of the regular file that will be replaced, or `None` when there is none.
fn old_file(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(old) if old.is_file() => Ok(Some(old)),
        Ok(old) => {
            let found = if old.is_dir() { "a folder" } else { "a device or a pipe" };
            Err(Error::invalid(format!("{}: cannot write", path.display()), found, "a regular file, or nothing, by this name"))
        }
        // Also a link that points nowhere: the link is replaced.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "cannot look at")(e)),
    }
}

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes the names in a folder durable. Elsewhere than on Unix a folder cannot be synced, and renames are journalled.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = fs::File::open(folder).and_then(|f| f.sync_all());
        // Some network file systems cannot sync a folder; that is no reason to call a written file unwritten.
        let cannot = |e: &io::Error| matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported);
        synced.or_else(|e| if cannot(&e) { Ok(()) } else { Err(e) }).map_err(Error::io(PathBuf::from(folder), "cannot sync the folder"))?;
    }
    Ok(())
}
