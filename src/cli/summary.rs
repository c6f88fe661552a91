//! `shadernet summary`: a model's layers and parameters as Keras prints them, and what its plans take of a device's memory.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use shadernet::graph::{Graph, Role};
use shadernet::nn::Model;
use shadernet::ops::Style;
use shadernet::plan::Plan;
use shadernet::predict::Predictor;
use shadernet::train::{TrainConfig, training_plans};
use shadernet::{Result as LibraryResult, shape::Shape};

use super::{CIFAR10_IMAGES, Result, answer, answer_json, batch_size, format, model_or_builtin};

/// Print a model's layers, output shapes and parameters, and the bytes of its plans.
///
/// No device is needed. The data set is reckoned as CIFAR-10, which stays on the device while training.
#[derive(Args)]
#[command(after_help = "Examples:\n  shadernet summary\n  shadernet summary cnn.safetensors --batch-size 256 --json")]
pub(super) struct Arguments {
    /// A model, as `train --out` writes it [default: the built-in CIFAR-10 network].
    model: Option<PathBuf>,
    /// Images of a training step and of inference, for the bytes of the plans.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = batch_size, allow_negative_numbers = true)]
    batch_size: usize,
    /// Answer with one JSON document: layers (name, type, output_shape, params), params, bytes, plans.
    #[arg(long)]
    json: bool,
}

struct Row {
    name: String,
    kind: &'static str,
    output: Shape,
    params: usize,
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result {
    let (model, _) = model_or_builtin(arguments.model.as_deref())?;
    let rows = rows(&model)?;
    let config = TrainConfig { batch: arguments.batch_size, ..TrainConfig::default() };
    let [training, evaluation] = training_plans(&model, CIFAR10_IMAGES, &config, u64::MAX, Style::Portable)?;
    let plans = [
        ("training", training),
        ("evaluation", evaluation),
        ("inference", Predictor::plan_of(&model, arguments.batch_size, Style::Portable)?),
    ];
    let params: usize = rows.iter().map(|row| row.params).sum();
    if arguments.json {
        let layer = |row: &Row| {
            let extents: Vec<Option<usize>> = [None].into_iter().chain(row.output.inner().iter().map(|&extent| Some(extent))).collect();
            json!({ "name": row.name, "type": row.kind, "output_shape": extents, "params": row.params })
        };
        let plans: serde_json::Map<_, _> = plans.iter().map(|(name, plan)| ((*name).to_owned(), plan_json(plan))).collect();
        return answer_json(&json!({
            "model": model.name,
            "input_shape": model.input,
            "classes": model.classes,
            "layers": rows.iter().map(layer).collect::<Vec<_>>(),
            "params": params,
            "bytes": 4 * params,
            "plans": plans,
        }));
    }
    let layer = |row: &Row| vec![format!("{} ({})", row.name, row.kind), keras_shape(row.output), format::grouped(row.params as u64)];
    let layers = format::table(&["Layer (type)", "Output Shape", "Param #"], "<<>", &rows.iter().map(layer).collect::<Vec<_>>());
    let memory = |(name, plan): &(&str, Plan)| {
        let held = held(plan).map(|bytes| format::bytes(bytes as u64));
        let own = [
            format!("{name}, {} images", plan.capacity()),
            plan.steps().len().to_string(),
            plan.slots().len().to_string(),
            format::bytes(plan.slot_bytes() as u64),
        ];
        own.into_iter().chain(held).collect::<Vec<_>>()
    };
    let heading = ["Plan", "Dispatches", "Slots", "Values", "Parameters", "State", "Inputs"];
    let memory = format::table(&heading, "<>>>>>>", &plans.iter().map(memory).collect::<Vec<_>>());
    answer(&format!(
        "Model: {}\nInput: {}, {} classes\n\n{layers}\nTotal params: {} ({})\n\n{memory}\n\
         Values share slots; parameters, state (Adam's moments, counters) and inputs (the data set of {} images) have memory\n\
         of their own, which the plans of one training share.\n",
        model.name,
        keras_shape(Shape::batched(&model.input)),
        model.classes.len(),
        format::grouped(params as u64),
        format::bytes(4 * params as u64),
        format::grouped(CIFAR10_IMAGES.iter().sum::<usize>() as u64),
    ))
}

fn rows(model: &Model) -> LibraryResult<Vec<Row>> {
    let mut graph = Graph::new();
    let network = model.build(&mut graph)?;
    let x = graph.input("x", model.input_type());
    let outputs = network.apply_layers(&mut graph, x)?;
    let params: Vec<usize> =
        network.params_by_layer().map(|params| params.iter().map(|&param| graph.shape(param).inner_len()).sum()).collect();
    let layers = model.layer_names().into_iter().zip(&model.layers).zip(outputs.into_iter().zip(params));
    let row = |((name, layer), (output, params)): ((String, &shadernet::nn::Layer), _)| Row {
        name,
        kind: keras_class(layer.kind()),
        output: graph.shape(output),
        params,
    };
    Ok(layers.map(row).collect())
}

/// Keras's class for a kind of layer.
fn keras_class(kind: &'static str) -> &'static str {
    match kind {
        "conv2d" => "Conv2D",
        "max_pooling2d" => "MaxPooling2D",
        "average_pooling2d" => "AveragePooling2D",
        "global_average_pooling2d" => "GlobalAveragePooling2D",
        "flatten" => "Flatten",
        "dense" => "Dense",
        "activation" => "Activation",
        other => other,
    }
}

/// `(None, 30, 30, 32)`.
fn keras_shape(shape: Shape) -> String {
    let axes: Vec<String> = ["None".to_owned()].into_iter().chain(shape.inner().iter().map(usize::to_string)).collect();
    format!("({})", axes.join(", "))
}

/// Bytes of parameters, of state and of inputs.
fn held(plan: &Plan) -> [usize; 3] {
    let mut held = [0; 3];
    for leaf in plan.leaves() {
        let place = match leaf.role {
            Role::Param(_) => 0,
            Role::Input => 2,
            _ => 1,
        };
        held[place] += leaf.ty.bytes(plan.capacity());
    }
    held
}

fn plan_json(plan: &Plan) -> serde_json::Value {
    let [params, state, inputs] = held(plan);
    json!({
        "batch": plan.capacity(),
        "dispatches": plan.steps().len(),
        "slots": plan.slots().len(),
        "slot_bytes": plan.slot_bytes(),
        "leaf_bytes": plan.leaf_bytes(),
        "param_bytes": params,
        "state_bytes": state,
        "input_bytes": inputs,
    })
}
