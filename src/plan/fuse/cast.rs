//! Casts: an operator that can load f16 reads what was stored so, and one that can store f16 writes it, so that no kernel only
//! converts.

use std::collections::HashMap;

use super::{Now, Uses};
use crate::error::Result;
use crate::graph::{Graph, Node, Role, TensorId};
use crate::ops::*;
use crate::shape::DType;

/// Whether an operator loads this operand as f16 if it is.
fn loads(op: &Op, operand: usize) -> bool {
    match op {
        Op::Conv2dReluPool(_) | Op::Conv2dReluPoolInputGrad(_) | Op::Dense(_) | Op::MlpHead(_) | Op::MlpHeadGrad(_) => operand == 0,
        Op::Conv2dReluPoolWeightGrad(_) => operand < 2,
        Op::DenseGrad(_) => operand < 3,
        _ => false,
    }
}

/// The operator that stores its output, or the extra one of this number, as f16, if there is such a one.
fn storing(op: &Op, extra: Option<usize>) -> Option<Op> {
    match (op, extra) {
        (Op::Conv2dReluPool(block), None) => Some(Conv2dReluPool { output: DType::F16, ..*block }.into()),
        (Op::Conv2dReluPoolInputGrad(grad), None) => Some(Conv2dReluPoolInputGrad { output: DType::F16, ..*grad }.into()),
        (Op::Dense(dense), None) => Some(Dense { output: DType::F16, ..*dense }.into()),
        (Op::DenseGrad(grad), Some(1)) => Some(DenseGrad { dx: DType::F16, ..*grad }.into()),
        (Op::MlpHeadGrad(_), Some(1)) => Some(MlpHeadGrad { dx: DType::F16 }.into()),
        _ => None,
    }
}

/// The node whose operator computes `x`, and that operator if it stores `x` as f16.
fn stored(graph: &Graph, x: TensorId) -> Option<(TensorId, Op)> {
    let (node, extra) = match graph.node(x).role {
        Role::Extra(i) => (graph.node(x).inputs[0], Some(i)),
        _ => (x, None),
    };
    Some((node, storing(graph.node(node).op.as_ref()?, extra)?))
}

/// Appends all that is needed once more, without the casts that nothing needs, and says what each tensor has become; nothing if
/// all casts are needed.
///
/// # Errors
/// None for a graph that is valid.
pub(super) fn absorb(graph: &mut Graph, roots: &[TensorId]) -> Result<Option<Now>> {
    let uses = Uses::new(graph, roots);
    let casts = |to: DType| uses.all(move |op| (matches!(op, Op::Cast(cast) if cast.to == to)).then_some(())).map(|(id, ())| id);
    // Read as f16 by all its readers: the cast goes, and they read its operand.
    let widened: Vec<TensorId> =
        casts(DType::F32).filter(|&id| !roots.contains(&id) && !uses.in_leaf(uses.inputs(id)[0]) && uses.loaded_by_all(id, None)).collect();
    // Read as f16 by all its readers, the cast to f16 among them: it is stored so, and the cast goes.
    let narrowed = casts(DType::F16)
        .map(|id| (uses.inputs(id)[0], id))
        .filter(|&(x, id)| stored(graph, x).is_some() && !roots.contains(&x) && uses.loaded_by_all(x, Some(id)));
    let narrowed: Vec<(TensorId, TensorId)> = narrowed.collect();
    if widened.is_empty() && narrowed.is_empty() {
        return Ok(None);
    }
    // Each of these operators has one result that it may store as f16.
    let storing_ops: HashMap<TensorId, Op> = narrowed.iter().filter_map(|&(x, _)| stored(graph, x)).collect();
    let nodes = uses.nodes();
    let scope = graph.current_scope().to_owned();
    let mut now = Now::new();
    for id in nodes {
        let Node { op: Some(op), inputs, label, .. } = graph.node(id).clone() else {
            now.entry(id).or_insert(id); // a leaf; an extra output is there already
            continue;
        };
        if widened.contains(&id) || narrowed.iter().any(|&(_, cast)| cast == id) {
            now.insert(id, now[&inputs[0]]);
            continue;
        }
        let op = storing_ops.get(&id).cloned().unwrap_or(op);
        graph.scope(label);
        let inputs: Vec<TensorId> = inputs.iter().map(|input| now[input]).collect();
        let copy = graph.apply(op, &inputs)?;
        now.insert(id, copy);
        let extra: Vec<_> = graph.extra_outputs(id).into_iter().zip(graph.extra_outputs(copy)).collect();
        now.extend(extra);
    }
    graph.scope(scope);
    Ok(Some(now))
}

impl Uses<'_> {
    /// Whether every reader of `id`, but for one cast, loads it as f16 if it is.
    fn loaded_by_all(&self, id: TensorId, cast: Option<TensorId>) -> bool {
        let is_extra = |reader: TensorId| matches!(self.graph.node(reader).role, Role::Extra(_)); // of the same operator
        self.readers(id).iter().filter(|&&reader| !is_extra(reader)).all(|&reader| {
            let inputs = self.inputs(reader).iter().enumerate();
            let mut operands = inputs.filter(|(_, input)| **input == id).map(|(operand, _)| operand);
            Some(reader) == cast || self.op(reader).is_some_and(|op| operands.all(|operand| loads(op, operand)))
        })
    }
}
