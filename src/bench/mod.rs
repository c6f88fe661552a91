//! Measurements: how fast a device trains and predicts, step by step and in all, and in how much memory. What the commands
//! `shadernet profile` and `shadernet bench` report.
//!
//! Times are of the public paths, [`Trainer::fit`] and [`Predictor::predict`], as a program that uses the crate has them.

mod data;
mod host;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;

pub use self::data::{initial_weights, noise_images, repeated};
pub use self::host::{date, peak_host_bytes, processor};
use crate::error::{Error, Result};
use crate::exec::profile::{Profile, median};
use crate::plan::{Place, Plan};
use crate::predict::Predictor;
use crate::train::{Event, Session, Trainer};

/// Steps that warm a device up before anything is timed.
pub const WARM_UP: usize = 3;

/// A profile, and what the same runs take when nobody looks.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What each step of the plan takes.
    pub profile: Profile,
    /// Nanoseconds of a run with everything around it, not profiled: from one call of the public interface to its return.
    pub wall_ns: f64,
}

/// Bytes that an executor holds for plans of one graph: a leaf once, at the size of the largest plan that has it, and each plan's
/// slots. What lies between the tensors of packs is counted as on a GPU.
pub fn planned_bytes<'a>(plans: impl IntoIterator<Item = &'a Plan>) -> u64 {
    let (mut leaves, mut slots, mut padding) = (BTreeMap::new(), 0, BTreeMap::new());
    for plan in plans {
        slots += plan.slot_bytes();
        for pack in plan.packs() {
            if let Place::Leaf(first) = pack.members[0] {
                padding.insert(first, pack.padding);
            }
        }
        for leaf in plan.leaves() {
            let bytes: &mut usize = leaves.entry(leaf.tensor).or_default();
            *bytes = leaf.ty.bytes(plan.capacity()).max(*bytes);
        }
    }
    (slots + leaves.values().chain(padding.values()).sum::<usize>()) as u64
}

/// Profiles so many training steps with whole batches, from the start of an epoch and, past its end, of the next. The weights
/// change as they do in training.
///
/// # Errors
/// As [`Executor::profile`](crate::exec::Executor::profile).
pub fn profile_training(session: &mut Session, steps: usize) -> Result<Measured> {
    let all = session.images(session.steps());
    let whole = all / session.plans()[0].capacity().min(all);
    session.start_epoch(0)?;
    session.train(0, WARM_UP.min(whole))?;
    session.wait()?;

    let mut wall_ns = 0.0;
    let mut runs = Vec::new();
    for epoch in 0..steps.div_ceil(whole) {
        let count = whole.min(steps - epoch * whole);
        session.start_epoch(epoch)?;
        session.wait()?;
        let began = Instant::now();
        session.train(0, count)?;
        session.wait()?;
        wall_ns += began.elapsed().as_nanos() as f64;
        session.start_epoch(epoch)?;
        runs.extend(session.profile_training(0, count)?);
    }
    // The clock goes back to where an epoch can begin.
    session.start_epoch(0)?;
    Ok(Measured { profile: Profile::new(session.plans()[0], &session.chosen(), runs), wall_ns: wall_ns / steps as f64 })
}

/// Profiles so many evaluation steps with whole batches, or as many as the test images make. Not profiled, a whole evaluation is
/// timed, its last and smaller batch and the reading of the result included.
///
/// # Errors
/// As [`Executor::profile`](crate::exec::Executor::profile).
pub fn profile_evaluation(session: &mut Session, steps: usize) -> Result<Measured> {
    session.evaluate()?;
    let began = Instant::now();
    session.evaluate()?;
    let elapsed = began.elapsed().as_nanos() as f64;
    let mut runs = session.profile_evaluation(usize::MAX)?;
    let wall_ns = elapsed / runs.len() as f64;
    let batch = runs[0].batch;
    runs.retain(|run| run.batch == batch);
    runs.truncate(steps);
    Ok(Measured { profile: Profile::new(session.plans()[1], &session.chosen(), runs), wall_ns })
}

/// Profiles so many predictions of one batch of images, bytes `[N, H, W, C]` of no more images than the predictor takes at once.
///
/// # Errors
/// As [`Executor::profile`](crate::exec::Executor::profile), and for images that are no batch of the model's.
pub fn profile_prediction(predictor: &mut Predictor, images: &[u8], runs: usize) -> Result<Measured> {
    for _ in 0..WARM_UP {
        predictor.predict(images)?;
    }
    let began = Instant::now();
    for _ in 0..runs {
        predictor.predict(images)?;
    }
    let wall_ns = began.elapsed().as_nanos() as f64 / runs as f64;
    let runs = predictor.profile(images, runs)?;
    Ok(Measured { profile: Profile::new(predictor.plan(), &predictor.chosen(), runs), wall_ns })
}

/// One epoch of training.
#[derive(Clone, Debug, Serialize)]
pub struct Epoch {
    /// Seconds of training, validation and saving apart.
    pub seconds: f64,
    /// Training images a second of those.
    pub images_per_s: f64,
    /// Mean training loss in nats.
    pub loss: f64,
    /// Seconds of validation.
    pub val_seconds: f64,
    /// Test images a second of those.
    pub val_images_per_s: f64,
    /// Part of the test images that were classified right.
    pub val_accuracy: f64,
}

/// Trains to the end, with a trainer that has not begun, after a few steps that are taken back; tells how long each epoch took.
///
/// # Errors
/// As [`Trainer::fit`].
pub fn train(trainer: &mut Trainer) -> Result<Vec<Epoch>> {
    let session = trainer.session();
    let start = session.snapshot()?;
    session.train(0, WARM_UP.min(session.steps()))?;
    session.restore(&start, 0)?;
    session.wait()?;

    let mut epochs = Vec::new();
    trainer.fit(&mut |event| {
        if let Event::Epoch { train, test, seconds, test_seconds, .. } = event {
            epochs.push(Epoch {
                seconds,
                images_per_s: train.images as f64 / seconds,
                loss: train.loss,
                val_seconds: test_seconds,
                val_images_per_s: test.images as f64 / test_seconds,
                val_accuracy: test.accuracy,
            });
        }
        ControlFlow::Continue(())
    })?;
    Ok(epochs)
}

/// How fast one batch is classified.
#[derive(Clone, Debug, Serialize)]
pub struct Inference {
    /// Images of a call.
    pub batch: usize,
    /// Calls that were timed.
    pub calls: usize,
    /// Milliseconds from bytes to probabilities, the median call.
    pub p50_ms: f64,
    /// The same of the slowest call but one in a hundred.
    pub p99_ms: f64,
    /// Images a second at the median.
    pub images_per_s: f64,
}

/// The least number of calls that are timed, however long they take.
const LEAST_CALLS: usize = 20;

/// Classifies batches of images, bytes `[count, H, W, C]`, one after the other for so many seconds.
///
/// # Errors
/// If there are fewer images than a batch, and as [`Predictor::predict`].
pub fn infer(predictor: &mut Predictor, images: &[u8], batch: usize, seconds: f64) -> Result<Inference> {
    let image = predictor.model().input.iter().product::<usize>();
    let batches = images.len() / (image * batch);
    if batches == 0 {
        return Err(Error::invalid("images to classify", images.len() / image, format!("at least {batch}")));
    }
    let call = |predictor: &mut Predictor, i: usize| -> Result<f64> {
        let images = &images[i % batches * batch * image..][..batch * image];
        let began = Instant::now();
        predictor.predict(images)?;
        Ok(1e3 * began.elapsed().as_secs_f64())
    };
    for i in 0..WARM_UP {
        call(predictor, i)?;
    }
    let began = Instant::now();
    let mut times = Vec::new();
    while times.len() < LEAST_CALLS || began.elapsed().as_secs_f64() < seconds {
        times.push(call(predictor, times.len())?);
    }
    let p50_ms = median(times.iter().copied());
    let images_per_s = 1e3 * batch as f64 / p50_ms;
    Ok(Inference { batch, calls: times.len(), p50_ms, p99_ms: percentile(&mut times, 0.99), images_per_s })
}

/// The smallest number that so many of all are not above; 0 of none.
fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (part * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.99), 198.0);
        assert_eq!(percentile(&mut values, 0.5), 100.0);
        assert_eq!((percentile(&mut [7.0], 0.99), percentile(&mut [], 0.99)), (7.0, 0.0));
    }
}
