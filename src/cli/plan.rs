//! `shadernet plan`: every dispatch that a step makes, and the memory it makes them in.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use shadernet::exec::gpu::DeviceChoice;
use shadernet::ops::{Style, Variant};
use shadernet::plan::{Choices, Operand, Place, Plan};
use shadernet::predict::Predictor;
use shadernet::train::{TrainConfig, training_plans};

use super::{CIFAR10_IMAGES, Device, Result, answer, answer_json, batch_size, format, model_or_builtin};

/// Print the dispatch lists of a training step, an evaluation step and of inference.
///
/// For each dispatch: layer, kernel, workgroups, shapes with the slots of memory they are in, and bytes. Without `--device` no device
/// is needed: the plan is that of hardware GPUs, with every kind of kernel that an executor may pick. The CPU's has no slices, and
/// software adapters run dense layers operator by operator. With it, the plan is that of the device, with the kernels picked there.
/// The data set is reckoned as CIFAR-10, in one buffer.
#[derive(Args)]
#[command(after_help = "Examples:\n  shadernet plan\n  shadernet plan cnn.safetensors --batch-size 256 --json")]
pub(super) struct Arguments {
    /// A model, as `train --out` writes it [default: the built-in CIFAR-10 network].
    model: Option<PathBuf>,
    /// Images of a training step and of inference.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size, allow_negative_numbers = true)]
    batch_size: usize,
    /// The plan and the kernels of this device, as far as they are known: nothing is tried. Named as for `train`.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    /// Answer with one JSON document: training, evaluation and inference, each with its steps, slots and bytes.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result {
    let (model, _) = model_or_builtin(arguments.model.as_deref())?;
    let config = TrainConfig { batch: arguments.batch_size, ..TrainConfig::default() };
    let chosen = arguments.device.as_ref().map(|device| Device::known(device.clone())).transpose()?;
    let style = match &chosen {
        Some(chosen) => chosen.executor()?.style(),
        None => Style::Portable,
    };
    let [training, evaluation] = training_plans(&model, CIFAR10_IMAGES, &config, u64::MAX, style)?;
    let inference = Predictor::plan_of(&model, arguments.batch_size, style)?;
    let choices = chosen.map(|chosen| chosen.choices([&training, &evaluation, &inference].into_iter())).transpose()?;
    if arguments.json {
        let [training, evaluation, inference] = [training, evaluation, inference].map(|plan| to_json(&plan, choices.as_ref()));
        return answer_json(&json!({ "model": model.name, "training": training, "evaluation": evaluation, "inference": inference }));
    }
    let plans = [("Training step", training), ("Evaluation step", evaluation), ("Inference", inference)];
    let text = plans.map(|(what, plan)| {
        let steps = choices.as_ref().map_or_else(|| plan.to_string(), |choices| plan.with(choices).to_string());
        format!("{what} of {}, {} images\n\n{steps}\n", model.name, format::grouped(plan.capacity() as u64))
    });
    answer(&text.join("\n"))
}

fn to_json(plan: &Plan, choices: Option<&Choices>) -> serde_json::Value {
    let capacity = plan.capacity();
    let operand = |operand: &Operand| {
        let slot = match operand.place {
            Place::Slot(slot) => Some(slot),
            Place::Leaf(_) => None,
        };
        json!({ "type": operand.ty.to_string(), "slot": slot, "bytes": operand.ty.bytes(capacity) })
    };
    let steps = plan.steps().iter().map(|step| {
        json!({
            "layer": step.label,
            "operator": step.op.rules().name(),
            "kernel": step.launch.kernel.name,
            "workgroups": step.launch.workgroups.count(capacity),
            "picked": choices.map(|choices| step.name_by(choices)),
            "variants": step.variants.iter().map(|Variant { name, style, launch, .. }| {
                let workgroups = launch.workgroups.count(capacity);
                json!({ "name": name, "style": style, "kernel": launch.kernel.name, "workgroups": workgroups })
            }).collect::<Vec<_>>(),
            "operands": step.inputs.iter().map(operand).collect::<Vec<_>>(),
            "results": step.outputs().map(|output| operand(&output)).collect::<Vec<_>>(),
        })
    });
    json!({
        "batch": capacity,
        "steps": steps.collect::<Vec<_>>(),
        "slots": plan.slots().iter().map(|slot| json!({ "bytes": slot.bytes, "values": slot.tensors.len() })).collect::<Vec<_>>(),
        "packs": plan.packs().iter().map(|pack| {
            json!({ "bytes": pack.bytes, "padding": pack.padding, "of": if pack.is_of_leaves() { "leaves" } else { "slots" }, "tensors": pack.members.len() })
        }).collect::<Vec<_>>(),
        "slot_bytes": plan.slot_bytes(),
        "leaf_bytes": plan.leaf_bytes(),
    })
}
