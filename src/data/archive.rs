//! The official archive, read straight from its `.tar.gz`: which members count, and how much of a foreign file is read.
//!
//! Nothing is unpacked to disk, so there is no path to escape to and no half-unpacked folder to mistake for a whole one. The
//! archive is read once, front to back; a member's size is checked before any of it is kept, long names and extended headers
//! are skipped instead of held, and what a small file may decompress to is bounded.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::cifar::{self, NAMES_FILE, TEST_FILE, TRAIN_FILES};
use super::{CIFAR10_CLASSES, Dataset};
use crate::{Error, Result};

/// What an archive may decompress to; the official one is 184 MB.
const UNPACKED_BYTES: u64 = 256 << 20;

/// Reads the training and the test set from an archive like the official `cifar-10-binary.tar.gz`.
///
/// The six data files may lie in any one folder of it and in any order; each must be there once. Other members are skipped.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Data`] if it is no gzip, is truncated or damaged, is no tar, lacks a member or has
/// one twice. An error inside a member names it below the archive's path, with the offset in the member; any other offset is one in
/// the compressed file.
pub fn load_archive(path: &Path) -> Result<(Dataset, Dataset)> {
    cifar::file_size(path)?;
    let file = File::open(path).map_err(Error::io(path, "cannot open"))?;
    read_archive(path, file)
}

fn read_archive(path: &Path, file: impl Read) -> Result<(Dataset, Dataset)> {
    let consumed = Cell::new(0);
    let counted = Counted { inner: file, consumed: &consumed };
    let unpacked = MultiGzDecoder::new(BufReader::with_capacity(1 << 16, counted)).take(UNPACKED_BYTES);
    let mut tar = tar::Archive::new(unpacked);
    let damaged = |error: io::Error| damage(path, consumed.get(), error);

    let mut parts: [Option<Dataset>; 6] = Default::default();
    let mut names: Option<Vec<String>> = None;
    let mut members = 0;
    for entry in tar.entries().map_err(damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged)?;
        let size = entry.size();
        members += 1;
        let member = entry.path_bytes().into_owned();
        let file_name = member.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        // The member's own path appears in messages only; nothing is ever opened by it.
        let place = path.join(String::from_utf8_lossy(file_name).as_ref());
        let twice = || cifar::data(&place, 0, "a second member of this name".into(), "each file once");
        let mut failure = None;
        let content = Tapped { inner: &mut entry, failure: &mut failure };
        let outcome = if let Some(i) = TRAIN_FILES.iter().chain([&TEST_FILE]).position(|name| name.as_bytes() == file_name) {
            if parts[i].is_some() {
                return Err(twice());
            }
            let part = parts[i].insert(cifar::empty(Vec::new()));
            cifar::append(&place, content, size, part)
        } else if file_name == NAMES_FILE.as_bytes() {
            if names.is_some() {
                return Err(twice());
            }
            cifar::parse_names(&place, content, size).map(|found| names = Some(found))
        } else {
            Ok(())
        };
        match (outcome, failure) {
            (Err(_), Some(error)) => return Err(damaged(error)),
            (outcome, _) => outcome?,
        }
    }

    // The checksum of a gzip stands at its end: reading on to there proves that what was read is what was written.
    let mut rest = tar.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(damaged)?;
    if rest.limit() == 0 {
        let found = format!("more than {UNPACKED_BYTES} bytes when decompressed");
        return Err(cifar::data(path, consumed.get(), found, "an archive like the official one, with 184 million"));
    }
    assemble(path, consumed.get(), members, parts, names)
}

fn assemble(path: &Path, end: u64, members: usize, parts: [Option<Dataset>; 6], names: Option<Vec<String>>) -> Result<(Dataset, Dataset)> {
    let classes = names.unwrap_or_else(|| CIFAR10_CLASSES.map(str::to_owned).to_vec());
    let missing =
        |name: &str| cifar::data(path, end, format!("the end of the archive after {members} members"), format!("a member {name}"));
    let mut train = cifar::empty(classes.clone());
    let [batches @ .., test] = parts;
    for (name, part) in TRAIN_FILES.iter().zip(batches) {
        let part = part.ok_or_else(|| missing(name))?;
        train.images.extend_from_slice(&part.images);
        train.labels.extend_from_slice(&part.labels);
    }
    let mut test = test.ok_or_else(|| missing(TEST_FILE))?;
    test.classes = classes;
    Ok((train, test))
}

/// What the gzip or tar reader said, at the byte of the compressed file that it had reached.
fn damage(path: &Path, offset: u64, error: io::Error) -> Error {
    // A system error has a number; what the decoders find wrong in the bytes has none.
    if error.raw_os_error().is_some() {
        return Error::io(path, "cannot read")(error);
    }
    let found = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the end of the file inside a gzip stream or a tar member".to_owned(),
        // The reader quotes whole blocks of the file.
        _ => format!("damage ({})", error.to_string().split(" when getting ").next().unwrap_or_default().escape_debug()),
    };
    cifar::data(path, offset, found, "a whole tar archive in gzip format")
}

/// Counts the bytes taken from the compressed file.
struct Counted<'a, R> {
    inner: R,
    consumed: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.consumed.set(self.consumed.get() + count as u64);
        Ok(count)
    }
}

/// Keeps the reader's own error aside, so that damage to the archive is not reported as trouble with one member.
struct Tapped<'a, R> {
    inner: R,
    failure: &'a mut Option<io::Error>,
}

impl<R: Read> Read for Tapped<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect_err(|error| {
            *self.failure = Some(match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            });
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small file that decompresses to more than the bound is refused once the bound is reached.
    #[test]
    fn gzip_bomb_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("readme").unwrap();
        header.set_size(UNPACKED_BYTES + 1024);
        header.set_cksum();
        let tar = header.as_bytes().chain(io::repeat(7).take(UNPACKED_BYTES + 1024));
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(tar, flate2::Compression::fast()).read_to_end(&mut packed).unwrap();
        assert!(packed.len() < 4 << 20);
        match read_archive(Path::new("bomb.tar.gz"), packed.as_slice()) {
            Err(Error::Data { .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn system_error_stays_an_io_error() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(5))
            }
        }
        assert!(matches!(read_archive(Path::new("x.tar.gz"), Broken), Err(Error::Io { .. })));
    }
}
