//! The start-up self-test: does this device compute what the references say?
//!
//! Every distinct step of the plans runs alone, once, on drawn operands of a small batch, and its result is held to the
//! operator's plain reference. A driver that miscompiles a kernel is named before it spoils a training. The same serves
//! whoever writes an operator: plan it, and ask here.
//!
//! The drawn numbers and the comparison are public, so that tests of kernels need no second copy of them.

use std::collections::HashSet;

use serde::Serialize;

use super::Executor;
use super::alone::{Alone, Written, verdict};
use crate::error::{Error, Result};
use crate::ops::Op;
use crate::plan::{Candidate, Plan, Step};
use crate::shape::{DType, TensorType};

/// The most elements that one step's operands and result may have together: 512 MiB as the reference holds them.
pub const MAX_ELEMENTS: usize = 1 << 26;

/// See [`is_moderate`].
const MODERATE_FLOPS: u64 = 2_000_000_000;

/// What one rounded f32 operation may be off, with a little room: a sum of `terms` is held to it times the root of `terms`.
pub const TOLERANCE: f64 = 1e-6;

/// What rounding to f16 may be off, relative to the value: a unit in the last place, since drivers may cut where others round.
pub const F16_TOLERANCE: f64 = 1.0 / 1024.0;

/// By how much more than the kernels' that multiply one by one the result of one of cooperative matrices may be off: adapters may cut what
/// others round while they add. That it rounds its factors to f16 is no part of it, since operands are drawn from what f16 holds where a
/// step has such a kernel ([`operand`]).
pub const MATRICES_TOLERANCE: f64 = 4.0;

/// How one step did.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The kernel's name.
    pub kernel: String,
    /// The first step of the plans that is like this: `layer: operator`.
    pub step: String,
    /// Types of the operands, and of the result if there is one: `[N, 8] · [8, 4] -> [N, 4]`.
    pub shapes: String,
    /// The largest error in units of the tolerance: above 1 is a failure. Infinite (`null` as JSON) for NaN, for an element
    /// that was not written, and if the device refuses the kernel.
    pub worst: f64,
    /// What is wrong: operator, kernel, device, and the element with what was computed and what was expected.
    pub problem: Option<String>,
}

/// Runs every distinct step (operator, operand types, constants, kernel picked) of `plans` alone, at `batch` images, on an executor of its
/// own from `make`, with the kernel which that one picks, and compares all that it writes with
/// [`Rules::reference`](crate::ops::Rules::reference). The result is in the order of the plans.
///
/// Memory is that of one step at a time. A fixed operand has its full extent, so a plan that reads a whole data set from
/// the device is to be tested in a version built over a small one: same kernels, fewer images in that one leaf.
///
/// # Errors
/// A batch of 0, a step with more than [`MAX_ELEMENTS`], or a device that fails at something other than a kernel (no memory,
/// lost). A kernel that is refused or computes wrong numbers is not an error but a [`Verdict`] with a problem.
pub fn selftest(make: &mut dyn FnMut() -> Result<Box<dyn Executor>>, plans: &[&Plan], batch: usize) -> Result<Vec<Verdict>> {
    if batch == 0 {
        return Err(Error::invalid("the batch of a self-test", batch, "at least 1"));
    }
    let (mut seen, picks) = (HashSet::new(), make()?);
    let mut verdicts = Vec::new();
    for step in plans.iter().flat_map(|plan| plan.steps()) {
        let constants: Vec<_> = step.launch.constants.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        if seen.insert((format!("{:?}", step.op), picks.pick(step).name, constants, step.input_types())) {
            verdicts.push(judge(make()?.as_mut(), step, batch)?);
        }
    }
    Ok(verdicts)
}

/// Whether a self-test of these plans at `batch` images is moderate: no step has more than [`MAX_ELEMENTS`], nor more operations than its
/// plain reference does in some seconds.
pub fn is_moderate(plans: &[&Plan], batch: usize) -> bool {
    plans.iter().flat_map(|plan| plan.steps()).all(|step| elements(step, batch) <= MAX_ELEMENTS && step.flops(batch) <= MODERATE_FLOPS)
}

/// Of all operands and results of a step.
fn elements(step: &Step, batch: usize) -> usize {
    step.input_types().into_iter().chain(step.outputs().map(|output| output.ty)).map(|ty| ty.shape.len(batch)).sum()
}

pub(super) fn judge(exec: &mut dyn Executor, step: &Step, batch: usize) -> Result<Verdict> {
    let types = step.input_types();
    let operands: Vec<String> = types.iter().map(TensorType::to_string).collect();
    let results: Vec<String> = step.outputs().map(|output| output.ty.to_string()).collect();
    let result = if results.is_empty() { "in place".to_owned() } else { results.join(" · ") };
    let shapes = format!("{} -> {result}", operands.join(" · "));
    let kernel = exec.pick(step).name.to_owned();

    let elements = elements(step, batch);
    if elements > MAX_ELEMENTS {
        let expected = format!("at most {MAX_ELEMENTS}: test a plan built over a smaller data set, or a smaller batch");
        return Err(Error::invalid(format!("elements of {} in the self-test, {shapes}", step.title()), elements, expected));
    }

    let alone = Alone::new(step, batch + 1)?; // room for an image that no kernel may write
    let allowed = tolerance_of(&exec.pick(step), &step.op, &types, batch);
    let mut compute = || -> Result<(Vec<Written>, bool)> {
        let id = exec.load(alone.plan.clone())?;
        Ok((alone.judge(exec, id, &alone.draw(batch)?)?, exec.pick(step).name == kernel))
    };
    let (worst, problem) = match compute() {
        Ok((_, false)) => (f64::INFINITY, Some("another one is picked in its place, since it was found wrong".to_owned())),
        Ok((results, true)) => verdict(&results, allowed),
        Err(Error::Kernel { reason, .. }) => (f64::INFINITY, Some(format!("the kernel is refused: {reason}"))),
        Err(error) => return Err(error),
    };
    let problem = problem.map(|e| format!("{} ({shapes}): kernel {kernel} on {}: {e}", step.title(), exec.device()));
    Ok(Verdict { kernel, step: step.title(), shapes, worst, problem })
}

/// What an operator's result may be off, relative to values above 1 and absolute below: what sums come to, which are f32 whatever is
/// stored. A result that is stored as f16 is rounded once more ([`rounding`]).
pub fn tolerance(op: &Op, types: &[TensorType], batch: usize) -> f64 {
    TOLERANCE * (op.rules().terms(types, batch) as f64).sqrt().max(4.0)
}

/// The [`tolerance`] of one of a step's kernels, on operands from [`operand`].
pub fn tolerance_of(kernel: &Candidate<'_>, op: &Op, types: &[TensorType], batch: usize) -> f64 {
    tolerance(op, types, batch) * if kernel.matrices.is_some() { MATRICES_TOLERANCE } else { 1.0 }
}

/// What a result of this type may be off beside its [`tolerance`].
pub fn rounding(dtype: DType) -> f64 {
    if dtype == DType::F16 { F16_TOLERANCE } else { 0.0 }
}

/// A reproducible number in `[0, 1)` for a place in a sequence (SplitMix64, Steele et al. 2014).
pub fn noise(seed: u64, i: usize) -> f64 {
    let mut z = (seed.wrapping_mul(0x2545_F491_4F6C_DD1D)).wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Values for an operand of a step: of its operator's range, and where a kernel of the step multiplies by cooperative matrices, such
/// as f16 holds, so that all its kernels multiply the same numbers.
pub fn operand(step: &Step, input: usize, batch: usize) -> Vec<f64> {
    let types = step.input_types();
    let values = sample(types[input], step.op.rules().domain(input, &types), batch, 77 + input as u64);
    let rounds = types[input].dtype == DType::F32 && step.candidates().any(|candidate| candidate.matrices.is_some());
    if rounds { values.into_iter().map(|v| f64::from(half::f16::from_f64(v))).collect() } else { values }
}

/// Values of a type in a range, both ends included; floats are multiples of 2⁻²⁰, so that f32 holds them exactly, or what f16 holds.
pub fn sample(ty: TensorType, (low, high): (f64, f64), batch: usize, seed: u64) -> Vec<f64> {
    let value = |i| match ty.dtype {
        DType::F32 => f64::from(((low + (high - low) * noise(seed, i)) * 1_048_576.0).round() as f32 / 1_048_576.0),
        DType::F16 => f64::from(half::f16::from_f64(low + (high - low) * noise(seed, i))),
        _ => low + (noise(seed, i) * (high - low + 1.0)).floor(),
    };
    (0..ty.shape.len(batch)).map(value).collect()
}

/// Values as the bytes of a tensor with this element type, ready for [`Executor::write`].
pub fn to_bytes(values: &[f64], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().map(|&v| (v as f32).to_le_bytes()).collect::<Vec<_>>().into_flattened(),
        DType::F16 => values.iter().map(|&v| half::f16::from_f64(v).to_le_bytes()).collect::<Vec<_>>().into_flattened(),
        DType::U32 => values.iter().map(|&v| (v as u32).to_le_bytes()).collect::<Vec<_>>().into_flattened(),
        DType::U8 => values.iter().map(|&v| v as u8).collect(),
    }
}

/// Bytes of a tensor, as [`Executor::read`] gives them, as values.
pub fn from_bytes(bytes: &[u8], dtype: DType) -> Vec<f64> {
    let (words, _) = bytes.as_chunks::<4>();
    let (halves, _) = bytes.as_chunks::<2>();
    match dtype {
        DType::F32 => words.iter().map(|&word| f64::from(f32::from_le_bytes(word))).collect(),
        DType::F16 => halves.iter().map(|&half| f64::from(half::f16::from_le_bytes(half))).collect(),
        DType::U32 => words.iter().map(|&word| f64::from(u32::from_le_bytes(word))).collect(),
        DType::U8 => bytes.iter().map(|&byte| f64::from(byte)).collect(),
    }
}

/// The largest difference in units of the tolerance, if every pair is proven close.
///
/// # Errors
/// A wrong length, or the element that is furthest off, as a sentence. NaN is never close.
pub fn compare(got: &[f64], want: &[f64], tolerance: f64) -> Result<f64, String> {
    if got.len() != want.len() {
        return Err(format!("{} elements, expected {}", got.len(), want.len()));
    }
    let (worst, at) = largest(got, want, tolerance);
    if worst <= 1.0 {
        return Ok(worst);
    }
    Err(format!("element {at} is {}, expected {} (tolerance {tolerance:e})", got[at], want[at]))
}

/// The largest difference in units of the tolerance, and where it is; infinite for NaN and for lengths that disagree.
pub(super) fn largest(got: &[f64], want: &[f64], tolerance: f64) -> (f64, usize) {
    if got.len() != want.len() {
        return (f64::INFINITY, got.len().min(want.len()));
    }
    let error = |(&g, &w): (&f64, &f64)| {
        let error = if g == w { 0.0 } else { (g - w).abs() / w.abs().max(1.0) / tolerance };
        if error.is_nan() { f64::INFINITY } else { error }
    };
    let errors = got.iter().zip(want).map(error).enumerate();
    errors.fold((0.0, 0), |(worst, at), (i, error)| if error > worst { (error, i) } else { (worst, at) })
}
