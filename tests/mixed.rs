//! Mixed precision: stored as f16, summed in f32; the loss scaled by what gradients allow; and who cannot do it says so.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::{Guarded, executors, noise, shared_gpus};
use shadernet::Error;
use shadernet::autodiff::scaled_gradients;
use shadernet::data::{Dataset, sample};
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{Gpu, GpuExecutor};
use shadernet::exec::selftest::{F16_TOLERANCE, compare, from_bytes, to_bytes};
use shadernet::exec::{Executor, reference};
use shadernet::graph::{Graph, Role, TensorId};
use shadernet::nn::{Layer, Model};
use shadernet::ops::activation::Function;
use shadernet::ops::{Overflow, Style};
use shadernet::plan::Plan;
use shadernet::shape::{DType, Shape, TensorType};
use shadernet::train::{Event, Precision, Session, Snapshot, TrainConfig, Trainer, training_plans};

/// Two convolutions with pooling and two dense layers, so that something lies between all of them, small enough for a software GPU.
fn small() -> Model {
    Model {
        name: "small".to_owned(),
        input: [32, 32, 3],
        layers: vec![
            Layer::conv2d(4, 3),
            Layer::max_pool2d(2),
            Layer::conv2d(8, 3),
            Layer::max_pool2d(2),
            Layer::Flatten,
            Layer::dense(12, Some(Function::Relu)),
            Layer::dense(10, None),
        ],
        classes: sample().train.classes,
    }
}

fn config() -> TrainConfig {
    TrainConfig { epochs: 2, batch: 16, precision: Precision::Mixed, ..TrainConfig::default() }
}

fn images(count: usize) -> (Dataset, Dataset) {
    let mut splits = sample();
    splits.train.truncate(count);
    splits.test.truncate(20);
    (splits.train, splits.test)
}

/// The adapter under test, if it has f16, for kernels of either style.
fn gpus() -> Vec<Gpu> {
    let all = shared_gpus().iter().take(1).filter(|gpu| gpu.has_f16());
    all.flat_map(|gpu| [Style::Portable, Style::Registers].map(|style| gpu.clone().with_style(style))).collect()
}

fn executor(gpu: &Gpu) -> Box<dyn Executor> {
    Box::new(GpuExecutor::with_guards(gpu.clone()))
}

fn go_on(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn bits(trainer: &Trainer) -> Vec<u32> {
    trainer.weights().iter().flat_map(|tensor| &tensor.data).map(|v| v.to_bits()).collect()
}

/// A graph of the small network with a scaled loss, and its roots: logits, loss, what is stored as f16, and all gradients.
fn network(scale: f32) -> (Graph, Vec<TensorId>) {
    let mut graph = Graph::new();
    let network = small().build(&mut graph).unwrap();
    let x = graph.input("x", network.input_type());
    let labels = graph.input("labels", TensorType::u32(Shape::batched(&[])));
    let (logits, stored) = network.apply_mixed(&mut graph, x).unwrap();
    let loss = graph.softmax_cross_entropy(logits, labels).unwrap();
    let scale = graph.constant(graph.ty(loss), scale);
    let wanted: Vec<TensorId> = network.params().into_iter().chain(stored.iter().copied()).collect();
    let grads = scaled_gradients(&mut graph, loss, scale, &wanted).unwrap();
    let roots = [logits, loss].into_iter().chain(stored).chain(grads).collect();
    (graph, roots)
}

fn casts(plan: &Plan) -> usize {
    plan.steps().iter().filter(|step| step.op.rules().name() == "cast").count()
}

#[test]
fn a_fused_plan_has_no_casts_and_the_plain_plans_numbers() {
    let (graph, roots) = network(64.0);
    let [plain, fused] = [Plan::new, Plan::fused].map(|make| Arc::new(make(&graph, &roots, 4).unwrap()));
    // Stored and loaded, forward and back, in two places.
    assert_eq!((casts(&plain), casts(&fused)), (8, 0));
    assert_eq!(roots.iter().filter(|&&root| graph.ty(root).dtype == DType::F16).count(), 4);
    assert!(fused.slot_bytes() < plain.slot_bytes());
    for batch in [1, 3, 4] {
        let drawn = |(id, node): (TensorId, &shadernet::graph::Node)| {
            let (len, seed) = (node.ty.shape.len(batch), id.index() as u64);
            match (node.role, node.ty.dtype) {
                (Role::Input, DType::U32) => Some((id, (0..len).map(|i| (noise(seed, i) * 10.0).floor()).collect())),
                (Role::Input | Role::Param(_), _) => {
                    Some((id, (0..len).map(|i| f64::from((noise(seed, i) - 0.5) as f32)).collect::<Vec<_>>()))
                }
                _ => None,
            }
        };
        let values: reference::Leaves = graph.nodes().filter_map(drawn).collect();
        let want = reference::run(&plain, &mut values.clone(), batch).unwrap();
        let got = reference::run(&fused, &mut values.clone(), batch).unwrap();
        for root in &roots {
            compare(&got[root], &want[root], 1e-12).unwrap();
        }
        for gpu in gpus() {
            for plan in [&plain, &fused] {
                let mut exec = GpuExecutor::with_guards(gpu.clone());
                let id = exec.load(plan.clone()).unwrap();
                for (&leaf, value) in &values {
                    exec.write(leaf, &to_bytes(value, graph.ty(leaf).dtype)).unwrap();
                }
                exec.poison(id).unwrap();
                exec.run(id, &[batch]).unwrap();
                exec.guards().unwrap();
                for root in &roots {
                    let got = from_bytes(&exec.read(id, *root, batch).unwrap(), graph.ty(*root).dtype);
                    // Every activation is off by half a unit of f16 or so; sums of many of them by less, relative to their largest
                    // element. Observed: 0.5 of this.
                    let largest = want[root].iter().fold(1.0, |most: f64, v| most.max(v.abs()));
                    let relative = |values: &[f64]| values.iter().map(|v| v / largest).collect::<Vec<_>>();
                    compare(&relative(&got), &relative(&want[root]), 4.0 * F16_TOLERANCE)
                        .unwrap_or_else(|e| panic!("{} as {}: {e}", graph.ty(*root), gpu.style()));
                }
            }
        }
    }
}

#[test]
fn a_cast_that_something_else_needs_stays() {
    let (mut graph, mut roots) = network(1.0);
    let wide = graph
        .nodes()
        .find(|(_, node)| node.ty.dtype == DType::F32 && node.inputs.len() == 1 && graph.ty(node.inputs[0]).dtype == DType::F16);
    let (wide, _) = wide.unwrap();
    let before = casts(&Plan::fused(&graph, &roots, 2).unwrap());
    // A root, then a reader that loads no f16.
    roots.push(wide);
    assert_eq!(casts(&Plan::fused(&graph, &roots, 2).unwrap()), before + 1);
    roots.pop();
    let reader = graph.relu(wide).unwrap();
    roots.push(reader);
    let plan = Plan::fused(&graph, &roots, 2).unwrap();
    plan.verify().unwrap();
    assert_eq!(casts(&plan), before + 1);
}

#[test]
fn the_plan_of_the_cifar10_network_stores_what_lies_between_layers_and_its_gradients_as_f16() {
    let model = shadernet::models::cifar10_cnn(&sample().train.classes);
    let [f32, mixed] = [Precision::F32, Precision::Mixed].map(|precision| {
        let config = TrainConfig { precision, ..TrainConfig::default() };
        training_plans(&model, [1000, 500], &config, u64::MAX, Style::Portable).unwrap()
    });
    let halves: Vec<TensorType> =
        mixed[0].steps().iter().flat_map(|step| step.outputs()).map(|output| output.ty).filter(|ty| ty.dtype == DType::F16).collect();
    let extents: [&[usize]; 6] = [&[15, 15, 32], &[6, 6, 64], &[2, 2, 128], &[512], &[6, 6, 64], &[15, 15, 32]];
    assert_eq!(halves, extents.map(|extents| TensorType::f16(Shape::batched(extents))));
    // One dispatch looks for overflow, two convolutions have gradients that are not one dispatch, and the loss is added up before the step's
    // end; validation is the same.
    assert_eq!(mixed[0].steps().len(), f32[0].steps().len() + 4);
    println!("slots: {} bytes as f32, {} as mixed", f32[0].slot_bytes(), mixed[0].slot_bytes());
    let names = |plan: &Plan| plan.steps().iter().map(|step| step.launch.kernel.name).collect::<Vec<_>>();
    assert_eq!(names(&mixed[1]), names(&f32[1]));
    let name = |name: &str| mixed[0].steps().iter().position(|step| step.op.rules().name() == name);
    assert!(name("overflow") < name("adam_group"), "nothing changes before all gradients are known to be sound");
}

#[test]
fn the_plan_for_registers_has_casts_between_blocks_that_are_f32() {
    let model = shadernet::models::cifar10_cnn(&sample().train.classes);
    let config = TrainConfig { precision: Precision::Mixed, ..TrainConfig::default() };
    let [plan, _] = training_plans(&model, [1000, 500], &config, u64::MAX, Style::Registers).unwrap();
    let blocks: Vec<_> = plan.steps().iter().filter(|step| step.op.rules().name().starts_with("conv2d_relu_pool")).collect();
    assert_eq!(blocks.len(), 8, "three forward, three gradients of weights and two of images");
    for step in blocks {
        assert_eq!(step.of_style(Style::Registers).style, Style::Registers, "{} has no such kernel for f16", step.title());
    }
    assert!(casts(&plan) > 0);
}

#[test]
fn the_same_seed_ends_in_the_same_bits_near_those_of_f32() {
    let (train, test) = images(40);
    for gpu in gpus() {
        let run = |precision| {
            let mut trainer = Trainer::new(executor(&gpu), small(), &train, &test, TrainConfig { precision, ..config() }).unwrap();
            trainer.fit(&mut go_on).unwrap();
            (bits(&trainer), trainer.history().clone())
        };
        let ((first, mixed), (second, _), (_, f32)) = (run(Precision::Mixed), run(Precision::Mixed), run(Precision::F32));
        assert!(first == second, "{}", gpu.style());
        for (a, b) in mixed.loss.iter().zip(&f32.loss).chain(mixed.val_loss.iter().zip(&f32.val_loss)) {
            // Observed: 4e-4.
            assert!((a - b).abs() < 5e-3, "{}: {a} and {b}", gpu.style());
        }
    }
}

#[test]
fn two_dense_layers_alone_store_nothing_as_f16_and_train_as_in_f32() {
    let layers = vec![Layer::Flatten, Layer::dense(12, Some(Function::Relu)), Layer::dense(10, None)];
    let model = Model { layers, ..small() };
    let (train, test) = images(40);
    for gpu in gpus() {
        let [f32, mixed] = [Precision::F32, Precision::Mixed].map(|precision| {
            let config = TrainConfig { precision, ..config() };
            let mut trainer = Trainer::new(executor(&gpu), model.clone(), &train, &test, config).unwrap();
            trainer.fit(&mut go_on).unwrap();
            trainer.history().loss.clone()
        });
        for (a, b) in f32.iter().zip(&mixed) {
            assert!((a - b).abs() < 1e-5, "{}: {a} and {b}", gpu.style()); // a scale is a power of two
        }
    }
}

#[test]
fn a_run_stopped_at_any_step_and_resumed_ends_in_the_same_bits() {
    let (train, test) = images(40);
    for gpu in gpus() {
        let mut whole = Trainer::new(executor(&gpu), small(), &train, &test, config()).unwrap();
        whole.fit(&mut go_on).unwrap();
        for stop_after in [1, 3, 4] {
            let folder = tempfile::tempdir().unwrap();
            let config = TrainConfig { checkpoint_dir: Some(folder.path().into()), checkpoint_steps: Some(1), resume: true, ..config() };
            let mut trainer = Trainer::new(executor(&gpu), small(), &train, &test, config.clone()).unwrap();
            let mut seen = 0;
            let stopped = trainer.fit(&mut |event| {
                seen += usize::from(matches!(event, Event::Step { .. }));
                if seen >= stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(matches!(stopped, Err(Error::Interrupted { saved: Some(_), .. })), "{stopped:?}");
            drop(trainer);
            // In another precision it is another run.
            let other = TrainConfig { precision: Precision::F32, ..config.clone() };
            let refused = Trainer::new(executor(&gpu), small(), &train, &test, other).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(refused.contains("found precision mixed, expected precision f32"), "{refused}");
            let mut trainer = Trainer::new(executor(&gpu), small(), &train, &test, config).unwrap();
            assert!(trainer.resumed().is_some());
            trainer.fit(&mut go_on).unwrap();
            assert!(bits(&trainer) == bits(&whole), "{}, stopped after {stop_after}", gpu.style());
        }
    }
}

/// A snapshot with this scale of the loss.
fn with_scale(mut snapshot: Snapshot, scale: f32) -> Snapshot {
    snapshot.rate[4] = scale.recip();
    snapshot
}

#[test]
fn steps_that_overflow_change_no_parameter_and_halve_the_scale_until_one_does_not() {
    let (train, test) = images(160);
    for gpu in gpus() {
        let mut session = Session::new(executor(&gpu), &small(), &train, &test, config()).unwrap();
        session.start_epoch(0).unwrap();
        let start = session.snapshot().unwrap();
        assert_eq!(start.rate[4..], [1.0 / 32_768.0, 0.0, 0.0, 0.0]);
        let most = 16_777_216.0;
        session.restore(&with_scale(start.clone(), most), 0).unwrap();
        let mut before = session.snapshot().unwrap();
        let mut skipped = 0;
        for step in 0..10 {
            session.train(step, step + 1).unwrap();
            let after = session.snapshot().unwrap();
            let halved = after.rate[4] == 2.0 * before.rate[4];
            assert_eq!(after.rate[5], 0.0);
            assert_eq!(halved, after.params == before.params, "step {step}");
            assert_eq!(halved, after.moments == before.moments && after.rate[..4] == before.rate[..4], "step {step}");
            assert!(after.params.iter().flatten().all(|v| v.is_finite()));
            // A step that is skipped has a loss all the same.
            assert!(after.log[2 * step] > 1.0 && after.log[2 * step] < 4.0, "{:?}", after.log);
            skipped += usize::from(halved);
            before = after;
        }
        assert!((1..10).contains(&skipped), "{skipped} of 10 steps overflowed");
        // Without an overflow the scale, a power of two, changes no bit of a step but what f16 cannot hold.
        let step = |session: &mut Session, scale| {
            session.restore(&with_scale(start.clone(), scale), 0).unwrap();
            session.train(0, 1).unwrap();
            session.snapshot().unwrap()
        };
        let [low, high] = [16_384.0, 8192.0].map(|scale| step(&mut session, scale));
        for (a, b) in low.params.iter().flatten().zip(high.params.iter().flatten()) {
            assert!((a - b).abs() < 1e-4, "{a} and {b}");
        }
    }
}

#[test]
fn of_the_last_word_of_an_odd_gradient_only_its_own_half_counts() {
    let mut graph = Graph::new();
    let grad = graph.input("grad", TensorType::f16(Shape::batched(&[5])));
    let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[8])), 0.0);
    let effect = graph.apply(Overflow { count: 1 }, &[grad, grad, grad, grad, rate]).unwrap();
    let plan = Arc::new(Plan::new(&graph, &[effect], 2).unwrap());
    for gpu in gpus() {
        let mut exec = GpuExecutor::new(gpu);
        let id = exec.load(plan.clone()).unwrap();
        // The second image begins in the last word of the first.
        let values: Vec<f64> = (0..10).map(|i| if i == 5 { f64::INFINITY } else { 1.0 }).collect();
        exec.write(grad, &to_bytes(&values, DType::F16)).unwrap();
        for (batch, flag) in [(1, 0.0), (2, 1.0)] {
            exec.run(id, &[batch]).unwrap();
            assert_eq!(from_bytes(&exec.read(id, rate, 1).unwrap(), DType::F32)[5], flag);
        }
    }
}

#[test]
fn devices_without_f16_name_what_they_lack() {
    let (train, test) = images(20);
    let (graph, roots) = network(1.0);
    let plan = Arc::new(Plan::fused(&graph, &roots, 2).unwrap());
    for exec in executors().into_iter().filter(|exec| !exec.has_f16()) {
        let device = exec.device();
        let is_cpu = device.starts_with("cpu");
        match Trainer::new(exec.into_executor(), small(), &train, &test, config()).map(|_| ()) {
            Err(error @ Error::Unsupported { .. }) => {
                let message = error.to_string();
                assert!(message.starts_with(&device) && message.contains("SHADER_F16") && message.contains("train in f32"), "{message}");
            }
            other => panic!("{device}: {other:?}"),
        }
        if !is_cpu {
            for gpu in shared_gpus() {
                let refused = GpuExecutor::new(gpu.clone()).load(plan.clone());
                assert!(matches!(&refused, Err(Error::Unsupported { lacks, .. }) if lacks.contains("SHADER_F16")), "{refused:?}");
            }
        }
    }
    // The CPU computes f16 by the references, so that plans can be judged there.
    let mut exec = CpuExecutor::new(Some(1)).unwrap();
    assert!(!exec.has_f16() && exec.load(plan).is_ok());
}
