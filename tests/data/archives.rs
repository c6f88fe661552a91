//! Archives as they come, damaged and not.

use std::path::Path;

use proptest::prelude::*;
use shadernet::Error;
use shadernet::data::cifar::{FOLDER, NAMES_FILE, RECORD};
use shadernet::data::{archive, find_in, images, sample};

use super::files::{NAME, damage, data_error, gzip, load, never_panics, picture, sample_members, small_members, tar, write};

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
