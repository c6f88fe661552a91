//! The official CIFAR-10 binary format: what counts as a whole file, and how its planes become pixels.
//!
//! A record is one label byte and 3,072 bytes `[channel, row, column]`; an official file holds 10,000 of them. Files with fewer
//! whole records are accepted, because subsets are useful; anything else is named with its file and offset. A file's size is
//! checked before it is read, and never more than that size is read or kept.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::{CIFAR10_CLASSES, Dataset};
use crate::{Error, Result};

/// Height and width of an image.
pub const SIDE: usize = 32;
/// Channels of a pixel: red, green, blue.
pub const CHANNELS: usize = 3;
/// Bytes of one record: the label, then the image.
pub const RECORD: usize = 1 + PLANE * CHANNELS;
/// Records of an official file.
pub const FILE_RECORDS: usize = 10_000;
/// The files of the training set, in the order in which their images are numbered.
pub const TRAIN_FILES: [&str; 5] = ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
/// The file of the test set.
pub const TEST_FILE: &str = "test_batch.bin";
/// The file with one class name a line. It may be missing.
pub const NAMES_FILE: &str = "batches.meta.txt";
/// The folder that the official archive unpacks to.
pub const FOLDER: &str = "cifar-10-batches-bin";

const PLANE: usize = SIDE * SIDE;
const FILE_BYTES: u64 = (RECORD * FILE_RECORDS) as u64;
/// The official file has 61 bytes.
const NAMES_BYTES: u64 = 4096;

/// Reads the training and the test set from the official binary files in `folder`, or in `cifar-10-batches-bin` below it.
///
/// # Errors
/// [`Error::Io`] for a file that is missing or unreadable; [`Error::Data`], with file and offset, for one that is empty,
/// larger than 10,000 records or no whole number of records, for a label above 9, and for a `batches.meta.txt` without exactly ten names.
pub fn load_folder(folder: &Path) -> Result<(Dataset, Dataset)> {
    let folder = binary_folder(folder);
    let classes = match read_names(&folder.join(NAMES_FILE))? {
        Some(names) => names,
        None => default_classes(),
    };
    let train = load_files(&TRAIN_FILES.map(|name| folder.join(name)), classes.clone())?;
    let test = load_files(&[folder.join(TEST_FILE)], classes)?;
    Ok((train, test))
}

/// Reads records from memory. `path` only names them in errors.
///
/// # Errors
/// [`Error::Data`] as for [`load_folder`].
pub fn parse(path: &Path, bytes: &[u8], classes: Vec<String>) -> Result<Dataset> {
    let mut dataset = empty(classes);
    append(path, bytes, bytes.len() as u64, &mut dataset)?;
    Ok(dataset)
}

/// Whether `folder`, or `cifar-10-batches-bin` below it, has any of the official data files.
pub fn is_binary_folder(folder: &Path) -> bool {
    let folder = binary_folder(folder);
    TRAIN_FILES.iter().chain([&TEST_FILE]).any(|name| folder.join(name).exists())
}

/// [`CIFAR10_CLASSES`] as owned strings.
pub(super) fn default_classes() -> Vec<String> {
    CIFAR10_CLASSES.map(str::to_owned).to_vec()
}

/// A data set of this format without images.
pub(super) fn empty(classes: Vec<String>) -> Dataset {
    Dataset { images: Vec::new(), labels: Vec::new(), height: SIDE, width: SIDE, channels: CHANNELS, classes }
}

/// Appends the `size` bytes of records that `reader` holds. `path` names them in errors.
pub(super) fn append(path: &Path, mut reader: impl Read, size: u64, dataset: &mut Dataset) -> Result<()> {
    let records = check_size(path, size)?;
    dataset.labels.reserve(records);
    dataset.images.reserve(records * (RECORD - 1));
    let mut record = [0; RECORD];
    for i in 0..records {
        let offset = (i * RECORD) as u64;
        read_record(path, &mut reader, &mut record, offset, size)?;
        let label = u32::from(record[0]);
        if label as usize >= CIFAR10_CLASSES.len() {
            return Err(data(path, offset, format!("label {label}"), "a label from 0 to 9"));
        }
        dataset.labels.push(label);
        let (planes, _) = record[1..].as_chunks::<PLANE>();
        let from = dataset.images.len();
        dataset.images.resize(from + RECORD - 1, 0);
        for (p, pixel) in dataset.images[from..].as_chunks_mut().0.iter_mut().enumerate() {
            *pixel = [planes[0][p], planes[1][p], planes[2][p]];
        }
    }
    Ok(())
}

/// The names in a `batches.meta.txt` of `size` bytes. `path` names it in errors.
pub(super) fn parse_names(path: &Path, reader: impl Read, size: u64) -> Result<Vec<String>> {
    if size > NAMES_BYTES {
        return Err(data(path, NAMES_BYTES, format!("{size} bytes"), format!("at most {NAMES_BYTES} bytes of class names")));
    }
    let mut bytes = Vec::new();
    reader.take(size).read_to_end(&mut bytes).map_err(Error::io(path, "cannot read"))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| data(path, e.valid_up_to() as u64, "bytes that are no text".into(), "UTF-8"))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.len() != CIFAR10_CLASSES.len() {
        return Err(data(path, bytes.len() as u64, format!("{} class names", names.len()), "10, one a line"));
    }
    Ok(names)
}

/// An [`Error::Data`].
pub(super) fn data(path: &Path, offset: u64, found: String, expected: impl Into<String>) -> Error {
    Error::Data { path: path.to_path_buf(), offset, found, expected: expected.into() }
}

/// The size of the regular file at `path`. A pipe or a device is refused, because opening one may wait for ever.
pub(super) fn file_size(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).map_err(Error::io(path, "cannot open"))?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let what = if metadata.is_dir() { "a folder" } else { "no regular file" };
    Err(data(path, 0, what.into(), "a file"))
}

fn binary_folder(folder: &Path) -> PathBuf {
    let below = folder.join(FOLDER);
    if below.is_dir() { below } else { folder.to_path_buf() }
}

fn load_files(paths: &[PathBuf], classes: Vec<String>) -> Result<Dataset> {
    let mut dataset = empty(classes);
    // All sizes come first, so that a missing last file is noticed before the others are read and memory is reserved once.
    let sizes = paths.iter().map(|path| file_size(path)).collect::<Result<Vec<u64>>>()?;
    let mut records = 0;
    for (path, &size) in paths.iter().zip(&sizes) {
        records += check_size(path, size)?;
    }
    dataset.labels.reserve_exact(records);
    dataset.images.reserve_exact(records * (RECORD - 1));
    for (path, &size) in paths.iter().zip(&sizes) {
        let file = File::open(path).map_err(Error::io(path, "cannot open"))?;
        append(path, BufReader::with_capacity(1 << 16, file), size, &mut dataset)?;
    }
    Ok(dataset)
}

fn read_names(path: &Path) -> Result<Option<Vec<String>>> {
    if !path.exists() {
        return Ok(None);
    }
    let size = file_size(path)?;
    let file = File::open(path).map_err(Error::io(path, "cannot open"))?;
    parse_names(path, file, size).map(Some)
}

/// The number of records in a file of `size` bytes.
fn check_size(path: &Path, size: u64) -> Result<usize> {
    let rest = size % RECORD as u64;
    if size == 0 {
        return Err(data(path, 0, "an empty file".into(), format!("records of {RECORD} bytes")));
    }
    if size > FILE_BYTES {
        return Err(data(path, FILE_BYTES, format!("{size} bytes"), format!("at most {FILE_BYTES}, {FILE_RECORDS} records of {RECORD}")));
    }
    if rest != 0 {
        let found = format!("the end of the file, {rest} bytes into a record");
        return Err(data(path, size, found, format!("whole records of {RECORD} bytes, {FILE_BYTES} in an official file")));
    }
    Ok((size / RECORD as u64) as usize)
}

/// Fills `record` from `offset` on, or says at which byte a file that shrank since its size was taken ended.
fn read_record(path: &Path, reader: &mut impl Read, record: &mut [u8; RECORD], offset: u64, size: u64) -> Result<()> {
    let mut filled = 0;
    while filled < RECORD {
        match reader.read(&mut record[filled..]) {
            Ok(0) => return Err(data(path, offset + filled as u64, "the end of the file".into(), format!("{size} bytes"))),
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(path, "cannot read")(e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(label: u8) -> Vec<u8> {
        let mut record = vec![label];
        record.extend((0..3 * PLANE).map(|i| (i % 251) as u8));
        record
    }

    fn error(bytes: &[u8]) -> (u64, String, String) {
        match parse(Path::new("batch.bin"), bytes, default_classes()) {
            Err(Error::Data { path, offset, found, expected }) if path == Path::new("batch.bin") => (offset, found, expected),
            other => panic!("expected a data error, got {other:?}"),
        }
    }

    /// A folder with one record in each file.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (i, name) in TRAIN_FILES.iter().chain([&TEST_FILE]).enumerate() {
            fs::write(folder.path().join(name), record(i as u8)).unwrap();
        }
        folder
    }

    #[test]
    fn planes_become_pixels() {
        let bytes = [record(3), record(9)].concat();
        let set = parse(Path::new("x"), &bytes, default_classes()).unwrap();
        assert_eq!(set.labels, [3, 9]);
        for (row, column, channel) in [(0, 0, 0), (0, 1, 0), (1, 0, 2), (31, 31, 1), (17, 5, 2)] {
            let found = set.image(1)[(row * SIDE + column) * CHANNELS + channel];
            assert_eq!(found, bytes[RECORD + 1 + channel * PLANE + row * SIDE + column], "({row}, {column}, {channel})");
        }
    }

    #[test]
    fn truncated_file_is_named_with_offset() {
        let whole = [record(1), record(2)].concat();
        for cut in [1, RECORD - 1, RECORD + 1, 2 * RECORD - 1] {
            let (offset, found, expected) = error(&whole[..cut]);
            assert_eq!(offset, cut as u64);
            assert!(found.contains(&format!("{} bytes into a record", cut % RECORD)) && expected.contains("3073"), "{found}; {expected}");
        }
    }

    #[test]
    fn empty_file_is_refused() {
        assert_eq!(error(&[]).1, "an empty file");
    }

    #[test]
    fn label_above_nine_is_named_with_its_offset() {
        let (offset, found, _) = error(&[record(9), record(10)].concat());
        assert_eq!((offset, found.as_str()), (RECORD as u64, "label 10"));
    }

    #[test]
    fn reader_shorter_than_its_claimed_size_is_named_with_offset() {
        let short = &record(1)[..100];
        match append(Path::new("x"), short, RECORD as u64, &mut empty(default_classes())) {
            Err(Error::Data { offset: 100, found, .. }) => assert_eq!(found, "the end of the file"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn folder_is_found_directly_and_one_level_up() {
        let outer = tempfile::tempdir().unwrap();
        fs::rename(folder().keep(), outer.path().join(FOLDER)).unwrap();
        for path in [outer.path().to_path_buf(), outer.path().join(FOLDER)] {
            assert!(is_binary_folder(&path));
            let (train, test) = load_folder(&path).unwrap();
            assert_eq!((train.labels, test.labels), (vec![0, 1, 2, 3, 4], vec![5]));
            assert_eq!(train.classes, CIFAR10_CLASSES);
        }
    }

    #[test]
    fn missing_file_is_an_io_error_that_names_it() {
        let folder = folder();
        for name in [TEST_FILE, TRAIN_FILES[3]] {
            fs::remove_file(folder.path().join(name)).unwrap();
            match load_folder(folder.path()) {
                Err(Error::Io { path, source, .. }) => {
                    assert_eq!((path.file_name().unwrap().to_str(), source.kind()), (Some(name), std::io::ErrorKind::NotFound));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn oversized_file_is_refused_before_it_is_read() {
        let folder = folder();
        let path = folder.path().join(TRAIN_FILES[1]);
        // A sparse file: one terabyte that would take minutes to read and could not be held.
        let file = File::create(&path).unwrap();
        if file.set_len(1 << 40).is_err() {
            file.set_len(FILE_BYTES + RECORD as u64).unwrap();
        }
        match load_folder(folder.path()) {
            Err(Error::Data { path: named, offset, expected, .. }) => {
                assert_eq!((named, offset), (path, 30_730_000));
                assert!(expected.contains("30730000"), "{expected}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn folder_in_place_of_a_file_is_an_error() {
        let folder = folder();
        let path = folder.path().join(TEST_FILE);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(load_folder(folder.path()).unwrap_err().to_string().contains("found a folder, expected a file"));
    }

    #[test]
    fn class_names_come_from_the_names_file() {
        let folder = folder();
        let path = folder.path().join(NAMES_FILE);
        let names: Vec<String> = (0..10).map(|i| format!("class {i}")).collect();
        fs::write(&path, names.join("\r\n") + "\n\n").unwrap();
        assert_eq!(load_folder(folder.path()).unwrap().1.classes, names);
        fs::write(&path, names[1..].join("\n")).unwrap();
        assert!(load_folder(folder.path()).unwrap_err().to_string().contains("found 9 class names, expected 10"));
        fs::write(&path, b"bird\n\xff\xfe").unwrap();
        assert!(load_folder(folder.path()).unwrap_err().to_string().contains("at byte 5"));
        fs::write(&path, vec![b'\n'; 5000]).unwrap();
        assert!(load_folder(folder.path()).unwrap_err().to_string().contains("5000 bytes"));
    }
}
