//! The queue before a model: what may enter, and which requests become one batch.
//!
//! A request is admitted if the images of all requests under way, waiting or computing, stay below a bound: so the time to an
//! answer is bounded as well, and what is too much is turned away at once. Its place is given back when its answer is
//! there or its client is gone, whichever comes first. A job whose client is gone is never computed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::refusal::Refusal;
use crate::predict;

/// Images of a request, `[images, H, W, C]`.
#[derive(Clone, Debug)]
pub(super) enum Images {
    /// Bytes, each to be divided by 255.
    Bytes(Bytes),
    /// Numbers as the network takes them.
    Floats(Vec<f32>),
}

impl Images {
    /// Values in all images.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Floats(values) => values.len(),
        }
    }

    /// What [`predict::Predictor`] takes.
    pub(super) fn view(&self) -> predict::Images<'_> {
        match self {
            Self::Bytes(bytes) => predict::Images::Bytes(bytes),
            Self::Floats(values) => predict::Images::Floats(values),
        }
    }

    /// Takes the first `len` values off.
    pub(super) fn split_to(&mut self, len: usize) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.split_to(len)),
            Self::Floats(values) => {
                let rest = values.split_off(len);
                Self::Floats(std::mem::replace(values, rest))
            }
        }
    }
}

/// The part of a request that goes into one batch.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) images: Images,
    /// Number of images, from 1 to the largest batch.
    pub(super) count: usize,
    pub(super) arrived: Instant,
    /// Its part of the request's place.
    pub(super) place: Arc<Place>,
    /// Gone as soon as nobody waits.
    pub(super) reply: oneshot::Sender<Result<Answer, Refusal>>,
}

/// What a job came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// `[images, classes]`.
    pub(super) probabilities: Vec<f32>,
    pub(super) queued: Duration,
    pub(super) upload: Duration,
    pub(super) compute: Duration,
    pub(super) download: Duration,
}

/// When waiting requests become a batch.
#[derive(Clone, Debug)]
pub(super) struct Batching {
    /// Most images of a batch.
    pub(super) max: usize,
    /// How long the first request may wait for others.
    pub(super) delay: Duration,
    /// Sizes for which no longer waiting is worthwhile, ascending.
    pub(super) preferred: Vec<usize>,
}

impl Batching {
    /// Images to take of so many, or `None` if more of them should be waited for.
    fn enough(&self, waiting: usize) -> Option<usize> {
        if waiting >= self.max {
            return Some(self.max);
        }
        self.preferred.iter().rev().copied().find(|&size| size <= waiting)
    }
}

/// The queue of one version of a model.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrival: Condvar,
    /// Images of all requests under way.
    images: AtomicUsize,
    /// Requests under way.
    requests: AtomicUsize,
    /// Most images under way.
    pub(super) limit: usize,
    batching: Batching,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Images of the jobs.
    count: usize,
    closed: bool,
}

/// A place for images, given back when they are computed or nobody waits for them any more.
///
/// Whoever computes gives it back, not only whoever waits: where far more is asked than can be answered, the threads that tell
/// clients are late, and places kept until then would leave the device without work.
#[derive(Debug)]
pub(super) struct Place {
    queue: Arc<Queue>,
    /// Those not given back.
    images: AtomicUsize,
}

impl Place {
    /// Gives it back, once.
    pub(super) fn free(&self) {
        self.queue.images.fetch_sub(self.images.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// A request under way: counts while it lives, and gives its places back at its end.
#[derive(Debug)]
pub(super) struct Admitted {
    queue: Arc<Queue>,
    /// One for each part.
    pub(super) places: Vec<Arc<Place>>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.places.iter().for_each(|place| place.free());
        self.queue.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    pub(super) fn new(limit: usize, batching: Batching) -> Self {
        let waiting = Mutex::default();
        Self { waiting, arrival: Condvar::new(), images: AtomicUsize::new(0), requests: AtomicUsize::new(0), limit, batching }
    }

    /// Requests under way: waiting or computing.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Images that wait to be computed.
    pub(super) fn depth(&self) -> usize {
        self.lock().count
    }

    /// Whether there is no place for even one image.
    pub(super) fn is_full(&self) -> bool {
        self.images.load(Ordering::Relaxed) >= self.limit
    }

    /// Places for a request of so many images, one for each part that goes into one batch, if there are any.
    pub(super) fn admit(self: &Arc<Self>, images: usize) -> Option<Admitted> {
        let room = |now: usize| now.checked_add(images).filter(|&then| then <= self.limit);
        self.images.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok()?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let parts = (0..images).step_by(self.batching.max).map(|first| self.batching.max.min(images - first));
        let place = |images| Arc::new(Place { queue: self.clone(), images: AtomicUsize::new(images) });
        Some(Admitted { queue: self.clone(), places: parts.map(place).collect() })
    }

    /// Puts the parts of a request into the line; gives them back if the queue is closed.
    pub(super) fn push(&self, jobs: Vec<Job>) -> Result<(), Vec<Job>> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(jobs);
        }
        // Clients that leave give their places back, while their jobs stay until a batch is made: do not let them pile up.
        if waiting.count > 2 * self.limit {
            waiting.sweep();
        }
        for job in jobs {
            waiting.count += job.count;
            waiting.jobs.push_back(job);
        }
        drop(waiting);
        self.arrival.notify_one();
        Ok(())
    }

    /// Waits for the next batch: jobs of at most the largest batch in all, of clients that were still there. `None` once the
    /// queue is closed and empty.
    pub(super) fn next_batch(&self) -> Option<Vec<Job>> {
        let mut waiting = self.lock();
        loop {
            while waiting.jobs.front().is_some_and(|job| job.reply.is_closed()) {
                waiting.pop();
            }
            let Some(first) = waiting.jobs.front() else {
                if waiting.closed {
                    return None;
                }
                waiting = self.arrival.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let due = first.arrived + self.batching.delay;
            let patience = due.saturating_duration_since(Instant::now());
            let enough = self.batching.enough(waiting.count);
            if enough.is_none() && !patience.is_zero() && !waiting.closed {
                waiting = self.arrival.wait_timeout(waiting, patience).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let batch = waiting.take(enough.unwrap_or(self.batching.max), self.batching.max);
            if !waiting.jobs.is_empty() {
                self.arrival.notify_one(); // another instance may take the rest
            }
            return Some(batch);
        }
    }

    /// Everything that waits, without waiting.
    pub(super) fn drain(&self) -> Vec<Job> {
        let mut waiting = self.lock();
        waiting.count = 0;
        waiting.jobs.drain(..).collect()
    }

    /// Takes nothing in any more. What waits is still computed.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrival.notify_all();
    }

    /// Whether it was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.count -= job.count;
        Some(job)
    }

    /// Jobs of `wanted` images or less; the first in any case, which has no more than `max`.
    fn take(&mut self, wanted: usize, max: usize) -> Vec<Job> {
        let (mut batch, mut count) = (Vec::new(), 0);
        while let Some(next) = self.jobs.front() {
            if next.reply.is_closed() {
                self.pop();
                continue;
            }
            let limit = if count == 0 { max } else { wanted };
            if count + next.count > limit {
                break;
            }
            count += next.count;
            batch.extend(self.pop());
        }
        batch
    }

    fn sweep(&mut self) {
        self.jobs.retain(|job| !job.reply.is_closed());
        self.count = self.jobs.iter().map(|job| job.count).sum();
    }
}

#[cfg(test)]
mod tests;
