//! Downloads, from a server on loopback.

use std::fs;

use shadernet::Error;
use shadernet::data::download::{Source, fetch};
use shadernet::data::find_in;

use super::files::{NAME, write};
use super::server::{Reply, Server, md5_of, part, payload};

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
