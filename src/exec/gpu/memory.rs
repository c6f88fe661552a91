//! Buffers: making them within the adapter's limits, reading them back, and guard bands for tests.

use super::{Gpu, GpuExecutor};
use crate::error::{Error, Result};

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

/// A storage buffer of `bytes`, plus its guard band.
pub(super) fn create(gpu: &Gpu, what: &str, bytes: usize, guard: Guard) -> Result<wgpu::Buffer> {
    let band = if guard == Guard::Band { BAND } else { 0 };
    // A tensor without elements still needs something to bind.
    let size = (bytes.max(4) + band) as u64;
    let limit = super::device::max_tensor_bytes(&gpu.device.limits());
    if size > limit {
        return Err(Error::BufferTooLarge { what: what.to_owned(), bytes: size, limit, adapter: gpu.name.clone() });
    }
    let memory = gpu.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false });
    let errors = [validation, memory].map(|scope| pollster::block_on(scope.pop()));
    if errors.iter().any(Option::is_some) {
        return Err(Error::OutOfMemory { what: what.to_owned(), bytes: size, device: gpu.name.clone() });
    }
    gpu.check_alive()?;
    if band > 0 {
        gpu.queue.write_buffer(&buffer, bytes as u64, bytemuck::cast_slice(&vec![GUARD_WORD; (size as usize - bytes) / 4]));
    }
    Ok(buffer)
}

/// Where a guard band was overwritten, in bytes from its start.
pub(super) fn broken(band: &[u8]) -> Option<usize> {
    band.chunks_exact(4).position(|word| word != GUARD_WORD.to_ne_bytes()).map(|word| 4 * word)
}

impl GpuExecutor {
    /// Copies part of a buffer to the host, after all work submitted so far. Offset and length are multiples of 4.
    pub(super) fn read_bytes(&mut self, buffer: &wgpu::Buffer, offset: usize, bytes: usize) -> Result<Vec<u8>> {
        self.gpu.check_alive()?;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let lost = |reason: String| Error::DeviceLost { device: self.gpu.name.clone(), reason };
        let device = &self.gpu.device;
        let staging = match self.staging.take().filter(|staging| staging.size() >= bytes as u64) {
            Some(staging) => staging,
            None => {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
                let label = Some("read-back");
                let made = device.create_buffer(&wgpu::BufferDescriptor { label, size: bytes as u64, usage, mapped_at_creation: false });
                if pollster::block_on(scope.pop()).is_some() {
                    let device = self.gpu.name.clone();
                    return Err(Error::OutOfMemory { what: "reading back".to_owned(), bytes: bytes as u64, device });
                }
                made
            }
        };
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("read-back") });
        encoder.copy_buffer_to_buffer(buffer, offset as u64, &staging, 0, bytes as u64);
        self.gpu.queue.submit([encoder.finish()]);
        let (sender, receiver) = futures_intrusive::channel::shared::oneshot_channel();
        staging.slice(..bytes as u64).map_async(wgpu::MapMode::Read, move |result| {
            // The receiver waits below, so the send cannot fail.
            let _ = sender.send(result);
        });
        self.in_flight.clear();
        self.poll(wgpu::PollType::wait_indefinitely())?;
        match pollster::block_on(receiver.receive()) {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(lost(error.to_string())),
            None => return Err(lost("the read-back was dropped".to_owned())),
        }
        let view = staging.slice(..bytes as u64).get_mapped_range().map_err(|error| lost(error.to_string()))?;
        let content = view.to_vec();
        drop(view);
        staging.unmap();
        self.staging = Some(staging);
        Ok(content)
    }
}
