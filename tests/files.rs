//! Files on disk: what is written comes back, what is damaged is refused, and what was there survives every failure.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use shadernet::Error;
use shadernet::files::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    epoch: u64,
    name: String,
    weights: Vec<f32>,
    best: Option<f64>,
    tables: BTreeMap<String, (i8, char, u128)>,
    order: Order,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Order {
    Seeded { seed: u64 },
    Given(Vec<u32>),
}

fn state(weights: usize) -> State {
    let tables = BTreeMap::from([("β".to_owned(), (-3, 'ß', u128::MAX)), (String::new(), (0, '\0', 7))]);
    let weights = (0..weights).map(|i| i as f32 * -0.5).collect();
    State { epoch: 3, name: "seed".into(), weights, best: Some(0.7), tables, order: Order::Given(vec![1, 0]) }
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs one test of this file in a process of its own, within the limits that a line of `sh` sets.
#[cfg(unix)]
fn child(test: &str, folder: &Path, limits: &str) -> std::process::Output {
    let line = format!("{limits}; exec \"$0\" --exact {test} --nocapture");
    let mut command = Command::new("sh");
    command.args(["-c", &line]).arg(std::env::current_exe().unwrap()).env(CHILD, folder);
    command.output().unwrap()
}

/// Set, to the folder to work in, where a test runs as a child; the children's tests do nothing without it.
const CHILD: &str = "SHADERNET_TEST_CHILD";

fn assert_model_error<T: std::fmt::Debug>(result: shadernet::Result<T>, wanted_kind: &str, what: &str) -> String {
    match result {
        Err(Error::Model { kind, found, expected, .. }) if kind == wanted_kind => format!("found {found}, expected {expected}"),
        other => panic!("{what}: {other:?}"),
    }
}

// Atomic writing.

#[test]
fn written_file_is_whole_and_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    for text in ["first", "second, longer"] {
        write_atomic(&path, |out| out.write_all(text.as_bytes())).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    assert_eq!(names_in(folder.path()), ["a"]);
}

#[test]
fn failing_or_panicking_writer_leaves_the_old_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    fs::write(&path, "old").unwrap();
    let error = write_atomic(&path, |out| {
        out.write_all(&[b'x'; 1 << 20])?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    });
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error}");
    let panic = std::panic::catch_unwind(|| write_atomic(&path, |_| panic!("in the writer")));
    assert!(panic.is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(names_in(folder.path()), ["a"]);
}

#[test]
fn paths_that_name_no_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for path in [Path::new("/"), Path::new(".."), folder.path()] {
        let error = write_atomic(path, |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
    let error = write_atomic(&folder.path().join("missing/a"), |_| Ok(())).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound), "{error}");
}

#[test]
fn longest_name_that_the_file_system_allows_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("n".repeat(255));
    write_atomic(&path, |out| out.write_all(b"x")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
}

#[cfg(unix)]
#[test]
fn symbolic_link_is_replaced_and_its_target_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    fs::write(&target, "old").unwrap();
    for pointed in [target.as_path(), Path::new("nowhere")] {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(pointed, &link).unwrap();
        write_atomic(&link, |out| out.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!((fs::read(&target).unwrap(), fs::read(&link).unwrap()), (b"old".to_vec(), b"new".to_vec()));
    }
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    let error = write_atomic(&link, |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("found a device or a pipe"), "{error}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[cfg(unix)]
#[test]
fn new_file_has_the_usual_permissions_and_a_replaced_one_keeps_its_own() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (usual, path) = (folder.path().join("usual"), folder.path().join("a"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    fs::write(&usual, "").unwrap();
    write_atomic(&path, |_| Ok(())).unwrap();
    assert_eq!(mode(&path), mode(&usual));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    write_atomic(&path, |_| Ok(())).unwrap();
    assert_eq!(mode(&path), 0o640);
}

#[cfg(target_os = "linux")]
#[test]
fn folder_that_takes_no_files_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    assert!(matches!(write_atomic(Path::new("/proc/a"), |_| Ok(())), Err(Error::Io { .. })));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o555)).unwrap();
    let privileged = fs::write(folder.path().join("probe"), "").is_ok();
    let result = write_atomic(&path, |out| out.write_all(b"new"));
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(result.is_ok(), privileged, "only root writes into a folder without the permission");
    assert_eq!(fs::read_to_string(&path).unwrap(), if privileged { "new" } else { "old" });
}

#[test]
fn child_writes_more_than_it_may() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let error = save_checkpoint(&Path::new(&folder).join("a"), &state(1_000_000)).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge), "{error}");
}

#[cfg(unix)]
#[test]
fn file_that_may_not_grow_leaves_the_old_one_and_what_a_killed_writer_leaves_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    save_checkpoint(&path, &state(5)).unwrap();
    // The write fails half way, as on a full disk.
    let output = child("child_writes_more_than_it_may", folder.path(), "trap '' XFSZ; ulimit -f 100");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(names_in(folder.path()), ["a"]);
    // The same without the trap: the signal kills the process in the middle of its write.
    let output = child("child_writes_more_than_it_may", folder.path(), "ulimit -c 0; ulimit -f 100");
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(names_in(folder.path()).len(), 2, "{:?}", names_in(folder.path()));
    assert_eq!(load_checkpoint::<State>(&path).unwrap(), state(5));
    assert_eq!(sweep(folder.path()).unwrap(), 1);
    assert_eq!(names_in(folder.path()), ["a"]);
}

#[test]
fn sweep_removes_nothing_but_temporary_files() {
    let folder = tempfile::tempdir().unwrap();
    let kept = [".a.tmp-1234567", ".a.tmp-123456789", ".a.tmp-1234567.", ".hidden", ".tmp-12345678", "a.tmp-12345678", "last.ckpt"];
    for name in kept.iter().chain(&[".last.ckpt.tmp-aZ345678", ".x.tmp-y.tmp-12345678"]) {
        fs::write(folder.path().join(name), "").unwrap();
    }
    fs::create_dir(folder.path().join(".d.tmp-12345678")).unwrap();
    assert_eq!(sweep(folder.path()).unwrap(), 2);
    let mut left: Vec<_> = kept.iter().chain(&[".d.tmp-12345678"]).map(|s| s.to_string()).collect();
    left.sort();
    assert_eq!(names_in(folder.path()), left);
}

// Checkpoint files.

#[test]
fn checkpoint_comes_back_equal_at_every_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ckpt");
    for weights in [0, 1, 16_300, 16_384, 20_000, 300_000] {
        save_checkpoint(&path, &state(weights)).unwrap();
        assert_eq!(load_checkpoint::<State>(&path).unwrap(), state(weights), "{weights}");
    }
    // A body of exactly a limit of the decoder, and one more: the length takes 8 bytes of it.
    for length in [(1 << 16) - 8, (1 << 16) - 7, (1 << 20) - 8, (1 << 20) - 7] {
        let text = "x".repeat(length);
        save_checkpoint(&path, &text).unwrap();
        assert_eq!(load_checkpoint::<String>(&path).unwrap(), text);
    }
    let seeded = State { order: Order::Seeded { seed: u64::MAX }, best: None, ..state(2) };
    save_checkpoint(&path, &seeded).unwrap();
    assert_eq!(load_checkpoint::<State>(&path).unwrap(), seeded);
}

#[test]
fn every_truncation_and_every_flipped_bit_of_a_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ckpt");
    save_checkpoint(&path, &state(6)).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert_model_error(load_checkpoint::<State>(&path), "checkpoint", &format!("{length} bytes"));
    }
    for bit in 0..8 * whole.len() {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        assert_model_error(load_checkpoint::<State>(&path), "checkpoint", &format!("bit {bit}"));
    }
    fs::write(&path, [&whole[..], b"\0"].concat()).unwrap();
    assert_model_error(load_checkpoint::<State>(&path), "checkpoint", "one byte more");
}

/// A checkpoint with a right checksum and any version, length and body.
fn forged(version: u32, length: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = [b"SHADERNT", &version.to_le_bytes()[..], &length.to_le_bytes(), body].concat();
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

#[test]
fn refusals_of_a_checkpoint_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ckpt");
    let body = 7u64.to_le_bytes();
    let longer = [body, body].concat();
    let cases = [
        (b"PK\x03\x04 an archive, longer than a header".to_vec(), r#"starts with "PK\x03\x04 an "#),
        (b"".to_vec(), r#"starts with """#),
        (b"SHADERNT".to_vec(), "found 8 bytes, expected 24 at least"),
        (forged(4, 8, &body), "found format version 4, expected version 3; a newer program wrote it"),
        (forged(2, 8, &body), "found format version 2, expected version 3; an older program wrote it"),
        (forged(3, u64::MAX, &body), "a body of 8 bytes, expected 18446744073709551615,"),
        (forged(3, 7, &body), "a body of 8 bytes, expected 7,"),
        (forged(3, 16, &longer), "a value of 8 bytes in a body of 16"),
        (forged(3, 4, &body[..4]), "a body that does not decode"),
    ];
    for (bytes, message) in cases {
        fs::write(&path, bytes).unwrap();
        let said = assert_model_error(load_checkpoint::<u64>(&path), "checkpoint", message);
        assert!(said.contains(message), "{said:?} lacks {message:?}");
    }
    fs::write(&path, forged(3, 8, &body)).unwrap();
    assert_eq!(load_checkpoint::<u64>(&path).unwrap(), 7);
    assert_model_error(load_checkpoint::<u64>(folder.path()), "checkpoint", "a folder");
    assert!(matches!(load_checkpoint::<u64>(&folder.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn child_reads_files_that_promise_much() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let path = Path::new(&folder).join("a");
    for length in [u64::MAX, 1 << 62, 1 << 40, 3 << 30] {
        let body = length.to_le_bytes();
        fs::write(&path, forged(2, 8, &body)).unwrap();
        assert_model_error(load_checkpoint::<String>(&path), "checkpoint", "a string");
        assert_model_error(load_checkpoint::<Vec<f32>>(&path), "checkpoint", "numbers");
        assert_model_error(load_checkpoint::<Vec<String>>(&path), "checkpoint", "strings");
        assert_model_error(load_checkpoint::<BTreeMap<String, u8>>(&path), "checkpoint", "a map");
        fs::write(&path, [&body[..], b"{}      "].concat()).unwrap();
        assert_model_error(load_tensors(&path), "model", "a header");
    }
    // Holes take no room on the disk, and refusing the file takes none in memory.
    fs::File::create(&path).unwrap().set_len(5 << 30).unwrap();
    assert_model_error(load_checkpoint::<u64>(&path), "checkpoint", "5 GiB");
    assert_model_error(load_tensors(&path), "model", "5 GiB");
    // Large but within the bound: more than there is memory for is an error, not an abort.
    fs::File::create(&path).unwrap().set_len(2 << 30).unwrap();
    assert_model_error(load_checkpoint::<u64>(&path), "checkpoint", "2 GiB");
    assert_model_error(load_tensors(&path), "model", "2 GiB");
}

#[cfg(target_os = "linux")]
#[test]
fn promised_lengths_take_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let output = child("child_reads_files_that_promise_much", folder.path(), "ulimit -v 1000000");
    assert!(output.status.success(), "{output:?}");
}
