//! The CPU executor: runs a plan with the kernels of `src/kernels/`, in the plan's own slots.
//!
//! Every step runs to its end before the next starts; inside a step the work is cut into blocks over a thread pool of this
//! executor's own. The blocks do not depend on the number of threads, so neither do the results.

use std::sync::Arc;
use std::time::Instant;

use super::ceiling::{self, Ceiling};
use super::profile::RunTimes;
use super::{Executor, POISON, PlanId, check_batches, check_read, check_write, initial_word, unknown_plan};
use crate::error::{Error, Result};
use crate::graph::TensorId;
use crate::ops::{Cpu, CpuView, Style};
use crate::plan::{Place, Plan, Step};
use crate::shape::TensorType;

/// Floating-point operations, some 100 µs, up to which the caller's thread does a run alone.
const ALONE: u64 = 16_000_000;

/// Runs plans on the processor.
#[derive(Debug)]
pub struct CpuExecutor {
    pool: rayon::ThreadPool,
    leaves: Vec<Option<Leaf>>, // by tensor index
    plans: Vec<Loaded>,
    scratch: Vec<f32>,
}

#[derive(Debug)]
struct Leaf {
    ty: TensorType,
    label: String,
    words: Vec<f32>,
}

#[derive(Debug)]
struct Loaded {
    plan: Arc<Plan>,
    /// Floating-point operations of a run of one image.
    flops: u64,
    slots: Vec<Vec<f32>>,
}

impl CpuExecutor {
    /// An executor on this many threads, or on as many as there are cores.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).thread_name(|i| format!("shadernet-{i}"));
        let pool = builder.build().map_err(|e| Error::invalid("threads of the CPU executor", e, "threads the system can start"))?;
        Ok(Self { pool, leaves: Vec::new(), plans: Vec::new(), scratch: Vec::new() })
    }

    /// Threads of the pool.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn leaf(&self, tensor: TensorId) -> Result<&Leaf> {
        let leaf = self.leaves.get(tensor.index()).and_then(Option::as_ref);
        leaf.ok_or_else(|| Error::invalid("the tensor to write", format!("node {}", tensor.index()), "a leaf of a loaded plan"))
    }
}

/// Memory of `bytes` filled with `word`, or a typed error if there is none.
fn allocate(what: &str, words: usize, word: f32) -> Result<Vec<f32>> {
    let mut memory = Vec::new();
    let failed = memory.try_reserve_exact(words).is_err();
    if failed {
        return Err(Error::OutOfMemory { what: what.to_owned(), bytes: 4 * words as u64, device: "cpu".to_owned() });
    }
    memory.resize(words, word);
    Ok(memory)
}

impl Executor for CpuExecutor {
    fn device(&self) -> String {
        format!("cpu ({} threads)", self.threads())
    }

    fn style(&self) -> Style {
        Style::Cpu
    }

    /// The number of threads changes no bit; the width of the processor's vectors does.
    fn identity(&self) -> String {
        let vectors = format!("{:?}", pulp::Arch::new()); // a level with a list of what it stands for, like `V4(…)`
        format!("cpu, {} {}", std::env::consts::ARCH, vectors.split('(').next().unwrap_or_default())
    }

    fn max_tensor_bytes(&self) -> u64 {
        isize::MAX as u64
    }

    fn load(&mut self, plan: Arc<Plan>) -> Result<PlanId> {
        for leaf in plan.leaves() {
            if self.leaves.len() <= leaf.tensor.index() {
                self.leaves.resize_with(leaf.tensor.index() + 1, || None);
            }
            let words = leaf.ty.bytes(plan.capacity()) / 4;
            match &self.leaves[leaf.tensor.index()] {
                Some(known) if known.words.len() < words => {
                    let found = format!("{} of {} bytes", leaf.label, 4 * known.words.len());
                    return Err(Error::invalid(
                        "a leaf of an earlier plan",
                        found,
                        format!("{} bytes: load the largest plan first", 4 * words),
                    ));
                }
                Some(_) => {}
                None => {
                    let words = allocate(&leaf.label, words, f32::from_bits(initial_word(leaf.role, leaf.ty.dtype)))?;
                    self.leaves[leaf.tensor.index()] = Some(Leaf { ty: leaf.ty, label: leaf.label.clone(), words });
                }
            }
        }
        let slot = |(i, slot): (usize, &crate::plan::Slot)| allocate(&format!("slot {i}"), slot.bytes / 4, 0.0);
        let slots = plan.slots().iter().enumerate().map(slot).collect::<Result<_>>()?;
        let flops = plan.steps().iter().map(|step| step.flops(1)).sum();
        self.plans.push(Loaded { plan, flops, slots });
        Ok(PlanId(self.plans.len() - 1))
    }

    fn write(&mut self, tensor: TensorId, bytes: &[u8]) -> Result<()> {
        let leaf = self.leaf(tensor)?;
        check_write(&leaf.label, leaf.ty, 4 * leaf.words.len(), bytes.len())?;
        let leaf = self.leaves[tensor.index()].as_mut().expect("looked up above");
        bytemuck::cast_slice_mut(&mut leaf.words)[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn run(&mut self, plan: PlanId, batches: &[usize]) -> Result<()> {
        let Self { pool, leaves, plans, scratch } = self;
        let known = plans.len();
        let Loaded { plan, flops, slots } = plans.get_mut(plan.0).ok_or_else(|| unknown_plan(plan, known))?;
        check_batches(plan, batches)?;
        let images: usize = batches.iter().sum();
        let small = flops.saturating_mul(images as u64) <= ALONE;
        let mut run = || {
            for &batch in batches {
                for step in plan.steps() {
                    run_step(step, batch, leaves, slots, scratch);
                }
            }
        };
        if small {
            run();
        } else {
            pool.install(run);
        }
        Ok(())
    }

    fn profile(&mut self, plan: PlanId, batches: &[usize]) -> Result<Vec<RunTimes>> {
        let Self { pool, leaves, plans, scratch } = self;
        let known = plans.len();
        let Loaded { plan, slots, .. } = plans.get_mut(plan.0).ok_or_else(|| unknown_plan(plan, known))?;
        check_batches(plan, batches)?;
        let origin = Instant::now();
        let now = || origin.elapsed().as_nanos() as u64;
        let mut run = |batch: usize| {
            let began = now();
            let step = |step: &Step| {
                let began = now();
                run_step(step, batch, leaves, slots, scratch);
                [began, now()]
            };
            let steps: Vec<[u64; 2]> = plan.steps().iter().map(step).collect();
            let at_work: u64 = steps.iter().map(|[began, ended]| ended - began).sum();
            RunTimes { batch, host: now() - began - at_work, steps }
        };
        Ok(pool.install(|| batches.iter().map(|&batch| run(batch)).collect()))
    }

    fn ceiling(&self) -> Result<Ceiling> {
        ceiling::of_cpu(&mut Self::new(Some(self.threads()))?)
    }

    fn read(&mut self, plan: PlanId, tensor: TensorId, batch: usize) -> Result<Vec<u8>> {
        let Loaded { plan, slots, .. } = self.plans.get(plan.0).ok_or_else(|| unknown_plan(plan, self.plans.len()))?;
        let operand = check_read(plan, tensor, batch)?;
        let words = match operand.place {
            Place::Leaf(id) => &self.leaf(id)?.words,
            Place::Slot(slot) => &slots[slot],
        };
        Ok(bytemuck::cast_slice(words)[..operand.ty.shape.len(batch) * operand.ty.dtype.size()].to_vec())
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    fn poison(&mut self, plan: PlanId) -> Result<()> {
        let known = self.plans.len();
        let loaded = self.plans.get_mut(plan.0).ok_or_else(|| unknown_plan(plan, known))?;
        loaded.slots.iter_mut().for_each(|slot| slot.fill(f32::from_bits(POISON)));
        Ok(())
    }

    fn allocated_bytes(&self) -> u64 {
        let leaves: usize = self.leaves.iter().flatten().map(|leaf| leaf.words.len()).sum();
        let slots: usize = self.plans.iter().flat_map(|loaded| &loaded.slots).map(Vec::len).sum();
        4 * (leaves + slots) as u64
    }
}

/// Runs one step. What it writes is taken out of its place meanwhile, so that the rest can be borrowed.
fn run_step(step: &Step, batch: usize, leaves: &mut [Option<Leaf>], slots: &mut [Vec<f32>], scratch: &mut Vec<f32>) {
    let rules = step.op.rules();
    let mut outputs: Vec<Vec<f32>> = (step.outputs())
        .map(|operand| match operand.place {
            Place::Slot(slot) => std::mem::take(&mut slots[slot]),
            Place::Leaf(_) => unreachable!("a plan writes to slots"),
        })
        .collect();
    let updated_leaf = |&i: &usize| match step.inputs[i].place {
        Place::Leaf(id) => id.index(),
        Place::Slot(_) => unreachable!("only parameters and state are updated"),
    };
    let mut updated: Vec<Vec<f32>> = (rules.updates().iter())
        .map(|i| std::mem::take(&mut leaves[updated_leaf(i)].as_mut().expect("a loaded plan has its leaves").words))
        .collect();

    let view = |(i, operand): (usize, &crate::plan::Operand)| {
        let words: &[f32] = match operand.place {
            _ if rules.updates().contains(&i) => return CpuView::empty(operand.ty),
            Place::Leaf(id) => &leaves[id.index()].as_ref().expect("a loaded plan has its leaves").words,
            Place::Slot(slot) => &slots[slot],
        };
        CpuView::new(operand.ty, batch, words)
    };
    let ty = step.output.map_or(step.inputs[0].ty, |operand| operand.ty);
    let mut written = outputs.iter_mut().zip(step.outputs()).map(|(words, operand)| &mut words[..operand.ty.bytes(batch) / 4]);
    let mut args = Cpu {
        batch,
        inputs: step.inputs.iter().enumerate().map(view).collect(),
        updated: updated.iter_mut().map(Vec::as_mut_slice).collect(),
        output: written.next().unwrap_or_default(),
        extra: written.collect(),
        scratch,
    };
    if !rules.cpu(&mut args) {
        args.by_reference(rules, &step.input_types(), ty);
    }

    for (operand, words) in step.outputs().zip(outputs) {
        if let Place::Slot(slot) = operand.place {
            slots[slot] = words;
        }
    }
    for (i, words) in rules.updates().iter().zip(updated) {
        leaves[updated_leaf(i)].as_mut().expect("a loaded plan has its leaves").words = words;
    }
}
