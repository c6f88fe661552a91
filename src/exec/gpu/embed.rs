//! For a host program with a device of its own: its buffers as inputs, its encoder to record into, our results in place.

use super::memory::Region;
use super::{Error, GpuExecutor, Leaf, PlanId, Result, check_batches, check_read, memory};
use crate::graph::{Graph, Role, TensorId};

impl GpuExecutor {
    /// Uses the host program's own buffer for a leaf of the graph (an input, a parameter), before any plan that reads it is
    /// loaded. Nothing is copied: a run sees what the buffer holds then. No plan of a larger capacity may be loaded later.
    ///
    /// # Errors
    /// If the tensor is not a leaf or is loaded already, or the buffer is smaller than the tensor at `capacity` images, or
    /// not a `STORAGE` buffer.
    pub fn adopt(&mut self, graph: &Graph, tensor: TensorId, buffer: wgpu::Buffer, capacity: usize) -> Result<()> {
        let node = graph.node(tensor);
        let (ty, label) = (node.ty, node.label.clone());
        let what = || format!("the buffer for {label} {ty}");
        if matches!(node.role, Role::Value | Role::Extra(_) | Role::Effect) {
            return Err(Error::invalid(what(), format!("{:?}", node.role), "an input, a parameter, state or a constant"));
        }
        let bytes = ty.bytes(capacity);
        memory::check_usage(&label, &buffer, wgpu::BufferUsages::STORAGE)?;
        memory::check_size(&self.gpu, &label, bytes, memory::Guard::None)?;
        if buffer.size() < bytes as u64 {
            return Err(Error::invalid(what(), format!("{} bytes", buffer.size()), format!("at least {bytes}")));
        }
        let slot = self.leaf_slot(tensor);
        if slot.is_some() {
            return Err(Error::invalid(what(), "a tensor that is loaded", "one that no plan has loaded yet"));
        }
        *slot = Some(Leaf { ty, label, region: Region::adopted(buffer, bytes) });
        Ok(())
    }

    /// Where a leaf or a root of a plan is, for a host that goes on computing with it on the device: the buffer, the byte at which the
    /// tensor starts, row-major, and its size at the plan's capacity or more. Parameters that are learned together lie in one buffer. It
    /// has the usages `STORAGE`, `COPY_SRC` and `COPY_DST`, if it is ours, and all stays so for as long as the executor lives.
    ///
    /// # Errors
    /// If the tensor is neither.
    pub fn buffer(&self, plan: PlanId, tensor: TensorId) -> Result<wgpu::BufferBinding<'_>> {
        let loaded = self.loaded(plan)?;
        let operand = check_read(&loaded.plan, tensor, 0)?;
        Ok(self.place(loaded, &operand).binding())
    }

    /// Records one run of a plan into the host's own encoder, as one compute pass. The host submits it.
    ///
    /// # Errors
    /// If the batch is larger than the plan's capacity.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, plan: PlanId, batch: usize) -> Result<()> {
        let loaded = self.loaded(plan)?;
        check_batches(&loaded.plan, &[batch])?;
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for dispatch in &loaded.dispatches {
            dispatch.record(&mut pass, batch);
        }
        Ok(())
    }
}
