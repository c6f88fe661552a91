//! Which device: the adapters there are, which one a word like `auto` means, and opening it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::cache::PipelineCache;
use super::matrices::{self, Cooperative};
use crate::error::{Error, Result};
use crate::ops::{LEAST_SPREAD, Matrices, Style};

/// What a user asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best hardware GPU that has what the kernels need, else the CPU.
    #[default]
    Auto,
    /// The CPU path.
    Cpu,
    /// The best hardware GPU, or an error.
    Gpu,
    /// The adapter of this index in [`adapters`], or whose name contains this text, whatever its kind.
    Named(String),
}

impl std::str::FromStr for DeviceChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "gpu" => Self::Gpu,
            _ => Self::Named(text.to_owned()),
        })
    }
}

/// An adapter, as far as choosing one needs.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterSummary {
    /// Its place in the list, a name for `--device`.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// The driver with its version.
    pub driver: String,
    /// Least and greatest subgroup size.
    pub subgroup_size: [u32; 2],
    /// Bytes one tensor can have.
    pub max_tensor_bytes: u64,
    /// Bytes of workgroup memory.
    pub max_workgroup_bytes: u32,
    /// Invocations of a workgroup.
    pub max_invocations: u32,
    /// Storage buffers of a kernel.
    pub max_storage_buffers: u32,
    /// Names of the features that kernels use or may come to use.
    pub features: Vec<String>,
    /// What every kernel needs and the adapter lacks; empty for one that can be used.
    pub lacks: Vec<String>,
}

/// What the portable kernels need of an adapter.
const INVOCATIONS: u32 = 256;
const WORKGROUP_BYTES: u32 = 16 * 1024;
const STORAGE_BUFFERS: u32 = 8;

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // Validation layers check wgpu, not our kernels, and are seldom installed; WGPU_VALIDATION=1 asks for them.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    wgpu::Instance::new(descriptor)
}

fn enumerate() -> Vec<wgpu::Adapter> {
    pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()))
}

fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let wanted = [
        ("immediates", wgpu::Features::IMMEDIATES),
        ("timestamp-query", wgpu::Features::TIMESTAMP_QUERY),
        ("timestamp-query-inside-passes", wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
        ("subgroup", wgpu::Features::SUBGROUP),
        ("shader-f16", wgpu::Features::SHADER_F16),
        ("pipeline-cache", wgpu::Features::PIPELINE_CACHE),
        ("cooperative-matrix", wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
    ];
    AdapterSummary {
        index,
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        },
        backend: info.backend.to_str().to_owned(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        name: info.name,
        subgroup_size: [info.subgroup_min_size, info.subgroup_max_size],
        max_tensor_bytes: max_tensor_bytes(&limits),
        max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_invocations: limits.max_compute_invocations_per_workgroup,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        features: wanted.iter().filter(|(_, feature)| features.contains(*feature)).map(|(name, _)| (*name).to_owned()).collect(),
        lacks: lacks(features, &limits),
    }
}

/// What every kernel needs and these features and limits lack.
fn lacks(features: wgpu::Features, limits: &wgpu::Limits) -> Vec<String> {
    let mut lacks = Vec::new();
    if !features.contains(wgpu::Features::IMMEDIATES) || limits.max_immediate_size < 4 {
        lacks.push("IMMEDIATES with max_immediate_size of 4".to_owned());
    }
    for (what, found, needed) in [
        ("invocations of a workgroup", limits.max_compute_invocations_per_workgroup, INVOCATIONS),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, WORKGROUP_BYTES),
        ("storage buffers", limits.max_storage_buffers_per_shader_stage, STORAGE_BUFFERS),
    ] {
        if found < needed {
            lacks.push(format!("{what}: found {found}, needed {needed}"));
        }
    }
    lacks
}

/// The most bytes a storage buffer can have and be bound whole.
pub(super) fn max_tensor_bytes(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
}

/// Every adapter of the machine, in the driver's order.
pub fn adapters() -> Vec<AdapterSummary> {
    enumerate().iter().enumerate().map(|(i, adapter)| summary(i, adapter)).collect()
}

/// What a choice comes to, and why, without opening anything. `None` is the CPU.
///
/// # Errors
/// [`Error::UnknownDevice`] if nothing matches.
pub fn choose(choice: &DeviceChoice, adapters: &[AdapterSummary]) -> Result<(Option<usize>, String)> {
    let unknown = |asked: &str| {
        let names = adapters.iter().map(|adapter| format!("{}: {} ({})", adapter.index, adapter.name, adapter.kind));
        Error::UnknownDevice { asked: asked.to_owned(), available: names.chain(["cpu".to_owned()]).collect() }
    };
    let rank = |adapter: &&AdapterSummary| ["discrete", "integrated", "virtual", "other"].iter().position(|kind| *kind == adapter.kind);
    let hardware = adapters.iter().filter(|adapter| adapter.kind != "software" && adapter.lacks.is_empty()).min_by_key(rank);
    match (choice, hardware) {
        (DeviceChoice::Cpu, _) => Ok((None, "the CPU was asked for".to_owned())),
        (DeviceChoice::Auto | DeviceChoice::Gpu, Some(gpu)) => {
            Ok((Some(gpu.index), format!("the best hardware GPU: {}, {}", gpu.kind, gpu.backend)))
        }
        (DeviceChoice::Auto, None) => {
            let software = adapters.iter().filter(|adapter| adapter.kind == "software").count();
            let why = match software {
                0 => "no GPU found".to_owned(),
                _ => format!("no hardware GPU found; software adapters ({software}) are slower than the CPU path and used only when named"),
            };
            Ok((None, why))
        }
        (DeviceChoice::Gpu, None) => Err(unknown("gpu")),
        (DeviceChoice::Named(name), _) => {
            let wanted = name.to_lowercase();
            let by_index = wanted.parse::<usize>().ok().and_then(|index| adapters.get(index));
            let by_name = || adapters.iter().find(|adapter| !wanted.is_empty() && adapter.name.to_lowercase().contains(&wanted));
            let found = by_index.or_else(by_name).ok_or_else(|| unknown(name))?;
            Ok((Some(found.index), format!("it matches {name:?}")))
        }
    }
}

/// Whether kernels run with the bounds checks that naga can add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checks {
    /// As written. Every kernel guards its own loads and stores.
    #[default]
    Off,
    /// With clamped indices and bounded loops: slower, and the same results. The test suite runs both ways.
    On,
}

/// How a GPU is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuOptions {
    /// Whether kernels run with bounds checks.
    pub checks: Checks,
    /// Whether kernels may multiply by cooperative matrices, where what they load or store is f16.
    pub cooperative: Cooperative,
}

impl From<Checks> for GpuOptions {
    fn from(checks: Checks) -> Self {
        Self { checks, ..Self::default() }
    }
}

/// An open GPU. Cheap to clone; executors made from one share it.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) name: String,
    pub(super) checks: Checks,
    pub(super) style: Style,
    /// On a software adapter how many invocations a subgroup has at least, if they can hand each other values and are enough for
    /// kernels that do.
    pub(super) spread: Option<u32>,
    /// Cooperative matrices that kernels may use.
    pub(super) matrices: Arc<[Matrices]>,
    /// Where compiled pipelines are kept, if they are.
    pub(super) cache: Option<Arc<PipelineCache>>,
    /// Why the device was lost, once it was.
    pub(super) loss: Arc<Mutex<Option<String>>>,
    /// The first error that no scope caught.
    pub(super) uncaught: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    /// Opens the adapter of this index in [`adapters`], without cooperative matrices.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it lacks what every kernel needs, or the driver refuses.
    pub fn open(index: usize, checks: Checks) -> Result<Self> {
        Self::open_with(index, checks.into())
    }

    /// [`open`](Self::open) with all that can be said of it.
    ///
    /// # Errors
    /// As [`open`](Self::open). A lack of cooperative matrices is none.
    pub fn open_with(index: usize, options: GpuOptions) -> Result<Self> {
        let mut all = enumerate();
        if index >= all.len() {
            return Err(Error::UnknownDevice { asked: index.to_string(), available: all.iter().map(|a| a.get_info().name).collect() });
        }
        let adapter = all.swap_remove(index);
        let summary = summary(index, &adapter);
        if !summary.lacks.is_empty() {
            return Err(Error::Unsupported { adapter: summary.name, lacks: summary.lacks.join("; ") });
        }
        let times = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        // With it a driver may compile for subgroups of any size. Hardware has no kernel that gains by it.
        let shared = if summary.kind == "software" { wgpu::Features::SUBGROUP } else { wgpu::Features::empty() };
        let optional = times | shared | wgpu::Features::PIPELINE_CACHE | wgpu::Features::SHADER_F16;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("shadernet"),
            required_features: wgpu::Features::IMMEDIATES | (adapter.features() & optional),
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let mut matrices = if options.cooperative == Cooperative::Auto { matrices::of_adapter(&adapter) } else { Vec::new() };
        let opened = if matrices.is_empty() { None } else { matrices::request(&adapter, &descriptor) };
        if opened.is_none() {
            matrices.clear();
        }
        let refused = |e: wgpu::RequestDeviceError| Error::Unsupported {
            adapter: summary.name.clone(),
            lacks: format!("a driver that opens it: {e}"),
        };
        let opened = opened.map_or_else(|| pollster::block_on(adapter.request_device(&descriptor)), Ok);
        let (device, queue) = opened.map_err(refused)?;
        let gpu = Self { matrices: matrices.into(), ..Self::from_wgpu(device, queue, &summary.name, options.checks)? };
        let lost = gpu.loss.clone();
        gpu.device.set_device_lost_callback(move |reason, message| {
            lock(&lost).get_or_insert_with(|| format!("{reason:?}: {message}"));
        });
        let uncaught = gpu.uncaught.clone();
        gpu.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            log::error!("{error}");
            lock(&uncaught).get_or_insert_with(|| error.to_string());
        }));
        Ok(gpu)
    }

    /// Works on a device that the host program opened with the feature `IMMEDIATES` and `max_immediate_size` of at least 4;
    /// every other limit may be wgpu's default. The host keeps its own error and device-lost callbacks. No kernel uses cooperative
    /// matrices there; on a software adapter those that are fast want the feature `SUBGROUP` too.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device was opened with less than every kernel needs.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue, name: &str, checks: Checks) -> Result<Self> {
        let lacks = lacks(device.features(), &device.limits());
        if !lacks.is_empty() {
            return Err(Error::Unsupported { adapter: name.to_owned(), lacks: lacks.join("; ") });
        }
        let info = device.adapter_info();
        let (style, matrices) = (style(&info), Arc::default());
        let (loss, uncaught) = (Arc::default(), Arc::default());
        let software = style == Style::Registers;
        let enough = device.features().contains(wgpu::Features::SUBGROUP) && info.subgroup_min_size >= LEAST_SPREAD;
        let spread = (software && enough).then_some(info.subgroup_min_size);
        if software && !enough {
            log::warn!("{name} is open without SUBGROUP of {LEAST_SPREAD} invocations: matrix products are many times slower");
        }
        Ok(Self { device, queue, name: name.to_owned(), checks, style, spread, matrices, cache: None, loss, uncaught })
    }

    /// The same GPU, with what its driver compiles kept in a file of this folder, so that the next process need not compile it
    /// again. The folder need not exist. Without this nothing is written. Only Vulkan has such caches, and a device that the host
    /// program opened needs the feature `PIPELINE_CACHE`; elsewhere nothing changes.
    pub fn with_cache(self, folder: &Path) -> Self {
        let cache = PipelineCache::open(&self, folder).map(Arc::new);
        Self { cache, ..self }
    }

    /// The same GPU for executors that prefer kernels of this style, whatever the adapter is.
    pub fn with_style(self, style: Style) -> Self {
        Self { style, ..self }
    }

    /// The style of kernels that executors on this GPU prefer: registers on a software adapter, else portable.
    pub fn style(&self) -> Style {
        self.style
    }

    /// Whether kernels can load and store 16-bit floats: the device was opened with `SHADER_F16`.
    pub fn has_f16(&self) -> bool {
        self.device.features().contains(wgpu::Features::SHADER_F16)
    }

    /// The cooperative matrices that kernels may use here; none unless the GPU was opened so ([`GpuOptions::cooperative`]).
    pub fn matrices(&self) -> &[Matrices] {
        &self.matrices
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver with its version.
    pub fn driver(&self) -> String {
        let info = self.device.adapter_info();
        format!("{} {}", info.driver, info.driver_info).trim().to_owned()
    }

    /// Adapter, backend and driver, whatever the host program calls the device.
    pub(super) fn identity(&self) -> String {
        let info = self.device.adapter_info();
        format!("{}, {}, {}", info.name, info.backend, self.driver())
    }

    /// Bytes that wgpu's allocator has handed out on this device, and bytes it has taken from the driver for that; `None` where
    /// a backend does not tell.
    pub fn allocator_bytes(&self) -> Option<[u64; 2]> {
        let report = self.device.generate_allocator_report()?;
        Some([report.total_allocated_bytes, report.total_reserved_bytes])
    }

    /// The device below, for a host that shares it.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The queue below, for a host that shares it.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// An error if the device is known to be lost, or failed outside any scope. Cheap; the loss of a device that still has
    /// work, or whose callbacks are the host program's, shows only in [`check_device`](Self::check_device).
    pub(super) fn check_alive(&self) -> Result<()> {
        // The callback of a lost device comes while the device is polled. What the poll itself says adds nothing.
        let _ = self.device.poll(wgpu::PollType::Poll);
        let reason = lock(&self.loss).clone().or_else(|| lock(&self.uncaught).clone());
        reason.map_or(Ok(()), |reason| Err(self.lost(reason)))
    }

    /// An error if the device is lost: waits for its work, then asks it for a few bytes, which a lost one does not have.
    pub(super) fn check_device(&self) -> Result<()> {
        let _ = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check_alive()?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let usage = wgpu::BufferUsages::COPY_SRC;
        let probe = self.device.create_buffer(&wgpu::BufferDescriptor { label: Some("probe"), size: 4, usage, mapped_at_creation: true });
        let answers = probe.get_mapped_range(..).is_ok();
        let [_, memory] = [validation, memory].map(|scope| pollster::block_on(scope.pop()));
        if answers || memory.is_some() {
            return Ok(());
        }
        Err(self.lost("it no longer answers".to_owned()))
    }

    /// What a failure comes to: the loss of the device where that is behind it, else the error itself.
    pub(super) fn blame(&self, error: Error) -> Error {
        self.check_device().err().unwrap_or(error)
    }

    /// [`Error::DeviceLost`] of this device.
    pub(super) fn lost(&self, reason: String) -> Error {
        Error::DeviceLost { device: self.name.clone(), reason }
    }
}

/// The kernels that suit an adapter.
fn style(info: &wgpu::AdapterInfo) -> Style {
    if info.device_type == wgpu::DeviceType::Cpu { Style::Registers } else { Style::Portable }
}

/// What the mutex holds; a panic elsewhere cannot spoil a message.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
