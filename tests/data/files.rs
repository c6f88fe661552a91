//! Archives and folders of pictures, made for a test.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use shadernet::Error;
use shadernet::data::cifar::{self, FOLDER, RECORD, TEST_FILE, TRAIN_FILES};
use shadernet::data::{Dataset, archive};
use tempfile::TempDir;

pub(crate) type Members = Vec<(String, Vec<u8>)>;

pub(crate) const NAME: &str = "cifar-10-binary.tar.gz";

/// Members of an archive with the sample's records, 200 in each training file.
pub(crate) fn sample_members() -> Members {
    let train = include_bytes!("../../src/data/sample/train.bin");
    let test = include_bytes!("../../src/data/sample/test.bin");
    let train = TRAIN_FILES.iter().zip(train.chunks(200 * RECORD)).map(|(name, bytes)| (format!("{FOLDER}/{name}"), bytes.to_vec()));
    train.chain([(format!("{FOLDER}/{TEST_FILE}"), test.to_vec())]).collect()
}

/// The same with two records in each file.
pub(crate) fn small_members() -> Members {
    sample_members().into_iter().map(|(name, bytes)| (name, bytes[..2 * RECORD].to_vec())).collect()
}

pub(crate) fn tar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn load(folder: &Path, members: &[(String, Vec<u8>)]) -> shadernet::Result<(Dataset, Dataset)> {
    archive::load_archive(&write(folder, NAME, &gzip(&tar(members))))
}

pub(crate) fn data_error(result: shadernet::Result<(Dataset, Dataset)>) -> String {
    match result {
        Err(error @ Error::Data { .. }) => error.to_string(),
        other => panic!("expected a data error, got {other:?}"),
    }
}

/// A damaged archive may happen to be readable, but then what was read is consistent.
pub(crate) fn never_panics(folder: &Path, bytes: &[u8], what: &str) {
    match archive::load_archive(&write(folder, NAME, bytes)) {
        Ok((train, test)) => {
            for set in [train, test] {
                assert_eq!(set.images.len(), set.len() * cifar::SIDE * cifar::SIDE * cifar::CHANNELS, "{what}");
                assert!(set.labels.iter().all(|&label| label < 10) && !set.is_empty(), "{what}");
            }
        }
        Err(Error::Data { .. }) => {}
        Err(other) => panic!("{what}: {other}"),
    }
}

pub(crate) fn damage(mut bytes: Vec<u8>, flips: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Vec<u8> {
    for (at, flip) in flips {
        let i = at.index(bytes.len());
        bytes[i] ^= flip;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// A picture of one grey.
pub(crate) fn picture(width: u32, height: u32, grey: u8, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image::RgbImage::from_pixel(width, height, image::Rgb([grey; 3])).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Two training pictures (a PNG, a JPEG) and one test picture a class, of the grey `10 * class + number`.
pub(crate) fn picture_folder(classes: &[&str], width: u32, height: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (i, class) in classes.iter().enumerate() {
        for (split, name, number, format) in [
            ("train", "1.PNG", 1, image::ImageFormat::Png),
            ("train", "2.jpeg", 2, image::ImageFormat::Jpeg),
            ("test", "3.jpg", 3, image::ImageFormat::Jpeg),
        ] {
            let class = folder.path().join(split).join(class);
            fs::create_dir_all(&class).unwrap();
            write(&class, name, &picture(width, height, (10 * i) as u8 + number, format));
        }
    }
    folder
}
