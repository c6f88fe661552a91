//! A version of a model that serves: a file's weights in some instances behind one queue, and how a request goes through it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::instance::{Opener, Shared};
use super::queue::{Answer, Batching, Images, Job, Queue};
use super::refusal::{Reason, Refusal};
use super::stats::Stats;
use crate::error::{Error, Result};
use crate::files::{Baseline, ModelFile};
use crate::nn::Model;

/// How models are run.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) batching: Batching,
    /// Most images of one model under way.
    pub(super) queue: usize,
    /// Instances of each version.
    pub(super) instances: usize,
    pub(super) open: Opener,
}

/// A version of a model, ready to answer.
pub(super) struct Version {
    pub(super) name: String,
    pub(super) number: u64,
    /// Of the file, in hexadecimal.
    pub(super) sha256: String,
    pub(super) device: String,
    pub(super) running: Running,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Version {
    /// Loads a file, and has every instance compute once.
    pub(super) fn load(name: &str, number: u64, path: &Path, running: &Running) -> Result<Arc<Self>> {
        let sha256 = sha256_of(path)?;
        let ModelFile { model, weights, baseline } = ModelFile::load(path)?;
        let again = sha256_of(path)?;
        if again != sha256 {
            let (path, expected) = (path.to_owned(), format!("{sha256}, as when it was opened"));
            return Err(Error::Model { path, kind: "model", found: format!("content of SHA-256 {again}"), expected });
        }
        let shared = Arc::new(Shared {
            queue: Arc::new(Queue::new(running.queue, running.batching.clone())),
            stats: Stats::new(model.input[2], model.classes.len()),
            model,
            weights,
            baseline,
            capacity: running.batching.max,
            open: running.open.clone(),
            healthy: AtomicUsize::new(running.instances),
            device_bytes: AtomicU64::new(0),
        });
        let predictors = (0..running.instances).map(|_| shared.predictor()).collect::<Result<Vec<_>>>()?;
        let device = predictors.first().map(|predictor| predictor.device()).unwrap_or_default();
        let version = Self {
            name: name.to_owned(),
            number,
            sha256,
            device,
            running: running.clone(),
            shared: shared.clone(),
            threads: Mutex::default(),
        };
        for predictor in predictors {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("serve-{name}")).spawn(move || shared.work(predictor));
            // An error here drops `version`, which closes the queue and so ends the threads that did start.
            let thread = thread.map_err(|e| Error::invalid("a thread for the model", e, "one that the system starts"))?;
            version.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(Arc::new(version))
    }

    pub(super) fn model(&self) -> &Model {
        &self.shared.model
    }

    pub(super) fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// What the model was validated with, if its file says so.
    pub(super) fn baseline(&self) -> Option<&Baseline> {
        self.shared.baseline.as_ref()
    }

    pub(super) fn queue(&self) -> &Arc<Queue> {
        &self.shared.queue
    }

    pub(super) fn device_bytes(&self) -> u64 {
        self.shared.device_bytes.load(Ordering::Relaxed)
    }

    /// Whether an instance can compute.
    pub(super) fn is_ready(&self) -> bool {
        self.shared.healthy.load(Ordering::SeqCst) > 0
    }

    /// Values of one image.
    pub(super) fn image_len(&self) -> usize {
        self.model().input.iter().product()
    }

    /// Turns a request away as soon as its head is there, if there is no place for even one image.
    pub(super) fn room(&self) -> Result<(), Refusal> {
        let refusal = match self.is_ready() {
            true if !self.queue().is_full() => return Ok(()),
            true => self.full(),
            false => failing(),
        };
        self.stats().failed(Duration::ZERO, refusal.reason());
        Err(refusal)
    }

    fn full(&self) -> Refusal {
        Refusal::unavailable(format!("the queue is full: {} images are under way", self.queue().limit))
    }

    /// Probabilities `[images, classes]`, or why there are none. Dropping the future takes the request out of the queue.
    pub(super) async fn infer(&self, images: Images, deadline: Instant) -> Result<Vec<f32>, Refusal> {
        let mut watch = Watch { stats: self.stats(), began: Instant::now(), open: true };
        let answered = self.run(images, deadline).await;
        watch.open = false;
        let took = watch.began.elapsed();
        match answered {
            Ok(mut parts) => {
                self.stats().answered(took, &parts);
                if let [only] = parts.as_mut_slice() {
                    return Ok(std::mem::take(&mut only.probabilities));
                }
                Ok(parts.into_iter().flat_map(|part| part.probabilities).collect())
            }
            Err(refusal) => {
                self.stats().failed(took, refusal.reason());
                Err(refusal)
            }
        }
    }

    async fn run(&self, mut images: Images, deadline: Instant) -> Result<Vec<Answer>, Refusal> {
        let (one, limit, max) = (self.image_len(), self.queue().limit, self.running.batching.max);
        let count = images.len() / one;
        if count == 0 || !images.len().is_multiple_of(one) {
            return Err(Refusal::expected("images", format!("{} values", images.len()), format!("a whole number of images of {one}")));
        }
        if count > limit {
            return Err(Refusal::too_large(format!("{count} images in one request, expected at most {limit}")));
        }
        let floats = matches!(images, Images::Floats(_));
        if let Images::Floats(values) = &images
            && let Some(place) = values.iter().position(|value| !value.is_finite())
        {
            return Err(Refusal::expected(&format!("value {place} of the images"), values[place], "a finite number"));
        }
        if !self.is_ready() {
            return Err(failing());
        }
        let admitted = self.queue().admit(count);
        let admitted = admitted.ok_or_else(|| self.full())?;

        let arrived = Instant::now();
        let (mut jobs, mut answers) = (Vec::new(), Vec::new());
        for place in &admitted.places {
            let part = images.split_to(images.len().min(max * one));
            let (reply, answer) = oneshot::channel();
            jobs.push(Job { count: part.len() / one, images: part, arrived, place: place.clone(), reply });
            answers.push(answer);
        }
        if self.queue().push(jobs).is_err() {
            return Err(Refusal::unavailable("this version of the model is being taken down"));
        }
        let all = async {
            let mut parts = Vec::with_capacity(answers.len());
            for answer in answers {
                parts.push(answer.await.unwrap_or_else(|_| Err(Refusal::unavailable("this version of the model was taken down")))?);
            }
            Ok(parts)
        };
        let parts: Vec<Answer> = tokio::time::timeout_at(deadline.into(), all).await.unwrap_or_else(|_| Err(Refusal::late()))?;
        match parts.iter().flat_map(|part| &part.probabilities).all(|probability| probability.is_finite()) {
            true => Ok(parts),
            false if floats => Err(Refusal::bad("the images have values so large that the network overflows, expected 0 to 1")),
            false => Err(Refusal::internal("the model gives no finite probabilities")),
        }
    }

    /// Takes no new requests, and ends when those under way are answered.
    pub(super) fn close(&self) {
        self.queue().close();
    }

    /// Waits for the instances to end after [`close`](Self::close), at most until `deadline`.
    pub(super) fn join(&self, deadline: Instant) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        for thread in threads.drain(..).filter(JoinHandle::is_finished) {
            // A panic was told of where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        self.close();
    }
}

fn failing() -> Refusal {
    Refusal::unavailable("the device failed; it is being opened again")
}

/// Counts a request whose future is dropped before it has an answer.
struct Watch<'a> {
    stats: &'a Stats,
    began: Instant,
    open: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if self.open {
            self.stats.failed(self.began.elapsed(), Reason::Canceled);
        }
    }
}

/// SHA-256 of a file, in hexadecimal.
pub(super) fn sha256_of(path: &Path) -> Result<String> {
    use std::io::Read;
    let status = std::fs::metadata(path).map_err(Error::io(path, "cannot open"))?;
    if !status.is_file() {
        let (path, expected) = (path.to_owned(), "a regular file".to_owned());
        return Err(Error::Model { path, kind: "model", found: "a folder, a device or a pipe".to_owned(), expected });
    }
    let mut file = std::fs::File::open(path).map_err(Error::io(path, "cannot open"))?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut block).map_err(Error::io(path, "cannot read"))? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hash.update(&block[..read]),
        }
    }
}
