//! What a checkpoint holds, and whether it is of the run that wants to go on from it.

use serde::{Deserialize, Serialize};

use super::{Precision, Session, Snapshot, TrainConfig};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::files::{CheckpointDir, History};
use crate::nn::Model;
use crate::plan::Choices;

/// What makes a run this run: two that agree here end in the same bits on the same device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    model: String,
    batch: usize,
    learning_rate: f32,
    adam: [f64; 3],
    seed: u64,
    precision: Precision,
    train: [u64; 2],
    test: [u64; 2],
}

impl Run {
    pub(super) fn new(model: &Model, config: &TrainConfig, train: &Dataset, test: &Dataset) -> Self {
        Self {
            model: serde_json::to_string(model).expect("a model is plain data"),
            batch: config.batch,
            learning_rate: config.learning_rate,
            adam: [config.adam.beta1, config.adam.beta2, config.adam.epsilon],
            seed: config.seed,
            precision: config.precision,
            train: fingerprint(train),
            test: fingerprint(test),
        }
    }

    /// The first thing in which the other differs: what, found there, expected here.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let images = |[count, sum]: [u64; 2]| format!("{count} images of checksum {sum:08x}");
        let all = [
            ("model", other.model.clone(), self.model.clone()),
            ("batch size", other.batch.to_string(), self.batch.to_string()),
            ("learning rate", other.learning_rate.to_string(), self.learning_rate.to_string()),
            ("Adam constants", format!("{:?}", other.adam), format!("{:?}", self.adam)),
            ("seed", other.seed.to_string(), self.seed.to_string()),
            ("precision", other.precision.to_string(), self.precision.to_string()),
            ("training data", images(other.train), images(self.train)),
            ("test data", images(other.test), images(self.test)),
        ];
        all.into_iter().find(|(_, found, expected)| found != expected)
    }
}

/// Number of images and a checksum over them and their labels.
fn fingerprint(data: &Dataset) -> [u64; 2] {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&data.images);
    sum.update(bytemuck::cast_slice(&data.labels));
    [data.len() as u64, u64::from(sum.finalize())]
}

/// How far a run is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Whole epochs done.
    pub(super) epochs: usize,
    /// Seconds of the present epoch spent before the snapshot.
    pub(super) seconds: f64,
    /// Everything reported.
    pub(super) history: History,
    /// The device's numbers.
    pub(super) snapshot: Snapshot,
}

/// What a run's bits depend on beside the [`Run`]: where it is, and by which kernels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    device: String,
    choices: Choices,
}

impl Machine {
    /// That of a session.
    pub(super) fn of(session: &Session) -> Self {
        Self { device: session.identity(), choices: session.chosen() }
    }

    /// Has the executor that is to go on pick the kernels that the run has had, if it is on the same device.
    pub(super) fn prepare(&self, exec: &mut dyn Executor) {
        if self.device == exec.identity() {
            exec.choose(&self.choices);
        }
    }

    /// Warns if a run that was on this machine goes on on another, or with other kernels.
    pub(super) fn compare(&self, now: &Self) {
        let differ = "the weights will differ in their last bits from those of a run that was not interrupted";
        if self.device != now.device {
            log::warn!("the checkpoint is of {} and the run goes on on {}: {differ}", self.device, now.device);
        } else if self.choices != now.choices {
            let other = self.choices.iter().find(|(key, kernel)| now.choices.get(key) != Some(kernel));
            let (was, is) = other.map_or(("none", "one"), |(key, kernel)| (kernel, now.choices.get(key).unwrap_or("none")));
            log::warn!(
                "the checkpoint is of kernels that this version or this device as it was opened has not, {was} where now is {is}: {differ}"
            );
        }
    }
}

#[derive(Serialize)]
struct CheckpointRef<'a> {
    run: &'a Run,
    machine: &'a Machine,
    progress: &'a Progress,
}

#[derive(Deserialize)]
struct Checkpoint {
    run: Run,
    machine: Machine,
    progress: Progress,
}

/// Saves as the folder's last checkpoint.
pub(super) fn save(folder: &CheckpointDir, run: &Run, machine: &Machine, progress: &Progress) -> Result<()> {
    folder.save_last(&CheckpointRef { run, machine, progress })
}

/// The folder's last checkpoint, if it has one, and where it was made.
///
/// # Errors
/// [`Error::Model`] if it is of another run.
pub(super) fn load(folder: &CheckpointDir, run: &Run) -> Result<Option<(Machine, Progress)>> {
    let Some(Checkpoint { run: found, machine, progress }) = folder.load_last::<Checkpoint>()? else {
        return Ok(None);
    };
    match run.difference(&found) {
        None => Ok(Some((machine, progress))),
        Some((what, found, expected)) => Err(Error::Model {
            path: folder.last_path(),
            kind: "checkpoint",
            found: format!("{what} {found}"),
            expected: format!("{what} {expected}"),
        }),
    }
}
