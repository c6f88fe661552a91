//! Signals and kills in the middle of training: what is saved, with which exit code, and that going on ends in the same bits.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use serde_json::Value;
use shadernet::files::load_model;

use crate::program::{Place, numbers};

/// 80 steps an epoch: long enough to be stopped in.
const TRAIN: &str = "train --data data --device cpu --epochs 3 --batch-size 1 --limit-test 5";

/// A training whose output is read as it comes.
struct Running {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(place: &Place, arguments: &str) -> Self {
        let mut child = place.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, out: BufReader::new(out).lines(), err: BufReader::new(err).lines() }
    }

    /// Reads on until a line of standard output starts so.
    fn wait_for(&mut self, start: &str) {
        let found = self.out.by_ref().any(|line| line.unwrap().starts_with(start));
        assert!(found, "no line {start:?}: {:?}", self.err.by_ref().collect::<Vec<_>>());
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// The exit code, and what was still to read.
    fn end(mut self) -> (Option<i32>, String, String) {
        let rest = |lines: &mut dyn Iterator<Item = std::io::Result<String>>| lines.map(|line| line.unwrap() + "\n").collect::<String>();
        let (out, err) = (rest(&mut self.out), rest(&mut self.err));
        (self.child.wait().unwrap().code(), out, err)
    }
}

/// The model and the curves of a training that nothing stops.
fn undisturbed(place: &Place) -> (Vec<u8>, Value) {
    place.ok(&format!("{TRAIN} --out whole --history whole.json"));
    (place.read("whole"), serde_json::from_slice(&place.read("whole.json")).unwrap())
}

/// Goes on from `ck` to the end, which must be that of the undisturbed training.
fn resume_and_compare(place: &Place, from: &str) {
    let (whole, curves) = undisturbed(place);
    let done = place.ok(&format!("{TRAIN} --checkpoint-dir ck --resume --out resumed --history resumed.json"));
    assert!(done.out.contains(from), "no {from:?} in {}", done.out);
    assert!(place.read("resumed") == whole, "the resumed training ended in other weights");
    let resumed: Value = serde_json::from_slice(&place.read("resumed.json")).unwrap();
    for key in ["loss", "accuracy", "val_loss", "val_accuracy"] {
        assert_eq!(numbers(&resumed[key]), numbers(&curves[key]), "{key}");
    }
}

#[test]
fn interrupt_saves_and_resume_ends_in_the_same_bits() {
    for signal in ["INT", "TERM"] {
        let place = Place::new();
        let mut training = Running::start(&place, &format!("{TRAIN} --checkpoint-dir ck --out m --history h.json --plot p.png"));
        training.wait_for("epoch 1/3 ");
        training.signal(signal);
        let (code, out, err) = training.end();
        assert_eq!(code, Some(1), "{err}");
        for words in ["stopping after the steps under way", "error: interrupted at epoch ", "; resume from ck\n", "with --resume added"] {
            assert!(err.contains(words), "{signal}: no {words:?} in {err}");
        }
        // An epoch was done, so there are results of it.
        assert!(out.contains("model   m\n") && out.contains("history h.json\n") && out.contains("plot    p.png\n"), "{out}");
        place.ok("summary m");
        // Nothing between the last epoch and the signal is trained again.
        let stopped = err.split("interrupted at epoch ").nth(1).and_then(|rest| rest.split(';').next()).unwrap();
        let from = match stopped.split_once(", step ").unwrap() {
            (_, "0") => "resume  ck: after epoch ".to_owned(),
            (epoch, step) => format!("resume  ck: in epoch {epoch}, after step {step}\n"),
        };
        resume_and_compare(&place, &from);
    }
}

#[test]
fn interrupt_in_the_first_epoch_leaves_an_older_model_alone() {
    let place = Place::new();
    place.write("m", b"older");
    let long = "train --device cpu --epochs 3 --batch-size 1 --out m";
    let mut training = Running::start(&place, long);
    training.wait_for("memory ");
    // The line comes a moment before the handler of signals is there.
    std::thread::sleep(std::time::Duration::from_millis(200));
    training.signal("INT");
    let (code, _, err) = training.end();
    assert!(code == Some(1) && err.contains("Without --checkpoint-dir there is nothing to resume from"), "{code:?}: {err}");
    assert_eq!(place.read("m"), b"older");
}

#[test]
fn second_interrupt_ends_at_once() {
    // The first may come so late in a step that the training ends before the second: then it is tried again.
    let codes: Vec<Option<i32>> = (0..4)
        .map(|_| {
            let place = Place::new();
            let mut training = Running::start(&place, "train --device cpu --epochs 100 --batch-size 1000 --limit-test 1");
            training.wait_for("memory ");
            std::thread::sleep(std::time::Duration::from_millis(200));
            training.signal("INT");
            assert!(training.err.by_ref().any(|line| line.unwrap().starts_with("stopping")));
            training.signal("INT");
            training.end().0
        })
        .take_while(|code| *code != Some(130))
        .collect();
    assert!(codes.len() < 4 && codes.iter().all(|code| *code == Some(1)), "{codes:?}");
}

#[test]
fn kill_and_resume_end_in_the_same_bits() {
    let place = Place::new();
    let mut training = Running::start(&place, &format!("{TRAIN} --checkpoint-dir ck --checkpoint-steps 7"));
    training.wait_for("epoch 1/3 ");
    // Stopped, it keeps its lock for as long as the second run takes.
    training.signal("STOP");
    let again = place.run(&format!("{TRAIN} --checkpoint-dir ck --resume"));
    training.child.kill().unwrap();
    assert_eq!(training.end().0, None);
    again.check_failed(1, "a second run in the folder", &["checkpoint folder ck", "in use by another training run"]);
    resume_and_compare(&place, "resume  ck: ");
}

#[test]
fn failed_checkpoint_loses_no_weights() {
    let place = Place::new();
    let mut training = Running::start(&place, &format!("{TRAIN} --checkpoint-dir ck --out m"));
    training.wait_for("epoch 1/3 ");
    training.signal("STOP");
    std::fs::remove_file(place.path("ck/last.ckpt")).unwrap();
    std::fs::create_dir(place.path("ck/last.ckpt")).unwrap();
    training.signal("CONT");
    let (code, out, err) = training.end();
    assert!(code == Some(1) && err.contains("error: ck/last.ckpt: ") && out.contains("model   m\n"), "{code:?}: {out}{err}");
    let weights = |name: &str| load_model(&place.path(name)).unwrap();
    assert!(weights("m") == weights("ck/last.safetensors"), "not the weights of the last epoch");
}

#[test]
fn finished_training_resumes_to_nothing() {
    let place = Place::new();
    place.ok(&format!("{TRAIN} --checkpoint-dir ck --out m"));
    let done = place.ok(&format!("{TRAIN} --checkpoint-dir ck --resume --out again"));
    assert!(done.out.contains("its 3 epochs are done, nothing is left to train"), "{}", done.out);
    assert!(place.read("again") == place.read("m"));
}
