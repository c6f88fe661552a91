//! Reverse-mode differentiation: appends to a graph the nodes that compute gradients.
//!
//! One walk from the loss back to the leaves, asking each operator for its [`backward`](crate::ops::Rules::backward) and
//! adding where paths meet. Only nodes that depend on a wanted tensor are visited.

use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::ops::Add;

/// The gradient of `loss`, one number, for each tensor of `wrt`, in its order and of its shape.
///
/// # Errors
/// If `loss` is not a fixed tensor of one element, or does not depend on one of `wrt`.
pub fn gradients(graph: &mut Graph, loss: TensorId, wrt: &[TensorId]) -> Result<Vec<TensorId>> {
    let one = graph.constant(graph.ty(loss), 1.0);
    scaled_gradients(graph, loss, one, wrt)
}

/// [`gradients`] times `scale`, one number of the type of the loss. The scale goes in at the loss, so every gradient on the way is scaled
/// too: what mixed precision needs, since f16 has no room for small ones.
///
/// # Errors
/// As [`gradients`], or if `scale` is of another type.
pub fn scaled_gradients(graph: &mut Graph, loss: TensorId, scale: TensorId, wrt: &[TensorId]) -> Result<Vec<TensorId>> {
    let ty = graph.ty(loss);
    if graph.ty(scale) != ty {
        return Err(Error::invalid("the scale of gradients", graph.ty(scale), ty));
    }
    if ty.shape.is_batched() || ty.shape.inner_len() != 1 {
        return Err(Error::invalid("the loss to differentiate", ty, "a tensor of one element"));
    }
    let mut depends = vec![false; loss.index() + 1];
    for id in (0..=loss.0).map(TensorId) {
        depends[id.index()] = wrt.contains(&id) || graph.node(id).inputs.iter().any(|input| depends[input.index()]);
    }

    let scope = graph.current_scope().to_owned();
    let mut grads: Vec<Option<TensorId>> = vec![None; loss.index() + 1];
    grads[loss.index()] = Some(scale);
    for id in (0..=loss.0).rev().map(TensorId) {
        let node = graph.node(id);
        let (Some(grad), Some(op), true) = (grads[id.index()], node.op.clone(), depends[id.index()]) else { continue };
        let (inputs, label) = (node.inputs.clone(), node.label.clone());
        graph.scope(label);
        for (&input, partial) in inputs.iter().zip(op.rules().backward(graph, &inputs, id, grad)?) {
            let Some(partial) = partial.filter(|_| depends[input.index()]) else { continue };
            let slot = &mut grads[input.index()];
            *slot = Some(match *slot {
                Some(sum) => graph.apply(Add, &[sum, partial])?,
                None => partial,
            });
        }
    }
    graph.scope(scope);

    let found = |id: &TensorId| {
        let grad = grads.get(id.index()).copied().flatten();
        grad.ok_or_else(|| Error::invalid("the gradient's tensor", &graph.node(*id).label, "one that the loss depends on"))
    };
    wrt.iter().map(found).collect()
}
