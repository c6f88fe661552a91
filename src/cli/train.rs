//! `shadernet train`: what is checked before the first step, what is told while it runs, and what is kept of it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use shadernet::data::{self, Origin, SAMPLE_ACCURACY, Splits};
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::Checks;
use shadernet::files::{Baseline, CheckpointDir, History, ModelFile, NamedTensor};
use shadernet::models::cifar10_cnn;
use shadernet::nn::Model;
use shadernet::plot::plot_history;
use shadernet::predict::Predictor;
use shadernet::train::{Event, Metrics, TrainConfig, Trainer};
use shadernet::{Error, data::Dataset};

use super::precision::Numbers;
use super::progress::{self, Bar, Download, line};
use super::{Device, Failure, Result, at_least_one, batch_size, complain, format};

/// Train the CIFAR-10 network and watch it learn.
///
/// Each epoch goes over the training images once, in an order that the seed determines, and is followed by a validation on
/// the test images. The same seed, device and settings end in the same weights, bit for bit, also across interruptions.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// The images: a folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, a cifar-10-binary.tar.gz, or a folder of
    /// class folders (train/CLASS/*.png, test/CLASS/*.png, also .jpg). Without it: CIFAR-10 from the user's cache folder,
    /// else by download (170 MB), else a small sample inside this program.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Times to go over the training images, those before a resume included.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one, allow_negative_numbers = true)]
    epochs: usize,
    /// Images of a step. The last step of an epoch takes what is left.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size, allow_negative_numbers = true)]
    batch_size: usize,
    /// Adam's learning rate.
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, value_parser = learning_rate, allow_negative_numbers = true)]
    lr: f32,
    /// Determines the initial weights and every epoch's order.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    seed: u64,
    #[command(flatten)]
    numbers: Numbers,
    #[command(flatten)]
    device: Device,
    /// Write the trained model here at the end: weights, layers, and what its validation was like, in one .safetensors file.
    #[arg(long, value_name = "MODEL.safetensors")]
    out: Option<PathBuf>,
    /// Keep checkpoints in this folder after every epoch and on Ctrl-C, and the models of the best and of the last epoch beside
    /// them (best.safetensors, last.safetensors; what their validation was like is added at the end).
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<PathBuf>,
    /// Also keep a checkpoint after every so many steps of an epoch.
    #[arg(long, value_name = "N", requires = "checkpoint_dir", value_parser = at_least_one, allow_negative_numbers = true)]
    checkpoint_steps: Option<usize>,
    /// Go on from the checkpoint in that folder; start anew if there is none.
    #[arg(long, requires = "checkpoint_dir")]
    resume: bool,
    /// Write the curves here after every epoch, as JSON with Keras's names: loss, accuracy, val_loss, val_accuracy; and seconds,
    /// val_seconds, device.
    #[arg(long, value_name = "FILE.json")]
    history: Option<PathBuf>,
    /// Draw the curves here at the end.
    #[arg(long, value_name = "FILE.png", value_parser = png)]
    plot: Option<PathBuf>,
    /// Use the first so many training images only.
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    limit_train: Option<usize>,
    /// Use the first so many test images only.
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    limit_test: Option<usize>,
}

const AFTER_HELP: &str = "\
Examples:
  shadernet train --out cnn.safetensors --plot curve.png
  shadernet train --device cpu --limit-train 5000 --epochs 3
  shadernet train --epochs 50 --checkpoint-dir run1           (stop with Ctrl-C …)
  shadernet train --epochs 50 --checkpoint-dir run1 --resume  (… and go on)

Ctrl-C (or SIGTERM) stops after the steps under way, saves a checkpoint if there
is a folder for it, and ends with exit code 1. If an epoch is done, the model,
history and plot are written as well. A second Ctrl-C ends at once, with exit
code 130; so does the first one before training has begun.";

/// Whether the user asked to stop.
static STOP: AtomicBool = AtomicBool::new(false);

fn learning_rate(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected a positive number".to_owned()),
    }
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

fn png(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("png") => Ok(path),
        _ => Err("expected a name that ends in .png".to_owned()),
    }
}

/// Runs the command.
pub(super) fn run(arguments: Arguments) -> Result {
    check_paths(&arguments)?;
    let (device, why) = arguments.device.open_with(arguments.numbers.options(Checks::Off))?;
    arguments.numbers.precision().check(device.as_ref())?;
    let mut download = Download::default();
    let mut splits = data::find(arguments.data.as_deref(), &mut |done, total| download.update(done, total))?;
    drop(download);
    describe_data(&mut splits, &arguments);
    line(&format!("device  {}: {why}", device.device()));

    let config = TrainConfig {
        epochs: arguments.epochs,
        batch: arguments.batch_size,
        learning_rate: arguments.lr,
        seed: arguments.seed,
        precision: arguments.numbers.precision(),
        checkpoint_dir: arguments.checkpoint_dir.clone(),
        checkpoint_steps: arguments.checkpoint_steps,
        resume: arguments.resume,
        ..TrainConfig::default()
    };
    let Dataset { height, width, channels, .. } = splits.train;
    let model = Model { input: [height, width, channels], ..cifar10_cnn(&splits.train.classes) };
    let name = model.name.clone();
    let mut trainer = Trainer::new(device, model, &splits.train, &splits.test, config)?;
    describe_plan(&name, &mut trainer);
    describe_start(&trainer, &arguments);

    ctrlc::set_handler(stop).map_err(|e| Error::invalid("the handler of Ctrl-C", e, "one that the system accepts"))?;
    let mut screen = Screen { epochs: arguments.epochs, all: splits.train.len(), bar: None, history: arguments.history.as_deref() };
    let (epochs, steps) = trainer.resumed().unwrap_or_default();
    screen.begin(epochs + 1, trainer.session().images(steps));
    let done = trainer.fit(&mut |event| screen.hear(&event));
    drop(screen);
    finish(&trainer, &splits.test, &arguments, done)
}

/// What Ctrl-C does. It runs in a thread of its own.
fn stop() {
    if STOP.swap(true, Ordering::SeqCst) {
        std::process::exit(130);
    }
    progress::remark("stopping after the steps under way; Ctrl-C again ends at once");
}

/// Finds out now what would spoil the results in an hour.
fn check_paths(arguments: &Arguments) -> Result<(), Error> {
    let mut taken: Vec<(PathBuf, String)> = Vec::new();
    if let Some(folder) = &arguments.checkpoint_dir {
        let opened = check_folder(folder, arguments.resume)?;
        let own = [opened.last_path(), opened.previous_path(), opened.best_model_path(), opened.last_model_path(), folder.join("lock")];
        taken.extend(own.into_iter().map(|path| (resolved(&path), "--checkpoint-dir".to_owned())));
    }
    for (flag, path) in [("--out", &arguments.out), ("--history", &arguments.history), ("--plot", &arguments.plot)] {
        let Some(path) = path else { continue };
        check_target(flag, path)?;
        let place = resolved(path);
        if let Some((_, other)) = taken.iter().find(|(earlier, _)| *earlier == place) {
            return Err(Error::invalid(format!("{flag} {}", path.display()), format!("a file of {other}"), "a file of its own"));
        }
        taken.push((place, flag.to_owned()));
    }
    Ok(())
}

/// One spelling for each file: the folder's real path and the file's name.
fn resolved(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_path_buf(),
    }
}

/// An error if no file can be written at `path`.
fn check_target(flag: &str, path: &Path) -> Result<(), Error> {
    let wrong = |found: &str| Err(Error::invalid(format!("{flag} {}", path.display()), found, "a file, or a name for one"));
    if path.file_name().is_none() || path.as_os_str().to_string_lossy().ends_with(std::path::MAIN_SEPARATOR) {
        return wrong("a folder's name");
    }
    match path.metadata() {
        Ok(there) if there.is_dir() => return wrong("a folder"),
        Ok(there) if !there.is_file() => return wrong("a device or a pipe"),
        _ => {}
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let found = if folder.exists() { "no folder" } else { "no such folder" };
        return Err(Error::invalid(format!("{flag} {}: {}", path.display(), folder.display()), found, "a folder that exists"));
    }
    // Permissions, read-only file systems and quotas are best asked by doing it.
    tempfile::tempfile_in(folder).map(drop).map_err(Error::io(path, "cannot be written"))
}

/// An error if another run has the folder, or if starting anew would displace a checkpoint.
fn check_folder(folder: &Path, resume: bool) -> Result<CheckpointDir, Error> {
    let opened = CheckpointDir::open(folder)?;
    if !resume && (opened.last_path().exists() || opened.previous_path().exists()) {
        let expected = "--resume to go on from it, or another folder";
        return Err(Error::invalid(format!("checkpoint folder {}", folder.display()), "the checkpoint of an earlier run", expected));
    }
    Ok(opened)
}

fn describe_data(splits: &mut Splits, arguments: &Arguments) {
    let found = [splits.train.len(), splits.test.len()].map(|count| format::grouped(count as u64));
    splits.train.truncate(arguments.limit_train.unwrap_or(usize::MAX));
    splits.test.truncate(arguments.limit_test.unwrap_or(usize::MAX));
    let used = [splits.train.len(), splits.test.len()].map(|count| format::grouped(count as u64));
    let of = |i: usize| if used[i] == found[i] { String::new() } else { format!(" of {}", found[i]) };
    let Dataset { height, width, channels, classes, .. } = &splits.train;
    line(&format!("data    {}", splits.origin));
    line(&format!(
        "        {}{} training and {}{} test images of {}, {} classes",
        used[0],
        of(0),
        used[1],
        of(1),
        format::extents(&[*height, *width, *channels]),
        classes.len()
    ));
    if splits.origin == Origin::Sample {
        line("        This is a sample, 2 % of CIFAR-10: enough to see the network learn, too little to learn from. Expect a");
        line(&format!(
            "        validation accuracy of {SAMPLE_ACCURACY} after 10 epochs (chance: 10 %), against about 70 % with all images."
        ));
    }
}

fn describe_plan(name: &str, trainer: &mut Trainer) {
    let session = trainer.session();
    let count: usize = session.param_shapes().iter().map(|(_, extents)| extents.iter().product::<usize>()).sum();
    let [train, _] = session.plans();
    line(&format!("model   {name}: {} parameters ({})", format::grouped(count as u64), format::bytes(4 * count as u64)));
    line(&format!(
        "memory  {} on the device; a training step of {} images: {} dispatches over {} in {} slots",
        format::bytes(session.allocated_bytes()),
        format::grouped(train.capacity() as u64),
        train.steps().len(),
        format::bytes(train.slot_bytes() as u64),
        train.slots().len()
    ));
}

fn describe_start(trainer: &Trainer, arguments: &Arguments) {
    let Some(folder) = arguments.checkpoint_dir.as_deref().filter(|_| arguments.resume) else { return };
    match trainer.resumed() {
        None => line(&format!("resume  no checkpoint in {}: starting anew", folder.display())),
        Some((epochs, _)) if epochs >= arguments.epochs => {
            line(&format!("resume  {}: its {epochs} epochs are done, nothing is left to train", folder.display()));
        }
        Some((epochs, 0)) => line(&format!("resume  {}: after epoch {epochs}", folder.display())),
        Some((epochs, step)) => line(&format!("resume  {}: in epoch {}, after step {step}", folder.display(), epochs + 1)),
    }
}

/// What is shown of a running training.
struct Screen<'a> {
    epochs: usize,
    /// Training images.
    all: usize,
    bar: Option<Bar>,
    history: Option<&'a Path>,
}

impl Screen<'_> {
    fn hear(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Step { images, running, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set(*images as u64);
                    if let Some(Metrics { loss, accuracy, .. }) = running {
                        bar.say(format!("loss {loss:.4}  acc {:5.2} %", 100.0 * accuracy));
                    }
                }
            }
            Event::Epoch { epoch, train, test, seconds, test_seconds, history } => {
                self.bar = None;
                let rate = train.images as f64 / seconds.max(1e-9);
                line(&format!(
                    "{}  loss {:.4}  accuracy {:5.2} %  val_loss {:.4}  val_accuracy {:5.2} %  {seconds:.2} s + {test_seconds:.2} s, {rate:.0} images/s",
                    self.title(*epoch),
                    train.loss,
                    100.0 * train.accuracy,
                    test.loss,
                    100.0 * test.accuracy
                ));
                // The end tries again, and fails if this does then.
                if let Some(Err(error)) = self.history.map(|path| history.save(path)) {
                    log::warn!("the history of this epoch is not written: {error}");
                }
                self.begin(epoch + 1, 0);
            }
            Event::Resumed { .. } => {}
        }
        if STOP.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Shows the bar of an epoch of which so many images are done. It must be there when the first step starts, or the
    /// images a second come out wrong.
    fn begin(&mut self, epoch: usize, images: usize) {
        self.bar = (epoch <= self.epochs).then(|| Bar::images(&self.title(epoch), images, self.all));
    }

    fn title(&self, epoch: usize) -> String {
        let width = self.epochs.to_string().len();
        format!("epoch {epoch:>width$}/{}", self.epochs)
    }
}

/// What a model sees in the validation images and answers to them, if that can be told.
fn statistics(model: &Model, weights: &[NamedTensor], test: &Dataset) -> Option<Baseline> {
    // On the CPU, so that the file does not depend on the device any more than its weights do.
    let baseline = CpuExecutor::new(None)
        .and_then(|exec| Predictor::new(Box::new(exec), model.clone(), weights, test.len().clamp(1, 64))?.baseline(test));
    baseline.inspect_err(|error| log::warn!("the model is written without statistics of its validation: {error}")).ok()
}

/// Writes a model, and with it what it was validated with.
fn save(file: &ModelFile, path: &Path) -> Result<(), Error> {
    // Weights that overflow give no statistics; they are still worth a file.
    file.save(path).or_else(|error| match error {
        Error::Invalid { .. } => ModelFile { baseline: None, ..file.clone() }.save(path),
        other => Err(other),
    })
}

/// Writes into a model of the checkpoint folder, if it is there, what it was validated with: that of the latest if it is the same.
fn complete(path: &Path, test: &Dataset, latest: &ModelFile) -> Result<(), Error> {
    let mut file = match ModelFile::load(path) {
        Ok(file) if file.baseline.is_none() => file,
        Err(error) if path.exists() => return Err(error),
        _ => return Ok(()),
    };
    let known = latest.baseline.clone().filter(|_| file.weights == latest.weights);
    file.baseline = known.or_else(|| statistics(&file.model, &file.weights, test));
    file.save(path)
}

/// Writes the results; each, whatever became of the others.
fn finish(trainer: &Trainer, test: &Dataset, arguments: &Arguments, done: Result<(), Error>) -> Result {
    let history = trainer.history();
    let epochs = history.loss.len();
    let stopped = matches!(done, Err(Error::Interrupted { .. }));
    let mut complaints = Vec::new();
    let mut write = |what: &str, path: &Option<PathBuf>, save: &dyn Fn(&Path) -> Result<(), Error>| {
        if let Some(path) = path {
            match save(path) {
                Ok(()) => line(&format!("{what:<7} {}", path.display())),
                Err(error) => complaints.push(error),
            }
        }
    };
    // A model whose numbers broke, or one of no whole epoch, is not put in the place of what may be a good one. After any other
    // failure, of the disk that the checkpoints are on for example, this is the last chance to keep the weights.
    if done.is_ok() || (epochs > 0 && !matches!(done, Err(Error::NotFinite { .. }))) {
        let (model, weights) = (trainer.model().clone(), trainer.weights());
        let wanted = arguments.out.is_some() || trainer.checkpoints().is_some();
        let baseline = if wanted { statistics(&model, &weights, test) } else { None };
        let latest = ModelFile { model, weights, baseline };
        write("model", &arguments.out, &|path| save(&latest, path));
        for path in trainer.checkpoints().iter().flat_map(|folder| [folder.best_model_path(), folder.last_model_path()]) {
            if let Err(error) = complete(&path, test, &latest) {
                log::warn!("{} stays without statistics of its validation: {error}", path.display());
            }
        }
    }
    if epochs > 0 {
        write("history", &arguments.history, &|path| history.save(path));
        write("plot", &arguments.plot, &|path| plot_history(history, &title(history), path));
    }
    complaints.iter().for_each(|error| complain(error));
    done.map_err(|error| {
        let resumable = matches!(error, Error::Interrupted { saved: Some(_), .. });
        complain(&error);
        if resumable {
            let add = if arguments.resume { "" } else { ", with --resume added" };
            progress::remark(&format!("To go on, give the same command again{add}."));
        } else if stopped {
            progress::remark("Without --checkpoint-dir there is nothing to resume from.");
        }
        Failure::Told
    })?;
    if complaints.is_empty() { Ok(()) } else { Err(Failure::Told) }
}

/// The title of the plot.
fn title(history: &History) -> String {
    let last = history.val_accuracy.last().copied().unwrap_or(f64::NAN);
    format!("CIFAR-10 CNN on {}: {:.2} % validation accuracy after {} epochs", history.device, 100.0 * last, history.loss.len())
}
