//! `shadernet selftest`: does this device compute what the references say?

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use shadernet::exec::gpu::Checks;
use shadernet::exec::selftest::{Verdict, is_moderate, selftest};
use shadernet::predict::Predictor;
use shadernet::train::{TrainConfig, training_plans};

use super::precision::Numbers;
use super::{Device, Failure, Result, answer, answer_json, batch_size, complain, format, model_or_builtin};

/// Run every kernel of training and inference against its plain reference on a device.
///
/// Each distinct step of the plans, with the kernel that is picked for it, runs alone on drawn numbers. The error is in units of what rounding may come to: above 1 is
/// a failure, and ends in exit code 1.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shadernet selftest\n  shadernet selftest --device llvmpipe --checked\n  shadernet selftest --precision mixed --tune full"
)]
pub(super) struct Arguments {
    /// A model, as `train --out` writes it [default: the built-in CIFAR-10 network].
    model: Option<PathBuf>,
    #[command(flatten)]
    device: Device,
    /// Compile the kernels with bounds checks (GPU only); by default they run as in training, without.
    #[arg(long)]
    checked: bool,
    #[command(flatten)]
    numbers: Numbers,
    /// Images each step runs on [default: 67, a whole tile of the largest kernels and a few more; 5 if that were too much for a reference].
    #[arg(long, value_name = "N", value_parser = batch_size, allow_negative_numbers = true)]
    batch_size: Option<usize>,
    /// Answer with one JSON document: device, checked, passed, verdicts (kernel, step, shapes, worst, problem).
    #[arg(long)]
    json: bool,
}

/// Images of the small data set: enough for the steps that training and validation make, so that the kernels picked for those are
/// judged. And what one buffer holds in the second pair of plans: there it is cut in two and in three.
const IMAGES: [usize; 2] = [128, 256];
const IMAGES_A_BUFFER: u64 = 96;

/// Images a step runs on if nobody says: kernels do otherwise with a whole tile of 64 images than with fewer. And where that is too much.
const BATCHES: [usize; 2] = [67, 5];

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result {
    let (model, _) = model_or_builtin(arguments.model.as_deref())?;
    let config = TrainConfig { precision: arguments.numbers.precision(), ..TrainConfig::default() };
    let image = model.input.iter().product::<usize>() as u64;
    let checks = if arguments.checked { Checks::On } else { Checks::Off };
    let (chosen, why) = arguments.device.choose(arguments.numbers.options(checks))?;
    let exec = chosen.executor()?;
    config.precision.check(exec.as_ref())?;
    let (device, style) = (exec.device(), exec.style());
    drop(exec);
    let whole = training_plans(&model, IMAGES, &config, u64::MAX, style)?;
    let cut = training_plans(&model, IMAGES, &config, IMAGES_A_BUFFER * image, style)?;
    let inference = Predictor::plan_of(&model, config.batch, style)?;
    let plans: Vec<_> = whole.iter().chain(&cut).chain([&inference]).collect();

    let choices = chosen.choices(plans.iter().copied())?;
    let batch = arguments.batch_size.unwrap_or(if is_moderate(&plans, BATCHES[0]) { BATCHES[0] } else { BATCHES[1] });
    let verdicts = selftest(&mut || chosen.with(&choices), &plans, batch)?;
    let failed = verdicts.iter().filter(|verdict| verdict.problem.is_some()).count();
    if arguments.json {
        let (checked, passed) = (arguments.checked, failed == 0);
        answer_json(&json!({ "device": device, "why": why, "checked": checked, "passed": passed, "verdicts": verdicts }))?;
    } else {
        let heading = ["kernel", "step", "shapes", "worst", "verdict"];
        let rows: Vec<_> = verdicts.iter().map(row).collect();
        let checked = if arguments.checked { ", kernels with bounds checks" } else { "" };
        answer(&format!(
            "device  {device}: {why}{checked}\n\n{}\n{} of {} passed; `worst` is the largest error, 1 is what rounding may come to\n",
            format::table(&heading, "<<<><", &rows),
            verdicts.len() - failed,
            verdicts.len()
        ))?;
    }
    verdicts.iter().filter_map(|verdict| verdict.problem.as_ref()).for_each(|problem| complain(problem));
    if failed == 0 { Ok(()) } else { Err(Failure::Told) }
}

fn row(verdict: &Verdict) -> Vec<String> {
    let outcome = if verdict.problem.is_none() { "ok" } else { "WRONG" };
    vec![verdict.kernel.clone(), verdict.step.clone(), verdict.shapes.clone(), format!("{:.3}", verdict.worst), outcome.to_owned()]
}
