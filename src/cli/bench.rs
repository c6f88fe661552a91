//! `shadernet bench`: how fast this device trains and predicts, how soon it begins, and in how much memory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use shadernet::bench::{self, Epoch, Inference, Measured};
use shadernet::data::{self, Origin, Splits};
use shadernet::exec::ceiling::Ceiling;
use shadernet::exec::gpu::{Checks, DeviceChoice};
use shadernet::exec::profile::median;
use shadernet::models::cifar10_cnn_wide;
use shadernet::nn::Model;
use shadernet::predict::Predictor;
use shadernet::train::{Session, TrainConfig, Trainer};
use shadernet::{Error, Result as LibraryResult};

use super::precision::Numbers;
use super::progress::{Download, remark};
use super::{Chosen, Device, Result, answer, answer_json, at_least_one, batch_size, format, kernels};

/// Measure a device with the CIFAR-10 network: training, inference, latency, start, memory, and each kernel.
///
/// Training is timed over whole epochs, with the images on the device and validation apart. Inference goes from bytes to
/// probabilities in the host's memory. The start is that of a fresh process, up to its first training step done: cold with empty
/// caches of the driver, warm with what the cold one left there.
#[derive(Args)]
#[command(after_help = "Examples:\n  shadernet bench\n  shadernet bench --device cpu --limit-train 6400 --epochs 2 --json")]
pub(super) struct Arguments {
    #[command(flatten)]
    numbers: Numbers,
    #[command(flatten)]
    device: Device,
    /// The images: as for `train`. Where there is only the sample, it is repeated to the numbers of CIFAR-10.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Epochs to train; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    epochs: usize,
    /// Images of a training step.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size)]
    batch_size: usize,
    /// Filters and units, so many times the network's own: 3 makes it some 9 times the work.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = width)]
    width: usize,
    /// Use the first so many training images only.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit_train: Option<usize>,
    /// Use the first so many test images only.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit_test: Option<usize>,
    /// Seconds to predict for, with each number of images.
    #[arg(long, value_name = "S", default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Training steps to profile.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least_one)]
    steps: usize,
    /// Answer with one JSON document: shadernet, date, device, driver, processor, cores, system, model, parameters, data, training,
    /// inference, start, memory, profile.
    #[arg(long)]
    json: bool,
    /// Only do one training step and say so: what the parent process waits for.
    #[arg(long, hide = true)]
    first_step: bool,
}

/// Images of a call of prediction. The first is what latency is told of.
const BATCHES: [usize; 3] = [1, 64, 256];

/// What a process that does one training step says then.
const FIRST_STEP: &str = "first step done";

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => Ok(seconds),
        _ => Err("expected a number of seconds, 0 or more".to_owned()),
    }
}

fn width(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|width| (1..=32).contains(width)).ok_or_else(|| "expected 1 to 32".to_owned())
}

/// Everything measured.
struct Report {
    device: String,
    driver: Option<String>,
    model: String,
    parameters: usize,
    data: String,
    images: [usize; 2],
    batch: usize,
    precision: &'static str,
    epochs: Vec<Epoch>,
    inference: Vec<Inference>,
    start: [f64; 2],
    memory: Memory,
    /// Nothing where the device has no timestamps.
    profile: Option<(Measured, Ceiling)>,
}

/// Bytes.
struct Memory {
    host: Option<u64>,
    training: u64,
    planned: u64,
    inference: u64,
    allocator: Option<[u64; 2]>,
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result {
    if arguments.first_step {
        return first_step(arguments);
    }
    let report = measure(arguments)?;
    if arguments.json { answer_json(&report.json()) } else { answer(&report.text()) }
}

fn measure(arguments: &Arguments) -> LibraryResult<Report> {
    let (chosen, why) = arguments.device.choose(arguments.numbers.options(Checks::Off))?;
    let exec = chosen.executor()?;
    arguments.numbers.precision().check(exec.as_ref())?;
    let device = exec.device();
    remark(&format!("device {device}: {why}"));
    let mut download = Download::default();
    let mut splits = data::find(arguments.data.as_deref(), &mut |done, total| download.update(done, total))?;
    drop(download);
    let data = fill(&mut splits, arguments);
    let Splits { train, test, .. } = &splits;
    let model = Model { input: [train.height, train.width, train.channels], ..cifar10_cnn_wide(&train.classes, arguments.width) };

    remark("starting: one training step in a process of its own, cold and warm");
    let start = starts(arguments)?;
    remark(&format!("training: {} epochs of {} images", arguments.epochs, format::grouped(train.len() as u64)));
    let precision = arguments.numbers.precision();
    let config = TrainConfig { epochs: arguments.epochs, batch: arguments.batch_size, precision, ..TrainConfig::default() };
    let mut trainer = Trainer::new(exec, model.clone(), train, test, config)?;
    let epochs = bench::train(&mut trainer)?;
    let weights = trainer.weights();
    let training = trainer.session().allocated_bytes();
    let planned = bench::planned_bytes(trainer.session().plans());
    let allocator = allocator_bytes(&chosen);

    let mut inference = Vec::new();
    let mut inference_bytes = 0;
    for batch in BATCHES {
        remark(&format!("predicting: {batch} images a call"));
        let mut predictor = Predictor::new(chosen.executor()?, model.clone(), &weights, batch)?;
        // A small test set is repeated, so that there is one whole batch.
        let images = if test.len() < batch { &bench::repeated(test, batch) } else { test };
        inference.push(bench::infer(&mut predictor, &images.images, batch, arguments.seconds)?);
        inference_bytes = predictor.allocated_bytes();
    }
    // The ceiling takes memory of its own, so the peak is read before it.
    let memory = Memory { host: bench::peak_host_bytes(), training, planned, inference: inference_bytes, allocator };
    remark("profiling");
    let profile = profile(trainer.session(), arguments.steps)?;
    Ok(Report {
        device,
        driver: chosen.driver(),
        model: model.name,
        parameters: weights.iter().map(|tensor| tensor.data.len()).sum(),
        data,
        images: [train.len(), test.len()],
        batch: arguments.batch_size,
        precision: arguments.numbers.name(),
        epochs,
        inference,
        start,
        memory,
        profile,
    })
}

/// Repeats the sample, if that is all there is, and cuts to the limits; says what the data is then.
fn fill(splits: &mut Splits, arguments: &Arguments) -> String {
    let mut origin = splits.origin.to_string();
    if splits.origin == Origin::Sample {
        let [train, test] = super::CIFAR10_IMAGES;
        splits.train = bench::repeated(&splits.train, arguments.limit_train.map_or(train, |limit| limit.min(train)));
        splits.test = bench::repeated(&splits.test, arguments.limit_test.map_or(test, |limit| limit.min(test)));
        origin += ", repeated";
    }
    splits.train.truncate(arguments.limit_train.unwrap_or(usize::MAX));
    splits.test.truncate(arguments.limit_test.unwrap_or(usize::MAX));
    origin
}

fn allocator_bytes(chosen: &Chosen) -> Option<[u64; 2]> {
    match chosen {
        Chosen::Cpu(_) => None,
        Chosen::Gpu(gpu, _) => gpu.allocator_bytes(),
    }
}

/// A profile with its ceiling, or nothing where the device cannot be profiled.
fn profile(session: &mut Session, steps: usize) -> LibraryResult<Option<(Measured, Ceiling)>> {
    match bench::profile_training(session, steps).and_then(|measured| Ok((measured, session.ceiling()?))) {
        Ok(found) => Ok(Some(found)),
        Err(error @ Error::Unsupported { .. }) => {
            log::warn!("no profile: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Seconds from the start of a process to its first training step done: with empty caches, and with those of the first.
fn starts(arguments: &Arguments) -> LibraryResult<[f64; 2]> {
    let caches = tempfile::tempdir().map_err(Error::io(std::env::temp_dir(), "cannot make a folder in"))?;
    Ok([start(arguments, caches.path())?, start(arguments, caches.path())?])
}

fn start(arguments: &Arguments, caches: &Path) -> LibraryResult<f64> {
    let program = std::env::current_exe().map_err(Error::io("this program", "cannot find"))?;
    let mut command = Command::new(&program);
    let device = match &arguments.device.device {
        DeviceChoice::Auto => "auto",
        DeviceChoice::Cpu => "cpu",
        DeviceChoice::Gpu => "gpu",
        DeviceChoice::Named(name) => name,
    };
    command.args(["bench", "--first-step", "--device", device, "--batch-size", &arguments.batch_size.to_string()]);
    command.args(["--width", &arguments.width.to_string()]);
    command.args(arguments.numbers.arguments());
    let tune = arguments.device.tune.to_possible_value();
    command.args(["--tune", tune.as_ref().map_or("off", |value| value.get_name())]);
    if let Some(threads) = arguments.device.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    // Where Mesa, NVIDIA's driver and this program keep compiled kernels.
    for cache in ["XDG_CACHE_HOME", "MESA_SHADER_CACHE_DIR", "__GL_SHADER_DISK_CACHE_PATH", "SHADERNET_CACHE"] {
        command.env(cache, caches);
    }
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(Error::io(&program, "cannot start"))?;
    let mut said = String::new();
    let read = child.stdout.take().map_or(Ok(0), |out| BufReader::new(out).read_line(&mut said));
    let seconds = began.elapsed().as_secs_f64();
    let ended = child.wait().map_err(Error::io(&program, "cannot wait for"))?;
    read.map_err(Error::io(&program, "cannot read from"))?;
    if said.trim() != FIRST_STEP || !ended.success() {
        return Err(Error::invalid("the first step in a process of its own", format!("{:?}, {ended}", said.trim()), FIRST_STEP));
    }
    Ok(seconds)
}

/// What the process does whose start is measured. Its images are the sample, so that no disk is measured.
fn first_step(arguments: &Arguments) -> Result {
    let began = Instant::now();
    let (exec, _) = arguments.device.open_with(arguments.numbers.options(Checks::Off))?;
    let mut images = data::sample();
    images.train = bench::repeated(&images.train, arguments.batch_size);
    let model = cifar10_cnn_wide(&images.train.classes, arguments.width);
    let config = TrainConfig { batch: arguments.batch_size, precision: arguments.numbers.precision(), ..TrainConfig::default() };
    let mut session = Session::new(exec, &model, &images.train, &images.test, config)?;
    log::debug!("loaded after {:.3} s", began.elapsed().as_secs_f64());
    session.start_epoch(0)?;
    session.train(0, 1)?;
    session.wait()?;
    log::debug!("done after {:.3} s", began.elapsed().as_secs_f64());
    answer(FIRST_STEP)
}

impl Report {
    fn median(&self, of: fn(&Epoch) -> f64) -> f64 {
        median(self.epochs.iter().map(of))
    }

    fn json(&self) -> Value {
        let inference: serde_json::Map<_, _> = self.inference.iter().map(|found| (format!("b{}", found.batch), json!(found))).collect();
        json!({
            "shadernet": env!("CARGO_PKG_VERSION"),
            "date": bench::date(),
            "device": self.device,
            "driver": self.driver,
            "processor": bench::processor(),
            "cores": cores(),
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            "model": self.model,
            "parameters": self.parameters,
            "data": self.data,
            "training": {
                "images": self.images[0],
                "test_images": self.images[1],
                "batch": self.batch,
                "precision": self.precision,
                "images_per_s": self.median(|epoch| epoch.images_per_s),
                "seconds_per_epoch": self.median(|epoch| epoch.seconds),
                "val_images_per_s": self.median(|epoch| epoch.val_images_per_s),
                "epochs": self.epochs,
            },
            "inference": inference,
            "start": { "cold_s": self.start[0], "warm_s": self.start[1] },
            "memory": {
                "peak_host_bytes": self.memory.host,
                "training_device_bytes": self.memory.training,
                "planned_training_bytes": self.memory.planned,
                "inference_device_bytes": self.memory.inference,
                "allocated_bytes": self.memory.allocator.map(|bytes| bytes[0]),
                "reserved_bytes": self.memory.allocator.map(|bytes| bytes[1]),
            },
            "profile": self.profile.as_ref().map(|(measured, ceiling)| kernels::to_json(measured, ceiling)),
        })
    }

    fn text(&self) -> String {
        let [train, test] = self.images.map(|count| format::grouped(count as u64));
        let rate = |rate: f64| format::grouped(rate.round() as u64);
        let mut rows = vec![
            ("device", self.device.clone()),
            ("driver", self.driver.clone().unwrap_or_else(|| "unknown".to_owned())),
            ("version", format!("shadernet {}, {}", env!("CARGO_PKG_VERSION"), bench::date())),
            ("model", format!("{}: {} parameters", self.model, format::grouped(self.parameters as u64))),
            ("data", format!("{}: {train} training and {test} test images", self.data)),
            (
                "training",
                format!(
                    "{} images/s, {:.3} s an epoch (median of {}), batch {}, {}",
                    rate(self.median(|epoch| epoch.images_per_s)),
                    self.median(|epoch| epoch.seconds),
                    self.epochs.len(),
                    self.batch,
                    self.precision
                ),
            ),
            ("validation", format!("{} images/s", rate(self.median(|epoch| epoch.val_images_per_s)))),
        ];
        for Inference { batch, calls, p50_ms, p99_ms, images_per_s } in &self.inference {
            let what = if *batch == 1 { "latency" } else { "inference" };
            let times = format!("p50 {p50_ms:.3} ms, p99 {p99_ms:.3} ms");
            rows.push((what, format!("batch {batch}: {times}, {} images/s ({calls} calls)", rate(*images_per_s))));
        }
        let [cold, warm] = self.start;
        rows.push(("start", format!("{cold:.3} s to the first training step done, {warm:.3} s with warm caches")));
        let told = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), format::bytes);
        let [training, inference] = [self.memory.training, self.memory.inference].map(format::bytes);
        rows.push((
            "memory",
            format!("{} peak on the host; on the device {training} to train, {inference} to predict", told(self.memory.host)),
        ));
        if let Some([allocated, reserved]) = self.memory.allocator {
            rows.push(("", format!("allocator, training: {} in use of {} taken", format::bytes(allocated), format::bytes(reserved))));
        }
        let rows: String = rows.iter().map(|(what, text)| format!("{what:<11} {text}\n")).collect();
        let profile = match &self.profile {
            Some((measured, ceiling)) => kernels::table(measured, ceiling),
            None => "No profile: the device has no timestamps.\n".to_owned(),
        };
        format!("{rows}\nA training step, kernel by kernel:\n\n{profile}")
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
