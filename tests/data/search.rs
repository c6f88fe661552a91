//! Where data is looked for, and in which order.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use shadernet::Error;
use shadernet::data::cifar::{FOLDER, RECORD, TRAIN_FILES};
use shadernet::data::download::Source;
use shadernet::data::{Origin, find, find_in, sample};

use super::files::{NAME, gzip, sample_members, small_members, tar, write};
use super::server::{Reply, Server};

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
