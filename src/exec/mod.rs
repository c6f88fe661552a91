//! Executors: what runs a plan, and what they all promise.
//!
//! Running a plan decides nothing: kernels, memory and order are the plan's. [`cpu`] is the product's path for machines
//! without a GPU, [`gpu`] replays the WGSL kernels, and [`reference`](mod@reference) runs the operators' plain loop nests that judge both.
//! [`tune`] finds out which of a step's kernels is the fastest, [`profile`] is what the executors' clocks say of each step, [`ceiling`] what a device can do at most.

mod alone;
pub mod ceiling;
pub mod cpu;
pub mod gpu;
pub mod profile;
pub mod reference;
pub mod selftest;
pub mod tune;

use std::sync::Arc;

use self::ceiling::Ceiling;
use self::cpu::CpuExecutor;
use self::gpu::{Checks, DeviceChoice, Gpu, GpuExecutor};
use self::profile::RunTimes;
use crate::error::{Error, Result};
use crate::graph::{Init, Role, TensorId};
use crate::ops::{Matrices, Style};
use crate::plan::{Candidate, Choices, Operand, Plan, Step};
use crate::shape::{DType, TensorType};

/// The word that poisons memory: NaN as a float, 2³² - 1 as an integer, 255 in each byte.
const POISON: u32 = u32::MAX;

/// A plan that an executor has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanId(usize);

/// Runs plans of one graph. Leaves (inputs, parameters, state) are shared by all plans loaded into one executor.
pub trait Executor: Send {
    /// The device, as a person knows it.
    fn device(&self) -> String;

    /// The most bytes one tensor can have on this device.
    fn max_tensor_bytes(&self) -> u64;

    /// The style of kernels it prefers, which plans are made for.
    fn style(&self) -> Style {
        Style::Portable
    }

    /// Whether it has kernels for tensors of 16-bit floats. Without, it may refuse plans that have such.
    fn has_f16(&self) -> bool {
        false
    }

    /// Device and driver: with the same plan and the same kernels picked, the same here means the same bits.
    fn identity(&self) -> String {
        self.device()
    }

    /// Whether it can run kernels that are written for these cooperative matrices.
    fn multiplies(&self, _matrices: Matrices) -> bool {
        false
    }

    /// Whether it can run kernels whose invocations hand each other what they load ([`SPREAD`](crate::ops::SPREAD)).
    fn shares(&self) -> bool {
        false
    }

    /// Whether it can run this one of a step's kernels.
    fn runs(&self, candidate: &Candidate<'_>) -> bool {
        candidate.matrices.is_none_or(|matrices| self.multiplies(matrices)) && (candidate.launch.spread().is_none() || self.shares())
    }

    /// Which of a step's kernels it runs where nothing better is known: that of its style, if it can run it, else the portable one.
    fn usual<'a>(&self, step: &'a Step) -> Candidate<'a> {
        let usual = step.of_style(self.style());
        if self.runs(&usual) { usual } else { step.portable() }
    }

    /// Which of a step's kernels this executor runs, if it runs WGSL.
    fn pick<'a>(&self, step: &'a Step) -> Candidate<'a> {
        self.usual(step)
    }

    /// Kernels to pick where plans loaded from now on have steps of these keys, whatever the executor would pick by itself, but for
    /// those that it cannot run. One that runs no WGSL does not mind.
    fn choose(&mut self, _choices: &Choices) {}

    /// Compiles all kernels of a step side by side, for one that is about to load them one after the other.
    fn compile(&mut self, _step: &Step) {}

    /// What was picked for the steps of a plan that leave a choice; nothing by an executor that runs no WGSL.
    fn chosen(&self, _plan: &Plan) -> Choices {
        Choices::default()
    }

    /// Allocates what the plan needs and makes its pipelines. Leaves that are new start as their roles say.
    ///
    /// # Errors
    /// Memory the device does not have, a kernel it refuses, or a batched leaf that an earlier plan made too small.
    fn load(&mut self, plan: Arc<Plan>) -> Result<PlanId>;

    /// Writes a leaf: all of a fixed tensor, or a whole number of images, at most the capacity, of a batched one.
    fn write(&mut self, tensor: TensorId, bytes: &[u8]) -> Result<()>;

    /// Runs a plan once for each batch, in order. May return before the device is done; [`read`](Self::read) waits. That the
    /// device was lost meanwhile shows at the latest there or in [`wait`](Self::wait).
    fn run(&mut self, plan: PlanId, batches: &[usize]) -> Result<()>;

    /// [`run`](Self::run), timed: the results are the same to the bit. Waits for the device, so it is slower than a run.
    ///
    /// # Errors
    /// As [`run`](Self::run); [`Error::Unsupported`] on a GPU that has no timestamps.
    fn profile(&mut self, plan: PlanId, batches: &[usize]) -> Result<Vec<RunTimes>>;

    /// What the device can do at most, measured now with memory of its own (up to 256 MB). Takes a fraction of a second on
    /// hardware.
    ///
    /// # Errors
    /// A lack of memory, or what [`profile`](Self::profile) brings.
    fn ceiling(&self) -> Result<Ceiling>;

    /// Reads a root of the plan or a leaf, `batch` images of it if it is batched, after all runs so far.
    fn read(&mut self, plan: PlanId, tensor: TensorId, batch: usize) -> Result<Vec<u8>>;

    /// Waits until every run so far is done.
    fn wait(&mut self) -> Result<()>;

    /// Fills the plan's slots with words that are NaN as floats and 255 as bytes, so that a value no kernel wrote shows. For tests.
    fn poison(&mut self, plan: PlanId) -> Result<()>;

    /// Bytes allocated on the device for leaves and slots.
    fn allocated_bytes(&self) -> u64;
}

/// Opens the device that a choice comes to, and says why it is that one.
///
/// # Errors
/// [`Error::UnknownDevice`] if nothing matches, or what opening the adapter brings.
pub fn open(choice: &DeviceChoice) -> Result<(Box<dyn Executor>, String)> {
    // The CPU path needs no driver, so asking for it must not wake one.
    let adapters = if *choice == DeviceChoice::Cpu { Vec::new() } else { gpu::adapters() };
    let (chosen, why) = gpu::choose(choice, &adapters)?;
    let exec: Box<dyn Executor> = match chosen {
        Some(index) => Box::new(GpuExecutor::new(Gpu::open(index, Checks::Off)?)),
        None => Box::new(CpuExecutor::new(None)?),
    };
    Ok((exec, why))
}

/// Writes floats, see [`Executor::write`].
pub fn write_f32(exec: &mut dyn Executor, tensor: TensorId, values: &[f32]) -> Result<()> {
    exec.write(tensor, bytemuck::cast_slice(values))
}

/// Writes integers, see [`Executor::write`].
pub fn write_u32(exec: &mut dyn Executor, tensor: TensorId, values: &[u32]) -> Result<()> {
    exec.write(tensor, bytemuck::cast_slice(values))
}

/// Reads floats, see [`Executor::read`].
pub fn read_f32(exec: &mut dyn Executor, plan: PlanId, tensor: TensorId, batch: usize) -> Result<Vec<f32>> {
    Ok(bytemuck::pod_collect_to_vec(&exec.read(plan, tensor, batch)?))
}

/// Reads integers, see [`Executor::read`].
pub fn read_u32(exec: &mut dyn Executor, plan: PlanId, tensor: TensorId, batch: usize) -> Result<Vec<u32>> {
    Ok(bytemuck::pod_collect_to_vec(&exec.read(plan, tensor, batch)?))
}

/// Checks the length of what is to be written to a leaf; `allocated` is what it has room for.
fn check_write(label: &str, ty: TensorType, allocated: usize, bytes: usize) -> Result<()> {
    let whole = ty.shape.inner_len() * ty.dtype.size();
    let fits = if ty.shape.is_batched() { whole > 0 && bytes.is_multiple_of(whole) && bytes <= allocated } else { bytes == whole };
    if fits {
        return Ok(());
    }
    let expected = if ty.shape.is_batched() { format!("images of {whole} bytes, {allocated} at most") } else { format!("{whole} bytes") };
    Err(Error::invalid(format!("data for {label} {ty}"), format!("{bytes} bytes"), expected))
}

/// Checks the batches of a run against the plan.
fn check_batches(plan: &Plan, batches: &[usize]) -> Result<()> {
    match batches.iter().find(|&&batch| batch > plan.capacity()) {
        Some(batch) => Err(Error::invalid("the batch of a run", batch, format!("at most the plan's capacity of {}", plan.capacity()))),
        None => Ok(()),
    }
}

/// Where to read a tensor, if it can be read at this batch.
fn check_read(plan: &Plan, tensor: TensorId, batch: usize) -> Result<Operand> {
    check_batches(plan, &[batch])?;
    plan.readable(tensor)
        .ok_or_else(|| Error::invalid("the tensor to read", format!("node {}", tensor.index()), "a root or a leaf of the plan"))
}

/// A plan that this executor did not load.
fn unknown_plan(plan: PlanId, loaded: usize) -> Error {
    Error::invalid("the plan to run", format!("number {} of another executor", plan.0), format!("one of the {loaded} loaded here"))
}

/// The word that fills a leaf at the start, as its bits.
fn initial_word(role: Role, dtype: DType) -> u32 {
    let fill = match role {
        Role::State(fill) | Role::Constant(fill) | Role::Param(Init::Fill(fill)) => fill,
        _ => 0.0,
    };
    match dtype {
        DType::F32 => fill.to_bits(),
        DType::F16 => u32::from(half::f16::from_f32(fill).to_bits()) * 0x1_0001,
        DType::U32 => fill as u32,
        DType::U8 => u32::from_ne_bytes([fill as u8; 4]),
    }
}
