//! What a device can do at most, measured on it: multiply-adds in registers or a large matrix product, and a sum of tensors
//! that few caches hold.
//!
//! A share of a data sheet's number says little where clocks depend on heat and neighbours; a share of what the same device
//! did a moment ago says how much is left in a kernel.

use std::sync::Arc;

use serde::Serialize;

use super::{Executor, PlanId, write_f32};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::{Add, FmaChains, Matmul, Op};
use crate::plan::Plan;
use crate::shape::{Shape, TensorType};

/// The most that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ceiling {
    /// Floating-point operations a nanosecond, 10⁹ a second.
    pub gflops: f64,
    /// Bytes read and written a nanosecond, 10⁹ a second.
    pub gbytes: f64,
    /// What was run to measure them.
    pub how: String,
}

/// Runs whose best counts.
const RUNS: usize = 10;

/// Nanoseconds that one run should take at least, so that what starts and ends it does not count.
const ENOUGH: f64 = 5e6;

/// The most images of a run, and so workgroups of multiply-adds: some 200 GFLOP.
const MOST: usize = 1 << 16;

/// Extents M, N and K of the product: much work on a right factor that stays in a core's own cache. A square of the same work
/// is held up by memory on machines with many cores or busy neighbours.
const PRODUCT: [usize; 3] = [4096, 256, 256];

/// Elements of each tensor of the sum: 64 MiB, more than most caches hold.
const ELEMENTS: usize = 16 << 20;

/// On a GPU, with an executor that has nothing loaded.
pub(super) fn of_gpu(exec: &mut dyn Executor) -> Result<Ceiling> {
    measure(exec, FmaChains.into(), &[&[2]], MOST, "multiply-adds in registers".to_owned())
}

/// On the CPU, likewise.
pub(super) fn of_cpu(exec: &mut dyn Executor) -> Result<Ceiling> {
    let [m, n, k] = PRODUCT;
    measure(exec, Matmul::default().into(), &[&[m, k], &[k, n]], 1, format!("a product of {m}x{k} by {k}x{n} numbers"))
}

/// Times `work` on operands of these extents, and a sum of two large tensors.
fn measure(exec: &mut dyn Executor, work: Op, extents: &[&[usize]], most: usize, what: String) -> Result<Ceiling> {
    let elements = ELEMENTS.min(exec.max_tensor_bytes() as usize / 4);
    let mut graph = Graph::new();
    let operands: Vec<TensorId> = extents.iter().map(|extents| graph.input("operand", TensorType::f32(Shape::fixed(extents)))).collect();
    let result = graph.apply(work, &operands)?;
    let [a, b] = ["a", "b"].map(|name| graph.input(name, TensorType::f32(Shape::fixed(&[elements]))));
    let sum = graph.apply(Add, &[a, b])?;

    let work = Arc::new(Plan::new(&graph, &[result], most)?);
    let id = exec.load(work.clone())?;
    for (&operand, extents) in operands.iter().zip(extents) {
        // Zeros would draw less power than numbers do, and halves never become denormal.
        write_f32(exec, operand, &vec![0.5; extents.iter().product()])?;
    }
    let (batch, ns) = least(exec, id, most)?;
    let gflops = work.steps()[0].flops(batch) as f64 / ns;

    let sum = Arc::new(Plan::new(&graph, &[sum], 1)?);
    let id = exec.load(sum.clone())?;
    let (batch, ns) = least(exec, id, 1)?;
    let gbytes = sum.steps()[0].bytes_moved(batch) as f64 / ns;
    Ok(Ceiling { gflops, gbytes, how: format!("{what}; a sum of two tensors of {} MB", elements >> 18) })
}

/// The least nanoseconds of a plan's one step, at a batch that keeps the device busy.
fn least(exec: &mut dyn Executor, plan: PlanId, most: usize) -> Result<(usize, f64)> {
    let mut time = |batch: usize| -> Result<f64> {
        let runs = exec.profile(plan, &[batch])?;
        let [begin, end] = runs[0].steps[0];
        Ok((end.saturating_sub(begin) as f64).max(1.0))
    };
    time(1)?; // the first run touches the memory, and wakes the device
    let mut batch = 1;
    while batch < most && time(batch)? < ENOUGH {
        batch *= 2;
    }
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        least = least.min(time(batch)?);
    }
    Ok((batch, least))
}
