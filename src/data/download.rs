//! The download of the official archive: what is resumed, what is begun again, and what counts as complete.
//!
//! Bytes go to `NAME.part` and become `NAME` only when their MD5 is right, so a file of that name is whole. A cut connection
//! is resumed from the last byte as long as each try brings some; a later run resumes too. A host that cannot be reached
//! is given up within seconds, and before anything is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};
use ureq::http::{Response, StatusCode, header};

use crate::{Error, Result};

/// A file on a server, with what is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Where it is, `https://` or `http://`.
    pub url: &'a str,
    /// The MD5 of the whole file in lower-case hexadecimal digits. It guards against damage; https guards against malice.
    pub md5: &'a str,
    /// The name to store it under.
    pub name: &'a str,
}

/// The official CIFAR-10 archive in the binary format, 170 MB.
pub const CIFAR10: Source<'static> = Source {
    url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5: "c32a1d4ab5d03f1284b67883e8d87530",
    name: "cifar-10-binary.tar.gz",
};

/// Told the bytes that are there (those of earlier tries included) and the bytes of the whole file, if the server said.
pub type Progress<'a> = dyn FnMut(u64, Option<u64>) + 'a;

/// A server that sends more than this sends something else.
const LARGEST: u64 = 256 << 20;
const RESOLVE: Duration = Duration::from_secs(3);
const CONNECT: Duration = Duration::from_secs(5);
const RESPOND: Duration = Duration::from_secs(10);
/// The longest silence in the middle of a transfer.
const SILENCE: Duration = Duration::from_secs(15);

/// Downloads `source` into `folder` (made if need be) and returns the file's path. What an earlier call left is resumed.
///
/// # Errors
/// [`Error::Download`] if the host cannot be reached, refuses, or stops sending (what arrived is kept); [`Error::Data`] if the MD5 is
/// wrong (what arrived is removed, so that the next call begins again); [`Error::Io`] if it cannot be stored, on a full disk for example
/// (what arrived is kept).
pub fn fetch(source: &Source<'_>, folder: &Path, progress: &mut Progress<'_>) -> Result<PathBuf> {
    fetch_with(source, &Terms::default(), folder, progress)
}

/// On which terms a file is fetched.
pub(crate) struct Terms {
    /// The value of the header `Authorization`.
    pub(crate) authorization: Option<String>,
    /// The most bytes that are accepted.
    pub(crate) largest: u64,
}

impl Default for Terms {
    fn default() -> Self {
        Self { authorization: None, largest: LARGEST }
    }
}

/// [`fetch`] on these terms.
pub(crate) fn fetch_with(source: &Source<'_>, terms: &Terms, folder: &Path, progress: &mut Progress<'_>) -> Result<PathBuf> {
    let path = folder.join(source.name);
    let part = folder.join(format!("{}.part", source.name));
    loop {
        let before = part_length(&part)?;
        match transfer(source, terms, folder, &part, before, progress)? {
            Outcome::Complete => break,
            Outcome::Restart => {}
            // A server that sends nothing, or the same stretch over and over, is not asked for ever.
            Outcome::Cut { reason } if part_length(&part)? <= before => {
                return Err(failed(source, format!("{reason} after {before} bytes, which are kept")));
            }
            Outcome::Cut { reason } => log::info!("{}: {reason}; resuming", source.url),
        }
    }
    let found = digest(&part)?;
    if found != source.md5 {
        fs::remove_file(&part).map_err(Error::io(&part, "cannot remove"))?;
        return Err(Error::Data {
            path: part,
            offset: 0,
            found: format!("a download with MD5 {found} (removed)"),
            expected: format!("MD5 {}", source.md5),
        });
    }
    fs::rename(&part, &path).map_err(Error::io(&path, "cannot rename the finished download to it"))?;
    Ok(path)
}

/// How one connection ended.
enum Outcome {
    /// Every byte is there.
    Complete,
    /// What was there is of no use and is removed: ask for the whole file.
    Restart,
    /// The connection ended early.
    Cut { reason: String },
}

/// One connection: asks for what lies after the first `have` bytes and appends it to `part`.
fn transfer(source: &Source<'_>, terms: &Terms, folder: &Path, part: &Path, have: u64, progress: &mut Progress<'_>) -> Result<Outcome> {
    let mut request = agent(source.url).get(source.url);
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
    }
    if let Some(value) = &terms.authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    let response = match request.call() {
        Ok(response) => response,
        // Before anything has come this is a machine without network; the caller has other data.
        Err(error) => return Err(failed(source, format!("{error}{}", kept(have)))),
    };
    let range = content_range(&response);
    let (start, total) = match (response.status(), range) {
        (StatusCode::OK, _) => (0, content_length(&response)),
        (StatusCode::PARTIAL_CONTENT, Some((Some(start), total))) if start == have => (start, total),
        // All of it is there already, or the server does not say: the MD5 decides.
        (StatusCode::RANGE_NOT_SATISFIABLE, Some((_, Some(total)))) if have > 0 && total == have => return Ok(Outcome::Complete),
        (StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT, _) if have > 0 => {
            fs::remove_file(part).map_err(Error::io(part, "cannot remove"))?;
            return Ok(Outcome::Restart);
        }
        (status, _) => return Err(failed(source, format!("the server answered {status}{}", kept(have)))),
    };
    let largest = terms.largest;
    if let Some(total) = total.filter(|total| *total > largest) {
        return Err(failed(source, format!("the server offers {total} bytes, more than the {largest} that are accepted")));
    }
    let mut file = open_part(source, folder, part, have, start)?;
    receive(source, response.into_body().into_reader(), &mut file, part, start, (total, largest), progress)
}

fn receive(
    source: &Source<'_>,
    mut body: impl Read,
    file: &mut File,
    part: &Path,
    start: u64,
    (total, largest): (Option<u64>, u64),
    progress: &mut Progress<'_>,
) -> Result<Outcome> {
    let mut done = start;
    let mut buffer = vec![0; 1 << 16];
    progress(done, total);
    let cut = loop {
        match body.read(&mut buffer) {
            Ok(0) => break None,
            Ok(count) => {
                done += count as u64;
                if done > total.unwrap_or(largest) {
                    return Err(failed(source, format!("the server sends more than {} bytes", total.unwrap_or(largest))));
                }
                file.write_all(&buffer[..count]).map_err(Error::io(part, "cannot write"))?;
                progress(done, total);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Some(error),
        }
    };
    file.sync_all().map_err(Error::io(part, "cannot write"))?;
    Ok(match (cut, total) {
        (Some(error), _) => Outcome::Cut { reason: format!("the connection broke ({error})") },
        (None, Some(total)) if done < total => Outcome::Cut { reason: format!("the connection ended at byte {done} of {total}") },
        (None, _) => Outcome::Complete,
    })
}

/// The part file, locked, ready to write at `start`.
fn open_part(source: &Source<'_>, folder: &Path, part: &Path, have: u64, start: u64) -> Result<File> {
    fs::create_dir_all(folder).map_err(Error::io(folder, "cannot create"))?;
    let mut file =
        OpenOptions::new().create(true).read(true).write(true).truncate(false).open(part).map_err(Error::io(part, "cannot create"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(failed(source, format!("another process is writing {}", part.display()))),
        // Some network file systems have no locks; two downloads at once are unlikely, and the MD5 would tell.
        Err(fs::TryLockError::Error(error)) => log::debug!("{}: cannot lock: {error}", part.display()),
    }
    let length = file.metadata().map_err(Error::io(part, "cannot read"))?.len();
    if length != have {
        return Err(failed(source, format!("{} changed from {have} to {length} bytes meanwhile", part.display())));
    }
    file.set_len(start).map_err(Error::io(part, "cannot write"))?;
    file.seek(SeekFrom::Start(start)).map_err(Error::io(part, "cannot write"))?;
    Ok(file)
}

/// The client, for this address.
pub(crate) fn agent(url: &str) -> ureq::Agent {
    let mut config = ureq::Agent::config_builder()
        // The bytes of the archive are wanted as they are, and so are answers such as 416.
        .accept_encoding("identity")
        .http_status_as_error(false)
        .timeout_resolve(Some(RESOLVE))
        .timeout_connect(Some(CONNECT))
        .timeout_send_request(Some(CONNECT))
        .timeout_recv_response(Some(RESPOND))
        .timeout_per_read(Some(SILENCE));
    if ["http://127.0.0.1", "http://localhost"].iter().any(|host| url.starts_with(host)) {
        // A proxy has another idea of which machine this is.
        config = config.proxy(None);
    }
    config.build().new_agent()
}

fn content_length(response: &Response<ureq::Body>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Start and total of `Content-Range: bytes START-END/TOTAL`, either of which may be absent.
fn content_range(response: &Response<ureq::Body>) -> Option<(Option<u64>, Option<u64>)> {
    parse_range(response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?)
}

fn parse_range(value: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let start = range.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
    Some((start, total.trim().parse().ok()))
}

/// Bytes in the part file; 0 if there is none.
fn part_length(part: &Path) -> Result<u64> {
    match fs::metadata(part) {
        Ok(metadata) => Ok(metadata.len()),
        // A folder in the way of the folder is noticed when the part is created.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(0),
        Err(error) => Err(Error::io(part, "cannot read")(error)),
    }
}

/// The MD5 of a file in lower-case hexadecimal digits.
pub(crate) fn digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "cannot open"))?;
    let mut hash = Md5::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path, "cannot read")(error)),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn kept(have: u64) -> String {
    if have > 0 { format!("; {have} bytes of an earlier try are kept") } else { String::new() }
}

fn failed(source: &Source<'_>, problem: String) -> Error {
    Error::Download { url: source.url.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_is_read_in_all_its_forms() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(parse_range("bytes */10"), Some((None, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((Some(5), None)));
        assert_eq!(parse_range("items 5-9/10"), None);
        assert_eq!(parse_range("bytes"), None);
    }
}
