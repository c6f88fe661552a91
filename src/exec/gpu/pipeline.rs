//! Pipelines: one for each kernel, set of constants and pattern of bindings, made once.

use std::collections::HashMap;

use super::device::{Checks, Gpu};
use crate::error::{Error, Result};
use crate::ops::{Kernel, Launch};

/// Which of a kernel's bindings it may write, from binding 0 up.
pub(super) type Writable = Vec<bool>;

#[derive(PartialEq, Eq, Hash)]
struct Key {
    kernel: Kernel,
    constants: Vec<(&'static str, u64)>,
    writable: Writable,
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
    /// The pipeline for a launch, made now if it is new.
    pub(super) fn get(&mut self, gpu: &Gpu, launch: &Launch, writable: Writable) -> Result<Pipeline> {
        let constants = launch.constants.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        let key = Key { kernel: launch.kernel, constants, writable };
        if let Some(pipeline) = self.made.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = self.make(gpu, launch, &key.writable)?;
        self.made.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn make(&mut self, gpu: &Gpu, launch: &Launch, writable: &[bool]) -> Result<Pipeline> {
        let device = &gpu.device;
        let label = Some(launch.kernel.name);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);

        let module = self.modules.entry(launch.kernel).or_insert_with(|| module(gpu, launch.kernel));
        let entries: Vec<_> = (0..).zip(writable).map(|(binding, &writable)| storage(binding, writable)).collect();
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: 4,
        });
        let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&layout),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &launch.constants,
                // Every kernel writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: gpu.checks == Checks::On,
            },
            cache: None,
        });

        let errors = [validation, memory, internal].map(|scope| pollster::block_on(scope.pop()));
        match errors.into_iter().flatten().next() {
            Some(error) => {
                self.modules.remove(&launch.kernel);
                Err(gpu.blame(Error::Kernel { kernel: launch.kernel.name.to_owned(), device: gpu.name.clone(), reason: error.to_string() }))
            }
            None => gpu.check_alive().map(|()| Pipeline { compute, bindings }),
        }
    }
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
