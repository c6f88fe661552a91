//! Plans of drawn graphs: what runs in shared slots is bit for bit what every tensor in memory of its own gives.
//!
//! Three evaluators are held against each other: one that knows no plan, `exec::reference::run`, and one that replays a plan in
//! slots of the plan's sizes, poisoned at first. Lifetimes are found from the graph alone. The executors follow within rounding.

mod common;
#[path = "plan/drawn.rs"]
mod drawn;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{Guarded, compare, executors, from_bytes, to_bytes};
use drawn::{Drawn, drawings, leaves};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use shadernet::error::Result;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::reference::{self, Leaves};
use shadernet::graph::{Graph, Init, Role, TensorId};
use shadernet::ops::window::Padding;
use shadernet::ops::*;
use shadernet::plan::{Operand, Place, Plan, Slot};
use shadernet::shape::{Shape, TensorType};

/// What a result of many steps may be off, relative to the largest element of its tensor where that is above 1. Observed: at
/// most 0.15 of it.
const TOLERANCE: f64 = 1e-5;

// ---- evaluators --------------------------------------------------------------------------------------------------------

/// Runs an operator's reference; updated operands come as `updated`, and are empty among the others.
fn call(op: &Op, operands: &[(TensorType, &[f64])], updated: &mut [Vec<f64>], output: &mut [f64], batch: usize) {
    let inputs = operands.iter().map(|&(ty, data)| View { extents: ty.shape.extents(batch), data }).collect();
    let updated = updated.iter_mut().map(Vec::as_mut_slice).collect();
    op.rules().reference(&mut Reference { batch, inputs, updated, output, extra: Vec::new() });
}

/// The value of every node, each in memory of its own, in the order of the graph. Knows no plan.
fn unplanned(graph: &Graph, leaves: &mut Leaves, batch: usize) -> Vec<Vec<f64>> {
    let mut values: Vec<Vec<f64>> = Vec::new();
    for (id, node) in graph.nodes() {
        let Some(op) = &node.op else {
            values.push(leaves[&id].clone());
            continue;
        };
        let updates: Vec<TensorId> = op.rules().updates().iter().map(|&i| node.inputs[i]).collect();
        let mut updated: Vec<Vec<f64>> = updates.iter().map(|leaf| std::mem::take(&mut values[leaf.index()])).collect();
        let operands: Vec<_> = node.inputs.iter().map(|&input| (graph.ty(input), values[input.index()].as_slice())).collect();
        let mut output = vec![f64::NAN; if node.role == Role::Effect { 0 } else { node.ty.shape.len(batch) }];
        call(op, &operands, &mut updated, &mut output, batch);
        for (leaf, value) in updates.into_iter().zip(updated) {
            leaves.insert(leaf, value.clone());
            values[leaf.index()] = value;
        }
        values.push(output);
    }
    values
}

/// Replays a plan in slots of its sizes, a number for each word. All are poisoned at first, and again before a step writes them;
/// after each step `spoil` may do as it likes. Returns the roots that are values.
fn replay(plan: &Plan, leaves: &mut Leaves, batch: usize, spoil: &mut dyn FnMut(TensorId, &mut [Vec<f64>])) -> Leaves {
    let mut slots: Vec<Vec<f64>> = plan.slots().iter().map(|slot| vec![f64::NAN; slot.bytes / 4]).collect();
    for step in plan.steps() {
        let output = step.output.map(|output| (place(&output), output.ty.shape.len(batch)));
        if let Some((slot, _)) = output {
            slots[slot].fill(f64::NAN);
        }
        let updates: Vec<TensorId> = step.op.rules().updates().iter().map(|&i| step.inputs[i].tensor).collect();
        let mut updated: Vec<Vec<f64>> = updates.iter().map(|leaf| std::mem::take(leaves.get_mut(leaf).unwrap())).collect();
        let operands: Vec<_> = step.inputs.iter().map(|input| (input.ty, held(input, leaves, &slots, batch))).collect();
        let mut result = vec![f64::NAN; output.map_or(0, |(_, len)| len)];
        call(&step.op, &operands, &mut updated, &mut result, batch);
        leaves.extend(updates.into_iter().zip(updated));
        if let Some((slot, len)) = output {
            slots[slot][..len].copy_from_slice(&result);
        }
        spoil(step.node, &mut slots);
    }
    let roots = plan.roots().iter().filter_map(|&root| plan.readable(root));
    roots.map(|root| (root.tensor, held(&root, leaves, &slots, batch).to_vec())).collect()
}

fn held<'a>(operand: &Operand, leaves: &'a Leaves, slots: &'a [Vec<f64>], batch: usize) -> &'a [f64] {
    match operand.place {
        Place::Leaf(id) => &leaves[&id],
        Place::Slot(slot) => &slots[slot][..operand.ty.shape.len(batch)],
    }
}

/// The slot of an operand that has one.
fn place(operand: &Operand) -> usize {
    let Place::Slot(slot) = operand.place else { panic!("{operand:?} is in no slot") };
    slot
}

fn same_bits(got: &Leaves, want: &Leaves) -> Result<(), String> {
    let bits = |values: &[f64]| -> Vec<u64> { values.iter().map(|v| v.to_bits()).collect() };
    let wrong = want.iter().find(|(id, value)| got.get(id).is_none_or(|got| bits(got) != bits(value)));
    wrong.map_or(Ok(()), |(id, value)| Err(format!("node {} is {:?}, expected {value:?}", id.index(), got.get(id))))
}

// ---- lifetimes, from the graph alone -----------------------------------------------------------------------------------

/// The tensor whose memory a node is a view of, or itself.
fn owner(graph: &Graph, mut id: TensorId) -> TensorId {
    while graph.node(id).op.as_ref().is_some_and(|op| op.rules().is_view()) {
        id = graph.node(id).inputs[0];
    }
    id
}

/// The nodes the roots need, by walking back from them.
fn needed(graph: &Graph, roots: &[TensorId]) -> Vec<TensorId> {
    let (mut found, mut open) = (Vec::new(), roots.to_vec());
    while let Some(id) = open.pop() {
        if !found.contains(&id) {
            found.push(id);
            open.extend(&graph.node(id).inputs);
        }
    }
    found.sort();
    found
}

/// For each value with memory of its own the node after which nothing reads it; a root is read at the end.
fn last_reads(graph: &Graph, roots: &[TensorId]) -> BTreeMap<TensorId, usize> {
    let needed = needed(graph, roots);
    let own = needed.iter().filter(|&&id| graph.node(id).role == Role::Value && owner(graph, id) == id);
    let last = |value: TensorId| {
        let reads = |id: &&TensorId| graph.node(**id).inputs.iter().any(|&input| owner(graph, input) == value);
        let kept = roots.iter().any(|&root| owner(graph, root) == value);
        if kept { usize::MAX } else { needed.iter().filter(reads).map(|id| id.index()).max().unwrap_or(value.index()) }
    };
    own.map(|&value| (value, last(value))).collect()
}

/// Checks a plan against its graph.
fn sound(graph: &Graph, plan: &Plan) -> Result<(), String> {
    plan.verify()?;
    let ensure = |holds: bool, problem: &str| if holds { Ok(()) } else { Err(problem.to_owned()) };
    let needed = needed(graph, plan.roots());
    let runs = |id: &TensorId| graph.node(*id).op.is_some() && owner(graph, *id) == *id;
    let steps: Vec<TensorId> = plan.steps().iter().map(|step| step.node).collect();
    ensure(steps == needed.iter().copied().filter(runs).collect::<Vec<_>>(), "the steps are not the live nodes in their order")?;
    let leaves: Vec<TensorId> = plan.leaves().iter().map(|leaf| leaf.tensor).collect();
    let live_leaves: Vec<TensorId> = needed.iter().copied().filter(|&id| graph.node(id).op.is_none()).collect();
    ensure(leaves == live_leaves, "the leaves are not the live ones")?;

    let lives = last_reads(graph, plan.roots());
    let outputs = plan.steps().iter().filter_map(|step| step.output);
    let slots: BTreeMap<TensorId, usize> = outputs.map(|output| (output.tensor, place(&output))).collect();
    ensure(slots.keys().eq(lives.keys()), "the values in slots are not the live ones")?;
    for step in plan.steps() {
        for input in &step.inputs {
            let owner = owner(graph, input.tensor);
            let wanted = slots.get(&owner).map_or(Place::Leaf(owner), |&slot| Place::Slot(slot));
            ensure(input.place == wanted, "an operand is read from a place where it was not put")?;
        }
    }
    let bytes = |id: TensorId| graph.ty(id).bytes(plan.capacity());
    for (&a, &last) in &lives {
        ensure(plan.slots()[slots[&a]].bytes >= bytes(a), "a slot is too small")?;
        ensure(plan.slots()[slots[&a]].tensors.contains(&a), "a slot does not list its tensor")?;
        let together = lives.range(a..).skip(1).any(|(b, _)| slots[b] == slots[&a] && b.index() <= last);
        ensure(!together, "two live tensors share a slot")?;
    }
    let all: usize = lives.keys().map(|&id| bytes(id)).sum();
    let live_at = |at: usize| lives.iter().filter(|(id, last)| id.index() <= at && at <= **last).map(|(&id, _)| bytes(id)).sum();
    let peak: usize = steps.iter().map(|step| live_at(step.index())).max().unwrap_or(0);
    ensure((peak..=all).contains(&plan.slot_bytes()), "the slots are larger than all values, or smaller than those alive at once")?;
    printed(plan)
}

/// Checks that the printed plan has every step with its variants, and every slot.
fn printed(plan: &Plan) -> Result<(), String> {
    let text = plan.to_string();
    let mut lines = text.lines().skip(1);
    for (i, step) in plan.steps().iter().enumerate() {
        let line = lines.next().unwrap_or_default();
        let result = step.output.map_or("-> (in place)".to_owned(), |output| format!("-> {}@{}", output.ty, place(&output)));
        let words: Vec<&str> = line.split_whitespace().collect();
        let count = step.launch.workgroups.count(plan.capacity()).to_string();
        let told = [&i.to_string(), step.launch.kernel.name, &count].iter().all(|word| words.contains(word));
        if !(told && line.contains(&step.label) && line.ends_with(&result)) {
            return Err(format!("step {i} is not printed: {line}"));
        }
        let kinds: BTreeSet<(String, &str)> =
            step.variants.iter().map(|variant| (format!("or {}", variant.style), variant.launch.kernel.name)).collect();
        let printed: Vec<&str> = (0..kinds.len()).filter_map(|_| lines.next()).collect();
        for (style, kernel) in kinds {
            if !printed.iter().any(|line| line.contains(&style) && line.contains(kernel)) {
                return Err(format!("no variant {kernel} of step {i} is printed: {printed:?}"));
            }
        }
    }
    let slots = lines.filter(|line| line.split_whitespace().count() == 3 && line.starts_with(' ')).count();
    if slots == plan.slots().len() { Ok(()) } else { Err(format!("{} slots are not printed in {text}", plan.slots().len())) }
}

/// Whether a slot holds, after this node, what is read later.
fn is_live(slot: &Slot, lives: &BTreeMap<TensorId, usize>, after: TensorId) -> bool {
    slot.tensors.iter().any(|id| *id <= after && lives[id] > after.index())
}

// ---- tests -------------------------------------------------------------------------------------------------------------

/// The roots that are values, of an unplanned run; `leaves` ends as the run leaves it.
fn wanted(Drawn { graph, roots, .. }: &Drawn, leaves: &mut Leaves, batch: usize) -> Leaves {
    let values = unplanned(graph, leaves, batch);
    let is_value = |id: &&TensorId| graph.node(**id).role != Role::Effect;
    roots.iter().filter(is_value).map(|&id| (id, values[id.index()].clone())).collect()
}

/// Holds the three evaluators of the references together at one batch. What nothing is to read again is poisoned after every
/// step of the replay.
fn same_runs(drawn: &Drawn, plan: &Plan, batch: usize) -> Result<(), String> {
    let start = leaves(&drawn.graph, batch);
    let [mut unplanned, mut run, mut replayed] = [start.clone(), start.clone(), start];
    let want = wanted(drawn, &mut unplanned, batch);
    same_bits(&reference::run(plan, &mut run, batch).map_err(|e| e.to_string())?, &want)?;
    same_bits(&run, &unplanned)?;
    let lives = last_reads(&drawn.graph, &drawn.roots);
    let mut spoil = |after: TensorId, slots: &mut [Vec<f64>]| {
        let dead = plan.slots().iter().zip(slots).filter(|(slot, _)| !is_live(slot, &lives, after));
        dead.for_each(|(_, memory)| memory.fill(f64::NAN));
    };
    same_bits(&replay(plan, &mut replayed, batch, &mut spoil), &want)?;
    same_bits(&replayed, &unplanned)
}

/// Makes a plan, plain or fused.
type Make = fn(&Graph, &[TensorId], usize) -> Result<Plan>;

/// Runs a drawn graph on an executor and compares its roots and states with the unplanned run. Returns the worst error in units
/// of the tolerance.
fn agrees(exec: &mut dyn Guarded, drawn: &Drawn, make: Make, batches: impl Iterator<Item = usize>) -> Result<f64> {
    let graph = &drawn.graph;
    let plan = Arc::new(make(graph, &drawn.roots, drawn.capacity)?);
    let id = exec.load(plan.clone())?;
    let mut worst = 0.0f64;
    for batch in batches {
        let mut values = leaves(graph, batch);
        for leaf in plan.leaves().iter().filter(|leaf| leaf.ty.shape.len(batch) > 0) {
            exec.write(leaf.tensor, &to_bytes(&values[&leaf.tensor], leaf.ty.dtype))?;
        }
        exec.poison(id)?;
        exec.run(id, &[batch])?;
        exec.guards()?;
        let want = wanted(drawn, &mut values, batch);
        // Adam's step is as long for a gradient that is 0 but for rounding as for any other: its moments are compared, not it.
        values.retain(|&id, _| matches!(graph.node(id).role, Role::State(_)) && plan.readable(id).is_some());
        for (&tensor, want) in want.iter().filter(|(id, _)| !matches!(graph.node(**id).role, Role::Param(_))).chain(&values) {
            let got = from_bytes(&exec.read(id, tensor, batch)?, graph.ty(tensor).dtype);
            let largest = want.iter().fold(1.0f64, |most, v| most.max(v.abs()));
            let error = compare(&got, want, TOLERANCE * largest);
            let wrong = |e| panic!("{}, batch {batch}, node {}: {e}\n{plan}", exec.device(), tensor.index());
            worst = worst.max(error.unwrap_or_else(wrong));
        }
    }
    assert!(exec.run(id, &[drawn.capacity + 1]).is_err(), "more images than the plan's capacity");
    Ok(worst)
}

/// What is drawn is the same in every run.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(5), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn a_planned_run_is_the_unplanned_one_bit_for_bit_at_every_batch(drawn in drawings()) {
        let plan = Plan::new(&drawn.graph, &drawn.roots, drawn.capacity).unwrap();
        prop_assert_eq!(sound(&drawn.graph, &plan), Ok(()), "{}", plan);
        for batch in 0..=drawn.capacity {
            prop_assert_eq!(same_runs(&drawn, &plan, batch), Ok(()), "{}", plan);
        }
    }
}

/// Holds a fused plan's reference run to the unplanned one. Adam's step is left out as in [`agrees`].
fn fused_runs(drawn: &Drawn, plan: &Plan, batch: usize) -> Result<(), String> {
    plan.verify()?;
    let [mut unplanned, mut fused] = [leaves(&drawn.graph, batch), leaves(&drawn.graph, batch)];
    let want = wanted(drawn, &mut unplanned, batch);
    let got = reference::run(plan, &mut fused, batch).map_err(|e| e.to_string())?;
    let state = |id: &TensorId| matches!(drawn.graph.node(*id).role, Role::State(_));
    let pairs = want
        .iter()
        .map(|(id, want)| (got.get(id), want))
        .chain(unplanned.iter().filter(|(id, _)| state(id)).map(|(id, want)| (fused.get(id), want)));
    for (got, want) in pairs {
        let largest = want.iter().fold(1.0f64, |most, v| most.max(v.abs()));
        compare(got.ok_or("a root is not there")?, want, 1e-12 * largest)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn a_fused_run_is_the_unplanned_one_within_the_rounding_of_f64(drawn in drawings()) {
        for style in [Style::Portable, Style::Registers] {
            let plan = Plan::for_style(style, &drawn.graph, &drawn.roots, drawn.capacity).unwrap();
            for batch in [0, drawn.capacity] {
                prop_assert_eq!(fused_runs(&drawn, &plan, batch), Ok(()), "{}", plan);
            }
        }
    }
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn the_cpu_agrees_at_every_batch(drawn in drawings()) {
        let worst = agrees(&mut CpuExecutor::new(Some(2)).unwrap(), &drawn, Plan::new, 0..=drawn.capacity).unwrap();
        println!("{worst:.4} of the tolerance");
    }
}

proptest! {
    #![proptest_config(config(10))]

    #[test]
    fn every_executor_agrees(drawn in drawings()) {
        let makes: [Make; 2] = [Plan::new, Plan::fused];
        for (mut exec, make) in makes.into_iter().flat_map(|make| executors().into_iter().map(move |exec| (exec, make))) {
            let worst = agrees(exec.as_mut(), &drawn, make, [drawn.capacity, 0, 1].into_iter()).unwrap();
            println!("{}: {worst:.4} of the tolerance, {} nodes", exec.device(), drawn.graph.nodes().count());
        }
    }
}

/// A network with a shortcut and views, forward alone: a NaN in any value of it reaches a root.
fn shortcut() -> Drawn {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[4, 3, 2])));
    let w = graph.param("w", Shape::fixed(&[3, 3, 2, 2]), Init::Fill(0.0));
    let dense = graph.param("dense", Shape::fixed(&[24, 5]), Init::Fill(0.0));
    let conv = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let first = graph.conv2d(x, w, conv).unwrap();
    let y = graph.tanh(first).unwrap();
    graph.gelu(y).unwrap(); // dead
    let flat = graph.flatten(y).unwrap(); // a view that is read after what it views
    let y = graph.conv2d(y, w, conv).unwrap();
    let y = graph.add(y, first).unwrap();
    let sum = graph.sum(y, &[1, 2]).unwrap();
    let logits = graph.matmul(flat, dense).unwrap();
    let y = graph.flatten(y).unwrap();
    let more = graph.matmul(y, dense).unwrap();
    let logits = graph.add(logits, more).unwrap();
    let logits = graph.softmax(logits).unwrap();
    Drawn { graph, roots: vec![logits, sum], capacity: 3 }
}

#[test]
fn a_clobbered_slot_shows_exactly_where_its_value_is_still_read() {
    let drawn = shortcut();
    let plan = Plan::new(&drawn.graph, &drawn.roots, drawn.capacity).unwrap();
    sound(&drawn.graph, &plan).unwrap();
    let all: usize = plan.steps().iter().filter_map(|step| step.output).map(|output| output.ty.bytes(3)).sum();
    assert!(plan.slot_bytes() < all && plan.slots().iter().any(|slot| slot.tensors.len() > 1), "no slot is shared:\n{plan}");
    let lives = last_reads(&drawn.graph, &drawn.roots);
    let want = wanted(&drawn, &mut leaves(&drawn.graph, 2), 2);
    let mut seen = [0, 0];
    for at in plan.steps() {
        for (i, slot) in plan.slots().iter().enumerate() {
            let mut spoil = |after: TensorId, slots: &mut [Vec<f64>]| {
                if after == at.node {
                    slots[i].fill(f64::NAN);
                }
            };
            let got = replay(&plan, &mut leaves(&drawn.graph, 2), 2, &mut spoil);
            let shows = same_bits(&got, &want).is_err();
            assert_eq!(shows, is_live(slot, &lives, at.node), "slot {i} clobbered after {}:\n{plan}", at.title());
            seen[usize::from(shows)] += 1;
        }
    }
    assert!(seen[0] > 3 && seen[1] > 3, "{seen:?}");
}

#[test]
fn one_bit_of_one_element_is_a_difference() {
    let drawn = shortcut();
    let want = wanted(&drawn, &mut leaves(&drawn.graph, 2), 2);
    let mut got = want.clone();
    same_bits(&got, &want).unwrap();
    let value = &mut got.get_mut(&drawn.roots[0]).unwrap()[3];
    *value = f64::from_bits(value.to_bits() ^ 1);
    same_bits(&got, &want).unwrap_err();
    same_bits(&Leaves::new(), &want).unwrap_err();
}

#[test]
fn a_view_of_what_is_updated_before_it_is_read_is_refused() {
    let mut graph = Graph::new();
    let [loss, correct] = ["loss", "correct"].map(|name| graph.input(name, TensorType::f32(Shape::fixed(&[]))));
    let clock = graph.state("clock", TensorType::u32(Shape::fixed(&[2])), 0.0);
    let log = graph.state("log", TensorType::f32(Shape::fixed(&[1, 2])), 0.0);
    let old = graph.reshape(log, &[2]).unwrap();
    let early = graph.relu(old).unwrap();
    let effect = graph.record(loss, correct, clock, log).unwrap();
    let late = graph.relu(old).unwrap();
    let new = graph.reshape(log, &[2]).unwrap();
    let newer = graph.relu(new).unwrap();
    for roots in [&[old, late][..], &[effect, early], &[effect, new], &[effect, newer, log]] {
        let drawn = Drawn { graph: graph.clone(), roots: roots.to_vec(), capacity: 1 };
        let plan = Plan::new(&graph, roots, 1).unwrap();
        if roots.contains(&effect) {
            same_runs(&drawn, &plan, 1).unwrap();
        }
    }
    for roots in [[effect, old], [effect, late]] {
        let refused = Plan::new(&graph, &roots, 1).unwrap_err().to_string();
        assert!(refused.contains("updated"), "{refused}");
    }
}
