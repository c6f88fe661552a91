//! The order of a fused plan: effects as early as they can be.
//!
//! A graph has its optimiser at the end. A parameter can change as soon as its gradient is there and nothing of the step reads it
//! any more; then the gradient's slices are still in a cache, and their memory is free for what follows.

use super::Uses;
use crate::graph::{Role, TensorId};

/// All needed nodes, each effect right behind the last node that it has to follow: what computes its operands, reads what it
/// changes, or changes what it touches.
pub(super) fn early(uses: &Uses<'_>) -> Vec<TensorId> {
    let mut nodes = uses.nodes();
    let is_effect = |id: TensorId| uses.graph.node(id).role == Role::Effect;
    // Each effect so far, and the node that it follows; the first one if it need not follow any.
    let mut effects: Vec<(TensorId, TensorId)> = Vec::new();
    for &effect in nodes.iter().filter(|&&id| is_effect(id)) {
        let owners = |id: TensorId| uses.inputs(id).iter().map(|&input| uses.owner(input)).collect::<Vec<_>>();
        let (touched, changed) = (owners(effect), uses.updated(effect).collect::<Vec<_>>());
        let before = nodes.iter().copied().take_while(|&id| id < effect);
        let readers = before.filter(|&id| !is_effect(id) && owners(id).iter().any(|owner| changed.contains(owner)));
        let earlier = effects.iter().filter(|&&(other, _)| {
            owners(other).iter().any(|owner| changed.contains(owner)) || uses.updated(other).any(|updated| touched.contains(&updated))
        });
        let computed = uses.inputs(effect).iter().copied().filter(|&input| !uses.is_leaf(input));
        let place = readers.chain(computed).chain(earlier.map(|&(_, place)| place)).max();
        effects.push((effect, place.unwrap_or(nodes[0])));
    }
    // Effects with one place keep their order; the node there comes before them.
    let key = |id: &TensorId| match effects.iter().find(|(effect, _)| effect == id) {
        Some(&(effect, place)) => (place, Some(effect)),
        None => (*id, None),
    };
    nodes.sort_by_key(key);
    nodes
}
