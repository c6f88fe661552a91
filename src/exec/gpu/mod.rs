//! The GPU executor: replays a plan as one compute pass a step, many steps a submission.
//!
//! All buffers, pipelines and bind groups are made when a plan is loaded. A run only records: set a pipeline, bind, say the
//! batch, dispatch.

mod device;
mod memory;
mod pipeline;

use std::collections::VecDeque;
use std::sync::Arc;

pub use device::{AdapterSummary, Checks, DeviceChoice, Gpu, adapters, choose};

use super::{Executor, POISON, PlanId, check_batches, check_read, check_write, initial_words};
use crate::error::{Error, Result};
use crate::graph::TensorId;
use crate::plan::{Operand, Place, Plan, Step};
use crate::shape::TensorType;
use memory::Guard;
use pipeline::{Pipeline, Pipelines};

/// Steps recorded into one submission. Enough to hide what a submission costs, few enough for a driver's watchdog.
const STEPS_PER_SUBMISSION: usize = 16;

/// Submissions the host may be ahead of the device.
const IN_FLIGHT: usize = 3;

/// Workgroups a dispatch may have in one direction, on every adapter.
const MAX_WORKGROUPS: usize = 65_535;

/// Runs plans on a GPU.
pub struct GpuExecutor {
    gpu: Gpu,
    guard: Guard,
    pipelines: Pipelines,
    leaves: Vec<Option<Leaf>>, // by tensor index
    plans: Vec<Loaded>,
    staging: Option<wgpu::Buffer>,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
}

struct Leaf {
    ty: TensorType,
    label: String,
    bytes: usize,
    buffer: wgpu::Buffer,
}

struct Loaded {
    plan: Arc<Plan>,
    slots: Vec<wgpu::Buffer>,
    dispatches: Vec<Dispatch>,
}

struct Dispatch {
    pipeline: Pipeline,
    bindings: wgpu::BindGroup,
    workgroups: crate::ops::Workgroups,
}

impl GpuExecutor {
    /// An executor on an open GPU.
    pub fn new(gpu: Gpu) -> Self {
        Self {
            gpu,
            guard: Guard::None,
            pipelines: Pipelines::default(),
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

    /// The GPU it runs on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Uses the host program's own buffer for an input, before the plan that reads it is loaded. Nothing is copied.
    ///
    /// # Errors
    /// If the input is loaded already, or the buffer is smaller than the tensor at `capacity`, or not a `STORAGE` buffer.
    pub fn adopt(&mut self, graph: &crate::graph::Graph, tensor: TensorId, buffer: wgpu::Buffer, capacity: usize) -> Result<()> {
        let ty = graph.ty(tensor);
        let label = graph.node(tensor).label.clone();
        let bytes = ty.bytes(capacity);
        if buffer.size() < bytes as u64 || !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            let found = format!("{} bytes, {:?}", buffer.size(), buffer.usage());
            return Err(Error::invalid(format!("the buffer for {label}"), found, format!("a STORAGE buffer of {bytes} bytes")));
        }
        let slot = self.leaf_slot(tensor);
        if slot.is_some() {
            return Err(Error::invalid(format!("the buffer for {label}"), "a loaded tensor", "one that no plan has loaded yet"));
        }
        *slot = Some(Leaf { ty, label, bytes, buffer });
        Ok(())
    }

    /// The buffer of a leaf or of a root of a plan, for a host that goes on computing with it on the device.
    ///
    /// # Errors
    /// If the tensor is neither.
    pub fn buffer(&self, plan: PlanId, tensor: TensorId) -> Result<&wgpu::Buffer> {
        let loaded = &self.plans[plan.0];
        let operand = check_read(&loaded.plan, tensor, 0)?;
        Ok(self.place(loaded, &operand))
    }

    /// Records one run of a plan into the host's own encoder, as one compute pass.
    ///
    /// # Errors
    /// If the batch is larger than the plan's capacity.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, plan: PlanId, batch: usize) -> Result<()> {
        let loaded = &self.plans[plan.0];
        check_batches(&loaded.plan, &[batch])?;
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for dispatch in &loaded.dispatches {
            let (x, y) = fold(dispatch.workgroups.count(batch));
            if x == 0 {
                continue;
            }
            pass.set_pipeline(&dispatch.pipeline.compute);
            pass.set_bind_group(0, &dispatch.bindings, &[]);
            pass.set_immediates(0, &(batch as u32).to_le_bytes());
            pass.dispatch_workgroups(x, y, 1);
        }
        Ok(())
    }

    /// Compares every guard band with what was written there.
    ///
    /// # Errors
    /// [`Error::Kernel`] naming the first buffer whose band was touched.
    pub fn check_guards(&mut self) -> Result<()> {
        let leaves = self.leaves.iter().flatten().map(|leaf| (leaf.label.clone(), leaf.buffer.clone(), leaf.bytes));
        let slots = self.plans.iter().flat_map(|loaded| {
            loaded.slots.iter().enumerate().map(|(i, buffer)| (format!("slot {i}"), buffer.clone(), loaded.plan.slots()[i].bytes))
        });
        let buffers: Vec<_> = leaves.chain(slots).collect();
        for (what, buffer, bytes) in buffers {
            let band = self.read_bytes(&buffer, bytes, buffer.size() as usize - bytes)?;
            if let Some(at) = memory::broken(&band) {
                let reason = format!("{what}: the guard band was overwritten {at} bytes past the end");
                return Err(Error::Kernel { kernel: what, device: self.gpu.name.clone(), reason });
            }
        }
        Ok(())
    }

    fn leaf_slot(&mut self, tensor: TensorId) -> &mut Option<Leaf> {
        if self.leaves.len() <= tensor.index() {
            self.leaves.resize_with(tensor.index() + 1, || None);
        }
        &mut self.leaves[tensor.index()]
    }

    fn place<'a>(&'a self, loaded: &'a Loaded, operand: &Operand) -> &'a wgpu::Buffer {
        match operand.place {
            Place::Leaf(id) => &self.leaves[id.index()].as_ref().expect("a loaded plan has its leaves").buffer,
            Place::Slot(slot) => &loaded.slots[slot],
        }
    }

    fn dispatch(&mut self, loaded: &Loaded, step: &Step) -> Result<Dispatch> {
        let updates = step.op.rules().updates();
        let mut writable: Vec<bool> = (0..step.inputs.len()).map(|i| updates.contains(&i)).collect();
        writable.extend(step.output.map(|_| true));
        let pipeline = self.pipelines.get(&self.gpu, &step.launch, writable)?;
        let operands = step.inputs.iter().chain(&step.output);
        let entries: Vec<_> = (0..)
            .zip(operands)
            .map(|(binding, operand)| wgpu::BindGroupEntry { binding, resource: self.place(loaded, operand).as_entire_binding() })
            .collect();
        let scope = self.gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let label = Some(step.launch.kernel.name);
        let bindings =
            self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label, layout: &pipeline.bindings, entries: &entries });
        if let Some(error) = pollster::block_on(scope.pop()) {
            let kernel = step.launch.kernel.name.to_owned();
            return Err(Error::Kernel { kernel, device: self.gpu.name.clone(), reason: error.to_string() });
        }
        Ok(Dispatch { pipeline, bindings, workgroups: step.launch.workgroups })
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
        polled.map(|_| ()).map_err(|e| Error::DeviceLost { device: self.gpu.name.clone(), reason: e.to_string() })
    }
}

/// A count of workgroups as two extents, neither above the limit, their product at least the count.
fn fold(count: usize) -> (u32, u32) {
    let y = count.div_ceil(MAX_WORKGROUPS).max(1);
    (count.div_ceil(y) as u32, y as u32)
}

impl Executor for GpuExecutor {
    fn device(&self) -> String {
        self.gpu.name.clone()
    }

    fn max_tensor_bytes(&self) -> u64 {
        device::max_tensor_bytes(&self.gpu.device.limits())
    }

    fn load(&mut self, plan: Arc<Plan>) -> Result<PlanId> {
        for step in plan.steps() {
            let count = step.launch.workgroups.count(plan.capacity());
            if count > MAX_WORKGROUPS * MAX_WORKGROUPS {
                let expected = format!("at most {MAX_WORKGROUPS}²: use a smaller batch");
                return Err(Error::invalid(format!("workgroups of {}", step.title()), count, expected));
            }
        }
        for leaf in plan.leaves() {
            let bytes = leaf.ty.bytes(plan.capacity());
            match self.leaf_slot(leaf.tensor) {
                Some(known) if known.bytes < bytes => {
                    let found = format!("{} of {} bytes", leaf.label, known.bytes);
                    return Err(Error::invalid("a leaf of an earlier plan", found, format!("{bytes} bytes: load the largest plan first")));
                }
                Some(_) => {}
                None => {
                    let buffer = memory::create(&self.gpu, &leaf.label, bytes, self.guard)?;
                    let words = initial_words(leaf.role, leaf.ty, plan.capacity());
                    self.gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&words));
                    *self.leaf_slot(leaf.tensor) = Some(Leaf { ty: leaf.ty, label: leaf.label.clone(), bytes, buffer });
                }
            }
        }
        let slot = |(i, slot): (usize, &crate::plan::Slot)| memory::create(&self.gpu, &format!("slot {i}"), slot.bytes, self.guard);
        let slots = plan.slots().iter().enumerate().map(slot).collect::<Result<_>>()?;
        let mut loaded = Loaded { plan: plan.clone(), slots, dispatches: Vec::new() };
        for step in plan.steps() {
            let dispatch = self.dispatch(&loaded, step)?;
            loaded.dispatches.push(dispatch);
        }
        self.plans.push(loaded);
        self.gpu.check_alive()?;
        Ok(PlanId(self.plans.len() - 1))
    }

    fn write(&mut self, tensor: TensorId, bytes: &[u8]) -> Result<()> {
        self.gpu.check_alive()?;
        let leaf = self.leaves.get(tensor.index()).and_then(Option::as_ref);
        let leaf =
            leaf.ok_or_else(|| Error::invalid("the tensor to write", format!("node {}", tensor.index()), "a leaf of a loaded plan"))?;
        check_write(&leaf.label, leaf.ty, leaf.bytes, bytes.len())?;
        let whole = bytes.len() / 4 * 4;
        self.gpu.queue.write_buffer(&leaf.buffer, 0, &bytes[..whole]);
        if whole < bytes.len() {
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.gpu.queue.write_buffer(&leaf.buffer, whole as u64, &last);
        }
        Ok(())
    }

    fn run(&mut self, plan: PlanId, batches: &[usize]) -> Result<()> {
        check_batches(&self.plans[plan.0].plan, batches)?;
        for chunk in batches.chunks(STEPS_PER_SUBMISSION) {
            self.gpu.check_alive()?;
            let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("shadernet run") });
            for &batch in chunk {
                self.encode(&mut encoder, plan, batch)?;
            }
            let submitted = self.gpu.queue.submit([encoder.finish()]);
            self.in_flight.push_back(submitted);
            self.throttle()?;
        }
        self.gpu.check_alive()
    }

    fn read(&mut self, plan: PlanId, tensor: TensorId, batch: usize) -> Result<Vec<u8>> {
        let loaded = &self.plans[plan.0];
        let operand = check_read(&loaded.plan, tensor, batch)?;
        let buffer = self.place(loaded, &operand).clone();
        let mut bytes = self.read_bytes(&buffer, 0, operand.ty.bytes(batch))?;
        bytes.truncate(operand.ty.shape.len(batch) * operand.ty.dtype.size());
        Ok(bytes)
    }

    fn wait(&mut self) -> Result<()> {
        self.in_flight.clear();
        self.poll(wgpu::PollType::wait_indefinitely())
    }

    fn poison(&mut self, plan: PlanId) -> Result<()> {
        for (slot, buffer) in self.plans[plan.0].plan.slots().iter().zip(&self.plans[plan.0].slots) {
            self.gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(&vec![POISON; slot.bytes / 4]));
        }
        self.gpu.check_alive()
    }

    fn allocated_bytes(&self) -> u64 {
        let leaves = self.leaves.iter().flatten().map(|leaf| leaf.buffer.size());
        leaves.chain(self.plans.iter().flat_map(|loaded| &loaded.slots).map(wgpu::Buffer::size)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn folded_workgroups_cover_the_count_within_the_limit() {
        for count in [0, 1, 65_535, 65_536, 131_070, 131_071, 1_000_003] {
            let (x, y) = fold(count);
            assert!(x <= 65_535 && y <= 65_535 && x as usize * y as usize >= count, "{count} became {x} x {y}");
        }
    }
}
