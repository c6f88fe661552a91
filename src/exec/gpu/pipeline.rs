//! Pipelines: one for each kernel, set of constants and pattern of bindings, made once, those of a plan side by side.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use rayon::prelude::*;

use super::device::{Checks, Gpu};
use crate::error::{Error, Result};
use crate::ops::{Kernel, Launch, SPREAD};

/// Which of a kernel's bindings it may write, from binding 0 up.
pub(super) type Writable = Vec<bool>;

/// What tells one pipeline from another.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    kernel: Kernel,
    constants: Vec<(&'static str, u64)>,
    writable: Writable,
}

impl Key {
    fn new(launch: &Launch, writable: Writable) -> Self {
        let constants = launch.constants.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        Self { kernel: launch.kernel, constants, writable }
    }
}

/// A compute pipeline with the layout its bind groups take.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub(super) compute: wgpu::ComputePipeline,
    pub(super) bindings: wgpu::BindGroupLayout,
}

/// The pipelines made so far.
#[derive(Default)]
pub(super) struct Pipelines {
    modules: HashMap<Kernel, wgpu::ShaderModule>,
    made: HashMap<Key, Pipeline>,
}

impl Pipelines {
    /// Makes the pipelines of these launches that are new, over all cores. Returns how many there were.
    ///
    /// # Errors
    /// That of the first launch whose kernel the device refuses; the others are made.
    pub(super) fn make(&mut self, gpu: &Gpu, launches: &[(&Launch, Writable)]) -> Result<usize> {
        let keys = launches.iter().map(|(launch, writable)| (Key::new(launch, writable.clone()), *launch));
        let missing = distinct(keys.filter(|(key, _)| !self.made.contains_key(key)), |(key, _)| key.clone());
        let kernels = distinct(missing.iter().map(|(key, _)| key.kernel).filter(|kernel| !self.modules.contains_key(kernel)), |&k| k);
        let mut refused = Vec::new();
        for (kernel, made) in side_by_side(kernels, |&kernel| judged(gpu, kernel, || module(gpu, kernel))) {
            match made {
                Ok(module) => drop(self.modules.insert(kernel, module)),
                Err(error) => refused.push(error),
            }
        }
        let possible: Vec<_> = missing.into_iter().filter(|(key, _)| self.modules.contains_key(&key.kernel)).collect();
        let count = possible.len();
        let modules = &self.modules;
        for ((key, _), made) in
            side_by_side(possible, |(key, launch)| judged(gpu, key.kernel, || pipeline(gpu, &modules[&key.kernel], launch, &key.writable)))
        {
            match made {
                Ok(pipeline) => drop(self.made.insert(key, pipeline)),
                Err(error) => refused.push(error),
            }
        }
        refused.into_iter().next().map_or(Ok(count), Err)
    }

    /// The pipeline for a launch, if it was made.
    pub(super) fn get(&self, launch: &Launch, writable: Writable) -> Option<Pipeline> {
        self.made.get(&Key::new(launch, writable)).cloned()
    }
}

/// The first item of each key.
fn distinct<T, K: Hash + Eq>(items: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut seen = HashSet::new();
    items.filter(|item| seen.insert(key(item))).collect()
}

/// Each item with what `make` makes of it, in their order; over all cores if there are several.
fn side_by_side<T: Send, R: Send>(items: Vec<T>, make: impl Fn(&T) -> R + Sync) -> Vec<(T, R)> {
    let pair = |item| {
        let made = make(&item);
        (item, made)
    };
    if items.len() < 2 { items.into_iter().map(pair).collect() } else { items.into_par_iter().map(pair).collect() }
}

/// What `make` makes of a kernel, or how the device failed. wgpu keeps error scopes for each thread.
fn judged<T>(gpu: &Gpu, kernel: Kernel, make: impl FnOnce() -> T) -> Result<T> {
    let scopes = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
    let [internal, memory, validation] = scopes.map(|filter| gpu.device.push_error_scope(filter));
    let made = make();
    let errors = [validation, memory, internal].map(|scope| pollster::block_on(scope.pop()));
    match errors.into_iter().flatten().next() {
        Some(error) => {
            Err(gpu.blame(Error::Kernel { kernel: kernel.name.to_owned(), device: gpu.name.clone(), reason: error.to_string() }))
        }
        None => gpu.check_alive().map(|()| made),
    }
}

fn pipeline(gpu: &Gpu, module: &wgpu::ShaderModule, launch: &Launch, writable: &[bool]) -> Pipeline {
    let device = &gpu.device;
    let label = Some(launch.kernel.name);
    let entries: Vec<_> = (0..).zip(writable).map(|(binding, &writable)| storage(binding, writable)).collect();
    let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
    let layout =
        device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor { label, bind_group_layouts: &[Some(&bindings)], immediate_size: 4 });
    let mut constants = launch.constants.clone();
    if let (Some(most), Some(has)) = (launch.spread(), gpu.spread) {
        constants.iter_mut().filter(|(name, _)| *name == SPREAD).for_each(|(_, value)| *value = f64::from(most.min(has)));
    }
    let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&layout),
        module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &constants,
            // Every kernel writes its workgroup memory before it reads it.
            zero_initialize_workgroup_memory: gpu.checks == Checks::On,
        },
        cache: gpu.cache.as_ref().map(|cache| &cache.pipelines),
    });
    Pipeline { compute, bindings }
}

fn storage(binding: u32, writable: bool) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: !writable },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

fn module(gpu: &Gpu, kernel: Kernel) -> wgpu::ShaderModule {
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source: wgpu::ShaderSource::Wgsl(kernel.source.into()) };
    if gpu.checks == Checks::On {
        return gpu.device.create_shader_module(descriptor);
    }
    // SAFETY: every kernel tests its indices against its extents before it loads or stores, its loops end, and it divides
    // only by extents, which are not zero; the test suite runs all of them with checks on and off and compares.
    #[allow(unsafe_code, reason = "runtime checks cost speed and guard nothing that the kernels do not guard themselves")]
    unsafe {
        gpu.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
    }
}
