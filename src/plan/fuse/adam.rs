//! The optimiser: sums of gradients' slices go into [`Adam`], long sums become such slices, and steps of two parameters one
//! [`AdamPair`].

use super::{Chain, Now, Uses};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::reduce::Axes;
use crate::ops::*;

/// A step of Adam, its operands as [`Adam`] has them.
#[derive(Clone)]
struct Step {
    label: String,
    effect: TensorId,
    adam: Adam,
    operands: [TensorId; 4],
}

/// Every step, in order.
fn steps(uses: &Uses<'_>) -> Vec<Step> {
    let all = uses.all(|op| if let Op::Adam(adam) = op { Some(*adam) } else { None });
    let step = |(effect, adam)| {
        let operands = uses.inputs(effect).try_into().ok()?;
        Some(Step { label: uses.graph.node(effect).label.clone(), effect, adam, operands })
    };
    all.filter_map(step).collect()
}

/// A step and the sum of slices that is its gradient.
struct Summed {
    step: Step,
    sum: TensorId,
    slices: TensorId,
}

impl Chain for Summed {
    fn label(&self) -> &str {
        &self.step.label
    }

    fn inside(&self) -> Vec<TensorId> {
        vec![self.sum]
    }

    fn outside(&self) -> Vec<TensorId> {
        vec![self.step.effect]
    }

    fn emit(&self, graph: &mut Graph, id: TensorId, now: &mut Now) -> Result<()> {
        let [param, moments, _, rate] = self.step.operands;
        let effect = graph.apply(self.step.adam, &[param, moments, self.slices, rate].map(|operand| now[&operand]))?;
        now.insert(id, effect);
        Ok(())
    }
}

/// Every step against the sum of partial sums. They are read at the step and not before, so they may not lie in a leaf.
pub(super) fn sums(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    let summed = |step: Step| {
        let [param, _, sum, _] = step.operands;
        let Some(Op::Sum(Sum { axes })) = uses.op(sum) else { return None };
        let slices = uses.inputs(sum)[0];
        let (found, wanted) = (uses.graph.shape(slices), uses.graph.shape(param));
        let partial = *axes == Axes::new(&[0]) && !found.is_batched() && found.inner().get(1..) == Some(wanted.inner());
        (partial && !found.inner().contains(&0) && !uses.in_leaf(slices)).then(|| Box::new(Summed { step, sum, slices }) as Box<dyn Chain>)
    };
    steps(uses).into_iter().filter_map(summed).collect()
}

/// A gradient that is one long sum for each channel, as that of a bias is.
struct Long {
    label: String,
    sum: TensorId,
    x: TensorId,
    slices: usize,
}

impl Chain for Long {
    fn label(&self) -> &str {
        &self.label
    }

    fn inside(&self) -> Vec<TensorId> {
        Vec::new()
    }

    fn outside(&self) -> Vec<TensorId> {
        vec![self.sum]
    }

    fn emit(&self, graph: &mut Graph, id: TensorId, now: &mut Now) -> Result<()> {
        let slices = graph.apply(SumSlices { slices: self.slices }, &[now[&self.x]])?;
        now.insert(id, slices);
        Ok(())
    }
}

/// Every gradient that nothing but a step reads and that is a sum over all axes but the last: it is left in slices, which the step
/// adds. Few channels and many rows are little work side by side, unless workgroups share a sum in their memory.
pub(super) fn long_sums(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    let long = |step: Step| {
        let [param, _, sum, _] = step.operands;
        let Some(Op::Sum(Sum { axes })) = uses.op(sum) else { return None };
        let x = uses.inputs(sum)[0];
        let (shape, channels) = (uses.graph.shape(x), uses.graph.shape(x).last());
        let leading: Vec<usize> = (0..shape.rank() - 1).collect();
        let fits = *axes == Axes::new(&leading) && shape.is_batched() && uses.graph.shape(param).inner() == [channels];
        let alone = uses.readers(sum) == [step.effect] && !uses.roots.contains(&sum);
        // A row of each image is not worth many slices.
        let slices = if shape.inner_len() / channels.max(1) > 1 { 64 } else { 8 };
        let label = uses.graph.node(sum).label.clone();
        (fits && alone && channels > 0 && channels.is_multiple_of(4)).then(|| Box::new(Long { label, sum, x, slices }) as Box<dyn Chain>)
    };
    steps(uses).into_iter().filter_map(long).collect()
}

/// Two steps, the first of which waits for the second.
struct Pair {
    label: String,
    steps: [Step; 2],
}

impl Chain for Pair {
    fn label(&self) -> &str {
        &self.label
    }

    fn inside(&self) -> Vec<TensorId> {
        Vec::new()
    }

    fn outside(&self) -> Vec<TensorId> {
        self.steps.iter().map(|step| step.effect).collect()
    }

    fn emit(&self, graph: &mut Graph, id: TensorId, now: &mut Now) -> Result<()> {
        let [first, second] = &self.steps;
        if id == first.effect {
            return Ok(());
        }
        let [[param0, moments0, grad0, rate], [param1, moments1, grad1, _]] =
            [first, second].map(|step| step.operands.map(|operand| now[&operand]));
        let effect = graph.apply(AdamPair { adam: first.adam }, &[param0, moments0, grad0, param1, moments1, grad1, rate])?;
        now.extend([(first.effect, effect), (second.effect, effect)]);
        Ok(())
    }
}

/// Steps that follow each other, two and two.
pub(super) fn pairs(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    let mut pairs: Vec<Box<dyn Chain>> = Vec::new();
    let mut waiting: Option<Step> = None;
    for step in steps(uses) {
        waiting = match waiting {
            Some(first) if fit(uses, &first, &step) => {
                pairs.push(Box::new(Pair { label: common_label(&first.label, &step.label), steps: [first, step] }));
                None
            }
            _ => Some(step),
        };
    }
    pairs
}

/// Whether the first step may be taken with the second: nothing in between reads what it changes or changes what it reads.
fn fit(uses: &Uses<'_>, first: &Step, second: &Step) -> bool {
    let operands = |step: &Step| step.operands.map(|operand| uses.owner(operand));
    let [[param0, moments0, grad0, rate], [param1, moments1, grad1, rate1]] = [operands(first), operands(second)];
    let changed = [param0, moments0, param1, moments1];
    let distinct = (0..4).all(|i| !changed[..i].contains(&changed[i])) && ![grad0, grad1, rate].iter().any(|read| changed.contains(read));
    let between = uses.graph.nodes().filter(|(id, _)| uses.needed[id.index()] && (first.effect..second.effect).contains(id)).skip(1);
    let apart = |(id, node): (TensorId, &crate::graph::Node)| {
        let reads = node.inputs.iter().any(|&input| [param0, moments0].contains(&uses.owner(input)));
        !reads && !uses.updated(id).any(|updated| [grad0, rate].contains(&updated))
    };
    first.adam == second.adam && rate == rate1 && distinct && between.into_iter().all(apart)
}

/// `conv2d` of `conv2d/kernel` and `conv2d/bias`; the first of two that have no layer in common.
fn common_label(first: &str, second: &str) -> String {
    match (first.rsplit_once('/'), second.rsplit_once('/')) {
        (Some((layer, _)), Some((other, _))) if layer == other => layer.to_owned(),
        _ => first.to_owned(),
    }
}
