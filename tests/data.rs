//! Where data comes from, tried from outside: archives, picture folders, downloads from a server on loopback, and the order of the search.
#![cfg(feature = "data")]

use std::fs;
use std::io::{Cursor, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use md5::{Digest, Md5};
use proptest::prelude::*;
use shadernet::Error;
use shadernet::data::cifar::{self, FOLDER, NAMES_FILE, RECORD, TEST_FILE, TRAIN_FILES};
use shadernet::data::download::{Source, fetch};
use shadernet::data::{Dataset, Origin, archive, find, find_in, images, sample};
use tempfile::TempDir;

type Members = Vec<(String, Vec<u8>)>;

const NAME: &str = "cifar-10-binary.tar.gz";

// ---- archives ----------------------------------------------------------------------------------------------------------

#[test]
fn archive_of_the_sample_reads_as_the_sample() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), NAME, &gzip(&tar(&sample_members())));
    let (train, test) = archive::load_archive(&path).unwrap();
    let splits = sample();
    assert_eq!((&train, &test), (&splits.train, &splits.test));
}

#[test]
fn order_of_the_members_does_not_matter_and_strangers_are_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = small_members();
    let (want, _) = load(folder.path(), &members).unwrap();
    members.reverse();
    members.insert(2, (format!("{FOLDER}/readme.html"), b"<html>".to_vec()));
    members.push((format!("{FOLDER}/{NAMES_FILE}"), (0..10).map(|i| format!("name {i}\n")).collect::<String>().into_bytes()));
    let (train, test) = load(folder.path(), &members).unwrap();
    assert_eq!((train.labels, train.images), (want.labels, want.images));
    assert_eq!((train.classes[3].as_str(), test.classes[9].as_str()), ("name 3", "name 9"));
}

#[test]
fn missing_member_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..6 {
        let mut members = small_members();
        let (name, _) = members.remove(i);
        let error = data_error(load(folder.path(), &members));
        assert!(error.contains(name.rsplit('/').next().unwrap()) && error.contains("after 5 members"), "{error}");
    }
}

#[test]
fn member_that_comes_twice_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = small_members();
    members.push(("elsewhere/data_batch_2.bin".into(), members[1].1.clone()));
    let error = data_error(load(folder.path(), &members));
    assert!(error.contains("data_batch_2.bin") && error.contains("second member"), "{error}");
}

#[test]
fn faulty_member_is_named_with_the_offset_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = small_members();
    members[2].1.extend([1, 2, 3]);
    let error = data_error(load(folder.path(), &members));
    assert!(error.contains("data_batch_3.bin: at byte 6149") && error.contains("3 bytes into a record"), "{error}");
    let mut members = small_members();
    members[5].1[RECORD] = 10;
    let error = data_error(load(folder.path(), &members));
    assert!(error.contains("test_batch.bin: at byte 3073: found label 10"), "{error}");
}

#[test]
fn member_that_claims_too_much_is_refused_by_its_header() {
    let folder = tempfile::tempdir().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("data_batch_1.bin").unwrap();
    header.set_size(1 << 50);
    header.set_cksum();
    let path = write(folder.path(), NAME, &gzip(header.as_bytes()));
    let error = data_error(archive::load_archive(&path));
    assert!(error.contains("data_batch_1.bin: at byte 30730000") && error.contains(&(1_u64 << 50).to_string()), "{error}");
}

#[test]
fn truncated_archive_is_an_error_wherever_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let whole = gzip(&tar(&small_members()));
    for cut in (0..whole.len()).step_by(97).chain([whole.len() - 1, whole.len() - 8, 1, 2, 10]) {
        let path = write(folder.path(), NAME, &whole[..cut]);
        let error = data_error(archive::load_archive(&path));
        assert!(error.contains(NAME), "cut at {cut}: {error}");
    }
}

#[test]
fn foreign_files_are_data_errors() {
    let folder = tempfile::tempdir().unwrap();
    let no_tar = gzip(&b"not a tar, but long enough to hold a header".repeat(40));
    for bytes in [&b""[..], b"PK\x03\x04 a zip", b"\x1f\x8b", &no_tar] {
        let path = write(folder.path(), NAME, bytes);
        data_error(archive::load_archive(&path));
        assert!(matches!(find_in(Some(&path), None, None, &mut |_, _| {}), Err(Error::Data { .. })));
    }
    assert!(matches!(archive::load_archive(&folder.path().join("none.tar.gz")), Err(Error::Io { .. })));
}

#[test]
fn flipped_bit_of_a_tar_header_is_an_error_or_whole_data() {
    let folder = tempfile::tempdir().unwrap();
    let members = small_members();
    let whole = tar(&members);
    // The second member's header.
    let start = 512 + members[0].1.len().next_multiple_of(512);
    for (i, flip) in (0..512).flat_map(|i| [(i, 0x01), (i, 0x08), (i, 0x80)]) {
        let mut bytes = whole.clone();
        bytes[start + i] ^= flip;
        never_panics(folder.path(), &gzip(&bytes), &format!("header byte {i} xor {flip:#x}"));
        // A header with a right checksum gets past the tar reader's own check.
        let mut header = tar::Header::from_byte_slice(&bytes[start..start + 512]).clone();
        header.set_cksum();
        bytes[start..start + 512].copy_from_slice(header.as_bytes());
        never_panics(folder.path(), &gzip(&bytes), &format!("header byte {i} xor {flip:#x}, checksum right"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_archive_is_an_error_or_whole_data(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let bytes = damage(gzip(&tar(&small_members())), &flips, cut);
        never_panics(folder.path(), &bytes, "damaged");
    }

    #[test]
    fn damaged_picture_is_an_error_or_a_whole_picture(
        jpeg in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let format = if jpeg { image::ImageFormat::Jpeg } else { image::ImageFormat::Png };
        let bytes = damage(picture(24, 16, 90, format), &flips, cut);
        if let Ok(pixels) = images::decode_image(Path::new("x"), &bytes, 32, 32) {
            prop_assert_eq!(pixels.len(), 32 * 32 * 3);
        }
    }
}

// ---- folders of pictures -----------------------------------------------------------------------------------------------

#[test]
fn picture_folder_takes_classes_and_files_by_name() {
    let folder = picture_folder(&["cat", "ant", "bee"], 20, 12);
    write(&folder.path().join("train/ant"), "notes.txt", b"skipped");
    write(&folder.path().join("train/ant"), "._1.png", b"skipped");
    write(&folder.path().join("train"), ".DS_Store", b"skipped");
    let splits = find_in(Some(folder.path()), None, None, &mut |_, _| {}).unwrap();
    assert_eq!(splits.origin, Origin::ImageFolder(folder.path().to_path_buf()));
    assert_eq!(splits.train.classes, ["ant", "bee", "cat"]);
    assert_eq!(splits.train.labels, [0, 0, 1, 1, 2, 2]);
    assert_eq!(splits.test.labels, [0, 1, 2]);
    assert_eq!((splits.train.height, splits.train.width, splits.train.channels), (12, 20, 3));
    // Greys by class in the order given above and by number; PNG keeps them exactly, JPEG nearly.
    assert_eq!(splits.train.image(0), [11; 20 * 12 * 3]);
    assert_eq!(splits.train.image(4)[0], 1);
    assert!(splits.train.image(5)[0].abs_diff(2) <= 2, "{}", splits.train.image(5)[0]);
}

#[test]
fn pictures_of_several_sizes_all_become_32_by_32() {
    let folder = picture_folder(&["a", "b"], 32, 40);
    write(&folder.path().join("test/b"), "other.png", &picture(7, 90, 200, image::ImageFormat::Png));
    let (train, test) = images::load_image_folder(folder.path()).unwrap();
    assert_eq!((train.height, train.width, test.height, test.width), (32, 32, 32, 32));
    assert_eq!((train.images.len(), test.images.len()), (4 * 3072, 3 * 3072));
    assert_eq!(test.image(2), [200; 3072]);
}

#[test]
fn splits_with_different_classes_are_refused_by_name() {
    let folder = picture_folder(&["a", "b"], 8, 8);
    fs::rename(folder.path().join("test/b"), folder.path().join("test/c")).unwrap();
    let error = images::load_image_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains(r#"only in train: ["b"]; only in test: ["c"]"#), "{error}");
}

#[test]
fn picture_that_is_none_is_named() {
    for bytes in [&b"not a picture"[..], b"", &picture(8, 8, 1, image::ImageFormat::Png)[..50]] {
        let folder = picture_folder(&["a", "b"], 8, 8);
        let path = write(&folder.path().join("train/b"), "broken.png", bytes);
        match images::load_image_folder(folder.path()) {
            Err(Error::Data { path: named, .. }) => assert_eq!(named, path),
            other => panic!("{other:?}"),
        }
        assert!(matches!(images::read_image(&path, 32, 32), Err(Error::Data { .. })));
    }
}

#[test]
fn class_without_pictures_and_split_without_classes_are_refused() {
    let folder = picture_folder(&["a"], 8, 8);
    fs::create_dir(folder.path().join("train/empty")).unwrap();
    assert!(images::load_image_folder(folder.path()).unwrap_err().to_string().contains("empty: found no picture"));
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("train")).unwrap();
    fs::create_dir_all(folder.path().join("test")).unwrap();
    assert!(images::load_image_folder(folder.path()).unwrap_err().to_string().contains("no class folder"));
}

#[test]
fn read_image_takes_any_size_and_trusts_the_content_over_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "really-a-jpeg.png", &picture(300, 200, 128, image::ImageFormat::Jpeg));
    let pixels = images::read_image(&path, 32, 48).unwrap();
    assert_eq!(pixels.len(), 32 * 48 * 3);
    assert!(pixels.iter().all(|p| p.abs_diff(128) <= 2));
    assert!(matches!(images::read_image(&folder.path().join("none.png"), 32, 32), Err(Error::Io { .. })));
}

// ---- downloads ---------------------------------------------------------------------------------------------------------

#[test]
fn download_arrives_whole_and_reports_progress() {
    let bytes = payload();
    let server = Server::start(&bytes, vec![Reply::Ranged]);
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    // The folder is made on the way.
    let path = fetch(&server.source(), &folder.path().join("new/cache"), &mut |done, total| seen.push((done, total))).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(path.file_name().unwrap(), NAME);
    let length = bytes.len() as u64;
    assert_eq!((seen[0], seen[seen.len() - 1]), ((0, Some(length)), (length, Some(length))));
    assert!(seen.is_sorted() && !part(path.parent().unwrap()).exists());
    assert_eq!(server.ranges(), [None]);
}

#[test]
fn part_of_an_earlier_try_is_resumed_with_a_range() {
    let bytes = payload();
    let server = Server::start(&bytes, vec![Reply::Ranged]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(part(folder.path()), &bytes[..1000]).unwrap();
    let mut seen = Vec::new();
    let path = fetch(&server.source(), folder.path(), &mut |done, total| seen.push((done, total))).unwrap();
    assert!(fs::read(path).unwrap() == bytes);
    assert_eq!(server.ranges(), [Some(1000)]);
    assert_eq!(seen[0], (1000, Some(bytes.len() as u64)));
}

#[test]
fn server_without_ranges_sends_it_all_again() {
    let bytes = payload();
    let server = Server::start(&bytes, vec![Reply::Whole]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(part(folder.path()), b"something else, and of no use").unwrap();
    let path = fetch(&server.source(), folder.path(), &mut |_, _| {}).unwrap();
    assert!(fs::read(path).unwrap() == bytes);
    assert_eq!(server.ranges(), [Some(29)]);
}

#[test]
fn cut_connection_is_resumed_in_the_same_call() {
    let bytes = payload();
    let half = bytes.len() / 2;
    let server = Server::start(&bytes, vec![Reply::Cut(half), Reply::Cut(5000), Reply::Ranged]);
    let folder = tempfile::tempdir().unwrap();
    let path = fetch(&server.source(), folder.path(), &mut |_, _| {}).unwrap();
    assert!(fs::read(path).unwrap() == bytes);
    assert_eq!(server.ranges(), [None, Some(half as u64), Some(half as u64 + 5000)]);
}

#[test]
fn download_that_stalls_keeps_its_part_for_the_next_call() {
    let bytes = payload();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&bytes, vec![Reply::Cut(70_000), Reply::Cut(0)]);
    match fetch(&server.source(), folder.path(), &mut |_, _| {}) {
        Err(Error::Download { problem, .. }) => assert!(problem.contains("70000"), "{problem}"),
        other => panic!("{other:?}"),
    }
    assert!(fs::read(part(folder.path())).unwrap() == bytes[..70_000]);
    let server = Server::start(&bytes, vec![Reply::Ranged]);
    assert!(fs::read(fetch(&server.source(), folder.path(), &mut |_, _| {}).unwrap()).unwrap() == bytes);
    assert_eq!(server.ranges(), [Some(70_000)]);
}

#[test]
fn part_that_is_already_whole_needs_no_byte_more() {
    let bytes = payload();
    let server = Server::start(&bytes, vec![Reply::Ranged]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(part(folder.path()), &bytes).unwrap();
    assert!(fs::read(fetch(&server.source(), folder.path(), &mut |_, _| {}).unwrap()).unwrap() == bytes);
    assert_eq!(server.ranges(), [Some(bytes.len() as u64)]);
}

#[test]
fn part_longer_than_the_file_is_begun_again() {
    let bytes = payload();
    let server = Server::start(&bytes, vec![Reply::Ranged, Reply::Ranged]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(part(folder.path()), vec![0; bytes.len() + 1]).unwrap();
    assert!(fs::read(fetch(&server.source(), folder.path(), &mut |_, _| {}).unwrap()).unwrap() == bytes);
    assert_eq!(server.ranges(), [Some(bytes.len() as u64 + 1), None]);
}

#[test]
fn wrong_md5_names_both_and_removes_the_part() {
    let bytes = payload();
    let server = Server::start(&bytes, vec![Reply::Ranged, Reply::Ranged]);
    let folder = tempfile::tempdir().unwrap();
    let source = Source { md5: "0123456789abcdef0123456789abcdef", ..server.source() };
    let error = fetch(&source, folder.path(), &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, Error::Data { .. }));
    let error = error.to_string();
    assert!(error.contains(source.md5) && error.contains(&md5_of(&bytes)), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // A damaged download is not passed over in favour of the sample.
    assert!(matches!(find_in(None, Some(folder.path()), Some(&source), &mut |_, _| {}), Err(Error::Data { .. })));
}

#[test]
fn refusal_by_the_server_is_a_download_error_with_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(b"", vec![Reply::Status(404), Reply::Status(503)]);
    for status in ["404", "503"] {
        match fetch(&server.source(), folder.path(), &mut |_, _| {}) {
            Err(Error::Download { url, problem }) => assert!(url == server.url && problem.contains(status), "{problem}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn download_larger_than_any_archive_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(b"", vec![Reply::Claim(1 << 40)]);
    let error = fetch(&server.source(), folder.path(), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains(&(1_u64 << 40).to_string()), "{error}");
}

#[test]
fn folder_that_cannot_be_made_is_an_io_error() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = write(folder.path(), "file", b"");
    let server = Server::start(&payload(), vec![Reply::Ranged]);
    assert!(matches!(fetch(&server.source(), &in_the_way.join("cache"), &mut |_, _| {}), Err(Error::Io { .. })));
}

#[test]
fn two_downloads_of_one_file_do_not_write_over_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&payload(), vec![Reply::Ranged]);
    let held = fs::File::create(part(folder.path())).unwrap();
    held.lock().unwrap();
    let error = fetch(&server.source(), folder.path(), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
}

// ---- the search --------------------------------------------------------------------------------------------------------

#[test]
fn search_downloads_once_and_then_reads_the_cache() {
    let server = Server::start(&gzip(&tar(&sample_members())), vec![Reply::Ranged]);
    let cache = tempfile::tempdir().unwrap();
    let archive = cache.path().join(NAME);
    for origin in [Origin::Downloaded(archive.clone()), Origin::Cache(archive)] {
        let splits = find_in(None, Some(cache.path()), Some(&server.source()), &mut |_, _| {}).unwrap();
        assert_eq!(splits.origin, origin);
        assert_eq!(splits.train, sample().train);
    }
    assert_eq!(server.ranges().len(), 1);
}

#[test]
fn search_without_network_or_download_ends_at_the_sample() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", nobody.local_addr().unwrap());
    drop(nobody);
    let source = Source { url: &url, md5: "", name: NAME };
    let cache = tempfile::tempdir().unwrap();
    for (cache, source) in [(Some(cache.path()), Some(&source)), (Some(cache.path()), None), (None, Some(&source))] {
        let splits = find_in(None, cache, source, &mut |_, _| {}).unwrap();
        assert_eq!((splits.origin, splits.train.len()), (Origin::Sample, 1000));
    }
}

#[test]
fn path_decides_by_what_is_there() {
    let binary = tempfile::tempdir().unwrap();
    fs::create_dir(binary.path().join(FOLDER)).unwrap();
    for (name, bytes) in small_members() {
        fs::write(binary.path().join(name), bytes).unwrap();
    }
    let holder = tempfile::tempdir().unwrap();
    let archive = write(holder.path(), "any-name.bin", &gzip(&tar(&small_members())));
    let own = binary.path().to_path_buf();
    for (path, origin) in [(own.clone(), Origin::Folder(own)), (archive.clone(), Origin::Archive(archive.clone()))] {
        let splits = find(Some(&path), &mut |_, _| {}).unwrap();
        assert_eq!(splits.origin, origin);
        assert_eq!((splits.train.len(), splits.test.len()), (10, 2));
    }
    let named = holder.path().join(NAME);
    fs::rename(&archive, &named).unwrap();
    assert_eq!(find(Some(holder.path()), &mut |_, _| {}).unwrap().origin, Origin::Archive(named));
}

#[test]
fn unusable_path_says_what_was_looked_for_and_found() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| find(Some(path), &mut |_, _| {}).unwrap_err();
    let empty = error(folder.path()).to_string();
    assert!(empty.contains("found an empty folder, expected data_batch_1.bin to data_batch_5.bin"), "{empty}");
    fs::create_dir(folder.path().join("cifar-10-batches-py")).unwrap();
    for i in 0..10 {
        write(folder.path(), &format!("file{i}"), b"text");
    }
    let other = error(folder.path()).to_string();
    assert!(other.contains("cifar-10-batches-py, file0") && other.contains("and 3 more") && other.contains("train/CLASS"), "{other}");
    let text = error(&folder.path().join("file0")).to_string();
    assert!(text.contains("[74, 65]") && text.contains("1f 8b"), "{text}");
    assert!(matches!(error(&folder.path().join("none")), Error::Io { .. }));
}

#[test]
fn partial_set_names_the_file_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), TRAIN_FILES[2], &[0; RECORD]);
    assert!(find(Some(folder.path()), &mut |_, _| {}).unwrap_err().to_string().contains("data_batch_1.bin"));
}

// ---- helpers -----------------------------------------------------------------------------------------------------------

/// Members of an archive with the sample's records, 200 in each training file.
fn sample_members() -> Members {
    let train = include_bytes!("../src/data/sample/train.bin");
    let test = include_bytes!("../src/data/sample/test.bin");
    let train = TRAIN_FILES.iter().zip(train.chunks(200 * RECORD)).map(|(name, bytes)| (format!("{FOLDER}/{name}"), bytes.to_vec()));
    train.chain([(format!("{FOLDER}/{TEST_FILE}"), test.to_vec())]).collect()
}

/// The same with two records in each file.
fn small_members() -> Members {
    sample_members().into_iter().map(|(name, bytes)| (name, bytes[..2 * RECORD].to_vec())).collect()
}

fn tar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn load(folder: &Path, members: &[(String, Vec<u8>)]) -> shadernet::Result<(Dataset, Dataset)> {
    archive::load_archive(&write(folder, NAME, &gzip(&tar(members))))
}

fn data_error(result: shadernet::Result<(Dataset, Dataset)>) -> String {
    match result {
        Err(error @ Error::Data { .. }) => error.to_string(),
        other => panic!("expected a data error, got {other:?}"),
    }
}

/// A damaged archive may happen to be readable, but then what was read is consistent.
fn never_panics(folder: &Path, bytes: &[u8], what: &str) {
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

fn damage(mut bytes: Vec<u8>, flips: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Vec<u8> {
    for (at, flip) in flips {
        let i = at.index(bytes.len());
        bytes[i] ^= flip;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// A picture of one grey.
fn picture(width: u32, height: u32, grey: u8, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image::RgbImage::from_pixel(width, height, image::Rgb([grey; 3])).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Two training pictures (a PNG, a JPEG) and one test picture a class, of the grey `10 * class + number`.
fn picture_folder(classes: &[&str], width: u32, height: u32) -> TempDir {
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

fn payload() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn md5_of(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn part(folder: &Path) -> PathBuf {
    folder.join(format!("{NAME}.part"))
}

/// How the server treats one request.
enum Reply {
    /// As asked: 206 for a range, 416 for one past the end, 200 without.
    Ranged,
    /// 200 with everything, whatever was asked.
    Whole,
    /// As `Ranged`, but the connection closes after this many bytes of the body.
    Cut(usize),
    /// Only this status.
    Status(u16),
    /// 200 with this length, and no body.
    Claim(u64),
}

/// Serves one file on loopback, one scripted reply a connection, and then no more.
struct Server {
    url: String,
    md5: String,
    ranges: Arc<Mutex<Vec<Option<u64>>>>,
}

impl Server {
    fn start(bytes: &[u8], script: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/{NAME}", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let (log, file) = (Arc::clone(&ranges), bytes.to_vec());
        std::thread::spawn(move || {
            for reply in script {
                let (stream, _) = listener.accept().unwrap();
                serve(stream, &file, &reply, &log);
            }
        });
        Self { url, md5: md5_of(bytes), ranges }
    }

    fn source(&self) -> Source<'_> {
        Source { url: &self.url, md5: &self.md5, name: NAME }
    }

    /// The start of the range that each request asked for.
    fn ranges(&self) -> Vec<Option<u64>> {
        self.ranges.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, file: &[u8], reply: &Reply, log: &Mutex<Vec<Option<u64>>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    let request = String::from_utf8(request).unwrap().to_ascii_lowercase();
    assert!(request.contains("accept-encoding: identity"), "{request}");
    let range = request.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<u64>().ok());
    log.lock().unwrap().push(range);
    let all = file.len();
    let start = range.unwrap_or(0) as usize;
    let (head, body) = match reply {
        Reply::Status(status) => (format!("{status} Reason\r\nContent-Length: 0"), &file[..0]),
        Reply::Claim(length) => (format!("200 OK\r\nContent-Length: {length}"), &file[..0]),
        Reply::Whole => (format!("200 OK\r\nContent-Length: {all}"), file),
        Reply::Ranged | Reply::Cut(_) if range.is_none() => (format!("200 OK\r\nContent-Length: {all}"), file),
        Reply::Ranged | Reply::Cut(_) if start >= all => {
            (format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{all}\r\nContent-Length: 0"), &file[..0])
        }
        Reply::Ranged | Reply::Cut(_) => {
            let head = format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{all}\r\nContent-Length: {}", all - 1, all - start);
            (head, &file[start..])
        }
    };
    let body = if let Reply::Cut(count) = reply { &body[..*count] } else { body };
    // The client may hang up first, when it has seen enough.
    let _ = write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").and_then(|()| stream.write_all(body));
}
