//! A network inside a program that has a `wgpu` device of its own.
//!
//! The host's shader fills a buffer with 65,536 points, a small network judges them, and the host's second shader counts what
//! the network found: one command encoder, one submission, and nothing crosses to the processor but the final count. The
//! network knows a triangle by its three sides, so the count tells the triangle's area.
//!
//! `cargo run --example embed_in_wgpu_app`

use std::sync::Arc;

use shadernet::exec::gpu::{Checks, Gpu, GpuExecutor};
use shadernet::exec::{Executor, write_f32};
use shadernet::graph::{Graph, Init};
use shadernet::plan::Plan;
use shadernet::shape::{Shape, TensorType};

/// Points on a side of the grid over the unit square.
const SIDE: usize = 256;
const POINTS: usize = SIDE * SIDE;

/// The host's own work before the network: a grid of points.
const MAKE_POINTS: &str = "
@group(0) @binding(0) var<storage, read_write> points: array<vec2<f32>>;

@compute @workgroup_size(16, 16)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    points[id.y * 256u + id.x] = (vec2<f32>(id.xy) + 0.5) / 256.0;
}";

/// The host's own work after it: how many points lie outside by nothing.
const COUNT: &str = "
@group(0) @binding(0) var<storage, read> outside: array<f32>;
@group(0) @binding(1) var<storage, read_write> count: atomic<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if outside[id.x] == 0.0 {
        atomicAdd(&count, 1u);
    }
}";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The host opens its device as it likes. The network asks for one feature, by which kernels learn the batch; on a software
    // adapter, where there is no GPU, a second makes it fast.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    let software = adapter.get_info().device_type == wgpu::DeviceType::Cpu;
    let fast = if software { wgpu::Features::SUBGROUP } else { wgpu::Features::empty() };
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: wgpu::Features::IMMEDIATES | (adapter.features() & fast),
        required_limits: wgpu::Limits { max_immediate_size: 4, ..wgpu::Limits::default() },
        ..Default::default()
    }))?;
    let name = adapter.get_info().name;

    // The host's buffers: the points, and the count with a copy that the processor can read.
    let buffer = |label, size: usize, usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size: size as u64, usage, mapped_at_creation: false })
    };
    let points = buffer("points", POINTS * 8, wgpu::BufferUsages::STORAGE);
    let count = buffer("count", 4, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
    let result = buffer("result", 4, wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ);

    // The network: how far a point (x, y) lies outside each of three sides, and outside them all.
    let mut graph = Graph::new();
    let x = graph.input("points", TensorType::f32(Shape::batched(&[2])));
    let sides = graph.param("sides", Shape::fixed(&[2, 3]), Init::Fill(0.0));
    let offsets = graph.param("offsets", Shape::fixed(&[3]), Init::Fill(0.0));
    let ones = graph.param("ones", Shape::fixed(&[3, 1]), Init::Fill(1.0));
    let signed = graph.matmul(x, sides)?;
    let signed = graph.bias_add(signed, offsets)?;
    let beyond = graph.relu(signed)?;
    let outside = graph.matmul(beyond, ones)?;
    let plan = Arc::new(Plan::new(&graph, &[outside], POINTS)?);

    // An executor on the host's device, with the host's buffer as the network's input.
    let mut net = GpuExecutor::new(Gpu::from_wgpu(device.clone(), queue.clone(), &name, Checks::Off)?);
    net.adopt(&graph, x, points.clone(), POINTS)?;
    let plan = net.load(plan)?;
    // Corners (0.1, 0.1), (0.9, 0.1), (0.5, 0.8): a column of `sides` and an offset for each side.
    write_f32(&mut net, sides, &[0.0, 0.7, -0.7, -1.0, 0.4, 0.4])?;
    write_f32(&mut net, offsets, &[0.1, -0.67, 0.03])?;

    // Host, network, host: one encoder. Buffers order the passes, as between any two passes of wgpu.
    let make_points = HostPass::new(&device, MAKE_POINTS, vec![points.as_entire_binding()]);
    let outside = wgpu::BindingResource::Buffer(net.buffer(plan, outside)?);
    let count_points = HostPass::new(&device, COUNT, vec![outside, count.as_entire_binding()]);
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    make_points.record(&mut encoder, [SIDE as u32 / 16, SIDE as u32 / 16]);
    net.encode(&mut encoder, plan, POINTS)?;
    count_points.record(&mut encoder, [POINTS as u32 / 256, 1]);
    encoder.copy_buffer_to_buffer(&count, 0, &result, 0, 4);
    queue.submit([encoder.finish()]);

    // The only bytes that are read back.
    result.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("a buffer made to be read"));
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let inside = u32::from_le_bytes(result.get_mapped_range(..)?[..4].try_into()?);
    let area = f64::from(inside) / POINTS as f64;
    println!("{name}: the network finds {inside} of {POINTS} points inside: an area of {area:.4}, and the triangle has 0.2800");
    if (area - 0.28).abs() > 0.002 {
        return Err("the area is off".into());
    }
    Ok(())
}

/// A compute pass of the host program.
struct HostPass {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
}

impl HostPass {
    fn new(device: &wgpu::Device, source: &str, buffers: Vec<wgpu::BindingResource<'_>>) -> Self {
        let module =
            device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(source.into()) });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let entries: Vec<_> = (0..).zip(buffers).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
        let layout = pipeline.get_bind_group_layout(0);
        let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
        Self { pipeline, bindings }
    }

    fn record(&self, encoder: &mut wgpu::CommandEncoder, [x, y]: [u32; 2]) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bindings, &[]);
        pass.dispatch_workgroups(x, y, 1);
    }
}
