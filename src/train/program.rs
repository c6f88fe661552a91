//! What a session runs, as data: the graph that holds the network for training and for evaluation, and a plan for each.
//!
//! It depends on the model, the settings and the number of images, not on their content or on a device, so that memory and
//! dispatches can be told before anything is loaded.

use super::{Precision, TrainConfig};
use crate::autodiff::{gradients, scaled_gradients};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::nn::{Model, Network};
use crate::ops::gather::SHARDS;
use crate::ops::{Adam, Style};
use crate::plan::Plan;
use crate::shape::{Shape, TensorType};

/// Images of one evaluation step: more than a training step, since nothing is kept for a backward pass.
const EVALUATION_BATCH: usize = 256;

/// The plans of a training step and of an evaluation step over so many training and test images. Needs neither data nor a
/// device; `max_tensor_bytes` is what one buffer of the device can have
/// ([`Executor::max_tensor_bytes`](crate::exec::Executor::max_tensor_bytes)): a larger data set is cut into several. `style` is that of the kernels it
/// prefers ([`Executor::style`](crate::exec::Executor::style)).
///
/// # Errors
/// A model that does not fit together, no images, or more than the device's buffers can hold.
pub fn training_plans(model: &Model, images: [usize; 2], config: &TrainConfig, max_tensor_bytes: u64, style: Style) -> Result<[Plan; 2]> {
    config.check()?;
    Ok(Program::new(model, images, config, max_tensor_bytes, style)?.plans)
}

/// A graph with everything in it that a session writes and reads, training before evaluation.
pub(super) struct Program {
    pub(super) graph: Graph,
    pub(super) network: Network,
    pub(super) moments: Vec<TensorId>, // of each parameter, m before v
    pub(super) rate: TensorId,
    /// What the loss is multiplied by, in mixed precision.
    pub(super) loss_scale: Option<TensorId>,
    pub(super) splits: [Split; 2],
    pub(super) plans: [Plan; 2],
}

/// A data set in the graph: its tensors, and the batches that go over it once.
pub(super) struct Split {
    pub(super) shards: Vec<TensorId>, // the distinct ones
    pub(super) shard_bytes: usize,
    pub(super) labels: TensorId,
    pub(super) order: TensorId,
    pub(super) clock: TensorId,
    pub(super) log: TensorId,
    pub(super) batches: Vec<usize>,
    pub(super) images: TensorId, // the gathered batch
    pub(super) labels_now: TensorId,
}

impl Program {
    /// Builds the graph and plans it.
    pub(super) fn new(model: &Model, images: [usize; 2], config: &TrainConfig, largest: u64, style: Style) -> Result<Self> {
        let mut graph = Graph::new();
        let network = model.build(&mut graph)?;
        let adam = config.adam;

        let train_split = split(&mut graph, "train", (model, images[0]), config.batch, largest)?;
        let mixed = config.precision == Precision::Mixed;
        let (logits, stored) = match mixed {
            true => network.apply_mixed(&mut graph, train_split.images)?,
            false => (network.apply(&mut graph, train_split.images)?, Vec::new()),
        };
        graph.scope("loss");
        let loss = graph.softmax_cross_entropy(logits, train_split.labels_now)?;
        let correct = graph.correct(logits, train_split.labels_now)?;
        let params = network.params();
        let loss_scale = mixed.then(|| graph.state("loss_scale", TensorType::f32(Shape::fixed(&[])), 0.0));
        let wanted: Vec<TensorId> = params.iter().chain(&stored).copied().collect();
        let grads = match loss_scale {
            Some(scale) => scaled_gradients(&mut graph, loss, scale, &wanted)?,
            None => gradients(&mut graph, loss, &wanted)?,
        };
        graph.scope("adam");
        let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[if mixed { 8 } else { 4 }])), 0.0);
        let mut roots = graph.overflow(&grads[params.len()..], rate)?;
        let mut moments = Vec::new();
        for (&param, &grad) in params.iter().zip(&grads) {
            graph.scope(graph.node(param).label.clone());
            let of_param = graph.state("moments", Adam::moments(graph.ty(param)), 0.0);
            roots.push(graph.adam(adam, param, of_param, grad, rate)?);
            moments.push(of_param);
        }
        graph.scope("clock");
        let (clock, log) = (train_split.clock, train_split.log);
        roots.push(match loss_scale {
            Some(scale) => graph.scaled_tick(adam.scaled_tick(), [loss, correct], clock, log, [rate, scale])?,
            None => graph.tick(adam.tick(), [loss, correct], clock, log, rate)?,
        });
        // No step has more images than there are, and memory for more would be wasted.
        let train_plan = Plan::for_style(style, &graph, &roots, config.batch.min(images[0]))?;

        let test_split = split(&mut graph, "test", (model, images[1]), EVALUATION_BATCH, largest)?;
        let logits = network.apply(&mut graph, test_split.images)?;
        graph.scope("loss");
        let loss = graph.softmax_cross_entropy(logits, test_split.labels_now)?;
        let correct = graph.correct(logits, test_split.labels_now)?;
        graph.scope("clock");
        let record = graph.record(loss, correct, test_split.clock, test_split.log)?;
        let test_plan = Plan::for_style(style, &graph, &[record], EVALUATION_BATCH.min(images[1]))?;
        let (splits, plans) = ([train_split, test_split], [train_plan, test_plan]);
        Ok(Self { graph, network, moments, rate, loss_scale, splits, plans })
    }
}

/// Adds a data set to the graph, with the tensors that gather its next batch.
fn split(graph: &mut Graph, name: &str, (model, count): (&Model, usize), batch: usize, largest: u64) -> Result<Split> {
    graph.scope(name);
    let bytes: usize = model.input.iter().product();
    let per_shard = ((largest / bytes as u64) as usize).min(count);
    if per_shard == 0 || count.div_ceil(per_shard) > SHARDS {
        let found = format!("{count} images of {bytes} bytes");
        return Err(Error::invalid(format!("the {name} images"), found, format!("at most {SHARDS} buffers of {largest} bytes")));
    }
    let shards: Vec<TensorId> = (0..count.div_ceil(per_shard))
        .map(|i| {
            let images = per_shard.min(count - i * per_shard);
            graph.input(&format!("images {i}"), TensorType::u8(Shape::fixed(&[images, bytes])))
        })
        .collect();
    let labels = graph.input("labels", TensorType::u32(Shape::fixed(&[count])));
    let order = graph.input("order", TensorType::u32(Shape::fixed(&[count])));
    let clock = graph.state("clock", TensorType::u32(Shape::fixed(&[2])), 0.0);
    let mut batches = vec![batch; count / batch];
    batches.extend((!count.is_multiple_of(batch)).then_some(count % batch));
    let log = graph.state("log", TensorType::f32(Shape::fixed(&[batches.len(), 2])), 0.0);

    let [images, labels_now] = graph.gather_batch(&shards, model.input, 1.0 / 255.0, labels, order, clock)?;
    Ok(Split { shards, shard_bytes: per_shard * bytes, labels, order, clock, log, batches, images, labels_now })
}
