//! Profiles: an entry for each step, results untouched, and counts of operations that agree with counting. No time is judged.

mod common;

use std::sync::Arc;

use common::examples::{batched, examples, fixed};
use common::{check_op, executors, shared_gpus};
use shadernet::data;
use shadernet::error::Error;
use shadernet::exec::Executor;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{Checks, Gpu, GpuExecutor};
use shadernet::exec::profile::{Profile, RunTimes};
use shadernet::graph::{Graph, TensorId};
use shadernet::models::cifar10_cnn;
use shadernet::ops::window::Padding;
use shadernet::ops::{Adam, Conv2d, Conv2dInputGrad, Conv2dWeightGrad, FmaChains, GatherBatch, Matmul, Op};
use shadernet::plan::{Choices, Plan};
use shadernet::shape::{Shape, TensorType};
use shadernet::train::{Session, TrainConfig};

/// What every profile must be, whatever the times.
fn check_runs(runs: &[RunTimes], plan: &Plan, batches: &[usize], device: &str) {
    assert_eq!(runs.iter().map(|run| run.batch).collect::<Vec<_>>(), batches, "{device}");
    for run in runs {
        assert_eq!(run.steps.len(), plan.steps().len(), "{device}: one entry for each step");
        assert!(run.steps.iter().all(|[begin, end]| begin <= end), "{device}: {:?}", run.steps);
        assert!(run.steps.windows(2).all(|pair| pair[0][1] <= pair[1][0]), "{device}: steps in order: {:?}", run.steps);
        let sum: u64 = run.steps.iter().map(|[begin, end]| end - begin).sum();
        assert!(0 < sum && sum <= run.span(), "{device}: {sum} of {}", run.span());
    }
    let profile = Profile::new(plan, &Choices::default(), runs.to_vec());
    assert_eq!(profile.steps.len(), plan.steps().len());
    assert_eq!(profile.by_kernel().iter().map(|row| row.calls).sum::<usize>(), plan.steps().len());
    let (rows, total) = (profile.by_kernel(), profile.total());
    assert!((rows.iter().map(|row| row.ns).sum::<f64>() - total.ns).abs() < 1.0);
    assert_eq!(rows.iter().map(|row| row.flops).sum::<u64>(), total.flops);
    assert!(rows.windows(2).all(|pair| pair[0].ns >= pair[1].ns), "sorted by time");
}

#[test]
fn a_profiled_training_is_a_training_to_the_bit() {
    let mut images = data::sample();
    images.train.truncate(20);
    images.test.truncate(4);
    let model = cifar10_cnn(&images.train.classes);
    let config = TrainConfig { batch: 8, ..TrainConfig::default() };
    for gpu in [None, shared_gpus().first()] {
        let open = || -> Box<dyn Executor> {
            match gpu {
                Some(gpu) => Box::new(GpuExecutor::new(gpu.clone())),
                None => Box::new(CpuExecutor::new(Some(2)).unwrap()),
            }
        };
        let session = || Session::new(open(), &model, &images.train, &images.test, config.clone()).unwrap();
        let mut plain = session();
        plain.start_epoch(0).unwrap();
        plain.train(0, 2).unwrap();
        let mut profiled = session();
        profiled.start_epoch(0).unwrap();
        let runs = profiled.profile_training(0, 2).unwrap();
        check_runs(&runs, profiled.plans()[0], &[8, 8], &profiled.device());
        assert_eq!(plain.snapshot().unwrap(), profiled.snapshot().unwrap(), "{}", profiled.device());
    }
}

/// `relu(x) · w`, then a sum: the plan, its inputs and its root.
fn small() -> (Arc<Plan>, [TensorId; 2], TensorId) {
    let mut graph = Graph::new();
    let x = graph.input("x", batched(&[300]));
    let w = graph.input("w", fixed(&[300, 7]));
    let y = graph.relu(x).unwrap();
    let z = graph.matmul(y, w).unwrap();
    let root = graph.sum(z, &[0]).unwrap();
    (Arc::new(Plan::new(&graph, &[root], 64).unwrap()), [x, w], root)
}

fn run_small(exec: &mut dyn Executor, profile: bool) -> (Vec<u8>, Vec<RunTimes>) {
    let (plan, [x, w], root) = small();
    let id = exec.load(plan).unwrap();
    let numbers = |len: usize| (0..len).map(|i| (i % 17) as f32 - 8.0).collect::<Vec<f32>>();
    shadernet::exec::write_f32(exec, x, &numbers(64 * 300)).unwrap();
    shadernet::exec::write_f32(exec, w, &numbers(300 * 7)).unwrap();
    // More runs than fit one submission, of different batches, an empty one among them.
    let batches: Vec<usize> = (0..40).map(|i| [64, 3, 0, 50][i % 4]).chain([64]).collect();
    let runs = if profile {
        exec.profile(id, &batches).unwrap()
    } else {
        exec.run(id, &batches).unwrap();
        Vec::new()
    };
    (exec.read(id, root, 64).unwrap(), runs)
}

#[test]
fn many_runs_of_many_batches_are_timed_on_every_executor() {
    for (mut plain, mut timed) in executors().into_iter().zip(executors()) {
        let (expected, _) = run_small(plain.as_mut(), false);
        let (found, runs) = run_small(timed.as_mut(), true);
        assert_eq!(expected, found, "{}", timed.device());
        assert_eq!(runs.len(), 41);
        assert!(runs.iter().all(|run| run.steps.len() == 3 && run.steps.iter().all(|[begin, end]| begin <= end)));
        timed.guards().unwrap();
        let id = timed.load(small().0).unwrap();
        assert!(timed.profile(id, &[65]).is_err(), "a batch beyond the capacity");
    }
}

/// A device of the adapter under test with these of its features.
fn device_with(features: wgpu::Features) -> Option<Gpu> {
    let shared = &shared_gpus().first()?;
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let all = pollster::block_on(wgpu::Instance::new(descriptor).enumerate_adapters(wgpu::Backends::all()));
    let adapter = all.into_iter().find(|adapter| adapter.get_info().name == shared.name()).expect("the adapter under test");
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: (features & adapter.features()) | wgpu::Features::IMMEDIATES,
        required_limits: adapter.limits(),
        ..Default::default()
    });
    let (device, queue) = pollster::block_on(request).unwrap();
    Some(Gpu::from_wgpu(device, queue, shared.name(), Checks::Off).unwrap())
}

#[test]
fn without_timestamps_between_dispatches_each_gets_a_pass_of_its_own() {
    let Some(gpu) = device_with(wgpu::Features::TIMESTAMP_QUERY) else { return };
    if !gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        return;
    }
    let (expected, _) = run_small(&mut CpuExecutor::new(Some(1)).unwrap(), false);
    let (found, runs) = run_small(&mut GpuExecutor::new(gpu), true);
    assert_eq!(expected, found);
    assert!(runs.iter().all(|run| run.steps.len() == 3 && run.steps.iter().all(|[begin, end]| begin <= end)));
}

#[test]
fn a_device_without_timestamps_says_so() {
    let Some(gpu) = device_with(wgpu::Features::empty()) else { return };
    let mut exec = GpuExecutor::new(gpu);
    let id = exec.load(small().0).unwrap();
    match exec.profile(id, &[1]) {
        Err(Error::Unsupported { lacks, .. }) => assert!(lacks.contains("TIMESTAMP_QUERY"), "{lacks}"),
        other => panic!("expected an unsupported device, got {other:?}"),
    }
    exec.run(id, &[1]).unwrap();
}

#[test]
fn a_ceiling_is_measured_and_leaves_the_executor_as_it_was() {
    let mut exec = CpuExecutor::new(Some(2)).unwrap();
    let (before, _) = run_small(&mut exec, false);
    let bytes = exec.allocated_bytes();
    let ceiling = exec.ceiling().unwrap();
    assert!(ceiling.gflops > 0.0 && ceiling.gbytes > 0.0 && !ceiling.how.is_empty(), "{ceiling:?}");
    assert_eq!(exec.allocated_bytes(), bytes);
    assert_eq!(run_small(&mut exec, false).0, before);
}

#[test]
fn what_the_ceiling_is_measured_with_computes_what_its_reference_says() {
    for batch in [0, 1, 3] {
        check_op(FmaChains, &[fixed(&[2])], batch).unwrap();
    }
}

#[test]
fn operations_of_convolutions_are_those_of_a_brute_force_count() {
    let odd = Padding::Explicit { top: 2, bottom: 0, left: 1, right: 3 };
    for (stride, padding, dilation, groups) in [
        ([1, 1], Padding::Valid, [1, 1], 1),
        ([2, 1], Padding::Same, [1, 2], 2),
        ([1, 3], odd, [2, 1], 3),
        ([3, 2], Padding::Same, [1, 1], 6),
    ] {
        let conv = Conv2d { stride, padding, dilation, groups };
        let (batch, [h, w, channels], [kh, kw], filters) = (3, [11usize, 9, 6], [3usize, 2], 12);
        let (x, weight) = (batched(&[h, w, channels]), fixed(&[kh, kw, channels / groups, filters]));
        let y = Op::from(conv).rules().infer(&[x, weight]).unwrap();
        let [oh, ow] = [y.shape.inner()[0], y.shape.inner()[1]];
        let pads = conv.window([kh, kw]).pads([h, w]);
        let mut multiply_adds = 0u64;
        for _ in 0..batch {
            for (row, column) in (0..oh).flat_map(|row| (0..ow).map(move |column| (row, column))) {
                for (i, j) in (0..kh).flat_map(|i| (0..kw).map(move |j| (i, j))) {
                    let at = [row * stride[0] + i * dilation[0], column * stride[1] + j * dilation[1]];
                    let inside = |axis: usize, extent: usize| (pads[axis]..pads[axis] + extent).contains(&at[axis]);
                    if inside(0, h) && inside(1, w) {
                        multiply_adds += (filters * channels / groups) as u64;
                    }
                }
            }
        }
        let input_grad = Conv2dInputGrad { conv, input: [h, w] };
        let weight_grad = Conv2dWeightGrad { conv, kernel: [kh, kw], slices: 2 };
        for (op, types) in [(Op::from(conv), [x, weight]), (input_grad.into(), [y, weight]), (weight_grad.into(), [x, y])] {
            assert_eq!(op.rules().flops(&types, batch), 2 * multiply_adds, "{op:?}");
        }
    }
}

#[test]
fn operations_of_products_are_those_of_a_brute_force_count() {
    for (transpose_a, transpose_b) in [(false, false), (true, false), (false, true), (true, true)] {
        let [m, n, k] = [5, 7, 11];
        let a = fixed(&if transpose_a { [k, m] } else { [m, k] });
        let b = fixed(&if transpose_b { [n, k] } else { [k, n] });
        let count = (0..m).map(|_| (0..n).map(|_| (0..k).map(|_| 2).sum::<u64>()).sum::<u64>()).sum::<u64>();
        let op = Op::from(Matmul { transpose_a, transpose_b });
        assert_eq!(op.rules().flops(&[a, b], 9), count);
        assert_eq!(op.rules().bytes_moved(&[a, b], 9), 4 * (m * k + k * n + m * n) as u64);
    }
    let op = Op::from(Matmul::default());
    assert_eq!(op.rules().flops(&[batched(&[10]), fixed(&[10, 3])], 8), 8 * 10 * 3 * 2, "the batch as rows");
}

#[test]
fn bytes_are_those_of_operands_and_results_and_of_a_data_set_the_batch_alone() {
    let (param, rate) = (fixed(&[100]), fixed(&[4]));
    assert_eq!(Op::from(Adam::default()).rules().bytes_moved(&[param, Adam::moments(param), param, rate], 64), 4 * 400 + 16 + 3 * 400);
    let shard = TensorType::u8(Shape::fixed(&[1000, 12]));
    let order = TensorType::u32(Shape::fixed(&[1000]));
    let clock = TensorType::u32(Shape::fixed(&[2]));
    let gather = GatherBatch { height: 2, width: 2, channels: 3, images_per_shard: 1000, images: 1000, scale: 1.0 };
    assert_eq!(Op::from(gather).rules().bytes_moved(&[shard, shard, shard, order, order, clock], 8), 8 * (12 + 48 + 12) + 8);
    for example in examples() {
        let rules = example.op.rules();
        assert!(rules.bytes_moved(&example.types, example.batch) > 0, "{}", rules.name());
        assert!(rules.flops(&example.types, 0) <= rules.flops(&example.types, example.batch), "{}", rules.name());
    }
}
