//! What is counted of a version of a model while it serves. Everything only grows, so any two readings give a rate.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::drift::Seen;
use super::queue::{Answer, Images};
use super::refusal::Reason;
use crate::predict::Batch;

/// Counters of a version of a model.
#[derive(Debug, Default)]
pub(super) struct Stats {
    /// Requests answered, and the time they took.
    pub(super) success: Timer,
    /// Requests not answered, and the time they took.
    pub(super) failure: Timer,
    pub(super) failures: [AtomicU64; 4],
    /// Time of answered requests in the queue, and of the three parts of computing.
    pub(super) queue: Timer,
    pub(super) upload: Timer,
    pub(super) compute: Timer,
    pub(super) download: Timer,
    /// Images computed.
    pub(super) images: AtomicU64,
    /// Batches computed.
    pub(super) batches: AtomicU64,
    /// Batches by their size.
    pub(super) by_size: Mutex<BTreeMap<usize, BySize>>,
    /// When the last request was answered, in milliseconds since 1970.
    pub(super) last: AtomicU64,
    pub(super) request_seconds: Histogram<{ SECONDS.len() }>,
    pub(super) queue_seconds: Histogram<{ SECONDS.len() }>,
    pub(super) batch_images: Histogram<{ IMAGES.len() }>,
    /// Times the device was lost and had to be opened again.
    pub(super) device_lost: AtomicU64,
    pub(super) seen: Mutex<Seen>,
    /// Images by the class found most probable.
    pub(super) classes: Vec<AtomicU64>,
}

/// Bounds of the histograms of time, in seconds.
pub(super) const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds of the histogram of batches, in images.
pub(super) const IMAGES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// How often, and how long in all.
#[derive(Debug, Default)]
pub(super) struct Timer {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Timer {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn nanoseconds(&self) -> u64 {
        self.nanoseconds.load(Ordering::Relaxed)
    }
}

/// Batches of one size: how many, and nanoseconds of upload, compute and download.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BySize {
    pub(super) count: u64,
    pub(super) nanoseconds: [u64; 3],
}

/// A histogram over fixed bounds.
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    /// Observations up to each bound and above the one before; the last is of those above all.
    buckets: [AtomicU64; N],
    above: AtomicU64,
    /// The sum of what was observed, in millionths.
    sum: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; N], above: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }
}

impl<const N: usize> Histogram<N> {
    fn observe(&self, value: f64, bounds: &[f64; N]) {
        let bucket = bounds.iter().position(|&bound| value <= bound).map_or(&self.above, |place| &self.buckets[place]);
        bucket.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((1e6 * value) as u64, Ordering::Relaxed);
    }

    /// Observations up to each bound, those above all included in the last; and their sum.
    pub(super) fn cumulative(&self) -> (Vec<u64>, f64) {
        let mut total = 0;
        let buckets = self.buckets.iter().chain([&self.above]);
        let counts = buckets.map(|bucket| {
            total += bucket.load(Ordering::Relaxed);
            total
        });
        (counts.collect(), self.sum.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

impl Stats {
    pub(super) fn new(channels: usize, classes: usize) -> Self {
        let seen = Mutex::new(Seen::new(channels, classes));
        Self { seen, classes: (0..classes).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }

    /// A request was answered.
    pub(super) fn answered(&self, took: Duration, parts: &[Answer]) {
        self.success.add(took);
        // Parts of one request are computed side by side or one after the other; the request waited for the longest.
        let longest = |of: fn(&Answer) -> Duration| parts.iter().map(of).max().unwrap_or_default();
        let queued = longest(|answer| answer.queued);
        self.queue.add(queued);
        self.upload.add(longest(|answer| answer.upload));
        self.compute.add(longest(|answer| answer.compute));
        self.download.add(longest(|answer| answer.download));
        self.request_seconds.observe(took.as_secs_f64(), &SECONDS);
        self.queue_seconds.observe(queued.as_secs_f64(), &SECONDS);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.store(now.as_millis() as u64, Ordering::Relaxed);
    }

    /// A request was not answered.
    pub(super) fn failed(&self, took: Duration, reason: Reason) {
        self.failure.add(took);
        self.failures[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A batch was computed.
    pub(super) fn computed(&self, images: usize, batch: &Batch) {
        self.images.fetch_add(images as u64, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.batch_images.observe(images as f64, &IMAGES);
        let mut by_size = self.by_size.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = by_size.entry(images).or_default();
        entry.count += 1;
        for (sum, time) in entry.nanoseconds.iter_mut().zip([batch.upload, batch.compute, batch.download]) {
            *sum += time.as_nanos() as u64;
        }
    }

    /// Of what went into a batch, and what came out of it.
    pub(super) fn seen(&self, images: &Images, probabilities: &[f32]) {
        let count = |class: usize| {
            self.classes[class].fetch_add(1, Ordering::Relaxed);
        };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).add(images, probabilities, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_counts_each_observation_once_and_up_to_its_bound() {
        let histogram = Histogram::<3>::default();
        for value in [0.5, 1.0, 1.5, 4.0, 9.0] {
            histogram.observe(value, &[1.0, 2.0, 4.0]);
        }
        assert_eq!(histogram.cumulative(), (vec![2, 3, 4, 5], 16.0));
    }
}
