//! A resumed run has the kernels that it began with; on another device it goes on with a warning.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use common::shared_gpus;
use shadernet::Error;
use shadernet::data::{Dataset, sample};
use shadernet::exec::Executor;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::GpuExecutor;
use shadernet::exec::tune::{Tune, Tuning};
use shadernet::nn::{Layer, Model};
use shadernet::plan::Choices;
use shadernet::train::{TrainConfig, Trainer, training_plans};

/// Keeps the warnings of the library.
struct Warnings;

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for Warnings {
    fn enabled(&self, of: &log::Metadata<'_>) -> bool {
        of.level() <= log::Level::Warn && of.target().starts_with("shadernet")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            SAID.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// What was warned of since the last time.
fn warnings() -> Vec<String> {
    std::mem::take(&mut SAID.lock().unwrap())
}

fn model() -> Model {
    let layers = vec![
        Layer::conv2d(4, 3),
        Layer::conv2d(8, 3),
        Layer::max_pool2d(4),
        Layer::Flatten,
        Layer::dense(12, None),
        Layer::dense(10, None),
    ];
    Model { name: "small".to_owned(), input: [32, 32, 3], layers, classes: sample().train.classes }
}

fn images() -> (Dataset, Dataset) {
    let mut splits = sample();
    splits.train.truncate(24);
    splits.test.truncate(10);
    (splits.train, splits.test)
}

/// Trains one epoch of three steps, stopping after the first if asked; the bits of the weights, and the kernels.
fn train(exec: Box<dyn Executor>, folder: &Path, stop: bool) -> (Vec<u32>, Choices) {
    let (train, test) = images();
    let config = TrainConfig { epochs: 1, batch: 8, checkpoint_dir: Some(folder.into()), resume: true, ..TrainConfig::default() };
    let mut trainer = Trainer::new(exec, model(), &train, &test, config).unwrap();
    let done = trainer.fit(&mut |_| if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
    assert!(matches!((done, stop), (Err(Error::Interrupted { .. }), true) | (Ok(()), false)));
    let bits = trainer.weights().iter().flat_map(|tensor| &tensor.data).map(|v| v.to_bits()).collect();
    (bits, trainer.session().chosen())
}

#[test]
fn a_resumed_run_keeps_its_kernels_and_another_device_is_told_of() {
    log::set_logger(&Warnings).map(|()| log::set_max_level(log::LevelFilter::Warn)).unwrap();
    let Some(gpu) = shared_gpus().first() else { return };
    let exec = || GpuExecutor::new(gpu.clone());
    // Every step by the last of its kernels, which no style would pick.
    let config = TrainConfig { batch: 8, ..TrainConfig::default() };
    let plans = training_plans(&model(), [24, 10], &config, exec().max_tensor_bytes(), exec().style()).unwrap();
    let mut others = Choices::default();
    for step in plans.iter().flat_map(|plan| plan.steps()).filter(|step| !step.key.is_empty()) {
        let picked = exec().pick(step).name.to_owned();
        let other = step.candidates().map(|candidate| candidate.name).filter(|&name| name != picked).last().unwrap();
        others.set(&step.key, other);
    }
    let other = || {
        let mut exec = exec();
        exec.choose(&others);
        Box::new(exec)
    };
    let folder = || tempfile::tempdir().unwrap();
    let (want, kernels) = train(other(), folder().path(), false);
    assert_eq!(kernels, others);
    assert_eq!(warnings(), [""; 0]);

    // Resumed by executors that would pick others: one by style, one by trying.
    let by_trying = || Box::new(exec().with_tuning(Tuning { tune: Tune::Full, ..Tuning::default() }));
    for resumed in [Box::new(exec()), by_trying()] {
        let folder = folder();
        train(other(), folder.path(), true);
        let (got, kernels) = train(resumed, folder.path(), false);
        assert_eq!(kernels, others);
        assert!(got == want, "the resumed run has other bits");
        assert_eq!(warnings(), [""; 0]);
    }

    // Devices exchanged, both ways: it goes on, with a word about it.
    let cpu = || Box::new(CpuExecutor::new(Some(1)).unwrap());
    let devices: [[Box<dyn Executor>; 2]; 2] = [[cpu(), Box::new(exec())], [Box::new(exec()), cpu()]];
    for [first, second] in devices {
        let (folder, before, after) = (folder(), first.identity(), second.identity());
        train(first, folder.path(), true);
        train(second, folder.path(), false);
        let said = warnings();
        assert!(matches!(&said[..], [one] if one.contains(&before) && one.contains(&after) && one.contains("last bits")), "{said:?}");
    }
    // The number of threads is no other device.
    let folder = folder();
    train(cpu(), folder.path(), true);
    train(Box::new(CpuExecutor::new(Some(2)).unwrap()), folder.path(), false);
    assert_eq!(warnings(), [""; 0]);
}
