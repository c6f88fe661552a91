//! The judge: runs operators' plain references in f64, with or without a plan.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::graph::{Graph, Init, Role, TensorId};
use crate::ops::{Op, Reference, View};
use crate::plan::{Operand, Place, Plan};
use crate::shape::TensorType;

/// Values of a graph's leaves, f64 whatever their type.
pub type Leaves = BTreeMap<TensorId, Vec<f64>>;

/// Runs the whole graph, every node into memory of its own, and returns each tensor's value by index (empty for effects).
/// `leaves` holds the inputs and parameters, and is changed by effects; leaves that are missing start as their roles say.
///
/// # Errors
/// If a leaf's length is not that of its type.
pub fn evaluate(graph: &Graph, leaves: &mut Leaves, batch: usize) -> Result<Vec<Vec<f64>>> {
    let mut values: Vec<Vec<f64>> = Vec::new();
    for (id, node) in graph.nodes() {
        if matches!(node.role, Role::Extra(_)) {
            continue; // pushed with the node before it
        }
        let Some(op) = &node.op else {
            values.push(leaf(leaves, id, node.role, node.ty, &node.label, batch)?.clone());
            continue;
        };
        let mut output = vec![f64::NAN; if node.role == Role::Effect { 0 } else { node.ty.shape.len(batch) }];
        let types: Vec<TensorType> = node.inputs.iter().map(|&input| graph.ty(input)).collect();
        let mut updated: Vec<Vec<f64>> =
            op.rules().updates().iter().map(|&i| std::mem::take(&mut values[node.inputs[i].index()])).collect();
        let operands = node.inputs.iter().map(|input| values[input.index()].as_slice()).collect();
        let mut extra: Vec<Vec<f64>> = op.rules().extra_outputs(&types).iter().map(|ty| vec![f64::NAN; ty.shape.len(batch)]).collect();
        call(op, &types, operands, &mut updated, &mut output, &mut extra, batch);
        for (&i, value) in op.rules().updates().iter().zip(updated) {
            leaves.insert(node.inputs[i], value.clone());
            values[node.inputs[i].index()] = value;
        }
        values.push(output);
        values.extend(extra);
    }
    Ok(values)
}

/// Runs a plan in its own slots, each value overwriting what its slot held, and returns the roots that are values.
///
/// # Errors
/// As [`evaluate`].
pub fn run(plan: &Plan, leaves: &mut Leaves, batch: usize) -> Result<BTreeMap<TensorId, Vec<f64>>> {
    for leaf_ in plan.leaves() {
        leaf(leaves, leaf_.tensor, leaf_.role, leaf_.ty, &leaf_.label, batch)?;
    }
    let mut slots: Vec<Vec<f64>> = vec![Vec::new(); plan.slots().len()];
    for step in plan.steps() {
        let updates = step.op.rules().updates();
        let mut updated: Vec<Vec<f64>> =
            updates.iter().map(|&i| std::mem::take(leaves.get_mut(&step.inputs[i].tensor).expect("a leaf"))).collect();
        let mut output = vec![f64::NAN; step.output.map_or(0, |operand| operand.ty.shape.len(batch))];
        let operands = step.inputs.iter().map(|operand| value(operand, leaves, &slots)).collect();
        let mut extra: Vec<Vec<f64>> = step.extra.iter().map(|operand| vec![f64::NAN; operand.ty.shape.len(batch)]).collect();
        call(&step.op, &step.input_types(), operands, &mut updated, &mut output, &mut extra, batch);
        for (&i, value) in updates.iter().zip(updated) {
            leaves.insert(step.inputs[i].tensor, value);
        }
        for (operand, value) in step.outputs().zip(std::iter::once(output).chain(extra)) {
            if let Place::Slot(slot) = operand.place {
                slots[slot] = value;
            }
        }
    }
    let roots = plan.roots().iter().filter_map(|&root| Some((root, plan.readable(root)?)));
    Ok(roots.map(|(root, operand)| (root, value(&operand, leaves, &slots).to_vec())).collect())
}

fn value<'a>(operand: &Operand, leaves: &'a Leaves, slots: &'a [Vec<f64>]) -> &'a [f64] {
    match operand.place {
        Place::Leaf(id) => &leaves[&id],
        Place::Slot(slot) => &slots[slot],
    }
}

fn leaf<'a>(leaves: &'a mut Leaves, id: TensorId, role: Role, ty: TensorType, label: &str, batch: usize) -> Result<&'a Vec<f64>> {
    let len = ty.shape.len(batch);
    let fill = match role {
        Role::State(fill) | Role::Constant(fill) | Role::Param(Init::Fill(fill)) => f64::from(fill),
        _ => 0.0,
    };
    let value = leaves.entry(id).or_insert_with(|| vec![fill; len]);
    if value.len() == len {
        return Ok(value);
    }
    Err(Error::invalid(format!("data for {label} {ty}"), format!("{} elements", value.len()), len))
}

/// Calls one operator's reference.
pub fn call(
    op: &Op,
    types: &[TensorType],
    operands: Vec<&[f64]>,
    updated: &mut [Vec<f64>],
    output: &mut [f64],
    extra: &mut [Vec<f64>],
    batch: usize,
) {
    let inputs = types.iter().zip(operands).map(|(ty, data)| View { extents: ty.shape.extents(batch), data }).collect();
    let [updated, extra] = [updated, extra].map(|all| all.iter_mut().map(Vec::as_mut_slice).collect());
    op.rules().reference(&mut Reference { batch, inputs, updated, output, extra });
}
