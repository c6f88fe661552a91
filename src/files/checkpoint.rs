//! A checkpoint file: one serialised value in a frame that tells a whole file from a damaged, foreign or newer one.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `SHADERNT` |
//! | 4 | version of the format, `u32` |
//! | 8 | length n of the body, `u64` |
//! | n | body: [bincode](https://docs.rs/bincode/2.0.1) with integers of fixed width |
//! | 4 | CRC-32 (IEEE) of everything before it, `u32` |
//!
//! All integers are little-endian. A changed meaning of the body is a new version.

use std::path::Path;

use bincode::config::{self, Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::atomic::{put_in_place, write_temporary};
use super::read_whole;
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"SHADERNT";
const VERSION: u32 = 3;
const HEADER: usize = 20;
const CHECKSUM: usize = 4;
/// The largest body, in bytes.
const MAX_BODY: u64 = 1 << 32;

/// Writes a value as a checkpoint file, atomically. One copy of it is held in memory meanwhile.
///
/// # Errors
///
/// [`Error::Invalid`] when the value cannot be serialised or is larger than 4 GiB; else as [`write_atomic`](super::write_atomic).
pub fn save_checkpoint<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    put_in_place(write_checkpoint(path, value)?, path)
}

/// A complete, synced checkpoint under a temporary name beside `path`.
pub(super) fn write_checkpoint<T: Serialize>(path: &Path, value: &T) -> Result<tempfile::NamedTempFile> {
    // Integers of fixed width: then decoding a body accounts for no more bytes than the body has, and the limit can be tight.
    let config = config::standard().with_fixed_int_encoding();
    let what = || format!("{}: value to write", path.display());
    let body = bincode::serde::encode_to_vec(value, config).map_err(|e| Error::invalid(what(), e, "a value that bincode can serialise"))?;
    if body.len() as u64 > MAX_BODY {
        return Err(Error::invalid(what(), format!("{} bytes", body.len()), format!("at most {MAX_BODY}")));
    }
    let header = header(body.len() as u64);
    let checksum = checksum(&header, &body);
    write_temporary(path, |out| {
        out.write_all(&header)?;
        out.write_all(&body)?;
        out.write_all(&checksum.to_le_bytes())
    })
}

/// Reads a value from a checkpoint file. Memory is asked for by the size of the file, never by what the file says.
///
/// # Errors
///
/// [`Error::Io`] when the file cannot be read; [`Error::Model`] with kind `checkpoint` when it is of another program,
/// of a newer version, truncated, changed, followed by other bytes, larger than 4 GiB, or holds another type of value.
pub fn load_checkpoint<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_whole(path, "checkpoint", MAX_BODY + (HEADER + CHECKSUM) as u64)?;
    let refuse = |found: String, expected: &str| refuse(path, found, expected);
    let body = body_of(path, &bytes)?;
    let (value, used) =
        decode(body).map_err(|e| refuse(format!("a body that does not decode ({e})"), "the value that this program saves"))?;
    if used != body.len() {
        return Err(refuse(format!("a value of {used} bytes in a body of {}", body.len()), "one value that fills the body"));
    }
    Ok(value)
}

/// Whether the file is whole: read, and its frame and checksum are right. What the body means is not asked.
pub(super) fn is_whole(path: &Path) -> bool {
    read_whole(path, "checkpoint", MAX_BODY + (HEADER + CHECKSUM) as u64).is_ok_and(|bytes| body_of(path, &bytes).is_ok())
}

fn header(body: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&body.to_le_bytes());
    header
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(body);
    hasher.finalize()
}

fn refuse(path: &Path, found: String, expected: &str) -> Error {
    Error::Model { path: path.to_path_buf(), kind: "checkpoint", found, expected: expected.to_owned() }
}

/// The body of a checkpoint whose magic, version, length and checksum are right.
fn body_of<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let refuse = |found: String, expected: &str| Err(refuse(path, found, expected));
    let start = &bytes[..bytes.len().min(MAGIC.len())];
    if start != MAGIC {
        return refuse(format!("a file that starts with \"{}\"", start.escape_ascii()), "one that starts with \"SHADERNT\"");
    }
    let (Some((header, rest)), true) = (bytes.split_first_chunk::<HEADER>(), bytes.len() >= HEADER + CHECKSUM) else {
        return refuse(format!("{} bytes", bytes.len()), &format!("{} at least", HEADER + CHECKSUM));
    };
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if version != VERSION {
        let writer = if version < VERSION { "an older program" } else { "a newer program" };
        return refuse(format!("format version {version}"), &format!("version {VERSION}; {writer} wrote it, or it is damaged"));
    }
    let mut length = [0; 8];
    length.copy_from_slice(&header[12..]);
    let length = u64::from_le_bytes(length);
    let there = rest.len() - CHECKSUM;
    if length != there as u64 {
        return refuse(format!("a body of {there} bytes"), &format!("{length}, as its header says: it is truncated or damaged"));
    }
    let (body, stored) = rest.split_at(there);
    let computed = checksum(header, body);
    if stored != computed.to_le_bytes() {
        let stored = stored.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
        return refuse(format!("checksum {stored}"), &format!("{computed:08x}: it is damaged"));
    }
    Ok(body)
}

/// Decodes with a limit on what a forged body can make bincode allocate (for a string, before it is read). The limit is a
/// constant of a type, so the least of a few is taken: at most 64 KiB or 16 times the body, and such memory is never touched.
fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<(T, usize), bincode::error::DecodeError> {
    fn within<T: DeserializeOwned, const LIMIT: usize>(body: &[u8]) -> Result<(T, usize), bincode::error::DecodeError> {
        let config: Configuration<LittleEndian, Fixint, Limit<LIMIT>> = config::standard().with_fixed_int_encoding().with_limit();
        bincode::serde::decode_from_slice(body, config)
    }
    match body.len() {
        n if n <= 1 << 16 => within::<T, { 1 << 16 }>(body),
        n if n <= 1 << 20 => within::<T, { 1 << 20 }>(body),
        n if n <= 1 << 24 => within::<T, { 1 << 24 }>(body),
        n if n <= 1 << 28 => within::<T, { 1 << 28 }>(body),
        _ => within::<T, { (2 * MAX_BODY - 1) as usize }>(body),
    }
}
