//! The optimiser: sums of gradients' slices go into [`Adam`], long sums become such slices, and steps of several parameters one
//! [`AdamGroup`].

use super::{Chain, Now, Uses};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::adam::GROUP;
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

/// Steps of which all wait for the last.
struct Group {
    label: String,
    steps: Vec<Step>,
}

impl Chain for Group {
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
        if self.steps.last().is_none_or(|last| last.effect != id) {
            return Ok(());
        }
        let each = |operand: usize| self.steps.iter().map(move |step| step.operands[operand]);
        let rate = self.steps[0].operands[3];
        let operands: Vec<TensorId> = (0..3).flat_map(each).chain([rate]).map(|operand| now[&operand]).collect();
        let effect = graph.apply(AdamGroup { adam: self.steps[0].adam, count: self.steps.len() }, &operands)?;
        now.extend(self.outside().into_iter().map(|step| (step, effect)));
        Ok(())
    }
}

/// Steps of the same settings, as many together as can be taken with the last of them. Those of parameters without elements stay
/// alone.
pub(super) fn groups(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    let mut groups: Vec<Vec<Step>> = Vec::new();
    for step in steps(uses).into_iter().filter(|step| uses.graph.shape(step.operands[0]).inner_len() > 0) {
        match groups.last_mut() {
            Some(group) if group.len() < GROUP && group.iter().all(|first| fit(uses, first, &step)) => group.push(step),
            _ => groups.push(vec![step]),
        }
    }
    let several = groups.into_iter().filter(|group| group.len() > 1);
    several.map(|steps| Box::new(Group { label: common_label(&steps), steps }) as Box<dyn Chain>).collect()
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

/// What the labels have in common, whole words of them: `conv2d` of `conv2d/kernel` and `conv2d/bias`; `adam` if nothing.
fn common_label(steps: &[Step]) -> String {
    let words = |step: &Step| step.label.split('/').map(str::to_owned).collect::<Vec<_>>();
    let mut common = words(&steps[0]);
    for step in steps {
        let same = common.iter().zip(words(step)).take_while(|(word, other)| *word == other).count();
        common.truncate(same);
    }
    if common.is_empty() { "adam".to_owned() } else { common.join("/") }
}
