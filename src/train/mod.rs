//! Training: epochs over a data set with validation, checkpoints, exact resume, and a history of it all.
//!
//! [`Trainer::fit`] is the loop; what a step is, and how the device does it without the host, is [`session`]'s. An observer
//! hears of progress and may stop the loop at any step; what was reached is saved then.

mod precision;
mod program;
pub mod session;
mod state;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::files::{CheckpointDir, History, NamedTensor, model};
use crate::nn::Model;
use crate::ops::Adam;
pub use precision::Precision;
pub use program::training_plans;
pub use session::{Metrics, Session, Snapshot};
use state::{Machine, Progress, Run};

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Epochs in all, those before a resume included.
    pub epochs: usize,
    /// Images of a step. The last step of an epoch takes what is left.
    pub batch: usize,
    /// Learning rate.
    pub learning_rate: f32,
    /// Adam's constants.
    pub adam: Adam,
    /// Determines the initial weights and every epoch's order. Same seed, device and settings: same bits.
    pub seed: u64,
    /// How activations are stored. What it asks of a device is in [`Precision::check`].
    pub precision: Precision,
    /// Where checkpoints, the best and the last model go, if anywhere.
    pub checkpoint_dir: Option<PathBuf>,
    /// Also save a checkpoint after every so many steps of an epoch.
    pub checkpoint_steps: Option<usize>,
    /// Go on from the last checkpoint of that folder, if there is one.
    pub resume: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch: 64,
            learning_rate: 1e-3,
            adam: Adam::default(),
            seed: 0,
            precision: Precision::F32,
            checkpoint_dir: None,
            checkpoint_steps: None,
            resume: false,
        }
    }
}

impl TrainConfig {
    /// An error for a value that cannot be meant.
    fn check(&self) -> Result<()> {
        let positive = |what: &str, value: f64| {
            if value.is_finite() && value > 0.0 { Ok(()) } else { Err(Error::invalid(what, value, "a positive number")) }
        };
        positive("the learning rate", f64::from(self.learning_rate))?;
        positive("Adam's epsilon", self.adam.epsilon)?;
        for (what, beta) in [("Adam's beta1", self.adam.beta1), ("Adam's beta2", self.adam.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::invalid(what, beta, "at least 0 and below 1"));
            }
        }
        if !(1..=1 << 16).contains(&self.batch) {
            return Err(Error::invalid("the batch size", self.batch, "1 to 65536"));
        }
        if self.epochs == 0 || self.checkpoint_steps == Some(0) {
            return Err(Error::invalid("epochs and checkpoint steps", 0, "at least 1"));
        }
        if self.resume && self.checkpoint_dir.is_none() {
            return Err(Error::invalid("resume", "no checkpoint folder", "the folder to resume from"));
        }
        Ok(())
    }
}

/// What an observer of [`Trainer::fit`] hears.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// Training goes on from a checkpoint: so many epochs and steps of the next are done.
    Resumed {
        /// Whole epochs.
        epochs: usize,
        /// Steps of the next.
        steps: usize,
    },
    /// Some steps were submitted.
    Step {
        /// The epoch, from 1.
        epoch: usize,
        /// Steps of it that are done.
        step: usize,
        /// Steps it has.
        steps: usize,
        /// Images of those done.
        images: usize,
        /// Means so far, read a few times a second at most.
        running: Option<Metrics>,
    },
    /// An epoch ended, and was validated.
    Epoch {
        /// The epoch, from 1.
        epoch: usize,
        /// Over the training images, each with the weights before its step's update, as Keras reports them.
        train: Metrics,
        /// Over the test images, with the weights after the epoch.
        test: Metrics,
        /// Seconds of training, without validation and saving.
        seconds: f64,
        /// Seconds of validation.
        test_seconds: f64,
        /// Everything so far.
        history: &'a History,
    },
}

/// Steps between two looks at the observer, at most: few enough to stop and to save at once.
const CHUNK: usize = 16;

/// What those steps may take, so that a slow device stops at once as well.
const CHUNK_TIME: Duration = Duration::from_millis(200);

/// Time between two readings of the running means.
const READ_EVERY: Duration = Duration::from_millis(250);

/// Trains a model on a data set.
pub struct Trainer {
    session: Session,
    model: Model,
    config: TrainConfig,
    run: Run,
    machine: Machine,
    folder: Option<CheckpointDir>,
    /// The state last taken to the host: what a checkpoint holds, and where the search for a NaN starts.
    progress: Progress,
    resumed: bool,
    stop: bool,
    /// Steps between two looks at the observer, found by trying: a power of two up to [`CHUNK`].
    chunk: usize,
}

/// Hears of training, and answers whether to go on.
pub type Observer<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

impl Trainer {
    /// Plans and uploads everything, and loads the checkpoint to resume from.
    ///
    /// # Errors
    /// Settings, a model or data that do not fit; no memory; a checkpoint folder in use, or a checkpoint of another run.
    pub fn new(exec: Box<dyn Executor>, model: Model, train: &Dataset, test: &Dataset, config: TrainConfig) -> Result<Self> {
        config.check()?;
        let folder = config.checkpoint_dir.as_deref().map(CheckpointDir::open).transpose()?;
        let run = Run::new(&model, &config, train, test);
        let saved = match &folder {
            Some(folder) if config.resume => state::load(folder, &run)?,
            _ => None,
        };
        let mut exec = exec;
        if let Some((before, _)) = &saved {
            before.prepare(exec.as_mut());
        }
        let mut session = Session::new(exec, &model, train, test, config.clone())?;
        let machine = Machine::of(&session);
        let resumed = saved.is_some();
        let mut progress = match saved {
            Some((before, progress)) => {
                before.compare(&machine);
                session.restore(&progress.snapshot, progress.epochs)?;
                progress
            }
            None => {
                session.start_epoch(0)?;
                Progress { epochs: 0, seconds: 0.0, history: History::default(), snapshot: session.snapshot()? }
            }
        };
        progress.history.device = session.device();
        Ok(Self { session, model, config, run, machine, folder, progress, resumed, stop: false, chunk: 1 })
    }

    /// Where training goes on from a checkpoint, if it does: whole epochs, and steps of the next, that are done.
    pub fn resumed(&self) -> Option<(usize, usize)> {
        self.resumed.then(|| (self.progress.epochs, self.progress.snapshot.clock[0] as usize))
    }

    /// Where checkpoints and models are kept, if they are.
    pub fn checkpoints(&self) -> Option<&CheckpointDir> {
        self.folder.as_ref()
    }

    /// The session below: device, plans, memory.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Everything reported so far.
    pub fn history(&self) -> &History {
        &self.progress.history
    }

    /// Trains to the configured number of epochs, telling `observe` of it. If that answers `Break`, the state is saved to the
    /// checkpoint folder, if there is one, and [`Error::Interrupted`] comes back.
    ///
    /// # Errors
    /// A loss that is not finite, a lost device, a checkpoint that cannot be written. Files already written stay as they are.
    pub fn fit(&mut self, observe: Observer<'_>) -> Result<()> {
        if self.resumed {
            let event = Event::Resumed { epochs: self.progress.epochs, steps: self.progress.snapshot.clock[0] as usize };
            self.stop = observe(event).is_break();
        }
        while self.progress.epochs < self.config.epochs {
            self.train_epoch(observe)?;
            self.finish_epoch(observe)?;
        }
        Ok(())
    }

    /// Trains the rest of the epoch.
    fn train_epoch(&mut self, observe: Observer<'_>) -> Result<()> {
        let steps = self.session.steps();
        let epoch = self.progress.epochs + 1;
        let mut step = self.progress.snapshot.clock[0] as usize;
        let mut last_read = Instant::now();
        while step < steps {
            if self.stop {
                self.metrics(epoch, step)?;
                self.progress.snapshot = self.session.snapshot()?;
                self.write_checkpoint()?;
                let saved = self.folder.as_ref().map(|folder| folder.path().to_path_buf());
                return Err(Error::Interrupted { epoch, step, saved });
            }
            let started = Instant::now();
            let save_at = self.config.checkpoint_steps.map_or(usize::MAX, |every| (step / every + 1) * every);
            let end = steps.min((step / self.chunk + 1) * self.chunk).min(save_at);
            self.session.train(step, end)?;
            step = end;
            if self.chunk < CHUNK {
                self.session.wait()?;
                self.chunk *= if 2 * started.elapsed() < CHUNK_TIME { 2 } else { 1 };
            }
            let mut running = None;
            if last_read.elapsed() > READ_EVERY && step < steps {
                running = Some(self.metrics(epoch, step)?);
                last_read = Instant::now();
            }
            if step == steps || step == save_at {
                self.session.wait()?;
            }
            self.progress.seconds += started.elapsed().as_secs_f64();
            if step == save_at && step < steps && self.folder.is_some() {
                self.metrics(epoch, step)?;
                self.progress.snapshot = self.session.snapshot()?;
                self.write_checkpoint()?;
            }
            self.stop = observe(Event::Step { epoch, step, steps, images: self.session.images(step), running }).is_break();
        }
        Ok(())
    }

    /// Validates, records and saves an epoch whose steps are done.
    fn finish_epoch(&mut self, observe: Observer<'_>) -> Result<()> {
        let epoch = self.progress.epochs + 1;
        let steps = self.session.steps();
        let train = self.metrics(epoch, steps)?;
        let started = Instant::now();
        let test = self.session.evaluate()?;
        let test_seconds = started.elapsed().as_secs_f64();
        if !test.loss.is_finite() {
            let first = self.session.first_not_finite_param()?.unwrap_or_else(|| "the validation's loss".to_owned());
            return Err(Error::NotFinite { epoch, step: steps, loss: test.loss as f32, first });
        }
        let seconds = std::mem::take(&mut self.progress.seconds);
        let history = &mut self.progress.history;
        let best = history.val_accuracy.iter().all(|&earlier| test.accuracy > earlier);
        history.loss.push(train.loss);
        history.accuracy.push(train.accuracy);
        history.val_loss.push(test.loss);
        history.val_accuracy.push(test.accuracy);
        history.seconds.push(seconds);
        history.val_seconds.push(test_seconds);
        self.progress.epochs = epoch;
        self.session.start_epoch(epoch)?;
        self.progress.snapshot = self.session.snapshot()?;

        // The checkpoint comes last: killed before it, the epoch is trained again and writes the same models.
        if let Some(folder) = &self.folder {
            if best {
                self.save_model(&folder.best_model_path())?;
            }
            self.save_model(&folder.last_model_path())?;
            self.write_checkpoint()?;
        }
        let event = Event::Epoch { epoch, train, test, seconds, test_seconds, history: &self.progress.history };
        self.stop |= observe(event).is_break();
        Ok(())
    }

    /// Means of the epoch so far, or the error that names where the numbers broke.
    fn metrics(&mut self, epoch: usize, steps: usize) -> Result<Metrics> {
        match self.session.training_metrics(steps)? {
            Ok(metrics) => Ok(metrics),
            Err((step, loss)) => {
                let first = self.session.first_not_finite(&self.progress.snapshot, self.progress.epochs, step)?;
                Err(Error::NotFinite { epoch, step: step + 1, loss, first })
            }
        }
    }

    fn write_checkpoint(&self) -> Result<()> {
        match &self.folder {
            Some(folder) => state::save(folder, &self.run, &self.machine, &self.progress),
            None => Ok(()),
        }
    }

    /// The parameters by name, as of the last epoch or interruption.
    pub fn weights(&self) -> Vec<NamedTensor> {
        let shapes = self.session.param_shapes().into_iter();
        shapes
            .zip(&self.progress.snapshot.params)
            .map(|((name, extents), data)| NamedTensor { name, extents, data: data.clone() })
            .collect()
    }

    /// The model that is trained.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Writes the model with its parameters as of the last epoch or interruption.
    pub fn save_model(&self, path: &Path) -> Result<()> {
        model::save_model(path, &self.model, &self.weights())
    }
}
