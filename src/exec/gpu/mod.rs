//! The GPU executor: replays a plan as one compute pass a step, many steps a submission.
//!
//! All buffers, pipelines and bind groups are made when a plan is loaded. A run only records: set a pipeline, bind, say the
//! batch, dispatch.

mod cache;
mod device;
mod dispatch;
mod embed;
mod matrices;
mod memory;
mod pipeline;
mod profile;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

pub use device::{AdapterSummary, Checks, DeviceChoice, Gpu, GpuOptions, adapters, choose};
pub use matrices::Cooperative;

use super::ceiling::{self, Ceiling};
use super::profile::RunTimes;
use super::tune::{Tuner, Tuning};
use super::{Executor, POISON, PlanId, check_batches, check_read, check_write, unknown_plan};
use crate::error::{Error, Result};
use crate::graph::TensorId;
use crate::ops::{Matrices, Style, packed};
use crate::plan::{Candidate, Choices, Operand, Place, Plan, Step};
use crate::shape::{DType, TensorType};
use dispatch::{Call, Dispatch, MAX_WORKGROUPS, writable};
use memory::{Guard, Region};
use pipeline::Pipelines;

/// Steps recorded into one submission. Enough to hide what a submission costs, few enough for a driver's watchdog.
const STEPS_PER_SUBMISSION: usize = 16;

/// Submissions the host may be ahead of the device.
const IN_FLIGHT: usize = 3;

/// Runs plans on a GPU.
pub struct GpuExecutor {
    gpu: Gpu,
    guard: Guard,
    pipelines: Pipelines,
    choices: Choices,
    tuner: Tuner,
    /// Steps' keys and kernels of cooperative matrices that were seen to be right.
    proved: HashSet<(String, String)>,
    /// Whether kernels are run unproved: by those who are about to judge them.
    trusts: bool,
    leaves: Vec<Option<Leaf>>, // by tensor index
    plans: Vec<Loaded>,
    staging: Option<wgpu::Buffer>,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
}

struct Leaf {
    ty: TensorType,
    label: String,
    region: Region,
}

struct Loaded {
    plan: Arc<Plan>,
    slots: Vec<Region>,
    dispatches: Vec<Dispatch>,
}

impl GpuExecutor {
    /// An executor on an open GPU.
    pub fn new(gpu: Gpu) -> Self {
        Self {
            gpu,
            guard: Guard::None,
            pipelines: Pipelines::default(),
            choices: Choices::default(),
            tuner: Tuner::default(),
            proved: HashSet::new(),
            trusts: false,
            leaves: Vec::new(),
            plans: Vec::new(),
            staging: None,
            in_flight: VecDeque::new(),
        }
    }

    /// The same with a guard band behind every buffer, for [`check_guards`](Self::check_guards). For tests.
    pub fn with_guards(gpu: Gpu) -> Self {
        Self { guard: Guard::Band, ..Self::new(gpu) }
    }

    /// The same, choosing among a step's kernels by what they take on this device, when a plan is loaded.
    pub fn with_tuning(self, tuning: Tuning) -> Self {
        Self { tuner: Tuner::new(tuning), ..self }
    }

    /// Makes the choices that loading the plan would, without loading it.
    ///
    /// # Errors
    /// A device that is lost.
    pub fn settle(&mut self, plan: &Plan) -> Result<()> {
        let gpu = self.gpu.clone();
        let make = || -> Box<dyn Executor> { Box::new(Self { trusts: true, ..Self::new(gpu.clone()) }) };
        let mut tuner = std::mem::take(&mut self.tuner);
        let found = tuner.settle(plan, &self.choices, self, &make);
        self.tuner = tuner;
        self.choices.extend(found?);
        Ok(())
    }

    /// The GPU it runs on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Compares every guard band with what was written there.
    ///
    /// # Errors
    /// [`Error::Kernel`] naming the first buffer whose band was touched.
    pub fn check_guards(&mut self) -> Result<()> {
        let leaves = self.leaves.iter().flatten().map(|leaf| (leaf.label.clone(), leaf.region.clone()));
        let slots = self.plans.iter().flat_map(|loaded| (0..).zip(&loaded.slots).map(|(i, slot)| (format!("slot {i}"), slot.clone())));
        let regions: Vec<_> = leaves.chain(slots).collect();
        regions.into_iter().try_for_each(|(what, region)| self.check_guard(what, &region))
    }

    /// Refuses a plan that cannot run here, before anything is allocated for it.
    fn check_fit(&self, plan: &Plan) -> Result<()> {
        let operands = plan.steps().iter().flat_map(|step| step.inputs.iter().copied().chain(step.outputs()));
        if let Some(operand) = operands.into_iter().find(|operand| operand.ty.dtype == DType::F16 && !self.gpu.has_f16()) {
            let lacks = format!("the feature SHADER_F16, for tensors like {}", operand.ty);
            return Err(Error::Unsupported { adapter: self.gpu.name.clone(), lacks });
        }
        for step in plan.steps() {
            let count = self.pick(step).launch.workgroups.count(plan.capacity());
            if count > MAX_WORKGROUPS * MAX_WORKGROUPS {
                let expected = format!("at most {MAX_WORKGROUPS}²: use a smaller batch");
                return Err(Error::invalid(format!("workgroups of {}", step.title()), count, expected));
            }
        }
        for leaf in plan.leaves() {
            let bytes = leaf.ty.bytes(plan.capacity());
            match self.leaves.get(leaf.tensor.index()).and_then(Option::as_ref) {
                Some(known) if known.region.bytes < bytes => {
                    let found = format!("{} of {} bytes", leaf.label, known.region.bytes);
                    return Err(Error::invalid("a leaf of an earlier plan", found, format!("{bytes} bytes: load the largest plan first")));
                }
                Some(_) => {}
                None => memory::check_size(&self.gpu, &leaf.label, bytes, self.guard)?,
            }
        }
        let mut slots = plan.slots().iter().enumerate();
        slots.try_for_each(|(i, slot)| memory::check_size(&self.gpu, &format!("slot {i}"), slot.bytes, self.guard))
    }

    /// Makes the buffers, pipelines and bind groups of a plan that fits.
    fn allocate(&mut self, plan: Arc<Plan>) -> Result<Loaded> {
        self.allocate_leaves(&plan)?;
        let slots = self.allocate_slots(&plan)?;
        let mut loaded = Loaded { plan: plan.clone(), slots, dispatches: Vec::new() };
        let steps: Vec<Vec<&Step>> = plan.steps().iter().map(|step| self.calls(&loaded, step)).collect();
        let launches: Vec<_> = steps.iter().flatten().map(|step| (self.pick(step).launch, writable(step))).collect();
        let began = Instant::now();
        let made = self.pipelines.make(&self.gpu, &launches)?;
        log::debug!("{made} pipelines made in {:.3} s", began.elapsed().as_secs_f64());
        if made > 0
            && let Some(cache) = &self.gpu.cache
        {
            cache.keep(&self.gpu);
        }
        for steps in steps {
            let calls = steps.into_iter().map(|step| self.call(&loaded, step)).collect::<Result<_>>()?;
            loaded.dispatches.push(Dispatch(calls));
        }
        self.gpu.check_alive()?;
        Ok(loaded)
    }

    fn loaded(&self, plan: PlanId) -> Result<&Loaded> {
        self.plans.get(plan.0).ok_or_else(|| unknown_plan(plan, self.plans.len()))
    }

    fn leaf_slot(&mut self, tensor: TensorId) -> &mut Option<Leaf> {
        if self.leaves.len() <= tensor.index() {
            self.leaves.resize_with(tensor.index() + 1, || None);
        }
        &mut self.leaves[tensor.index()]
    }

    fn place<'a>(&'a self, loaded: &'a Loaded, operand: &Operand) -> &'a Region {
        match operand.place {
            Place::Leaf(id) => &self.leaves[id.index()].as_ref().expect("a loaded plan has its leaves").region,
            Place::Slot(slot) => &loaded.slots[slot],
        }
    }

    /// What runs for a step: the step itself if its operands lie as its kernel wants them, else its parts.
    fn calls<'a>(&self, loaded: &Loaded, step: &'a Step) -> Vec<&'a Step> {
        let lies = |operands: &std::ops::Range<usize>| {
            let regions: Vec<&Region> = step.inputs[operands.clone()].iter().map(|operand| self.place(loaded, operand)).collect();
            let (offsets, _) = packed(&regions.iter().map(|region| region.bytes).collect::<Vec<_>>());
            regions.iter().zip(offsets).all(|(region, offset)| region.buffer == regions[0].buffer && region.offset == offset)
        };
        if step.op.rules().packs().iter().all(lies) { vec![step] } else { step.parts.iter().collect() }
    }

    /// What a kernel sees of a binding's operands: all of a tensor's region, or all of the buffer of a pack.
    fn binding<'a>(&'a self, loaded: &'a Loaded, operands: &[Operand]) -> wgpu::BindingResource<'a> {
        let region = self.place(loaded, &operands[0]);
        match operands {
            [_] => wgpu::BindingResource::Buffer(region.binding()),
            _ => region.buffer.as_entire_binding(),
        }
    }

    /// The call of a step's kernel, its pipeline being made.
    fn call(&self, loaded: &Loaded, step: &Step) -> Result<Call> {
        let launch = self.pick(step).launch;
        let pipeline = self.pipelines.get(launch, writable(step)).expect("the pipelines of a plan are made together");
        let inputs = step.bindings().into_iter().map(|operands| step.inputs[operands].to_vec());
        let operands: Vec<Vec<Operand>> = inputs.chain(step.outputs().map(|output| vec![output])).collect();
        let entries: Vec<_> = (0..)
            .zip(&operands)
            .map(|(binding, operands)| wgpu::BindGroupEntry { binding, resource: self.binding(loaded, operands) })
            .collect();
        let scope = self.gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let label = Some(launch.kernel.name);
        let bindings =
            self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label, layout: &pipeline.bindings, entries: &entries });
        if let Some(error) = pollster::block_on(scope.pop()) {
            let kernel = launch.kernel.name.to_owned();
            return Err(self.gpu.blame(Error::Kernel { kernel, device: self.gpu.name.clone(), reason: error.to_string() }));
        }
        Ok(Call { pipeline, bindings, workgroups: launch.workgroups })
    }

    /// Keeps the host at most [`IN_FLIGHT`] submissions ahead.
    fn throttle(&mut self) -> Result<()> {
        while self.in_flight.len() > IN_FLIGHT {
            let oldest = self.in_flight.pop_front();
            self.poll(wgpu::PollType::Wait { submission_index: oldest, timeout: None })?;
        }
        Ok(())
    }

    fn poll(&self, kind: wgpu::PollType) -> Result<()> {
        let polled = self.gpu.device.poll(kind);
        self.gpu.check_alive()?;
        polled.map(|_| ()).map_err(|error| self.gpu.lost(error.to_string()))
    }
}

impl Executor for GpuExecutor {
    fn device(&self) -> String {
        self.gpu.name.clone()
    }

    fn max_tensor_bytes(&self) -> u64 {
        device::max_tensor_bytes(&self.gpu.device.limits())
    }

    fn style(&self) -> Style {
        self.gpu.style
    }

    fn has_f16(&self) -> bool {
        self.gpu.has_f16()
    }

    fn identity(&self) -> String {
        self.gpu.identity()
    }

    fn multiplies(&self, matrices: Matrices) -> bool {
        self.gpu.matrices.contains(&matrices)
    }

    fn shares(&self) -> bool {
        self.gpu.spread.is_some()
    }

    /// The one place that decides: by the table of choices as far as the device can, else by what the adapter is ([`Gpu::style`]).
    fn pick<'a>(&self, step: &'a Step) -> Candidate<'a> {
        self.choices.of(step).filter(|candidate| self.runs(candidate)).unwrap_or_else(|| self.usual(step))
    }

    fn choose(&mut self, choices: &Choices) {
        self.choices.extend(choices.clone());
    }

    fn compile(&mut self, step: &Step) {
        let launches: Vec<_> =
            step.candidates().filter(|candidate| self.runs(candidate)).map(|candidate| (candidate.launch, writable(step))).collect();
        // What is refused is refused again when it is loaded, and told of there.
        let _ = self.pipelines.make(&self.gpu, &launches);
    }

    fn chosen(&self, plan: &Plan) -> Choices {
        let mut chosen = Choices::default();
        for step in plan.steps().iter().filter(|step| !step.key.is_empty()) {
            chosen.set(&step.key, self.pick(step).name);
        }
        chosen
    }

    fn load(&mut self, plan: Arc<Plan>) -> Result<PlanId> {
        self.gpu.check_device()?;
        self.settle(&plan)?;
        self.prove(&plan)?;
        self.check_fit(&plan)?;
        let known: Vec<bool> = self.leaves.iter().map(Option::is_some).collect();
        let loaded = self.allocate(plan);
        if loaded.is_err() {
            // What this plan brought goes with it, so that a smaller one finds the memory free.
            for (i, leaf) in self.leaves.iter_mut().enumerate() {
                *leaf = leaf.take().filter(|_| known.get(i).copied().unwrap_or(false));
            }
        }
        self.plans.push(loaded?);
        Ok(PlanId(self.plans.len() - 1))
    }

    fn write(&mut self, tensor: TensorId, bytes: &[u8]) -> Result<()> {
        self.gpu.check_alive()?;
        let leaf = self.leaves.get(tensor.index()).and_then(Option::as_ref);
        let leaf =
            leaf.ok_or_else(|| Error::invalid("the tensor to write", format!("node {}", tensor.index()), "a leaf of a loaded plan"))?;
        let Region { buffer, offset, bytes: room, .. } = &leaf.region;
        check_write(&leaf.label, leaf.ty, *room, bytes.len())?;
        memory::check_usage(&leaf.label, buffer, wgpu::BufferUsages::COPY_DST)?;
        let whole = bytes.len() / 4 * 4;
        self.gpu.queue.write_buffer(buffer, *offset as u64, &bytes[..whole]);
        if whole < bytes.len() {
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.gpu.queue.write_buffer(buffer, (offset + whole) as u64, &last);
        }
        Ok(())
    }

    fn run(&mut self, plan: PlanId, batches: &[usize]) -> Result<()> {
        check_batches(&self.loaded(plan)?.plan, batches)?;
        for chunk in batches.chunks(STEPS_PER_SUBMISSION) {
            self.gpu.check_alive()?;
            let scope = self.gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
            let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("shadernet run") });
            for &batch in chunk {
                self.encode(&mut encoder, plan, batch)?;
            }
            let submitted = self.gpu.queue.submit([encoder.finish()]);
            // A loaded plan was validated when its pipelines and bindings were made, so what fails here is the device.
            if let Some(error) = pollster::block_on(scope.pop()) {
                return Err(self.gpu.blame(self.gpu.lost(error.to_string())));
            }
            self.in_flight.push_back(submitted);
            self.throttle()?;
        }
        self.gpu.check_alive()
    }

    fn profile(&mut self, plan: PlanId, batches: &[usize]) -> Result<Vec<RunTimes>> {
        self.time(plan, batches)
    }

    fn ceiling(&self) -> Result<Ceiling> {
        ceiling::of_gpu(&mut Self::new(self.gpu.clone()))
    }

    fn read(&mut self, plan: PlanId, tensor: TensorId, batch: usize) -> Result<Vec<u8>> {
        let loaded = self.loaded(plan)?;
        let operand = check_read(&loaded.plan, tensor, batch)?;
        let Region { buffer, offset, .. } = self.place(loaded, &operand).clone();
        memory::check_usage("the tensor to read", &buffer, wgpu::BufferUsages::COPY_SRC)?;
        let mut bytes = self.read_bytes(&buffer, offset, operand.ty.bytes(batch))?;
        bytes.truncate(operand.ty.shape.len(batch) * operand.ty.dtype.size());
        Ok(bytes)
    }

    fn wait(&mut self) -> Result<()> {
        self.in_flight.clear();
        self.gpu.check_device()
    }

    fn poison(&mut self, plan: PlanId) -> Result<()> {
        let loaded = self.loaded(plan)?;
        for Region { buffer, offset, bytes, .. } in &loaded.slots {
            self.gpu.queue.write_buffer(buffer, *offset as u64, bytemuck::cast_slice(&vec![POISON; bytes / 4]));
        }
        self.gpu.check_alive()
    }

    fn allocated_bytes(&self) -> u64 {
        let leaves = self.leaves.iter().flatten().map(|leaf| &leaf.region);
        let regions = leaves.chain(self.plans.iter().flat_map(|loaded| &loaded.slots));
        let mut buffers: Vec<&wgpu::Buffer> = regions.map(|region| &region.buffer).collect();
        buffers.sort_unstable();
        buffers.dedup();
        buffers.into_iter().map(wgpu::Buffer::size).sum()
    }
}
