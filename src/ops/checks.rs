//! What the operators' own tests share: one operator run on every implementation, and gradients against finite differences.

use std::sync::{Arc, OnceLock};

use super::Op;
use crate::exec::cpu::CpuExecutor;
use crate::exec::gpu::{Checks, Gpu, GpuExecutor, adapters};
use crate::exec::selftest::{from_bytes, to_bytes};
use crate::exec::{Executor, reference};
use crate::graph::{Graph, Init, Role, TensorId};
use crate::plan::Plan;
use crate::shape::{DType, TensorType};

/// The results of an operator by its reference, on the CPU and on the GPU, on operands given by hand: each time the updated
/// operands in order, or the output and the extra ones. The adapter is chosen, or left out, as in the integration tests.
pub(super) fn implementations(op: impl Into<Op>, types: &[TensorType], batch: usize, operands: &[Vec<f64>]) -> Vec<Vec<Vec<f64>>> {
    let op = op.into();
    let updates = op.rules().updates().to_vec();
    let mut graph = Graph::new();
    let leaf = |(i, ty): (usize, &TensorType)| {
        if updates.contains(&i) { graph.state("updated", *ty, 0.0) } else { graph.input("operand", *ty) }
    };
    let leaves: Vec<TensorId> = types.iter().enumerate().map(leaf).collect();
    let root = graph.apply(op, &leaves).unwrap();
    let is_effect = graph.node(root).role == Role::Effect;
    let results: Vec<TensorId> =
        if is_effect { updates.iter().map(|&i| leaves[i]).collect() } else { [vec![root], graph.extra_outputs(root)].concat() };
    let roots = if is_effect { vec![root] } else { results.clone() };
    let plan = Arc::new(Plan::new(&graph, &roots, batch + 1).unwrap());

    let mut judged: reference::Leaves = leaves.iter().copied().zip(operands.iter().cloned()).collect();
    let output = reference::run(&plan, &mut judged, batch).unwrap();
    let mut all = vec![results.iter().map(|id| output.get(id).unwrap_or_else(|| &judged[id]).clone()).collect()];

    let mut executors: Vec<Box<dyn Executor>> = vec![Box::new(CpuExecutor::new(Some(2)).unwrap())];
    // Without f16 an adapter refuses such plans, which tests/mixed.rs sees to.
    let halves = types.iter().copied().chain(results.iter().map(|&id| graph.ty(id))).any(|ty| ty.dtype == DType::F16);
    executors.extend(gpu().filter(|gpu| gpu.has_f16() || !halves).map(|gpu| Box::new(GpuExecutor::with_guards(gpu)) as Box<dyn Executor>));
    for exec in &mut executors {
        let id = exec.load(plan.clone()).unwrap();
        for ((&leaf, values), ty) in leaves.iter().zip(operands).zip(types).filter(|((_, values), _)| !values.is_empty()) {
            exec.write(leaf, &to_bytes(values, ty.dtype)).unwrap();
        }
        exec.poison(id).unwrap();
        exec.run(id, &[batch]).unwrap();
        let values = results.iter().map(|&result| from_bytes(&exec.read(id, result, batch).unwrap(), graph.ty(result).dtype));
        all.push(values.collect());
    }
    all
}

/// Checks `backward` for every float operand: what it appends, by the references, against `(L(x + h) - L(x - h)) / 2h` with
/// `L = Σ dy · y` of drawn `dy`.
pub(super) fn gradient(op: impl Into<Op>, types: &[TensorType], batch: usize) {
    let op = op.into();
    let mut graph = Graph::new();
    let leaves: Vec<TensorId> = types.iter().map(|ty| graph.param_or_input(*ty)).collect();
    let y = graph.apply(op.clone(), &leaves).unwrap();
    let dy = graph.input("dy", graph.ty(y));
    let grads = op.rules().backward(&mut graph, &leaves, y, dy).unwrap();
    assert_eq!(grads.len(), types.len());

    let mut values: reference::Leaves = reference::Leaves::new();
    for (i, (&leaf, &ty)) in leaves.iter().zip(types).enumerate() {
        let (low, high) = op.rules().domain(i, types);
        let draw =
            |k| if ty.dtype == DType::F32 { low + (high - low) * noise(i, k) } else { low + (noise(i, k) * (high - low + 1.0)).floor() };
        values.insert(leaf, (0..ty.shape.len(batch)).map(draw).collect());
    }
    values.insert(dy, (0..graph.shape(y).len(batch)).map(|k| noise(99, k) - 0.5).collect());
    let loss = |values: &mut reference::Leaves| -> f64 {
        let all = reference::evaluate(&graph, values, batch).unwrap();
        all[y.index()].iter().zip(&all[dy.index()]).map(|(y, dy)| y * dy).sum()
    };
    let all = reference::evaluate(&graph, &mut values.clone(), batch).unwrap();
    let step = 1e-6;
    for (&leaf, grad) in leaves.iter().zip(grads) {
        let Some(grad) = grad else { continue };
        assert_eq!(graph.ty(grad), graph.ty(leaf));
        for (k, &got) in all[grad.index()].iter().enumerate() {
            let at = |offset: f64| {
                let mut moved = values.clone();
                moved.get_mut(&leaf).unwrap()[k] += offset;
                loss(&mut moved)
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            assert!((got - slope).abs() <= 1e-7 * slope.abs().max(1.0), "{}: element {k} is {got}, the slope {slope}", op.rules().name());
        }
    }
}

impl Graph {
    fn param_or_input(&mut self, ty: TensorType) -> TensorId {
        if ty.dtype == DType::F32 && !ty.shape.is_batched() { self.param("x", ty.shape, Init::Fill(0.0)) } else { self.input("x", ty) }
    }
}

/// A number in `[0, 1)` for a place in a sequence; no two places near each other share one, so nothing ties.
pub(super) fn noise(seed: usize, k: usize) -> f64 {
    let mut z = (seed as u64 + 1).wrapping_mul(0x2545_F491_4F6C_DD1D).wrapping_add((k as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// The adapter under test, opened once.
pub(super) fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let open = || {
        if std::env::var("SHADERNET_TESTS").is_ok_and(|v| v == "cpu") {
            println!("SHADERNET_TESTS=cpu: the GPU part of the operators' tests is left out");
            return None;
        }
        let wanted = std::env::var("SHADERNET_TEST_ADAPTER").unwrap_or_default().to_lowercase();
        let all = adapters();
        let found = all.iter().find(|adapter| adapter.lacks.is_empty() && adapter.name.to_lowercase().contains(&wanted));
        let found =
            found.unwrap_or_else(|| panic!("no usable adapter matches {wanted:?} (set SHADERNET_TESTS=cpu to test without): {all:?}"));
        Some(Gpu::open(found.index, Checks::Off).expect("the adapter opens"))
    };
    GPU.get_or_init(open).clone()
}
