//! Buffers: making them within the adapter's limits, reading them back, and guard bands for tests.

use std::num::NonZeroU64;

use super::super::initial_word;
use super::{Gpu, GpuExecutor, Leaf};
use crate::error::{Error, Result};
use crate::plan::{self, Pack, Place, Plan};

/// Where a tensor is: a buffer of its own, or a part of one.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) buffer: wgpu::Buffer,
    /// Where the tensor begins and how many bytes it has.
    pub(super) offset: usize,
    pub(super) bytes: usize,
    /// Where what a kernel may see of it ends: padding and guard band are before.
    end: usize,
}

impl Region {
    /// The first `bytes` of a buffer of ours, which nothing else is in.
    pub(super) fn whole(buffer: wgpu::Buffer, bytes: usize) -> Self {
        let end = buffer.size() as usize;
        Self { buffer, offset: 0, bytes, end }
    }

    /// The first `bytes` of the host program's buffer; what is behind them is not ours.
    pub(super) fn adopted(buffer: wgpu::Buffer, bytes: usize) -> Self {
        Self { buffer, offset: 0, bytes, end: bytes }
    }

    /// What a kernel sees of it.
    pub(super) fn binding(&self) -> wgpu::BufferBinding<'_> {
        let size = NonZeroU64::new((self.end - self.offset) as u64);
        wgpu::BufferBinding { buffer: &self.buffer, offset: self.offset as u64, size }
    }

    /// Behind the tensor, where nothing may be written: offset and bytes.
    fn band(&self) -> [usize; 2] {
        let begin = self.offset + self.bytes;
        [begin, self.end - begin]
    }
}

/// Whether a band of known words lies behind every tensor, inside its binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    None,
    Band,
}

/// Bytes of a guard band.
const BAND: usize = 256;

/// The word it is filled with.
const GUARD_WORD: u32 = 0x5AFE_C0DE;

/// Bytes of the buffer for a tensor of `bytes`, its guard band included. Something without elements still needs a buffer to bind.
fn buffer_size(bytes: usize, guard: Guard) -> u64 {
    let band = if guard == Guard::Band { BAND } else { 0 };
    (bytes.max(4) + band) as u64
}

/// An error if no buffer on this adapter can be large enough.
pub(super) fn check_size(gpu: &Gpu, what: &str, bytes: usize, guard: Guard) -> Result<()> {
    let size = buffer_size(bytes, guard);
    let limit = super::device::max_tensor_bytes(&gpu.device.limits());
    if size <= limit {
        return Ok(());
    }
    Err(Error::BufferTooLarge { what: what.to_owned(), bytes: size, limit, adapter: gpu.name.clone() })
}

/// An error if a buffer, which may be the host program's, was not made for this use.
pub(super) fn check_usage(what: &str, buffer: &wgpu::Buffer, usage: wgpu::BufferUsages) -> Result<()> {
    if buffer.usage().contains(usage) {
        return Ok(());
    }
    Err(Error::invalid(format!("the buffer of {what}"), format!("{:?}", buffer.usage()), format!("one with {usage:?}")))
}

/// A storage buffer of `bytes`, plus its guard band, filled with zeros.
pub(super) fn create(gpu: &Gpu, what: &str, bytes: usize, guard: Guard) -> Result<wgpu::Buffer> {
    check_size(gpu, what, bytes, guard)?;
    let size = buffer_size(bytes, guard);
    let memory = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false });
    let errors = [validation, memory].map(|scope| pollster::block_on(scope.pop()));
    if errors.iter().any(Option::is_some) {
        return Err(gpu.blame(Error::OutOfMemory { what: what.to_owned(), bytes: size, device: gpu.name.clone() }));
    }
    gpu.check_alive()?;
    if guard == Guard::Band {
        gpu.queue.write_buffer(&buffer, bytes as u64, bytemuck::cast_slice(&vec![GUARD_WORD; (size as usize - bytes) / 4]));
    }
    Ok(buffer)
}

/// A buffer for a pack of tensors of these sizes, filled with zeros but for what lies between and behind them, and where each is.
pub(super) fn create_pack(gpu: &Gpu, what: &str, pack: &Pack, sizes: &[usize], guard: Guard) -> Result<Vec<Region>> {
    let buffer = create(gpu, what, pack.bytes, guard)?;
    let ends = pack.offsets[1..].iter().copied().chain([buffer.size() as usize]);
    let regions = pack.offsets.iter().zip(sizes).zip(ends);
    let regions: Vec<Region> = regions.map(|((&offset, &bytes), end)| Region { buffer: buffer.clone(), offset, bytes, end }).collect();
    for region in regions.iter().filter(|_| guard == Guard::Band) {
        let [begin, bytes] = region.band();
        gpu.queue.write_buffer(&buffer, begin as u64, bytemuck::cast_slice(&vec![GUARD_WORD; bytes / 4]));
    }
    Ok(regions)
}

/// Where a guard band was overwritten, in bytes from its start.
fn broken(band: &[u8]) -> Option<usize> {
    band.chunks_exact(4).position(|word| word != GUARD_WORD.to_ne_bytes()).map(|word| 4 * word)
}

impl GpuExecutor {
    /// Memory for what a plan reads, those of a pack together where none of them has any yet.
    pub(super) fn allocate_leaves(&mut self, plan: &Plan) -> Result<()> {
        let new = |exec: &mut Self, leaf: &plan::Leaf, region: Region| {
            let start = initial_word(leaf.role, leaf.ty.dtype);
            if start != 0 {
                // New buffers hold zeros, so that a data set costs no memory of the host here.
                let words = vec![start; region.bytes / 4];
                exec.gpu.queue.write_buffer(&region.buffer, region.offset as u64, bytemuck::cast_slice(&words));
            }
            *exec.leaf_slot(leaf.tensor) = Some(Leaf { ty: leaf.ty, label: leaf.label.clone(), region });
        };
        for pack in plan.packs().iter().filter(|pack| pack.is_of_leaves()) {
            let is_member = |leaf: &&plan::Leaf| pack.members.contains(&Place::Leaf(leaf.tensor));
            let mut members: Vec<&plan::Leaf> = plan.leaves().iter().filter(is_member).collect();
            members.sort_by_key(|leaf| pack.members.iter().position(|&member| member == Place::Leaf(leaf.tensor)));
            let all_new = members.iter().all(|leaf| self.leaf_slot(leaf.tensor).is_none());
            if all_new && check_size(&self.gpu, &members[0].label, pack.bytes, self.guard).is_ok() {
                let sizes: Vec<usize> = members.iter().map(|leaf| leaf.ty.bytes(plan.capacity())).collect();
                let regions = create_pack(&self.gpu, &members[0].label, pack, &sizes, self.guard)?;
                members.into_iter().zip(regions).for_each(|(leaf, region)| new(self, leaf, region));
            }
        }
        for leaf in plan.leaves() {
            if self.leaf_slot(leaf.tensor).is_none() {
                let bytes = leaf.ty.bytes(plan.capacity());
                let buffer = create(&self.gpu, &leaf.label, bytes, self.guard)?;
                new(self, leaf, Region::whole(buffer, bytes));
            }
        }
        Ok(())
    }

    /// Memory for what a plan computes.
    pub(super) fn allocate_slots(&self, plan: &Plan) -> Result<Vec<Region>> {
        let mut slots: Vec<Option<Region>> = vec![None; plan.slots().len()];
        for pack in plan.packs().iter().filter(|pack| !pack.is_of_leaves()) {
            let slot = |place: &Place| if let Place::Slot(slot) = place { Some(*slot) } else { None };
            let members: Vec<usize> = pack.members.iter().filter_map(slot).collect();
            let what = format!("slots {members:?}");
            if check_size(&self.gpu, &what, pack.bytes, self.guard).is_ok() {
                let sizes: Vec<usize> = members.iter().map(|&slot| plan.slots()[slot].bytes).collect();
                let regions = create_pack(&self.gpu, &what, pack, &sizes, self.guard)?;
                members.into_iter().zip(regions).for_each(|(slot, region)| slots[slot] = Some(region));
            }
        }
        let own = |(i, (region, slot)): (usize, (Option<Region>, &plan::Slot))| match region {
            Some(region) => Ok(region),
            None => Ok(Region::whole(create(&self.gpu, &format!("slot {i}"), slot.bytes, self.guard)?, slot.bytes)),
        };
        slots.into_iter().zip(plan.slots()).enumerate().map(own).collect()
    }

    /// Compares what lies behind a tensor with what was written there.
    pub(super) fn check_guard(&mut self, what: String, region: &Region) -> Result<()> {
        let [begin, bytes] = region.band();
        let band = self.read_bytes(&region.buffer, begin, bytes)?;
        let Some(at) = broken(&band) else { return Ok(()) };
        let reason = format!("{what}: the guard band was overwritten {at} bytes past the end");
        Err(Error::Kernel { kernel: what, device: self.gpu.name.clone(), reason })
    }

    /// Copies part of a buffer to the host, after all work submitted so far. Offset and length are multiples of 4.
    pub(super) fn read_bytes(&mut self, buffer: &wgpu::Buffer, offset: usize, bytes: usize) -> Result<Vec<u8>> {
        self.gpu.check_alive()?;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let staging = self.staging(bytes)?;
        let scope = self.gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("read-back") });
        encoder.copy_buffer_to_buffer(buffer, offset as u64, &staging, 0, bytes as u64);
        self.gpu.queue.submit([encoder.finish()]);
        let (sender, receiver) = futures_intrusive::channel::shared::oneshot_channel();
        staging.slice(..bytes as u64).map_async(wgpu::MapMode::Read, move |result| {
            // The receiver waits below, so the send cannot fail.
            let _ = sender.send(result);
        });
        // All of these are valid calls, so what fails here is the device.
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(self.gpu.blame(self.gpu.lost(error.to_string())));
        }
        self.in_flight.clear();
        self.poll(wgpu::PollType::wait_indefinitely())?;
        let mapped = match pollster::block_on(receiver.receive()) {
            Some(result) => result.map_err(|error| error.to_string()),
            None => Err("the read-back was dropped".to_owned()),
        };
        mapped.map_err(|reason| self.gpu.blame(self.gpu.lost(reason)))?;
        let view = staging.slice(..bytes as u64).get_mapped_range().map_err(|error| self.gpu.lost(error.to_string()))?;
        let content = view.to_vec();
        drop(view);
        staging.unmap();
        self.staging = Some(staging);
        Ok(content)
    }

    /// A buffer that the host can read, at least this large: the last one if it will do.
    fn staging(&mut self, bytes: usize) -> Result<wgpu::Buffer> {
        if let Some(staging) = self.staging.take().filter(|staging| staging.size() >= bytes as u64) {
            return Ok(staging);
        }
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let label = Some("read-back");
        let scope = self.gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let descriptor = wgpu::BufferDescriptor { label, size: bytes as u64, usage, mapped_at_creation: false };
        let staging = self.gpu.device.create_buffer(&descriptor);
        match pollster::block_on(scope.pop()) {
            None => Ok(staging),
            Some(_) => {
                let device = self.gpu.name.clone();
                Err(Error::OutOfMemory { what: "reading back".to_owned(), bytes: bytes as u64, device })
            }
        }
    }
}
