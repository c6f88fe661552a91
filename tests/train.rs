//! Training as a whole: it learns, repeats to the bit, resumes to the bit, and fails with the reason.

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use common::{executors, shared_gpus};
use shadernet::Error;
use shadernet::data::{Dataset, sample};
use shadernet::exec::Executor;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::GpuExecutor;
use shadernet::models::cifar10_cnn;
use shadernet::nn::{Layer, Model};
use shadernet::ops::activation::Function;
use shadernet::train::{Event, TrainConfig, Trainer};

/// A network small enough for a software GPU.
fn small() -> Model {
    Model {
        name: "small".to_owned(),
        input: [32, 32, 3],
        layers: vec![
            Layer::conv2d(4, 3),
            Layer::max_pool2d(5),
            Layer::Flatten,
            Layer::dense(16, Some(Function::Tanh)),
            Layer::dense(10, None),
        ],
        classes: sample().train.classes,
    }
}

fn images(count: usize) -> (Dataset, Dataset) {
    let mut splits = sample();
    splits.train.truncate(count);
    splits.test.truncate(20);
    (splits.train, splits.test)
}

fn config() -> TrainConfig {
    TrainConfig { epochs: 2, batch: 16, ..TrainConfig::default() }
}

fn cpu(threads: usize) -> Box<dyn Executor> {
    Box::new(CpuExecutor::new(Some(threads)).unwrap())
}

fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The bits of every weight after training on 40 images.
fn weights(exec: Box<dyn Executor>, config: TrainConfig) -> Vec<u32> {
    let (train, test) = images(40);
    let mut trainer = Trainer::new(exec, small(), &train, &test, config).unwrap();
    trainer.fit(&mut go_on).unwrap();
    bits(&trainer)
}

fn bits(trainer: &Trainer) -> Vec<u32> {
    trainer.weights().iter().flat_map(|tensor| &tensor.data).map(|v| v.to_bits()).collect()
}

#[test]
fn the_cifar10_network_learns_64_images_by_heart() {
    let (train, _) = images(64);
    let config = TrainConfig { epochs: 60, batch: 32, ..TrainConfig::default() };
    let model = cifar10_cnn(&train.classes);
    let mut trainer = Trainer::new(cpu(2), model, &train, &train, config).unwrap();
    trainer.fit(&mut go_on).unwrap();
    let history = trainer.history();
    assert_eq!(history.loss.len(), 60);
    assert!(history.loss[0] > 2.0 && history.val_accuracy[59] > 0.95, "{history:?}");
}

#[test]
fn the_same_seed_ends_in_the_same_bits_on_every_device_and_another_seed_does_not() {
    for (first, second) in executors().into_iter().zip(executors()) {
        let device = first.device();
        let once = weights(first.into_executor(), config());
        assert!(once == weights(second.into_executor(), config()), "{device}");
    }
    let other = TrainConfig { seed: 1, ..config() };
    assert_ne!(weights(cpu(2), config()), weights(cpu(2), other));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let one = weights(cpu(1), config());
    assert!(one == weights(cpu(2), config()) && one == weights(cpu(5), config()));
}

#[test]
fn devices_end_in_nearly_the_same_weights() {
    let want = weights(cpu(2), config());
    for exec in executors() {
        let device = exec.device();
        for (got, want) in weights(exec.into_executor(), config()).into_iter().zip(&want) {
            let (got, want) = (f32::from_bits(got), f32::from_bits(*want));
            // Six steps move a weight by up to 6e-3; rounding moves it by far less. Observed: 6e-7.
            assert!((got - want).abs() < 1e-5, "{device}: {got} and {want}");
        }
    }
}

#[test]
fn a_run_stopped_at_any_step_and_resumed_ends_in_the_same_bits() {
    for (place, exec) in executors().into_iter().enumerate() {
        let device = exec.device();
        let want = weights(exec.into_executor(), config());
        for stop_after in [1, 2, 3, 4, 5] {
            let folder = tempfile::tempdir().unwrap();
            let config = TrainConfig { checkpoint_dir: Some(folder.path().into()), checkpoint_steps: Some(1), resume: true, ..config() };
            let (train, test) = images(40);
            let fresh = || executors().into_iter().nth(place).expect("the same device and kernels again").into_executor();
            let mut trainer = Trainer::new(fresh(), small(), &train, &test, config.clone()).unwrap();
            let mut seen = 0;
            let stopped = trainer.fit(&mut |event| {
                seen += usize::from(matches!(event, Event::Step { .. }));
                if seen >= stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(matches!(stopped, Err(Error::Interrupted { saved: Some(_), .. })), "{stopped:?}");
            drop(trainer);
            let mut resumed_at = None;
            let mut trainer = Trainer::new(fresh(), small(), &train, &test, config).unwrap();
            trainer
                .fit(&mut |event| {
                    if let Event::Resumed { epochs, steps } = event {
                        resumed_at = Some((epochs, steps));
                    }
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(resumed_at, Some((stop_after / 3, stop_after % 3)));
            assert!(bits(&trainer) == want, "{device}, stopped after {stop_after}");
            assert_eq!(trainer.history().loss.len(), 2);
        }
    }
}

#[test]
fn a_diverging_run_names_epoch_step_and_tensor_and_keeps_what_was_saved() {
    for exec in executors() {
        let folder = tempfile::tempdir().unwrap();
        let (train, test) = images(40);
        let sane = TrainConfig { epochs: 1, checkpoint_dir: Some(folder.path().into()), ..config() };
        let mut trainer = Trainer::new(cpu(2), small(), &train, &test, sane).unwrap();
        trainer.fit(&mut go_on).unwrap();
        drop(trainer);
        let saved = std::fs::read(folder.path().join("last.ckpt")).unwrap();

        let device = exec.device();
        let wild = TrainConfig { learning_rate: 1e38, checkpoint_dir: Some(folder.path().into()), ..config() };
        let mut model = small();
        model.layers[3] = Layer::dense(16, Some(Function::Relu));
        let mut trainer = Trainer::new(exec.into_executor(), model, &train, &test, wild).unwrap();
        match trainer.fit(&mut go_on) {
            Err(Error::NotFinite { epoch: 1, step, first, .. }) => {
                assert!(step >= 2 && first.contains("conv2d"), "{device}: step {step}, {first}");
            }
            other => panic!("{device}: {other:?}"),
        }
        assert_eq!(saved, std::fs::read(folder.path().join("last.ckpt")).unwrap(), "{device}");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused_with_the_difference() {
    let folder = tempfile::tempdir().unwrap();
    let (train, test) = images(40);
    let config = TrainConfig { epochs: 1, checkpoint_dir: Some(folder.path().into()), resume: true, ..config() };
    Trainer::new(cpu(2), small(), &train, &test, config.clone()).unwrap().fit(&mut go_on).unwrap();
    let message = |model: Model, train: &Dataset, config: TrainConfig| match Trainer::new(cpu(2), model, train, &test, config) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("the checkpoint was taken"),
    };
    assert!(message(small(), &train, TrainConfig { seed: 7, ..config.clone() }).contains("found seed 0, expected seed 7"));
    assert!(message(small(), &train, TrainConfig { batch: 8, ..config.clone() }).contains("found batch size 16"));
    assert!(message(small(), &images(30).0, config.clone()).contains("40 images"));
    assert!(message(cifar10_cnn(&train.classes), &train, config).contains("\"name\":\"small\""));
}

#[test]
fn settings_and_data_that_cannot_be_meant_are_refused() {
    let (train, test) = images(40);
    let refused = |model: Model, train: &Dataset, config: TrainConfig| match Trainer::new(cpu(1), model, train, &test, config) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("taken"),
    };
    for config in [
        TrainConfig { batch: 0, ..config() },
        TrainConfig { epochs: 0, ..config() },
        TrainConfig { learning_rate: f32::NAN, ..config() },
        TrainConfig { learning_rate: -1.0, ..config() },
        TrainConfig { resume: true, ..config() },
    ] {
        assert!(refused(small(), &train, config).contains("expected"));
    }
    let mut empty = train.clone();
    empty.truncate(0);
    assert!(refused(small(), &empty, config()).contains("found 0 of"));
    let mut grey = train.clone();
    (grey.channels, grey.width) = (1, 96);
    assert!(refused(small(), &grey, config()).contains("[32, 96, 1]"));
    let mut model = small();
    model.layers.remove(2);
    assert!(refused(model, &train, config()).contains("matmul"));
}

#[test]
fn batches_larger_than_the_data_and_of_one_image_train() {
    for batch in [1, 39, 41, 1000] {
        let (train, test) = images(40);
        let config = TrainConfig { epochs: 1, batch, ..config() };
        let mut trainer = Trainer::new(cpu(2), small(), &train, &test, config).unwrap();
        assert_eq!(trainer.session().steps(), 40usize.div_ceil(batch));
        trainer.fit(&mut go_on).unwrap();
        assert!(trainer.history().loss[0].is_finite());
    }
}

#[test]
fn memory_is_what_the_plan_says_and_epochs_allocate_no_more() {
    let mut all: Vec<Box<dyn Executor>> = vec![Box::new(CpuExecutor::new(None).unwrap())];
    all.extend(shared_gpus().iter().map(|gpu| Box::new(GpuExecutor::new(gpu.clone())) as Box<dyn Executor>));
    for exec in all {
        let device = exec.device();
        let (train, test) = images(40);
        let mut trainer = Trainer::new(exec, small(), &train, &test, TrainConfig { epochs: 4, ..config() }).unwrap();
        let planned = shadernet::bench::planned_bytes(trainer.session().plans());
        assert_eq!(planned, trainer.session().allocated_bytes(), "{device}");
        trainer.fit(&mut go_on).unwrap();
        assert_eq!(planned, trainer.session().allocated_bytes(), "{device}");
    }
}

const CHILD: &str = "SHADERNET_TEST_TRAIN_FOLDER";

/// What the child process of the test below does: train with a checkpoint after every step, or go on from one.
#[test]
fn killed_child() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    train_in(Path::new(&folder));
}

fn train_in(folder: &Path) {
    let (train, test) = images(40);
    let config = TrainConfig { epochs: 20, checkpoint_dir: Some(folder.into()), checkpoint_steps: Some(1), resume: true, ..config() };
    let mut trainer = Trainer::new(cpu(1), small(), &train, &test, config).expect("every checkpoint loads");
    trainer.fit(&mut go_on).unwrap();
    trainer.save_model(&folder.join("out.safetensors")).unwrap();
}

/// `SHADERNET_KILLS` kills, 12 if unset; `tests/kill.sh` asks for 200.
#[cfg(unix)]
#[test]
fn a_run_killed_at_random_moments_ends_identical_to_an_uninterrupted_one() {
    let whole = tempfile::tempdir().unwrap();
    train_in(whole.path());
    let want = std::fs::read(whole.path().join("out.safetensors")).unwrap();

    let kills: usize = std::env::var("SHADERNET_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(12);
    let (mut killed, mut finished) = (0, 0);
    let mut folder = tempfile::tempdir().unwrap();
    while killed < kills || finished == 0 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_child"])
            .env(CHILD, folder.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let patience = 5.0 + 100.0 * common::noise(11, killed + 1000 * finished);
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(patience as u64);
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if killed < kills && std::time::Instant::now() >= deadline => break None,
                None => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        };
        match status {
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                killed += 1;
            }
            Some(status) => {
                assert!(status.success(), "a resumed run failed after {killed} kills");
                assert!(want == std::fs::read(folder.path().join("out.safetensors")).unwrap(), "after {killed} kills");
                finished += 1;
                folder = tempfile::tempdir().unwrap();
            }
        }
    }
    println!("{killed} kills, {finished} runs ended, all identical");
}
