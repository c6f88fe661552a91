//! Packs: tensors that lie in one buffer, one behind the other, so that a kernel has all of them as one binding.
//!
//! A kernel may read one tensor of a buffer or write one, but not do both (wgpu tracks buffers whole), and a buffer that is written
//! by one dispatch after another makes them wait for each other. So a pack is made of leaves that are read together and changed
//! together, or of values that nothing but the step with the pack reads, each in a slot of its own. Where operands cannot lie so, the
//! operator's parts run in its place, one by one.

use std::collections::HashSet;
use std::ops::Range;

use super::Place;
use crate::graph::{Graph, Node, Role, TensorId};

/// Tensors in one buffer.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Where they are, in order: all leaves, or all slots.
    pub members: Vec<Place>,
    /// Where each begins, in bytes.
    pub offsets: Vec<usize>,
    /// Bytes of the buffer.
    pub bytes: usize,
    /// Bytes of it that are no tensor's.
    pub padding: usize,
}

impl Pack {
    /// Whether the members are leaves, which other plans have too.
    pub fn is_of_leaves(&self) -> bool {
        self.members.iter().all(|member| matches!(member, Place::Leaf(_)))
    }
}

/// The packs of a graph whose members can lie together, the first of two that overlap.
pub(super) fn find(graph: &Graph, needed: &[bool]) -> Vec<Vec<TensorId>> {
    let uses = Uses { graph, needed };
    let mut packs: Vec<Vec<TensorId>> = Vec::new();
    for (id, node) in uses.steps() {
        let own = node.op.iter().flat_map(|op| op.rules().packs());
        let own: Vec<Vec<TensorId>> = own.map(|pack: Range<usize>| node.inputs[pack].to_vec()).collect();
        let mut seen: HashSet<TensorId> = packs.iter().flatten().copied().collect();
        if own.iter().flatten().all(|&member| seen.insert(member)) && own.iter().all(|pack| uses.can_lie_together(id, pack)) {
            packs.extend(own);
        }
    }
    packs
}

struct Uses<'a> {
    graph: &'a Graph,
    needed: &'a [bool],
}

impl Uses<'_> {
    /// Every needed node that an operator computes, extra outputs left out.
    fn steps(&self) -> impl Iterator<Item = (TensorId, &Node)> {
        self.graph.nodes().filter(|(id, node)| self.needed[id.index()] && node.op.is_some())
    }

    /// The tensor whose memory `id` is.
    fn owner(&self, mut id: TensorId) -> TensorId {
        while self.graph.node(id).op.as_ref().is_some_and(|op| op.rules().is_view()) {
            id = self.graph.node(id).inputs[0];
        }
        id
    }

    /// Whether the operands of `step` that are to be a pack can be one.
    fn can_lie_together(&self, step: TensorId, pack: &[TensorId]) -> bool {
        let fixed = pack.iter().all(|&member| !self.graph.shape(member).is_batched() && self.owner(member) == member);
        let is_value = |member: &TensorId| matches!(self.graph.node(*member).role, Role::Value | Role::Extra(_));
        if pack.iter().all(is_value) {
            return fixed && self.steps().all(|(id, node)| id == step || !node.inputs.iter().any(|input| pack.contains(input)));
        }
        // Every step that changes some of the leaves leaves the others alone.
        let apart = |node: &Node| {
            let touches = node.inputs.iter().enumerate().filter(|(_, input)| pack.contains(&self.owner(**input)));
            let (changed, read): (Vec<_>, Vec<_>) =
                touches.partition(|(i, _)| node.op.as_ref().is_some_and(|op| op.rules().updates().contains(i)));
            changed.is_empty() || read.is_empty()
        };
        fixed && !pack.iter().any(is_value) && self.steps().all(|(_, node)| apart(node))
    }
}
