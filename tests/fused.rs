//! Fusion: a fused plan does what the plain one does, on every executor, and puts together only what nothing else reads.

mod common;
#[path = "fused/head.rs"]
mod head;
#[path = "fused/step.rs"]
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::examples::{dense_layers, heads, relu_pools};
use common::{check_op, compare, executors, noise};
use shadernet::autodiff::gradients;
use shadernet::exec::gpu::GpuExecutor;
use shadernet::exec::{Executor, reference, write_f32, write_u32};
use shadernet::graph::{Graph, Init, Role, TensorId};
use shadernet::ops::activation::Function;
use shadernet::ops::window::{Padding, Window};
use shadernet::ops::*;
use shadernet::plan::Plan;
use shadernet::shape::{DType, Shape, TensorType};

const POOL: Window = Window { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], padding: Padding::Valid };

#[test]
fn fused_operators_agree_with_their_references() {
    // Convolutions take software adapters seconds to compile. The first ten have every kernel.
    let kept = |n: usize| n < 10 || common::keeps(n);
    let of_registers = |wanted: &dyn Fn(usize) -> bool| -> BTreeSet<String> {
        let all = relu_pools().into_iter().enumerate().filter(|&(n, _)| wanted(n)).map(|(_, example)| example);
        let variants = all.flat_map(|example| {
            let rules = example.op.rules();
            rules.variants(&example.types, rules.infer(&example.types).unwrap())
        });
        variants.filter(|variant| variant.style == Style::Registers).map(|variant| variant.name).collect()
    };
    let every = of_registers(&|_| true);
    assert!(every.len() == 5 && of_registers(&|n| n < 10) == every, "{every:?}");
    let convolutions = relu_pools().into_iter().enumerate().filter(|&(n, _)| kept(n)).map(|(_, example)| example);
    for example in convolutions.chain(dense_layers()).chain(heads()) {
        for batch in [0, 1, example.batch, 7] {
            check_op(example.op.clone(), &example.types, batch).unwrap();
        }
    }
}

/// A network of two convolutions with pooling over odd images, its loss and gradients, and what of it is to be read.
struct Network {
    graph: Graph,
    x: TensorId,
    labels: TensorId,
    conv: [TensorId; 2],
    roots: Vec<TensorId>,
}

fn network(conv: Conv2d, function: Function, window: Window) -> Network {
    network_of([8, 12], conv, function, window)
}

/// The same with so many filters in each convolution.
fn network_of(filters: [usize; 2], conv: Conv2d, function: Function, window: Window) -> Network {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[15, 13, 3])));
    let labels = graph.input("labels", TensorType::u32(Shape::batched(&[])));
    let mut params = Vec::new();
    let mut param = |graph: &mut Graph, extents: &[usize]| {
        let param = graph.param("w", Shape::fixed(extents), Init::Fill(0.0));
        params.push(param);
        param
    };
    let (mut y, mut convs) = (x, Vec::new());
    for [channels, filters] in [[3, filters[0]], filters] {
        let (w, b) = (param(&mut graph, &[3, 3, channels, filters]), param(&mut graph, &[filters]));
        y = graph.conv2d(y, w, conv).unwrap();
        convs.push(y);
        y = graph.bias_add(y, b).unwrap();
        y = graph.activation(y, function).unwrap();
        y = graph.max_pool2d(y, window).unwrap();
    }
    let flat = graph.flatten(y).unwrap();
    let features = graph.shape(flat).inner_len();
    let w = param(&mut graph, &[features, 5]);
    let logits = graph.matmul(flat, w).unwrap();
    let loss = graph.softmax_cross_entropy(logits, labels).unwrap();
    let grads = gradients(&mut graph, loss, &params).unwrap();
    let roots = [logits, loss].into_iter().chain(grads).collect();
    Network { graph, x, labels, conv: [convs[0], convs[1]], roots }
}

/// How many steps of a plan are convolutions with pooling, or gradients of such.
fn fused_steps(plan: &Plan) -> usize {
    plan.steps().iter().filter(|step| step.op.rules().name().starts_with("conv2d_relu_pool")).count()
}

/// Drawn values of every leaf at this batch.
fn leaves(network: &Network, batch: usize) -> BTreeMap<TensorId, Vec<f64>> {
    let mut leaves = BTreeMap::new();
    for (id, node) in network.graph.nodes() {
        let seed = id.index() as u64;
        let value = match node.role {
            _ if id == network.labels => (0..batch).map(|i| (noise(seed, i) * 5.0).floor()).collect(),
            Role::Input | Role::Param(_) => {
                (0..node.ty.shape.len(batch)).map(|i| f64::from((noise(seed, i) - 0.5) as f32)).collect::<Vec<_>>()
            }
            _ => continue,
        };
        leaves.insert(id, value);
    }
    leaves
}

#[test]
fn a_fused_plan_gives_the_plain_plans_numbers_in_fewer_steps_and_less_memory() {
    let padded = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    for conv in [Conv2d::default(), padded] {
        let network = network(conv, Function::Relu, POOL);
        let [plain, fused] = [Plan::new, Plan::fused].map(|make| Arc::new(make(&network.graph, &network.roots, 4).unwrap()));
        fused.verify().unwrap();
        // Forward twice, weights of the first, and weights and images of the second.
        assert_eq!((fused_steps(&plain), fused_steps(&fused)), (0, 4));
        let threads = Plan::for_style(Style::Cpu, &network.graph, &network.roots, 4).unwrap();
        assert_eq!(fused_steps(&threads), 5, "a processor does one after the other");
        let registers = Arc::new(Plan::for_style(Style::Registers, &network.graph, &network.roots, 4).unwrap());
        assert_eq!(fused_steps(&registers), 5, "and so does what keeps to registers");
        assert!(fused.steps().len() + 10 <= plain.steps().len() && fused.slot_bytes() < plain.slot_bytes());
        for batch in [1, 3, 4] {
            let values = leaves(&network, batch);
            let want = reference::run(&plain, &mut values.clone(), batch).unwrap();
            for plan in [&fused, &registers] {
                let got = reference::run(plan, &mut values.clone(), batch).unwrap();
                for root in &network.roots {
                    compare(&got[root], &want[root], 1e-12).unwrap();
                }
            }
            let runs = [&fused, &registers].into_iter().flat_map(|plan| executors().into_iter().map(move |exec| (plan, exec)));
            for (plan, mut exec) in runs {
                let id = exec.load(plan.clone()).unwrap();
                for (&leaf, value) in &values {
                    if leaf == network.labels {
                        write_u32(exec.as_mut_executor(), leaf, &value.iter().map(|&v| v as u32).collect::<Vec<_>>()).unwrap();
                    } else {
                        write_f32(exec.as_mut_executor(), leaf, &value.iter().map(|&v| v as f32).collect::<Vec<_>>()).unwrap();
                    }
                }
                exec.poison(id).unwrap();
                exec.run(id, &[batch]).unwrap();
                exec.guards().unwrap();
                for root in &network.roots {
                    let got = common::from_bytes(&exec.read(id, *root, batch).unwrap(), shadernet::shape::DType::F32);
                    // Observed: 4e-7.
                    compare(&got, &want[root], 4e-6).unwrap_or_else(|e| panic!("{}: {e}", exec.device()));
                }
            }
        }
    }
}

/// The slices of each weight's gradient that is fused.
fn slices(plan: &Plan) -> Vec<usize> {
    let of = |op: &Op| match op {
        Op::Conv2dReluPoolWeightGrad(grad) => Some(grad.slices),
        Op::Conv2dReluPoolGrad(grad) => Some(grad.slices),
        _ => None,
    };
    plan.steps().iter().filter_map(|step| of(&step.op)).collect()
}

#[test]
fn the_plan_for_threads_has_no_slices_and_the_same_numbers() {
    let network = network(Conv2d::default(), Function::Relu, POOL);
    let [fused, threads] = [Style::Portable, Style::Cpu].map(|style| Plan::for_style(style, &network.graph, &network.roots, 4).unwrap());
    let (many, few) = (slices(&fused), slices(&threads));
    assert!(!few.is_empty() && few.iter().all(|few| *few == 1) && few.iter().sum::<usize>() < many.iter().sum(), "{many:?} {few:?}");
    assert!(threads.slot_bytes() < fused.slot_bytes());
    for batch in [0, 1, 4] {
        let values = leaves(&network, batch);
        let want = reference::run(&fused, &mut values.clone(), batch).unwrap();
        let got = reference::run(&threads, &mut values.clone(), batch).unwrap();
        for root in &network.roots {
            compare(&got[root], &want[root], 1e-12).unwrap();
        }
    }
}

#[test]
fn the_plan_for_registers_leaves_a_block_whose_images_gradient_has_no_such_kernel() {
    for (filters, fused, for_registers) in [([8, 12], 4, 5), ([10, 12], 3, 0)] {
        let network = network_of(filters, Conv2d::default(), Function::Relu, POOL);
        assert_eq!(fused_steps(&Plan::fused(&network.graph, &network.roots, 4).unwrap()), fused, "{filters:?}");
        let plan = Plan::for_style(Style::Registers, &network.graph, &network.roots, 4).unwrap();
        assert_eq!(fused_steps(&plan), for_registers, "{filters:?}");
        assert!(slices(&plan).iter().all(|&slices| slices <= 16), "{:?}", slices(&plan));
        let blocks = plan.steps().iter().filter(|step| step.op.rules().name().starts_with("conv2d_relu_pool"));
        blocks.for_each(|step| assert_eq!(step.of_style(Style::Registers).style, Style::Registers, "{}", step.title()));
    }
}

#[test]
fn what_something_else_reads_is_not_fused_away() {
    let mut network = network(Conv2d::default(), Function::Relu, POOL);
    assert_eq!(fused_steps(&Plan::fused(&network.graph, &network.roots, 2).unwrap()), 4);
    // A root inside the first chain, then a reader of it.
    let roots: Vec<TensorId> = network.roots.iter().copied().chain([network.conv[0]]).collect();
    let plan = Plan::fused(&network.graph, &roots, 2).unwrap();
    assert_eq!(fused_steps(&plan), 2);
    assert!(plan.readable(network.conv[0]).is_some() && plan.readable(network.conv[1]).is_none());
    let reader = network.graph.activation(network.conv[1], Function::Tanh).unwrap();
    let roots: Vec<TensorId> = network.roots.iter().copied().chain([reader]).collect();
    assert_eq!(fused_steps(&Plan::fused(&network.graph, &roots, 2).unwrap()), 2);
    // The network's input read by something else changes nothing.
    let other = network.graph.activation(network.x, Function::Tanh).unwrap();
    let roots: Vec<TensorId> = network.roots.iter().copied().chain([other]).collect();
    assert_eq!(fused_steps(&Plan::fused(&network.graph, &roots, 2).unwrap()), 4);
}

#[test]
fn a_chain_whose_weight_is_updated_meanwhile_is_left_as_it_is() {
    for between in [false, true] {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorType::f32(Shape::batched(&[6, 6, 2])));
        let w = graph.param("w", Shape::fixed(&[3, 3, 2, 4]), Init::Fill(0.1));
        let b = graph.param("b", Shape::fixed(&[4]), Init::Fill(0.0));
        let moments = graph.state("moments", Adam::moments(graph.ty(w)), 0.0);
        let grad = graph.input("grad", TensorType::f32(Shape::fixed(&[3, 3, 2, 4])));
        let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[4])), 0.5);
        let mut y = graph.conv2d(x, w, Conv2d::default()).unwrap();
        let update = |graph: &mut Graph| graph.adam(Adam::default(), w, moments, grad, rate).unwrap();
        let early = between.then(|| update(&mut graph));
        y = graph.bias_add(y, b).unwrap();
        y = graph.activation(y, Function::Relu).unwrap();
        y = graph.max_pool2d(y, POOL).unwrap();
        let effect = early.unwrap_or_else(|| update(&mut graph));
        let plan = Plan::fused(&graph, &[y, effect], 2).unwrap();
        assert_eq!(fused_steps(&plan), usize::from(!between));
    }
}

#[test]
fn chains_that_no_kernel_does_are_left_as_they_are() {
    let wide = Window { kernel: [3, 3], stride: [2, 2], ..POOL };
    for (conv, function, window) in [(Conv2d::default(), Function::Tanh, POOL), (Conv2d::default(), Function::Relu, wide)] {
        let network = network(conv, function, window);
        let [plain, fused] = [Plan::new, Plan::fused].map(|make| make(&network.graph, &network.roots, 2).unwrap());
        assert_eq!((fused_steps(&fused), fused.steps().len()), (0, plain.steps().len()));
        assert_eq!(fused.slot_bytes(), plain.slot_bytes());
    }
}

#[test]
fn where_pixels_tie_or_are_nan_the_fused_operator_does_as_the_chain() {
    [1, 4].into_iter().for_each(ties_and_nan); // kernels may take channels by fours
}

/// Of so many channels, all but the first zero.
fn ties_and_nan(channels: usize) {
    // One filter of each kind: all pixels equal and positive, all stopped by ReLU, and a NaN.
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[2, 2, channels])));
    let w = graph.input("w", TensorType::f32(Shape::fixed(&[1, 1, channels, 4])));
    let b = graph.input("b", TensorType::f32(Shape::fixed(&[4])));
    let pixels: Vec<f32> = [1.0, 2.0, 2.0, -1.0].into_iter().flat_map(|v| [v, 0.0, 0.0, 0.0].into_iter().take(channels)).collect();
    let weights: Vec<f32> = [0.0, 1.0, -1.0, 1.0].into_iter().chain([0.0; 12]).take(4 * channels).collect();
    let y = graph.apply(Conv2dReluPool { conv: Conv2d::default(), output: DType::F32 }, &[x, w, b]).unwrap();
    let place = graph.extra_outputs(y)[0];
    let plan = Arc::new(Plan::new(&graph, &[y, place], 1).unwrap());
    for mut exec in executors() {
        let id = exec.load(plan.clone()).unwrap();
        for (leaf, values) in [(x, &pixels[..]), (w, &weights), (b, &[3.0, 0.0, -5.0, f32::NAN])] {
            write_f32(exec.as_mut_executor(), leaf, values).unwrap();
        }
        exec.poison(id).unwrap();
        exec.run(id, &[1]).unwrap();
        let got = common::from_bytes(&exec.read(id, y, 1).unwrap(), shadernet::shape::DType::F32);
        assert!(got[..3] == [3.0, 2.0, 0.0] && got[3].is_nan(), "{}: {got:?}", exec.device());
        assert_eq!(exec.read(id, place, 1).unwrap(), [0, 1, 4, 0], "{}", exec.device());
    }
}

/// The portable kernels load what they stage a step ahead, and where there is nothing to load they load something else, which must not count.
#[test]
fn what_is_loaded_for_nothing_is_in_no_result() {
    [1, 8].into_iter().for_each(loaded_for_nothing);
}

/// Of so many channels: the first of x are NaN, the last weight of the last filter is infinite, and there is padding before the first pixels.
fn loaded_for_nothing(channels: usize) {
    let conv = Conv2d { padding: Padding::Explicit { top: 1, bottom: 0, left: 1, right: 0 }, ..Conv2d::default() };
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[5, 5, channels])));
    let w = graph.input("w", TensorType::f32(Shape::fixed(&[3, 3, channels, 4])));
    let b = graph.input("b", TensorType::f32(Shape::fixed(&[4])));
    let dy = graph.input("dy", TensorType::f32(Shape::batched(&[2, 2, 4])));
    let y = graph.apply(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, b]).unwrap();
    let place = graph.extra_outputs(y)[0];
    let finite = graph.input("finite", TensorType::f32(Shape::fixed(&[3, 3, channels, 4])));
    let dw = if channels == 8 {
        graph.apply(Conv2dReluPoolGrad { conv, slices: 1 }, &[x, dy, place, finite])
    } else {
        graph.apply(Conv2dReluPoolWeightGrad { conv, kernel: [3, 3], slices: 1 }, &[x, dy, place])
    };
    let dw = dw.unwrap();
    let db = graph.extra_outputs(dw)[0];
    let plan = Arc::new(Plan::new(&graph, &[y, dw, db], 2).unwrap());
    let mut pixels = vec![1.0; 2 * 25 * channels];
    pixels[..channels.min(4)].fill(f32::NAN);
    let mut weights = vec![0.5; 9 * channels * 4];
    *weights.last_mut().unwrap() = f32::INFINITY;
    for gpu in common::shared_gpus() {
        let mut exec = GpuExecutor::new(gpu.clone().with_style(Style::Portable));
        let id = exec.load(plan.clone()).unwrap();
        let leaves = [(x, &pixels), (w, &weights), (b, &vec![0.0; 4]), (dy, &vec![1.0; 32]), (finite, &vec![0.5; weights.len()])];
        for (leaf, values) in leaves.into_iter().filter(|&(leaf, _)| plan.readable(leaf).is_some()) {
            write_f32(&mut exec, leaf, values).unwrap();
        }
        exec.poison(id).unwrap();
        exec.run(id, &[2]).unwrap();
        let [y, dw, db] = [y, dw, db].map(|tensor| common::from_bytes(&exec.read(id, tensor, 2).unwrap(), DType::F32));
        for (i, &y) in y.iter().enumerate() {
            // Windows are four filters each; the first alone sees the first pixel.
            let as_it_should = if i < 4 { y.is_nan() } else { y.is_infinite() == (i % 4 == 3) && y > 0.0 };
            assert!(as_it_should, "{channels} channels, {}: y[{i}] is {y}", exec.device());
        }
        for (i, &dw) in dw.iter().enumerate() {
            // Taps of the last row or column never meet the first pixel, nor do the later channels.
            let [tap, channel] = [i / 4 / channels, i / 4 % channels];
            let finite = tap / 3 == 2 || tap % 3 == 2 || channel >= 4;
            assert!(!finite || dw.is_finite(), "{channels} channels, {}: dw[{i}] is {dw}", exec.device());
        }
        assert!(db.iter().all(|db| db.is_finite()), "{channels} channels, {}: {db:?}", exec.device());
    }
}
