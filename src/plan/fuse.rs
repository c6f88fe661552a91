//! Fusion: chains of operators that one kernel can do, put together. The only pass that tells operators apart.
//!
//! What is looked for is a convolution, the addition of its bias, ReLU and max-pooling by 2, with their gradients where a graph
//! has them; what takes their place is [`Conv2dReluPool`] and its two gradients. A chain is left as it is if anything
//! else reads one of its intermediate values, or if one is a root.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::graph::{Graph, Role, TensorId};
use crate::ops::activation::Function;
use crate::ops::reduce::Axes;
use crate::ops::window::{Padding, Window};
use crate::ops::*;

/// The pooling that a block can do.
const POOL: Window = Window { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], padding: Padding::Valid };

/// Appends to `graph` all that `roots` need once more, chains put together on the way, and says what each needed tensor has
/// become. Leaves stay what they are; what is inside a chain has become nothing.
///
/// # Errors
/// None for a graph that is valid.
pub(super) fn fuse(graph: &mut Graph, roots: &[TensorId], needed: &[bool]) -> Result<HashMap<TensorId, TensorId>> {
    let blocks = find(graph, roots, needed);
    let inside: HashSet<TensorId> = blocks.iter().flat_map(Block::inside).collect();
    let scope = graph.current_scope().to_owned();
    let mut now: HashMap<TensorId, TensorId> = HashMap::new();
    let nodes: Vec<TensorId> = graph.nodes().map(|(id, _)| id).filter(|id| needed[id.index()]).collect();
    for id in nodes {
        let node = graph.node(id).clone();
        if inside.contains(&id) || now.contains_key(&id) || matches!(node.role, Role::Extra(_)) {
            continue;
        }
        let Some(op) = node.op else {
            now.insert(id, id);
            continue;
        };
        match blocks.iter().find(|block| block.outside().contains(&id)) {
            Some(block) => {
                graph.scope(&block.label);
                block.emit(graph, id, &mut now)?;
            }
            None => {
                graph.scope(node.label);
                let inputs: Vec<TensorId> = node.inputs.iter().map(|input| now[input]).collect();
                let copy = graph.apply(op, &inputs)?;
                now.insert(id, copy);
                let extra = graph.extra_outputs(id).into_iter().zip(graph.extra_outputs(copy));
                now.extend(extra.collect::<Vec<_>>());
            }
        }
    }
    graph.scope(scope);
    Ok(now)
}

/// A chain that was found.
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
}

impl Block {
    /// What nothing but the chain reads.
    fn inside(&self) -> Vec<TensorId> {
        self.forward.into_iter().chain(self.backward.iter().flat_map(|backward| backward.through)).collect()
    }

    /// What the rest of the graph reads.
    fn outside(&self) -> Vec<TensorId> {
        let grads = self.backward.iter().flat_map(|backward| [Some(backward.db), Some(backward.dw), backward.dx]);
        std::iter::once(Some(self.y)).chain(grads).flatten().collect()
    }

    /// Appends what takes the place of `id`, one of [`outside`](Self::outside).
    fn emit(&self, graph: &mut Graph, id: TensorId, now: &mut HashMap<TensorId, TensorId>) -> Result<()> {
        let conv = self.conv;
        let [x, w] = [now[&self.x], now[&self.w]];
        if id == self.y {
            let y = graph.apply(Conv2dReluPool { conv }, &[x, w, now[&self.b]])?;
            now.insert(id, y);
            return Ok(());
        }
        let Some(backward) = &self.backward else { unreachable!("a block without gradients has one output") };
        let [dy, y] = [now[&backward.dy], now[&self.y]];
        let place = graph.extra_outputs(y);
        if Some(id) == backward.dx {
            let input = [graph.shape(self.x).inner()[0], graph.shape(self.x).inner()[1]];
            let operands: Vec<TensorId> = [dy, y].into_iter().chain(place).chain([w]).collect();
            let dx = graph.apply(Conv2dReluPoolInputGrad { conv, input }, &operands)?;
            now.insert(id, dx);
            return Ok(());
        }
        // dw and db come of one operator, and so together.
        let kernel = [graph.shape(self.w).inner()[0], graph.shape(self.w).inner()[1]];
        let operands: Vec<TensorId> = [x, dy, y].into_iter().chain(place).collect();
        let dw = graph.apply(Conv2dReluPoolWeightGrad { conv, kernel, slices: backward.slices }, &operands)?;
        let db = graph.extra_outputs(dw)[0];
        now.insert(backward.dw, dw);
        let db = graph.sum(db, &[0])?;
        now.insert(backward.db, db);
        Ok(())
    }
}

/// Every chain whose inner values nothing else reads.
fn find(graph: &Graph, roots: &[TensorId], needed: &[bool]) -> Vec<Block> {
    let mut readers: HashMap<TensorId, Vec<TensorId>> = HashMap::new();
    for (id, node) in graph.nodes().filter(|(id, _)| needed[id.index()]) {
        node.inputs.iter().for_each(|&input| readers.entry(input).or_default().push(id));
    }
    let readers = |id: TensorId| readers.get(&id).map_or(&[][..], Vec::as_slice);
    let op = |id: TensorId| graph.node(id).op.as_ref();
    let first = |id: TensorId, accept: &dyn Fn(&Op) -> bool| readers(id).iter().copied().find(|&reader| op(reader).is_some_and(accept));

    let block = |conv_id: TensorId, conv: Conv2d| -> Option<Block> {
        let biased = first(conv_id, &|op| matches!(op, Op::BiasAdd(_)))?;
        let relu = first(biased, &|op| matches!(op, Op::Activation(Activation { function: Function::Relu })))?;
        let y = first(relu, &|op| matches!(op, Op::MaxPool2d(MaxPool2d { window }) if *window == POOL))?;
        let through = first(biased, &|op| matches!(op, Op::ActivationGrad(ActivationGrad { function: Function::Relu })));
        let backward = match through {
            None => None,
            Some(through) => {
                let unpooled = graph.node(through).inputs[1];
                if !matches!(op(unpooled), Some(Op::MaxPool2dGrad(MaxPool2dGrad { window })) if *window == POOL) {
                    return None;
                }
                let db = first(through, &|op| matches!(op, Op::Sum(Sum { axes }) if *axes == Axes::new(&[0, 1, 2])))?;
                let dw = first(through, &|op| matches!(op, Op::Conv2dWeightGrad(grad) if grad.conv == conv))?;
                let dx = first(through, &|op| matches!(op, Op::Conv2dInputGrad(grad) if grad.conv == conv));
                let Some(Op::Conv2dWeightGrad(Conv2dWeightGrad { slices, .. })) = op(dw) else { return None };
                Some(Backward { dy: graph.node(unpooled).inputs[1], through: [unpooled, through], dx, db, dw, slices: *slices })
            }
        };
        let [x, w] = [graph.node(conv_id).inputs[0], graph.node(conv_id).inputs[1]];
        if conv.groups != 1 || !graph.shape(w).last().is_multiple_of(4) {
            return None;
        }
        let (label, b) = (graph.node(conv_id).label.clone(), graph.node(biased).inputs[1]);
        Some(Block { label, conv, x, w, b, forward: [conv_id, biased, relu], y, backward })
    };
    let convs = graph.nodes().filter(|(id, _)| needed[id.index()]).filter_map(|(id, node)| match node.op {
        Some(Op::Conv2d(conv)) => block(id, conv),
        _ => None,
    });
    // What takes a chain's place reads its operands later than the chain does, so nothing may be updated meanwhile.
    let effects: Vec<TensorId> =
        graph.nodes().filter(|(id, node)| needed[id.index()] && node.role == Role::Effect).map(|(id, _)| id).collect();
    let undisturbed = |block: &Block| {
        let last = block.outside().into_iter().max().unwrap_or(block.y);
        !effects.iter().any(|effect| (block.forward[0]..last).contains(effect))
    };
    let closed = |block: &Block| {
        let known: Vec<TensorId> = block.inside().into_iter().chain(block.outside()).collect();
        let alone = |&id: &TensorId| !roots.contains(&id) && readers(id).iter().all(|reader| known.contains(reader));
        block.inside().iter().all(alone) && !block.inside().contains(&block.x)
    };
    convs.filter(|block| closed(block) && undisturbed(block)).collect()
}
