//! `shadernet profile`: where the time of a step goes, kernel by kernel, against what the device can do.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use shadernet::bench::{self, Measured};
use shadernet::data::Dataset;
use shadernet::exec::ceiling::Ceiling;
use shadernet::exec::gpu::Checks;
use shadernet::files::{NamedTensor, write_atomic};
use shadernet::nn::Model;
use shadernet::predict::Predictor;
use shadernet::train::{Precision, Session, TrainConfig};
use shadernet::{Error, Result as LibraryResult, exec::Executor};

use super::precision::Numbers;
use super::{Device, Result, answer, answer_json, at_least_one, batch_size, format, kernels, model_or_builtin};

/// Time every kernel of a step on a device: microseconds, operations and bytes a second, and the share of what the device can do.
///
/// A GPU is timed by its own clock, the CPU by the processor's. Times are medians over the steps. The ceiling is not taken from a
/// data sheet but measured on the same device in the same run. The images are noise: times do not depend on them.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// A model, as `train --out` writes it [default: the built-in CIFAR-10 network].
    model: Option<PathBuf>,
    #[command(flatten)]
    numbers: Numbers,
    #[command(flatten)]
    device: Device,
    /// Which step: of training, of the evaluation after an epoch, or of prediction.
    #[arg(long, value_enum, default_value_t = What::Train)]
    what: What,
    /// Images of a step of training or prediction; an evaluation's size is its own.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size)]
    batch_size: usize,
    /// Steps to take the median of.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least_one)]
    steps: usize,
    /// Answer with one JSON document: device, what, batch, kernels and steps (layer, kernel, calls, us, share, gflops, of_ceiling,
    /// gbytes, of_memory), total, span_us, wall_us, host_us, ceiling.
    #[arg(long)]
    json: bool,
    /// Write every step of every run as Chrome's trace format here.
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Examples:
  shadernet profile
  shadernet profile --what predict --batch-size 1 --trace trace.json

`% ceiling` and `% memory` can pass 100 where a kernel's operands stay in caches, or where other programs disturb.
A trace opens in https://ui.perfetto.dev and in chrome://tracing.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Train,
    Evaluate,
    Predict,
}

/// Noise images to train on at most: 150 MB of the size of CIFAR-10. More steps than they make go over them again.
const MOST_IMAGES: usize = 50_000;

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result {
    if arguments.what != What::Train && arguments.numbers.precision() != Precision::F32 {
        return Err(Error::invalid("--precision", arguments.numbers.name(), "f32: only training has another one (--what train)").into());
    }
    let (model, weights) = model_or_builtin(arguments.model.as_deref())?;
    let (chosen, why) = arguments.device.choose(arguments.numbers.options(Checks::Off))?;
    let exec = chosen.executor()?;
    arguments.numbers.precision().check(exec.as_ref())?;
    let (device, name) = (exec.device(), model.name.clone());
    let (measured, ceiling) = match arguments.what {
        What::Train | What::Evaluate => of_session(exec, &model, arguments)?,
        What::Predict => of_predictor(exec, model, weights, arguments)?,
    };
    if let Some(path) = &arguments.trace {
        let trace = measured.profile.trace(&device).to_string();
        write_atomic(path, |out| out.write_all(trace.as_bytes()))?;
    }
    let what = arguments.what.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
    if arguments.json {
        let mut document = kernels::to_json(&measured, &ceiling);
        for (key, value) in [("device", json!(device)), ("driver", json!(chosen.driver())), ("model", json!(name)), ("what", json!(what))] {
            document[key] = value;
        }
        return answer_json(&document);
    }
    let (runs, batch) = (measured.profile.runs.len(), measured.profile.runs.first().map_or(0, |run| run.batch));
    answer(&format!(
        "device  {device}: {why}\nmodel   {name}\nstep    {what}, {} images, median of {runs}\n\n{}",
        format::grouped(batch as u64),
        kernels::table(&measured, &ceiling)
    ))
}

fn of_session(exec: Box<dyn Executor>, model: &Model, arguments: &Arguments) -> LibraryResult<(Measured, Ceiling)> {
    let Arguments { what, batch_size: batch, steps, .. } = *arguments;
    let images = |batch: usize| -> Dataset {
        // Whole batches, one at least.
        bench::noise_images(model, batch * steps.min(MOST_IMAGES / batch).max(1))
    };
    let config = TrainConfig { batch, precision: arguments.numbers.precision(), ..TrainConfig::default() };
    let one = bench::noise_images(model, 1);
    if what == What::Train {
        let mut session = Session::new(exec, model, &images(batch), &one, config)?;
        let measured = bench::profile_training(&mut session, steps)?;
        return Ok((measured, session.ceiling()?));
    }
    // The size of an evaluation's step is known once one over enough images is planned.
    let [_, evaluation] = shadernet::train::training_plans(model, [1, MOST_IMAGES], &config, u64::MAX, exec.style())?;
    let config = TrainConfig { batch: 1, ..config };
    let mut session = Session::new(exec, model, &one, &images(evaluation.capacity()), config)?;
    let measured = bench::profile_evaluation(&mut session, steps)?;
    Ok((measured, session.ceiling()?))
}

fn of_predictor(
    exec: Box<dyn Executor>,
    model: Model,
    weights: Option<Vec<NamedTensor>>,
    arguments: &Arguments,
) -> LibraryResult<(Measured, Ceiling)> {
    let weights = weights.map_or_else(|| bench::initial_weights(&model, 0), Ok)?;
    let images = bench::noise_images(&model, arguments.batch_size).images;
    let mut predictor = Predictor::new(exec, model, &weights, arguments.batch_size)?;
    let measured = bench::profile_prediction(&mut predictor, &images, arguments.steps)?;
    Ok((measured, predictor.ceiling()?))
}
