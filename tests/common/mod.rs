//! What the integration tests share: devices, noise, comparators that can fail, and the check of one operator.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::sync::Arc;

use shadernet::error::Result;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{Checks, Gpu, GpuExecutor, adapters};
use shadernet::exec::{Executor, reference};
use shadernet::graph::{Graph, Init, TensorId};
use shadernet::ops::Op;
use shadernet::plan::Plan;
use shadernet::shape::{DType, TensorType};

/// The adapter under test: the one `SHADERNET_TEST_ADAPTER` names by a part of its name, else the first that can be used.
/// No adapter is a failure, unless `SHADERNET_TESTS=cpu` is set; then the test says so and `None` comes back.
pub fn gpu(checks: Checks) -> Option<Gpu> {
    if std::env::var("SHADERNET_TESTS").is_ok_and(|v| v == "cpu") {
        println!("SHADERNET_TESTS=cpu: the GPU half of this test is left out");
        return None;
    }
    let wanted = std::env::var("SHADERNET_TEST_ADAPTER").unwrap_or_default().to_lowercase();
    let all = adapters();
    let found = all.iter().find(|adapter| adapter.lacks.is_empty() && adapter.name.to_lowercase().contains(&wanted));
    let found = found.unwrap_or_else(|| panic!("no usable adapter matches {wanted:?} (set SHADERNET_TESTS=cpu to test without): {all:?}"));
    Some(Gpu::open(found.index, checks).expect("the adapter opens"))
}

/// Both kinds of executor: the CPU's, and the GPU's with guard bands, its kernels checked and unchecked.
pub fn executors() -> Vec<Box<dyn Guarded>> {
    let mut all: Vec<Box<dyn Guarded>> = vec![Box::new(CpuExecutor::new(Some(2)).unwrap())];
    for checks in [Checks::Off, Checks::On] {
        all.extend(gpu(checks).map(|gpu| Box::new(GpuExecutor::with_guards(gpu)) as Box<dyn Guarded>));
    }
    all
}

/// An executor whose guard bands can be checked.
pub trait Guarded: Executor {
    fn guards(&mut self) -> Result<()>;
    fn into_executor(self: Box<Self>) -> Box<dyn Executor>;
}

impl Guarded for CpuExecutor {
    fn guards(&mut self) -> Result<()> {
        Ok(()) // its kernels work on slices, which end where the tensor does
    }

    fn into_executor(self: Box<Self>) -> Box<dyn Executor> {
        self
    }
}

impl Guarded for GpuExecutor {
    fn guards(&mut self) -> Result<()> {
        self.check_guards()
    }

    fn into_executor(self: Box<Self>) -> Box<dyn Executor> {
        self
    }
}

/// A reproducible number in `[0, 1)` for a place in a sequence (SplitMix64, Steele et al. 2014).
pub fn noise(seed: u64, i: usize) -> f64 {
    let mut z = (seed.wrapping_mul(0x2545_F491_4F6C_DD1D)).wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Values of a type in a range; floats are multiples of 2⁻²⁰, so that f32 holds them exactly.
pub fn sample(ty: TensorType, (low, high): (f64, f64), batch: usize, seed: u64) -> Vec<f64> {
    let value = |i| match ty.dtype {
        DType::F32 => f64::from(((low + (high - low) * noise(seed, i)) * 1_048_576.0).round() as f32 / 1_048_576.0),
        _ => low + (noise(seed, i) * (high - low + 1.0)).floor(),
    };
    (0..ty.shape.len(batch)).map(value).collect()
}

/// Bytes of values in a tensor's element type.
pub fn to_bytes(values: &[f64], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
        DType::U32 => values.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
        DType::U8 => values.iter().map(|&v| v as u8).collect(),
    }
}

/// Values from bytes of a tensor's element type.
pub fn from_bytes(bytes: &[u8], dtype: DType) -> Vec<f64> {
    let words = || bytes.chunks_exact(4).map(|word| <[u8; 4]>::try_from(word).unwrap());
    match dtype {
        DType::F32 => words().map(|word| f64::from(f32::from_le_bytes(word))).collect(),
        DType::U32 => words().map(|word| f64::from(u32::from_le_bytes(word))).collect(),
        DType::U8 => bytes.iter().map(|&byte| f64::from(byte)).collect(),
    }
}

/// The largest difference, in units of the tolerance. An error unless every pair is proven close: NaN and wrong lengths fail.
pub fn compare(got: &[f64], want: &[f64], tolerance: f64) -> Result<f64, String> {
    if got.len() != want.len() {
        return Err(format!("{} elements, expected {}", got.len(), want.len()));
    }
    let mut worst = 0.0f64;
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let difference = (g - w).abs() / w.abs().max(1.0);
        if !(g == w || difference <= tolerance) {
            return Err(format!("element {i} is {g}, expected {w} (tolerance {tolerance:e})"));
        }
        if g != w {
            worst = worst.max(difference / tolerance);
        }
    }
    Ok(worst)
}

/// Rounding of one f32 operation, times a little room: a sum of `terms` is held to it times the root of `terms`.
pub const TOLERANCE: f64 = 1e-6;

/// Runs one operator on every executor at a batch below the plan's capacity, on drawn operands, and compares with the
/// reference; checks too that nothing beyond the batch and in the guard bands was written. Returns the worst error in units
/// of the tolerance.
pub fn check_op(op: impl Into<Op>, types: &[TensorType], batch: usize) -> Result<f64, String> {
    check_op_on(&mut executors(), op, types, batch)
}

/// [`check_op`] on executors of the caller's.
pub fn check_op_on(executors: &mut [Box<dyn Guarded>], op: impl Into<Op>, types: &[TensorType], batch: usize) -> Result<f64, String> {
    let op = op.into();
    let rules = op.rules();
    let capacity = batch + 2;
    let mut graph = Graph::new();
    let leaf = |(i, ty): (usize, &TensorType)| match rules.updates().contains(&i) {
        true if ty.dtype == DType::F32 => graph.param(&format!("operand {i}"), ty.shape, Init::Fill(0.0)),
        true => graph.state(&format!("operand {i}"), *ty, 0.0),
        false => graph.input(&format!("operand {i}"), *ty),
    };
    let leaves: Vec<TensorId> = types.iter().enumerate().map(leaf).collect();
    let root = graph.apply(op.clone(), &leaves).map_err(|e| e.to_string())?;
    let plan = Arc::new(Plan::new(&graph, &[root], capacity).map_err(|e| e.to_string())?);

    let values: Vec<Vec<f64>> = (0..types.len()).map(|i| sample(types[i], rules.domain(i, types), batch, 77 + i as u64)).collect();
    let mut judged: reference::Leaves = leaves.iter().copied().zip(values.iter().cloned()).collect();
    let wanted = reference::run(&plan, &mut judged, batch).map_err(|e| e.to_string())?;
    let tolerance = TOLERANCE * (rules.terms(types, batch) as f64).sqrt().max(4.0);

    let mut worst = 0.0f64;
    for exec in executors {
        let device = exec.device();
        let outcome = || -> Result<Vec<(String, Vec<f64>, Vec<f64>, bool)>> {
            let id = exec.load(plan.clone())?;
            for (leaf, (value, ty)) in leaves.iter().zip(values.iter().zip(types)) {
                if !value.is_empty() {
                    exec.write(*leaf, &to_bytes(value, ty.dtype))?;
                }
            }
            exec.poison(id)?;
            exec.run(id, &[batch])?;
            exec.guards()?;
            let mut results = Vec::new();
            for &i in rules.updates() {
                let got = from_bytes(&exec.read(id, leaves[i], batch)?, types[i].dtype);
                results.push((format!("operand {i}"), got, judged[&leaves[i]].clone(), true));
            }
            if let Some(want) = wanted.get(&root) {
                let ty = graph.ty(root);
                let all = from_bytes(&exec.read(id, root, capacity)?, ty.dtype);
                let (got, beyond) = all.split_at(ty.shape.len(batch));
                let untouched = ty.dtype != DType::F32 || beyond.iter().all(|v| v.is_nan());
                results.push(("output".to_owned(), got.to_vec(), want.clone(), untouched));
            }
            Ok(results)
        };
        let mut outcome = outcome;
        for (what, got, want, untouched) in outcome().map_err(|e| format!("{device}: {e}"))? {
            let error = compare(&got, &want, tolerance).map_err(|e| format!("{} on {device}: {what}: {e}", rules.name()))?;
            if !untouched {
                return Err(format!("{} on {device}: wrote images beyond the batch", rules.name()));
            }
            worst = worst.max(error);
        }
    }
    Ok(worst)
}
