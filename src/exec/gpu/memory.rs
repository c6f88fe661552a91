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
