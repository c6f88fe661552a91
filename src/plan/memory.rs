//! Lifetimes to slots: which tensors may share memory.
//!
//! A value lives from the step that computes it to the last step that reads it; a root lives to the end. Values are placed
//! in order of their birth, each into the free slot that fits best: the smallest that is large enough, else the largest,
//! which then grows. A view lives where its input lives, for as long as either is read. A value of a pack has a slot of its own.

use std::collections::HashSet;

use super::{Operand, Place, Slot};
use crate::graph::{Graph, Role, TensorId};

/// What [`place`] decides.
pub(super) struct Placed {
    /// By tensor index; `None` where the plan does not need the node, or it is an effect.
    pub(super) operands: Vec<Option<Operand>>,
    pub(super) slots: Vec<Slot>,
}

/// Gives every needed tensor a place.
pub(super) fn place(graph: &Graph, roots: &[TensorId], needed: &[bool], packs: &[Vec<TensorId>], capacity: usize) -> Placed {
    let memory = owners(graph);
    let packed: HashSet<TensorId> = packs.iter().flatten().copied().collect();
    let mut last_use: Vec<usize> = vec![0; memory.len()]; // of each owner, by node index
    for (id, node) in graph.nodes().filter(|(id, _)| needed[id.index()]) {
        for tensor in node.inputs.iter().chain([&id]).filter(|_| !matches!(node.role, Role::Extra(_))) {
            last_use[memory[tensor.index()].index()] = id.index();
        }
    }
    for root in roots {
        last_use[memory[root.index()].index()] = usize::MAX;
    }

    let mut operands: Vec<Option<Operand>> = vec![None; memory.len()];
    let mut slots: Vec<Slot> = Vec::new();
    let mut busy_until: Vec<usize> = Vec::new(); // by slot
    for (id, node) in graph.nodes().filter(|(id, _)| needed[id.index()]) {
        let owner = memory[id.index()];
        let place = match node.role {
            Role::Effect => continue,
            Role::Value | Role::Extra(_) if owner == id => {
                let bytes = node.ty.bytes(capacity);
                // An extra output is born with the node before it, so it may not lie where that one's operands lie.
                let born = if matches!(node.role, Role::Extra(_)) { node.inputs[0].index() } else { id.index() };
                let free = (0..slots.len()).filter(|&slot| busy_until[slot] < born && !packed.contains(&id));
                let slot = free.min_by_key(|&slot| fit(slots[slot].bytes, bytes)).unwrap_or_else(|| {
                    slots.push(Slot { bytes: 0, tensors: Vec::new() });
                    busy_until.push(0);
                    slots.len() - 1
                });
                slots[slot].bytes = slots[slot].bytes.max(bytes);
                slots[slot].tensors.push(id);
                busy_until[slot] = if packed.contains(&id) { usize::MAX } else { last_use[id.index()].max(id.index()) };
                Place::Slot(slot)
            }
            Role::Value | Role::Extra(_) => operands[owner.index()].expect("a view's input comes before it").place,
            _ => Place::Leaf(id),
        };
        operands[id.index()] = Some(Operand { tensor: id, place, ty: node.ty });
    }
    Placed { operands, slots }
}

/// Orders free slots: those large enough first and the smallest of them ahead, then the rest, the largest ahead.
fn fit(slot: usize, bytes: usize) -> (bool, usize) {
    if slot >= bytes { (false, slot - bytes) } else { (true, bytes - slot) }
}

/// For each tensor the one whose memory it uses: itself, or what it is a view of.
fn owners(graph: &Graph) -> Vec<TensorId> {
    let mut owners: Vec<TensorId> = Vec::new();
    for (id, node) in graph.nodes() {
        let view = node.op.as_ref().is_some_and(|op| op.rules().is_view());
        owners.push(if view { owners[node.inputs[0].index()] } else { id });
    }
    owners
}
