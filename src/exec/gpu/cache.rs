//! What the driver compiled, kept in a file from one process to the next.
//!
//! A driver trusts what it is given as its own, so a file is read only if its frame, its checksum, the adapter and the driver
//! are right; whatever else is found there is left out, with a warning, and replaced.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::device::{Gpu, lock};
use crate::error::Error;
use crate::files::{load_checkpoint, save_checkpoint};

/// The most bytes that are kept: drivers add to a cache and never take away.
const LARGEST: usize = 256 << 20;

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Content {
    device: String,
    data: Vec<u8>,
}

/// A driver's cache of pipelines, and the file it is kept in.
pub(super) struct PipelineCache {
    pub(super) pipelines: wgpu::PipelineCache,
    path: PathBuf,
    /// Checksum of what the file holds; nothing once it could not be written.
    kept: Mutex<Option<u32>>,
}

impl fmt::Debug for PipelineCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PipelineCache({})", self.path.display())
    }
}

impl PipelineCache {
    /// The cache of this GPU in `folder`, filled with what an earlier process left there; nothing if its driver has no such caches.
    pub(super) fn open(gpu: &Gpu, folder: &Path) -> Option<Self> {
        if !gpu.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let path = folder.join(wgpu::util::pipeline_cache_key(&gpu.device.adapter_info())?);
        let data = match load_checkpoint::<Content>(&path) {
            Ok(Content { device, data }) if device == gpu.identity() => Some(data),
            Ok(Content { device, .. }) => {
                log::info!("{}: compiled for {device}, so kernels are compiled anew", path.display());
                None
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                log::warn!("compiled kernels are not usable, so they are compiled anew: {error}");
                None
            }
        };
        let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("shadernet"), data: data.as_deref(), fallback: true };
        // SAFETY: the data is what `get_data` gave on this adapter with this driver: a checksum over the file tells a damaged
        // one, and wgpu compares a header of its own with the driver's version. The folder is the user's own, as the program is.
        #[allow(unsafe_code, reason = "a driver's cache cannot be filled otherwise")]
        let pipelines = unsafe { gpu.device.create_pipeline_cache(&descriptor) };
        if let Some(error) = pollster::block_on(scope.pop()) {
            log::warn!("compiled kernels are not kept: {error}");
            return None;
        }
        Some(Self { pipelines, path, kept: Mutex::new(Some(data.map_or(0, |data| crc32fast::hash(&data)))) })
    }

    /// Writes what the driver has compiled since, if anything. Failing is no more than a warning.
    pub(super) fn keep(&self, gpu: &Gpu) {
        let mut kept = lock(&self.kept);
        let (Some(before), Some(data)) = (*kept, self.pipelines.get_data()) else { return };
        let now = crc32fast::hash(&data);
        if now == before || data.len() > LARGEST {
            return;
        }
        let content = Content { device: gpu.identity(), data };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let written = std::fs::create_dir_all(folder).map_err(Error::io(folder, "cannot make the folder"));
        *kept = match written.and_then(|()| save_checkpoint(&self.path, &content)) {
            Ok(()) => Some(now),
            Err(error) => {
                log::warn!("compiled kernels are not kept: {error}");
                None
            }
        };
    }
}
