//! Checkpoint folders: one run at a time, and whatever happens to it, its state can be loaded.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shadernet::Error;
use shadernet::files::CheckpointDir;

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn latest_state_is_loaded_and_the_one_before_it_kept() {
    let folder = tempfile::tempdir().unwrap();
    let run = CheckpointDir::open(&folder.path().join("new/deep")).unwrap();
    assert_eq!(run.load_last::<u64>().unwrap(), None);
    for state in 1..=3u64 {
        run.save_last(&state).unwrap();
        assert_eq!(run.load_last::<u64>().unwrap(), Some(state));
    }
    drop(run);
    let run = CheckpointDir::open(&folder.path().join("new/deep")).unwrap();
    assert_eq!(run.load_last::<u64>().unwrap(), Some(3));
    fs::remove_file(run.last_path()).unwrap();
    assert_eq!(run.load_last::<u64>().unwrap(), Some(2));
    let mut names: Vec<_> = fs::read_dir(run.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["lock", "previous.ckpt"]);
}

#[test]
fn second_run_in_a_folder_is_refused_until_the_first_ends() {
    let folder = tempfile::tempdir().unwrap();
    let run = CheckpointDir::open(folder.path()).unwrap();
    let error = CheckpointDir::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
    drop(run);
    CheckpointDir::open(folder.path()).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(CheckpointDir::open(&file), Err(Error::Io { .. })));
}

#[test]
fn damaged_checkpoint_falls_back_to_the_one_before_it_and_never_displaces_it() {
    // Whether the new run looks at the checkpoint before it saves, or not.
    for looks in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let run = CheckpointDir::open(folder.path()).unwrap();
        run.save_last(&1u64).unwrap();
        run.save_last(&2u64).unwrap();
        drop(run);
        let run = CheckpointDir::open(folder.path()).unwrap();
        damage(&run.last_path());
        if looks {
            assert_eq!(run.load_last::<u64>().unwrap(), Some(1));
        }
        run.save_last(&3u64).unwrap();
        damage(&run.last_path());
        assert_eq!(run.load_last::<u64>().unwrap(), Some(1), "the damaged 2 must not have become the previous one");
    }
}

#[test]
fn folder_without_any_loadable_checkpoint_is_an_error_about_the_latest() {
    let folder = tempfile::tempdir().unwrap();
    let run = CheckpointDir::open(folder.path()).unwrap();
    run.save_last(&1u64).unwrap();
    damage(&run.last_path());
    assert!(matches!(run.load_last::<u64>(), Err(Error::Model { path, .. }) if path == run.last_path()));
    fs::rename(run.last_path(), run.previous_path()).unwrap();
    assert!(matches!(run.load_last::<u64>(), Err(Error::Model { path, .. }) if path == run.previous_path()));
    run.save_last(&2u64).unwrap();
    assert_eq!(run.load_last::<u64>().unwrap(), Some(2));
}

#[test]
fn failed_save_loses_nothing_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let run = CheckpointDir::open(folder.path()).unwrap();
    run.save_last(&1u64).unwrap();
    run.save_last(&2u64).unwrap();
    // Neither a link nor a rename can replace a folder.
    fs::remove_file(run.previous_path()).unwrap();
    fs::create_dir(run.previous_path()).unwrap();
    assert!(run.save_last(&3u64).is_err());
    assert_eq!(run.load_last::<u64>().unwrap(), Some(2));
    fs::remove_dir(run.previous_path()).unwrap();
    // Removed under the running trainer.
    fs::remove_file(run.last_path()).unwrap();
    for state in 4..=5u64 {
        run.save_last(&state).unwrap();
        assert_eq!(run.load_last::<u64>().unwrap(), Some(state));
    }
}

#[derive(Serialize, Deserialize)]
struct Counted {
    counter: u64,
    payload: Vec<u32>,
}

impl Counted {
    fn new(counter: u64) -> Self {
        // Of varying length, so that a mixture of two states could not pass for one.
        let length = 1000 + counter % 7 * 5000;
        Self { counter, payload: (0..length as u32).map(|i| i.wrapping_mul(counter as u32)).collect() }
    }
}

/// Set, to the folder to save in, in the process that will be killed.
const CHILD: &str = "SHADERNET_TEST_CHILD";

#[test]
fn child_saves_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let run = CheckpointDir::open(Path::new(&folder)).unwrap();
    let start = run.load_last::<Counted>().unwrap().map_or(0, |state| state.counter);
    for counter in start + 1.. {
        run.save_last(&Counted::new(counter)).unwrap();
        eprintln!("saved {counter}.");
    }
}

/// `SHADERNET_KILLS` sets how often; 25 by default.
#[test]
fn killed_run_resumes_from_what_it_had_saved() {
    let kills = std::env::var("SHADERNET_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(25u32);
    let folder = tempfile::tempdir().unwrap();
    let mut before = 0;
    let mut random = std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), kills);
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_saves_until_it_is_killed", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.next().expect("the child saves once at least").unwrap();
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_micros((random >> 33) % 20_000));
        // On Unix this is SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        // The last line may be torn by the kill: what does not end in a full stop was not said.
        let number = |line: &str| line.strip_prefix("saved ").and_then(|rest| rest.strip_suffix('.')).and_then(|n| n.parse::<u64>().ok());
        let later = lines.map_while(Result::ok).filter_map(|line| number(&line)).last();
        let said = later.or_else(|| number(&first)).unwrap_or_else(|| panic!("{first}"));

        let run = CheckpointDir::open(folder.path()).unwrap();
        let state: Counted = run.load_last().unwrap().expect("a state");
        assert!(state.counter >= said && said > before, "kill {kill}: loaded {}, saved {said}, before {before}", state.counter);
        assert!(state.payload == Counted::new(state.counter).payload, "kill {kill}: the payload is of another state");
        assert!(fs::read_dir(folder.path()).unwrap().count() <= 3, "left-over files");
        before = state.counter;
    }
}
