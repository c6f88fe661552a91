//! An instance of a model: a thread that owns a [`Predictor`] and computes batches from the model's queue.
//!
//! Several instances share a queue; with two, one batch is put together or read back while the device computes the other.
//! When a run fails, because the device is lost or for any other reason, its clients are told at once, the instance makes itself
//! a new predictor on a new device, and the model is ready again when that has shown that it computes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::queue::{Answer, Job, Queue};
use super::refusal::Refusal;
use super::stats::Stats;
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::files::{Baseline, NamedTensor};
use crate::nn::Model;
use crate::predict::{Batch, Images, Predictor};

/// Opens the device an instance computes on. Called again when a device is lost.
pub type Opener = Arc<dyn Fn() -> Result<Box<dyn Executor>> + Send + Sync>;

/// Wait between two tries to open a lost device, doubled each time up to the second.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// What the instances of a model share.
pub(super) struct Shared {
    pub(super) queue: Arc<Queue>,
    pub(super) stats: Stats,
    pub(super) model: Model,
    pub(super) weights: Vec<NamedTensor>,
    pub(super) baseline: Option<Baseline>,
    /// Most images of a batch.
    pub(super) capacity: usize,
    pub(super) open: Opener,
    /// Instances that can compute.
    pub(super) healthy: AtomicUsize,
    /// Bytes that they hold on the device.
    pub(super) device_bytes: AtomicU64,
}

impl Shared {
    /// A predictor that has computed a smallest and a largest batch, so that the first client does not wait for anything that
    /// is made on first use.
    pub(super) fn predictor(&self) -> Result<Predictor> {
        let mut predictor = Predictor::new((self.open)()?, self.model.clone(), &self.weights, self.capacity)?;
        let one: usize = self.model.input.iter().product();
        let (bytes, floats) = (vec![127; one * self.capacity], vec![0.5; one * self.capacity]);
        let batches = [1, self.capacity].map(|images| images * one);
        for images in batches.iter().flat_map(|&len| [Images::Bytes(&bytes[..len]), Images::Floats(&floats[..len])]) {
            let batch = predictor.predict_batch(&[images])?;
            if let Some(wrong) = batch.probabilities.iter().find(|probability| !probability.is_finite()) {
                return Err(Error::invalid(format!("a probability that {} gives", self.model.name), wrong, "a finite number"));
            }
        }
        Ok(predictor)
    }

    /// What an instance's thread does until the queue is closed and empty.
    pub(super) fn work(&self, predictor: Predictor) {
        let mut predictor = Some(predictor);
        while let Some(ready) = &mut predictor {
            let bytes = ready.allocated_bytes();
            self.device_bytes.fetch_add(bytes, Ordering::Relaxed);
            let failed = self.serve(ready);
            self.device_bytes.fetch_sub(bytes, Ordering::Relaxed);
            let healthy = self.healthy.fetch_sub(1, Ordering::SeqCst) - 1;
            drop(predictor.take()); // its memory, before a new one asks for as much
            if let Some((reason, jobs)) = failed {
                log::error!(model = self.model.name; "{reason}; opening the device again");
                turn_away(jobs);
                if healthy == 0 {
                    turn_away(self.queue.drain());
                }
                predictor = self.recover();
            }
        }
    }

    /// Computes batches until the queue is closed and empty, or a run fails: then why, and whose it was.
    fn serve(&self, predictor: &mut Predictor) -> Option<(String, Vec<Job>)> {
        while let Some(jobs) = self.queue.next_batch() {
            if jobs.is_empty() {
                continue;
            }
            let began = Instant::now();
            let views: Vec<Images<'_>> = jobs.iter().map(|job| job.images.view()).collect();
            let failed = match catch_unwind(AssertUnwindSafe(|| predictor.predict_batch(&views))) {
                Ok(Ok(batch)) => {
                    self.answer(jobs, began, &batch);
                    continue;
                }
                Ok(Err(error)) => {
                    if matches!(error, Error::DeviceLost { .. }) {
                        self.stats.device_lost.fetch_add(1, Ordering::Relaxed);
                    }
                    error.to_string()
                }
                Err(_) => "a panic while computing".to_owned(),
            };
            return Some((failed, jobs));
        }
        None
    }

    /// Gives each job its rows.
    fn answer(&self, jobs: Vec<Job>, began: Instant, batch: &Batch) {
        let Batch { upload, compute, download, .. } = *batch;
        self.stats.computed(jobs.iter().map(|job| job.count).sum(), batch);
        let mut rest = batch.probabilities.as_slice();
        for job in jobs {
            let (probabilities, others) = rest.split_at(job.count * self.model.classes.len());
            rest = others;
            let queued = began.saturating_duration_since(job.arrived);
            let answer = Answer { probabilities: probabilities.to_vec(), queued, upload, compute, download };
            let images = job.images;
            job.place.free();
            // Nobody may be waiting any more. Whoever is gets the answer before it is counted.
            let _ = job.reply.send(Ok(answer));
            self.stats.seen(&images, probabilities);
        }
    }

    /// A new predictor, as soon as there can be one; `None` once the queue is closed.
    fn recover(&self) -> Option<Predictor> {
        let mut wait = RETRY[0];
        loop {
            let tried = catch_unwind(AssertUnwindSafe(|| self.predictor()));
            match tried {
                Ok(Ok(predictor)) => {
                    log::info!(model = self.model.name; "the device is there again: {}", predictor.device());
                    self.healthy.fetch_add(1, Ordering::SeqCst);
                    return Some(predictor);
                }
                Ok(Err(error)) => log::error!(model = self.model.name; "no device yet: {error}"),
                Err(_) => log::error!(model = self.model.name; "no device yet: a panic while opening it"),
            }
            let until = Instant::now() + wait;
            while Instant::now() < until {
                if self.queue.is_closed() {
                    turn_away(self.queue.drain());
                    return None;
                }
                std::thread::sleep(RETRY[0].min(until.saturating_duration_since(Instant::now())));
            }
            wait = RETRY[1].min(2 * wait);
        }
    }
}

/// Tells clients that there is no device. Nobody may be waiting any more.
fn turn_away(jobs: Vec<Job>) {
    for job in jobs {
        let _ = job.reply.send(Err(Refusal::unavailable("the device failed; it is being opened again")));
    }
}
