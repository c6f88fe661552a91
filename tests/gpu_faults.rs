//! What can go wrong on a GPU is a typed error with its numbers: no panic, no hang, nothing left behind.

mod common;

use std::sync::Arc;

use common::gpu;
use shadernet::error::{Error, Result};
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{AdapterSummary, Checks, DeviceChoice, Gpu, GpuExecutor, adapters, choose};
use shadernet::exec::{Executor, read_f32, write_f32};
use shadernet::graph::{Graph, TensorId};
use shadernet::ops::{Kernel, Launch, Reference, Rules, Style, Workgroups};
use shadernet::plan::{Choices, Plan};
use shadernet::shape::{Shape, TensorType};

/// `relu(x)` of `extents` an image: the plan, its input and its root.
fn relu(extents: &[usize], capacity: usize) -> (Arc<Plan>, TensorId, TensorId) {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(extents)));
    let y = graph.relu(x).unwrap();
    (Arc::new(Plan::new(&graph, &[y], capacity).unwrap()), x, y)
}

fn check_relu(exec: &mut dyn Executor) -> Result<()> {
    let (plan, x, y) = relu(&[3], 2);
    let id = exec.load(plan)?;
    write_f32(exec, x, &[-1.0, 2.0, 3.0])?;
    exec.run(id, &[1])?;
    assert_eq!(read_f32(exec, id, y, 1)?, [0.0, 2.0, 3.0]);
    Ok(())
}

#[test]
fn a_destroyed_device_is_reported_by_every_call() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let (plan, x, y) = relu(&[1000], 4);
    let mut exec = GpuExecutor::new(gpu.clone());
    let id = exec.load(plan.clone()).unwrap();
    exec.run(id, &[4, 4]).unwrap();
    gpu.device().destroy();

    let lost = |result: Result<()>| assert!(matches!(&result, Err(Error::DeviceLost { .. })), "{result:?}");
    lost(exec.wait());
    lost(exec.run(id, &[4]));
    lost(exec.run(id, &[1; 100]));
    lost(exec.read(id, y, 4).map(drop));
    lost(write_f32(&mut exec, x, &[0.0; 1000]));
    lost(exec.poison(id));
    lost(exec.load(plan.clone()).map(drop));
    lost(GpuExecutor::new(gpu).load(plan).map(drop));
}

#[test]
fn a_device_lost_after_the_submission_is_reported_by_the_read() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let (plan, _, y) = relu(&[100_000], 4);
    let mut exec = GpuExecutor::new(gpu.clone());
    let id = exec.load(plan).unwrap();
    exec.run(id, &[4; 16]).unwrap();
    gpu.device().destroy();
    assert!(matches!(exec.read(id, y, 4), Err(Error::DeviceLost { .. })));
}

/// A device as a host program opens it, with these features.
fn host_device(features: wgpu::Features) -> Option<(wgpu::Device, wgpu::Queue)> {
    let name = gpu(Checks::Off)?.name().to_owned();
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let adapter = adapters.into_iter().find(|adapter| adapter.get_info().name == name).expect("the adapter under test");
    let descriptor = wgpu::DeviceDescriptor { required_features: features, required_limits: adapter.limits(), ..Default::default() };
    Some(pollster::block_on(adapter.request_device(&descriptor)).unwrap())
}

#[test]
fn a_lost_host_device_is_an_error_and_no_panic() {
    let Some((device, queue)) = host_device(wgpu::Features::IMMEDIATES) else { return };
    let gpu = Gpu::from_wgpu(device.clone(), queue, "the host's", Checks::Off).unwrap();
    let mut exec = GpuExecutor::new(gpu);
    let (plan, x, y) = relu(&[10], 4);
    let id = exec.load(plan.clone()).unwrap();
    device.destroy();
    // The host has the device-lost callback, so a run may not know yet; whoever waits for a result does.
    let _ = exec.run(id, &[1]);
    let _ = write_f32(&mut exec, x, &[0.0; 10]);
    assert!(matches!(exec.read(id, y, 1), Err(Error::DeviceLost { .. })));
    assert!(matches!(exec.wait(), Err(Error::DeviceLost { .. })));
    assert!(matches!(exec.load(plan), Err(Error::DeviceLost { .. })));
}

#[test]
fn a_device_without_immediates_is_unsupported() {
    let Some((device, queue)) = host_device(wgpu::Features::empty()) else { return };
    let error = Gpu::from_wgpu(device, queue, "the host's", Checks::Off).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { adapter, lacks } if adapter == "the host's" && lacks.contains("IMMEDIATES")), "{error}");
}

#[test]
fn an_adopted_buffer_is_used_in_place_and_one_that_does_not_fit_is_refused() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let buffer = |size, usage| {
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some("the host's"), size, usage, mapped_at_creation: false })
    };
    let all = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[3])));
    let y = graph.relu(x).unwrap();
    let plan = |capacity| Arc::new(Plan::new(&graph, &[y], capacity).unwrap());
    let refused = |result: Result<()>, words: &str| {
        let Err(error @ Error::Invalid { .. }) = &result else { panic!("{result:?}") };
        assert!(error.to_string().contains(words), "{error}");
    };

    let mut exec = GpuExecutor::with_guards(gpu.clone());
    refused(exec.adopt(&graph, x, buffer(44, all), 4), "found 44 bytes, expected at least 48");
    refused(exec.adopt(&graph, x, buffer(48, wgpu::BufferUsages::COPY_DST), 4), "STORAGE");
    refused(exec.adopt(&graph, y, buffer(48, all), 4), "found Value");
    let limit = exec.max_tensor_bytes() as usize;
    assert!(matches!(exec.adopt(&graph, x, buffer(48, all), limit / 8), Err(Error::BufferTooLarge { .. })));

    // Larger than the tensor: what lies behind it is the host's.
    let mine = buffer(64, all);
    gpu.queue().write_buffer(&mine, 0, bytemuck::cast_slice(&[-7.0f32; 16]));
    gpu.queue().write_buffer(&mine, 0, bytemuck::cast_slice(&[1.0f32, -2.0, 3.0]));
    exec.adopt(&graph, x, mine, 4).unwrap();
    refused(exec.load(plan(5)).map(drop), "load the largest plan first");
    let id = exec.load(plan(4)).unwrap();
    refused(exec.adopt(&graph, x, buffer(48, all), 4), "is loaded");
    exec.run(id, &[1]).unwrap();
    exec.check_guards().unwrap();
    assert_eq!(read_f32(&mut exec, id, y, 1).unwrap(), [1.0, 0.0, 3.0]);
    assert_eq!(read_f32(&mut exec, id, x, 1).unwrap(), [1.0, -2.0, 3.0]);

    let mut exec = GpuExecutor::new(gpu.clone());
    exec.adopt(&graph, x, buffer(48, wgpu::BufferUsages::STORAGE), 4).unwrap();
    let id = exec.load(plan(4)).unwrap();
    refused(write_f32(&mut exec, x, &[0.0; 3]), "COPY_DST");
    refused(exec.read(id, x, 1).map(drop), "COPY_SRC");
    exec.run(id, &[4]).unwrap();
    exec.wait().unwrap();
}

#[test]
fn a_tensor_over_the_adapters_limit_is_refused_before_anything_is_allocated() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let mut exec = GpuExecutor::new(gpu);
    let limit = exec.max_tensor_bytes();
    let capacity = (limit / 4000 + 1) as usize;
    let mut graph = Graph::new();
    let small = graph.input("small", TensorType::f32(Shape::fixed(&[1_000_000])));
    let large = graph.input("large", TensorType::f32(Shape::batched(&[1000])));
    let y = [graph.relu(small).unwrap(), graph.relu(large).unwrap()];
    let error = exec.load(Arc::new(Plan::new(&graph, &y, capacity).unwrap())).unwrap_err();
    let Error::BufferTooLarge { what, bytes, limit: named, .. } = &error else { panic!("{error}") };
    assert_eq!((what.as_str(), *bytes, *named), ("large", 4000 * capacity as u64, limit));
    assert_eq!(exec.allocated_bytes(), 0);
    exec.load(Arc::new(Plan::new(&graph, &y, 2).unwrap())).unwrap();
}

#[test]
fn much_memory_is_either_had_or_refused() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let mut exec = GpuExecutor::new(gpu);
    // 48 leaves of 128 MB, each within every adapter's limit. A software adapter gives address space and no pages.
    let mut graph = Graph::new();
    let ty = TensorType::f32(Shape::batched(&[1_000_000]));
    let roots: Vec<TensorId> = (0..48).map(|i| graph.input(&format!("x{i}"), ty)).collect();
    let plan = Arc::new(Plan::new(&graph, &roots, 32).unwrap());
    match exec.load(plan) {
        Ok(_) => assert_eq!(exec.allocated_bytes(), 48 * 128_000_000),
        Err(Error::OutOfMemory { bytes, .. }) => {
            assert_eq!(bytes, 128_000_000);
            assert_eq!(exec.allocated_bytes(), 0);
            check_relu(&mut exec).unwrap();
        }
        Err(error) => panic!("{error}"),
    }
}

/// Every executor refuses what does not fit its plan, with the same kind of error.
#[test]
fn wrong_batches_lengths_and_tensors_are_refused() {
    let mut all: Vec<Box<dyn Executor>> = vec![Box::new(CpuExecutor::new(Some(1)).unwrap())];
    all.extend(gpu(Checks::Off).map(|gpu| Box::new(GpuExecutor::new(gpu)) as Box<dyn Executor>));
    for mut exec in all {
        let exec = exec.as_mut();
        let mut graph = Graph::new();
        let x = graph.input("images", TensorType::f32(Shape::batched(&[3])));
        let hidden = graph.relu(x).unwrap();
        let y = graph.relu(hidden).unwrap();
        let unused = graph.input("unused", TensorType::f32(Shape::fixed(&[2])));
        let id = exec.load(Arc::new(Plan::new(&graph, &[y], 4).unwrap())).unwrap();

        let invalid = |result: Result<()>, words: &[&str]| {
            let Err(error @ Error::Invalid { .. }) = &result else { panic!("{result:?}") };
            let text = error.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        };
        invalid(exec.run(id, &[4, 5]), &["found 5", "capacity of 4"]);
        invalid(exec.read(id, y, 5).map(drop), &["found 5", "capacity of 4"]);
        invalid(write_f32(exec, x, &[0.0; 4]), &["images [N, 3]", "found 16 bytes", "images of 12 bytes, 48 at most"]);
        invalid(write_f32(exec, x, &[0.0; 15]), &["found 60 bytes"]);
        invalid(write_f32(exec, unused, &[0.0; 2]), &["leaf of a loaded plan"]);
        invalid(write_f32(exec, hidden, &[0.0; 3]), &["leaf of a loaded plan"]);
        invalid(exec.read(id, hidden, 1).map(drop), &["a root or a leaf of the plan"]);
        invalid(exec.read(id, unused, 1).map(drop), &["a root or a leaf of the plan"]);
        let larger = Arc::new(Plan::new(&graph, &[y], 5).unwrap());
        invalid(exec.load(larger).map(drop), &["images of 48 bytes", "60 bytes", "load the largest plan first"]);

        let smaller = exec.load(Arc::new(Plan::new(&graph, &[hidden], 2).unwrap())).unwrap();
        write_f32(exec, x, &[-1.0, 2.0, 3.0]).unwrap();
        exec.run(smaller, &[1]).unwrap();
        exec.run(id, &[]).unwrap();
        exec.run(id, &[0, 1]).unwrap();
        assert_eq!(read_f32(exec, smaller, hidden, 1).unwrap(), [0.0, 2.0, 3.0]);
        assert_eq!(read_f32(exec, id, y, 1).unwrap(), [0.0, 2.0, 3.0]);
        assert!(read_f32(exec, id, y, 0).unwrap().is_empty());

        let mut other = CpuExecutor::new(Some(1)).unwrap();
        invalid(other.run(id, &[1]), &["another executor"]);
        invalid(other.read(id, y, 1).map(drop), &["another executor"]);
        invalid(other.poison(id), &["another executor"]);
        if let Some(gpu) = gpu(Checks::Off) {
            let mut other = GpuExecutor::new(gpu);
            invalid(other.run(id, &[1]), &["another executor"]);
            invalid(other.read(id, y, 1).map(drop), &["another executor"]);
            invalid(other.poison(id), &["another executor"]);
        }
    }
}

/// An operator whose kernel is whatever the test says.
#[derive(Debug)]
struct Faulty {
    source: &'static str,
    constants: Vec<(&'static str, f64)>,
}

impl Rules for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        Ok(inputs[0])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![None])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        args.output.copy_from_slice(args.inputs[0].data);
    }

    fn launch(&self, inputs: &[TensorType], _: TensorType) -> Launch {
        let kernel = Kernel { name: "faulty_kernel", source: self.source };
        Launch { kernel, constants: self.constants.clone(), workgroups: Workgroups::over(inputs[0], 64) }
    }
}

#[test]
fn a_kernel_that_the_compiler_refuses_is_named_with_its_words() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let head = "@group(0) @binding(0) var<storage, read> x: array<f32>;\n";
    let three = "@group(0) @binding(2) var<storage, read_write> z: array<f32>;\n@compute @workgroup_size(64) fn main() { z[0] = 1.0; }";
    let read_only = "@group(0) @binding(1) var<storage, read> y: array<f32>;\n\
        @group(0) @binding(0) var<storage, read_write> x: array<f32>;\n@compute @workgroup_size(64) fn main() { x[0] = y[0]; }";
    for (fault, source, constants, words) in [
        ("a word too many", "fn main() {\n    let a = 1.0 +;\n}", vec![], "wgsl:2:"),
        ("an unknown name", "@compute @workgroup_size(64)\nfn main() {\n\n    y[0] = 1.0;\n}", vec![], "wgsl:4:"),
        ("a wrong type", "@compute @workgroup_size(64)\nfn main() {\n    let a: u32 = 1.5;\n}", vec![], "wgsl:3:"),
        ("no entry point", head, vec![], "main"),
        ("another name", "@compute @workgroup_size(64) fn start() {}", vec![], "main"),
        ("a binding too many", three, vec![], "binding"),
        ("writes an operand", read_only, vec![], "binding"),
        ("a constant it lacks", "@compute @workgroup_size(64) fn main() {}", vec![("LEN", 1.0)], "LEN"),
        ("a constant not given", "override LEN: u32;\n@compute @workgroup_size(LEN) fn main() {}", vec![], "LEN"),
        ("a large workgroup", "@compute @workgroup_size(65536) fn main() {}", vec![], "Workgroup size"),
        ("nothing", "", vec![], "main"),
    ] {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorType::f32(Shape::batched(&[5])));
        let custom: Arc<dyn Rules> = Arc::new(Faulty { source, constants });
        let y = graph.apply(custom, &[x]).unwrap();
        let mut exec = GpuExecutor::new(gpu.clone());
        let error = exec.load(Arc::new(Plan::new(&graph, &[y], 2).unwrap())).unwrap_err();
        let Error::Kernel { kernel, reason, .. } = &error else { panic!("{fault}: {error}") };
        assert_eq!(kernel, "faulty_kernel");
        assert!(reason.contains(words), "{fault}: {words:?} is not in {reason:?}");
        assert_eq!(exec.allocated_bytes(), 0, "{fault}: a refused plan leaves nothing");
        check_relu(&mut exec).unwrap_or_else(|error| panic!("{fault}: the executor is spoilt: {error}"));
    }
}

#[test]
fn an_unknown_device_lists_those_there_are() {
    let all = adapters();
    for asked in ["no such adapter", "99", "-1", ""] {
        let choice = DeviceChoice::Named(asked.to_owned());
        let result = choose(&choice, &all);
        let Err(Error::UnknownDevice { asked: named, available }) = result else { panic!("{result:?}") };
        assert_eq!(named, asked);
        assert_eq!(available.len(), all.len() + 1);
        assert!(available.iter().any(|name| name == "cpu"));
        assert!(all.iter().all(|adapter| available.iter().any(|name| name.contains(&adapter.name))));
    }
    let error = Gpu::open(all.len(), Checks::Off).unwrap_err();
    assert!(matches!(&error, Error::UnknownDevice { asked, available } if *asked == all.len().to_string() && available.len() >= all.len()));
}

#[test]
fn device_words_mean_what_the_help_says() {
    let parse = |text: &str| text.parse::<DeviceChoice>().unwrap();
    assert_eq!(parse("auto"), DeviceChoice::Auto);
    assert_eq!(parse("CPU"), DeviceChoice::Cpu);
    assert_eq!(parse("Gpu"), DeviceChoice::Gpu);
    assert_eq!(parse("LLVMpipe"), DeviceChoice::Named("LLVMpipe".to_owned()));
    assert_eq!(parse("1"), DeviceChoice::Named("1".to_owned()));
}

#[test]
fn choice_takes_hardware_first_and_software_only_by_name() {
    let adapter = |index, name: &str, kind, lacks: &[&str]| AdapterSummary {
        index,
        name: name.to_owned(),
        kind,
        backend: "vulkan".to_owned(),
        driver: String::new(),
        subgroup_size: [32, 32],
        max_tensor_bytes: 1 << 30,
        max_workgroup_bytes: 1 << 15,
        max_invocations: 1024,
        max_storage_buffers: 8,
        features: Vec::new(),
        lacks: lacks.iter().map(|&word| word.to_owned()).collect(),
    };
    let all = [
        adapter(0, "Software Rasteriser", "software", &[]),
        adapter(1, "Old Card", "discrete", &["immediates of 4 bytes"]),
        adapter(2, "Chip Graphics", "integrated", &[]),
        adapter(3, "Fine Card", "discrete", &[]),
    ];
    let index = |choice: &str, all: &[AdapterSummary]| choose(&choice.parse().unwrap(), all).map(|(index, _)| index);
    assert_eq!(index("auto", &all).unwrap(), Some(3));
    assert_eq!(index("gpu", &all[..3]).unwrap(), Some(2));
    assert_eq!(index("auto", &all[..2]).unwrap(), None);
    assert!(matches!(index("gpu", &all[..2]), Err(Error::UnknownDevice { .. })));
    assert_eq!(index("cpu", &all).unwrap(), None);
    assert_eq!(index("rasteriser", &all).unwrap(), Some(0));
    assert_eq!(index("2", &all).unwrap(), Some(2));
    assert_eq!(index("auto", &[]).unwrap(), None);
}

#[test]
fn two_executors_share_a_gpu_and_not_their_tensors() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let (plan, x, y) = relu(&[2], 1);
    let mut pair = [GpuExecutor::new(gpu.clone()), GpuExecutor::new(gpu)];
    let ids = pair.each_mut().map(|exec| exec.load(plan.clone()).unwrap());
    write_f32(&mut pair[0], x, &[1.0, -1.0]).unwrap();
    write_f32(&mut pair[1], x, &[2.0, 3.0]).unwrap();
    for (exec, id) in pair.iter_mut().zip(ids) {
        exec.run(id, &[1]).unwrap();
    }
    assert_eq!(read_f32(&mut pair[0], ids[0], y, 1).unwrap(), [1.0, 0.0]);
    assert_eq!(read_f32(&mut pair[1], ids[1], y, 1).unwrap(), [2.0, 3.0]);
}

#[test]
fn executors_that_come_and_go_leave_no_memory_behind() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let held = || {
        let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
        // Metal keeps no such books; then there is nothing to compare.
        let report = gpu.device().generate_allocator_report();
        report.map(|report| (report.allocations.len(), report.total_allocated_bytes, report.total_reserved_bytes))
    };
    let mut after_first = None;
    for _ in 0..50 {
        let mut exec = GpuExecutor::new(gpu.clone());
        let (plan, x, y) = relu(&[5000], 64);
        let id = exec.load(plan).unwrap();
        write_f32(&mut exec, x, &[1.0; 5000]).unwrap();
        exec.run(id, &[1, 64]).unwrap();
        exec.read(id, y, 64).unwrap();
        drop(exec);
        let now = held();
        assert_eq!(*after_first.get_or_insert(now), now);
    }
}

#[test]
fn a_device_without_subgroups_runs_what_needs_none() {
    let Some((device, queue)) = host_device(wgpu::Features::IMMEDIATES) else { return };
    let gpu = Gpu::from_wgpu(device, queue, "the host's", Checks::Off).unwrap().with_style(Style::Registers);
    let mut graph = Graph::new();
    let (a, b) = (graph.input("a", TensorType::f32(Shape::batched(&[8]))), graph.input("b", TensorType::f32(Shape::fixed(&[8, 8]))));
    let y = graph.matmul(a, b).unwrap();
    let plan = Arc::new(Plan::new(&graph, &[y], 4).unwrap());
    let mut exec = GpuExecutor::new(gpu);
    assert_eq!(plan.steps()[0].of_style(Style::Registers).name, "matmul_registers");
    assert_eq!(exec.pick(&plan.steps()[0]).name, "matmul");
    // Not even where someone names it.
    let mut choices = Choices::default();
    choices.set(&plan.steps()[0].key, "matmul_registers");
    exec.choose(&choices);
    assert_eq!(exec.pick(&plan.steps()[0]).name, "matmul");
    let id = exec.load(plan).unwrap();
    write_f32(&mut exec, a, &[1.0; 32]).unwrap();
    write_f32(&mut exec, b, &[0.5; 64]).unwrap();
    exec.run(id, &[4]).unwrap();
    assert_eq!(exec.read(id, y, 4).unwrap(), [4.0f32; 32].map(f32::to_le_bytes).concat());
}
