//! A convolution, the addition of its bias, ReLU and max-pooling by 2, with their gradients where a graph has them: what takes
//! their place is [`Conv2dReluPool`] and its two gradients, or both of these in one.

use super::{Chain, Now, Uses};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::activation::Function;
use crate::ops::reduce::Axes;
use crate::ops::window::{Padding, Window};
use crate::ops::*;
use crate::shape::DType;

/// The pooling that a block can do.
const POOL: Window = Window { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], padding: Padding::Valid };

/// A block that was found.
struct Block {
    label: String,
    conv: Conv2d,
    x: TensorId,
    w: TensorId,
    b: TensorId,
    /// The convolution, its sum with the bias, and ReLU's result.
    forward: [TensorId; 3],
    /// The pooled result.
    y: TensorId,
    backward: Option<Backward>,
}

struct Backward {
    /// The gradient of the block's result.
    dy: TensorId,
    /// Un-pooled, and through ReLU.
    through: [TensorId; 2],
    /// What comes of it.
    dx: Option<TensorId>,
    db: TensorId,
    dw: TensorId,
    slices: usize,
    /// Whether one operator is to compute all three, for executors that gain by what runs side by side.
    at_once: bool,
}

impl Chain for Block {
    fn label(&self) -> &str {
        &self.label
    }

    fn inside(&self) -> Vec<TensorId> {
        self.forward.into_iter().chain(self.backward.iter().flat_map(|backward| backward.through)).collect()
    }

    fn outside(&self) -> Vec<TensorId> {
        let grads = self.backward.iter().flat_map(|backward| [Some(backward.db), Some(backward.dw), backward.dx]);
        std::iter::once(Some(self.y)).chain(grads).flatten().collect()
    }

    fn emit(&self, graph: &mut Graph, id: TensorId, now: &mut Now) -> Result<()> {
        let conv = self.conv;
        let [x, w] = [now[&self.x], now[&self.w]];
        if id == self.y {
            let y = graph.apply(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, now[&self.b]])?;
            now.insert(id, y);
            return Ok(());
        }
        let Some(backward) = &self.backward else { unreachable!("a block without gradients has one output") };
        let dy = now[&backward.dy];
        let place = graph.extra_outputs(now[&self.y]);
        if let (Some(dx), true) = (backward.dx, backward.at_once) {
            let operands: Vec<TensorId> = [x, dy].into_iter().chain(place).chain([w]).collect();
            let dw = graph.apply(Conv2dReluPoolGrad { conv, slices: backward.slices }, &operands)?;
            let extra = graph.extra_outputs(dw);
            let db = graph.sum(extra[0], &[0])?;
            now.extend([(backward.dw, dw), (backward.db, db), (dx, extra[1])]);
            return Ok(());
        }
        if Some(id) == backward.dx {
            let input = [graph.shape(self.x).inner()[0], graph.shape(self.x).inner()[1]];
            let operands: Vec<TensorId> = [dy].into_iter().chain(place).chain([w]).collect();
            let dx = graph.apply(Conv2dReluPoolInputGrad { conv, input, output: DType::F32 }, &operands)?;
            now.insert(id, dx);
            return Ok(());
        }
        // dw and db come of one operator, and so together.
        let kernel = [graph.shape(self.w).inner()[0], graph.shape(self.w).inner()[1]];
        let operands: Vec<TensorId> = [x, dy].into_iter().chain(place).collect();
        let dw = graph.apply(Conv2dReluPoolWeightGrad { conv, kernel, slices: backward.slices }, &operands)?;
        let db = graph.extra_outputs(dw)[0];
        now.insert(backward.dw, dw);
        let db = graph.sum(db, &[0])?;
        now.insert(backward.db, db);
        Ok(())
    }
}

/// Slices of a weight's gradient on a processor: the kernel itself hands the work to threads, and adds up what they find.
const THREADS: usize = 1;

/// Slices of a weight's gradient at most by kernels of registers: a software adapter has few cores to keep busy, and adds them up
/// slowly. Where a gradient is one tile, as that of the first convolution often is, more cores than this have nothing to do.
const CORES: usize = 16;

/// Every block of the graph.
pub(super) fn find(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    find_with(uses, usize::MAX, true)
}

/// The same, for threads in place of workgroups.
pub(super) fn find_for_threads(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    find_with(uses, THREADS, false)
}

/// The same, but for blocks whose images' gradient has no kernel of registers.
pub(super) fn find_for_registers(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    let in_fours = |block: &Block| {
        let dx = block.backward.as_ref().and_then(|backward| backward.dx);
        dx.is_none() || uses.graph.shape(block.x).last().is_multiple_of(4)
    };
    find_where(uses, CORES, false, in_fours)
}

/// Every block, with so many slices of its weight's gradient at most, and its gradients at once or one after the other.
fn find_with(uses: &Uses<'_>, slices: usize, at_once: bool) -> Vec<Box<dyn Chain>> {
    find_where(uses, slices, at_once, |_| true)
}

fn find_where(uses: &Uses<'_>, slices: usize, at_once: bool, wanted: impl Fn(&Block) -> bool) -> Vec<Box<dyn Chain>> {
    let convs = uses.all(|op| if let Op::Conv2d(conv) = op { Some(*conv) } else { None });
    let blocks = convs.filter_map(|(id, conv)| block(uses, id, conv, (slices, at_once)));
    // What takes a block's place reads its operands later than the block does, so nothing may be updated meanwhile.
    let sound = |block: &Block| {
        let nodes: Vec<TensorId> = block.inside().into_iter().chain(block.outside()).collect();
        uses.undisturbed(&nodes) && !block.inside().contains(&block.x)
    };
    blocks.filter(|block| wanted(block) && sound(block)).map(|block| Box::new(block) as Box<dyn Chain>).collect()
}

fn block(uses: &Uses<'_>, conv_id: TensorId, conv: Conv2d, (most, at_once): (usize, bool)) -> Option<Block> {
    let biased = uses.reader(conv_id, |op| matches!(op, Op::BiasAdd(_)))?;
    let relu = uses.reader(biased, |op| matches!(op, Op::Activation(Activation { function: Function::Relu })))?;
    let y = uses.reader(relu, |op| matches!(op, Op::MaxPool2d(MaxPool2d { window }) if *window == POOL))?;
    let through = uses.reader(biased, |op| matches!(op, Op::ActivationGrad(ActivationGrad { function: Function::Relu })));
    let backward = match through {
        None => None,
        Some(through) => {
            let unpooled = uses.inputs(through)[1];
            if !matches!(uses.op(unpooled), Some(Op::MaxPool2dGrad(MaxPool2dGrad { window })) if *window == POOL) {
                return None;
            }
            let db = uses.reader(through, |op| matches!(op, Op::Sum(Sum { axes }) if *axes == Axes::new(&[0, 1, 2])))?;
            let dw = uses.reader(through, |op| matches!(op, Op::Conv2dWeightGrad(grad) if grad.conv == conv))?;
            let dx = uses.reader(through, |op| matches!(op, Op::Conv2dInputGrad(grad) if grad.conv == conv));
            let Some(Op::Conv2dWeightGrad(Conv2dWeightGrad { slices, .. })) = uses.op(dw) else { return None };
            let (dy, slices) = (uses.inputs(unpooled)[1], most.min(*slices));
            // In mixed precision each has kernels of cooperative matrices, which one operator for both has not.
            let is_cast = |id: TensorId| matches!(uses.op(id), Some(Op::Cast(_)));
            let x = uses.inputs(conv_id)[0];
            let at_once = at_once && !is_cast(dy) && !is_cast(x) && uses.graph.shape(x).last().is_multiple_of(4);
            Some(Backward { dy, through: [unpooled, through], dx, db, dw, slices, at_once })
        }
    };
    let [x, w] = [uses.inputs(conv_id)[0], uses.inputs(conv_id)[1]];
    if conv.groups != 1 || !uses.graph.shape(w).last().is_multiple_of(4) {
        return None;
    }
    let (label, b) = (uses.graph.node(conv_id).label.clone(), uses.inputs(biased)[1]);
    Some(Block { label, conv, x, w, b, forward: [conv_id, biased, relu], y, backward })
}
