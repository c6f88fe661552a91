//! Gradients of whole networks against finite differences, all of it in f64 by the references.
//!
//! What `autodiff::gradients` appends, run by the references, is held to `(L(x + h) - L(x - h)) / 2h`, element by element.
//! Elements whose move crosses a kink (a relu's 0, another winner of a maximum) have no slope and are left out, and counted.

mod common;
#[path = "gradients/wrong.rs"]
mod wrong;

use std::sync::Arc;

use common::examples::FUNCTIONS;
use common::noise;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use shadernet::autodiff::gradients;
use shadernet::error::Result;
use shadernet::exec::reference::{self, Leaves};
use shadernet::graph::{Graph, Init, Role, TensorId};
use shadernet::nn::{Layer, Model};
use shadernet::ops::activation::Function;
use shadernet::ops::reduce::Axes;
use shadernet::ops::window::{Padding, Window};
use shadernet::ops::*;
use shadernet::plan::Plan;
use shadernet::shape::{DType, Shape, TensorType};
use wrong::{Spoil, Wrong, scale};

/// Half the distance between the two points of a difference.
const STEP: f64 = 1e-5;

/// What an element may be off, in units of the largest element of its tensor's gradient, or of a thousandth of the loss where
/// that is more: the loss is what rounds. Observed: at most 0.04 of it in the networks written out here, 0.1 in those drawn.
const TOLERANCE: f64 = 1e-7;

/// What a check found: the worst error in units of the tolerance, elements compared, elements left out for a kink, and tensors
/// whose gradient is 0 everywhere.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    worst: f64,
    compared: usize,
    kinks: usize,
    flat: usize,
}

/// Checks the gradient of `loss` for each tensor of `wrt`, at most `most` elements of each.
fn check(mut graph: Graph, loss: TensorId, wrt: &[TensorId], batch: usize, most: usize) -> Result<Found, String> {
    let kinks = kinks(&graph);
    let roots: Vec<TensorId> = [loss].into_iter().chain(kinks.iter().map(|&(x, _)| x)).collect();
    let forward = Plan::new(&graph, &roots, batch).map_err(|e| e.to_string())?;
    let grads = gradients(&mut graph, loss, wrt).map_err(|e| e.to_string())?;
    let backward = Plan::new(&graph, &grads, batch).map_err(|e| e.to_string())?;

    let mut values = drawn(&graph, batch);
    let analytic = reference::run(&backward, &mut values, batch).map_err(|e| e.to_string())?;
    let mut found = Found::default();
    for (&leaf, grad) in wrt.iter().zip(&grads) {
        let (label, analytic) = (&graph.node(leaf).label, &analytic[grad]);
        if graph.ty(*grad) != graph.ty(leaf) || analytic.iter().any(|v| !v.is_finite()) {
            return Err(format!("the gradient for {label} has type {} and values {analytic:?}", graph.ty(*grad)));
        }
        let largest = analytic.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
        found.flat += usize::from(largest == 0.0);
        for i in 0..analytic.len().min(most) {
            let k = if analytic.len() <= most { i } else { (noise(leaf.index() as u64, i) * analytic.len() as f64) as usize };
            let start = values[&leaf][k];
            let mut at = |offset: f64| {
                values.get_mut(&leaf).expect("it was drawn")[k] = start + offset;
                let output = reference::run(&forward, &mut values, batch).expect("the plan runs");
                let sides: Vec<Vec<f64>> = kinks.iter().map(|(x, op)| side(op, graph.ty(*x), &output[x], batch)).collect();
                (output[&loss][0], sides)
            };
            let ((above, sides_above), (below, sides_below)) = (at(STEP), at(-STEP));
            at(0.0);
            if sides_above != sides_below {
                found.kinks += 1;
                continue;
            }
            let slope = (above - below) / (2.0 * STEP);
            let error = (analytic[k] - slope).abs() / (TOLERANCE * largest.max(1e-3 * above.abs().max(1.0)));
            if error.is_nan() || error > 1.0 {
                return Err(format!("{label}: element {k} of the gradient is {}, the slope {slope}", analytic[k]));
            }
            found.worst = found.worst.max(error);
            found.compared += 1;
        }
    }
    Ok(found)
}

/// Checks every element for every float that is written or learned; no kink may be in the way.
fn check_all(name: &str, graph: Graph, loss: TensorId, batch: usize) {
    let wrt = floats(&graph);
    let found = check(graph, loss, &wrt, batch, usize::MAX).unwrap_or_else(|e| panic!("{name}: {e}"));
    println!("{name}: {} tensors, {found:?}", wrt.len());
    assert!(found.kinks == 0 && found.flat == 0 && found.compared > 20, "{name}: {found:?}");
}

/// The operators with kinks, and their operands.
fn kinks(graph: &Graph) -> Vec<(TensorId, Op)> {
    let kinked = |op: &Op| match op {
        Op::Activation(Activation { function }) => matches!(function, Function::Relu | Function::LeakyRelu { .. }),
        op => matches!(op, Op::MaxPool2d(_)),
    };
    graph.nodes().filter_map(|(_, node)| Some((node.inputs.first().copied()?, node.op.clone().filter(kinked)?))).collect()
}

/// Which side of its kinks an operator is on: the signs, or how many maxima each pixel is.
fn side(op: &Op, ty: TensorType, x: &[f64], batch: usize) -> Vec<f64> {
    let Op::MaxPool2d(MaxPool2d { window }) = *op else { return x.iter().map(|&v| f64::from(v > 0.0)).collect() };
    let y = op.rules().infer(&[ty]).expect("it is in a graph");
    let (ones, mut wins) = (vec![1.0; y.shape.len(batch)], vec![0.0; x.len()]);
    reference::call(&MaxPool2dGrad { window }.into(), &[ty, y], vec![x, &ones], &mut [], &mut wins, &mut [], batch);
    wins
}

/// Inputs and parameters of floats.
fn floats(graph: &Graph) -> Vec<TensorId> {
    let kind = |role| matches!(role, Role::Param(_) | Role::Input);
    graph.nodes().filter(|(_, node)| kind(node.role) && node.ty.dtype == DType::F32).map(|(id, _)| id).collect()
}

/// Values of what is written or learned: kernels of layers a little wider than they start, the rest in ±1, labels below 3.
fn drawn(graph: &Graph, batch: usize) -> Leaves {
    let mut leaves = Leaves::new();
    for (id, node) in graph.nodes() {
        let limit = match node.role {
            Role::Param(Init::GlorotUniform { fan_in, fan_out }) => 1.5 * (6.0 / (fan_in + fan_out) as f64).sqrt(),
            Role::Param(_) | Role::Input => 1.0,
            _ => continue,
        };
        let value = |i| {
            let noise = noise(id.index() as u64 + 1, i);
            if node.ty.dtype == DType::F32 { (2.0 * noise - 1.0) * limit } else { (3.0 * noise).floor() }
        };
        leaves.insert(id, (0..node.ty.shape.len(batch)).map(value).collect());
    }
    leaves
}

fn batched(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::batched(extents))
}

/// The loss of a classifier of three classes with these layers.
fn classifier(input: [usize; 3], layers: &[Layer]) -> Result<(Graph, TensorId)> {
    let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    let model = Model { name: "small".to_owned(), input, layers: layers.to_vec(), classes };
    let mut graph = Graph::new();
    let network = model.build(&mut graph)?;
    let x = graph.input("x", network.input_type());
    let labels = graph.input("labels", TensorType::u32(Shape::batched(&[])));
    let logits = network.apply(&mut graph, x)?;
    let loss = graph.softmax_cross_entropy(logits, labels)?;
    Ok((graph, loss))
}

/// One number of `y`: its elements, each with a weight of its own, summed.
fn weighed(graph: &mut Graph, y: TensorId) -> TensorId {
    let weights = graph.input("weights", graph.ty(y));
    let y = graph.mul(y, weights).unwrap();
    let axes: Vec<usize> = (0..graph.shape(y).rank()).collect();
    if axes.is_empty() { y } else { graph.sum(y, &axes).unwrap() }
}

fn window(kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2], padding: Padding) -> Window {
    Window { kernel, stride, dilation, padding }
}

/// A convolution as a layer.
fn conv(filters: usize, window: Window, groups: usize, function: Function) -> Layer {
    let Window { kernel, stride, dilation, padding } = window;
    Layer::Conv2d { filters, kernel, stride, padding, dilation, groups, activation: Some(function) }
}

#[test]
fn convolutional_classifiers_have_the_slopes_of_their_losses() {
    let asymmetric = Padding::Explicit { top: 1, bottom: 0, left: 0, right: 2 };
    let [relu, leaky, sigmoid, tanh, gelu] = FUNCTIONS;
    let strided = [
        conv(4, window([3, 2], [2, 1], [1, 1], Padding::Same), 1, relu),
        Layer::MaxPooling2d { window: window([3, 3], [1, 2], [1, 1], Padding::Same) },
        conv(3, window([2, 3], [1, 1], [1, 2], asymmetric), 1, gelu),
        Layer::Flatten,
        Layer::dense(4, Some(tanh)),
        Layer::dense(3, None),
    ];
    let depthwise = [
        conv(6, window([3, 3], [1, 1], [1, 1], Padding::Same), 3, leaky),
        conv(4, window([1, 1], [1, 1], [1, 1], Padding::Valid), 1, sigmoid),
        Layer::AveragePooling2d { window: window([2, 3], [2, 2], [1, 1], Padding::Same) },
        Layer::GlobalAveragePooling2d,
        Layer::dense(3, None),
    ];
    let grouped = [
        conv(6, window([2, 2], [1, 2], [2, 1], asymmetric), 2, tanh),
        conv(6, window([2, 2], [1, 1], [1, 1], Padding::Same), 6, gelu),
        Layer::MaxPooling2d { window: window([2, 2], [1, 1], [2, 1], Padding::Valid) },
        Layer::GlobalAveragePooling2d,
        Layer::Activation { function: leaky },
        Layer::dense(3, Some(sigmoid)),
    ];
    for (name, input, layers, batch) in
        [("strided", [6, 5, 2], &strided[..], 2), ("depthwise", [5, 5, 3], &depthwise, 3), ("grouped", [6, 7, 4], &grouped, 2)]
    {
        let (graph, loss) = classifier(input, layers).unwrap();
        check_all(name, graph, loss, batch);
    }
}

#[test]
fn the_networks_that_come_with_the_crate_have_the_slopes_of_their_losses() {
    let classes = ["a", "b", "c"].map(str::to_owned);
    let (graph, loss) = classifier([32, 32, 3], &shadernet::models::cifar10_cnn(&classes).layers).unwrap();
    let wrt = floats(&graph);
    assert_eq!(wrt.len(), 11);
    let found = check(graph, loss, &wrt, 1, 4).unwrap();
    println!("cifar10_cnn: {found:?}");
    assert!(found.compared >= 40 && found.flat == 0, "{found:?}");
}

#[test]
fn every_activation_passes_its_gradient_on() {
    let dense = FUNCTIONS.map(|function| Layer::dense(5, Some(function)));
    let (graph, loss) = classifier([1, 2, 3], &[&[Layer::Flatten], &dense[..], &[Layer::dense(3, None)]].concat()).unwrap();
    check_all("activations", graph, loss, 4);
}

#[test]
fn products_pass_gradients_to_both_factors_however_stored() {
    for (transpose_a, transpose_b) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut graph = Graph::new();
        let x = graph.input("x", batched(&[4]));
        let y = graph.input("y", batched(&[3]));
        let z = graph.apply(Matmul { transpose_a: true, transpose_b: false }, &[x, y]).unwrap(); // the batch is the depth
        let a = if transpose_a { z } else { graph.param("a", Shape::fixed(&[3, 4]), Init::Fill(0.0)) };
        let b = graph.param("b", Shape::fixed(&if transpose_b { [2, 4] } else { [4, 2] }), Init::Fill(0.0));
        let product = graph.apply(Matmul { transpose_a, transpose_b }, &[a, b]).unwrap();
        let rows = graph.apply(Matmul { transpose_a: false, transpose_b: false }, &[y, product]).unwrap(); // the batch is rows
        let rows = graph.softmax(rows).unwrap();
        let back = graph.apply(Matmul { transpose_a: false, transpose_b: true }, &[rows, product]).unwrap();
        let z = weighed(&mut graph, z);
        let back = weighed(&mut graph, back);
        let loss = graph.add(z, back).unwrap();
        check_all(&format!("products {transpose_a} {transpose_b}"), graph, loss, 3);
    }
}

#[test]
fn a_tensor_used_twice_gets_the_sum_of_its_gradients() {
    let mut graph = Graph::new();
    let x = graph.input("x", batched(&[4, 3, 2]));
    let kernel = graph.param("kernel", Shape::fixed(&[3, 3, 2, 2]), Init::Fill(0.0));
    let bias = graph.param("bias", Shape::fixed(&[2]), Init::Fill(0.0));
    let same = Conv2d { padding: Padding::Same, ..Conv2d::default() };
    let y = graph.conv2d(x, kernel, same).unwrap();
    let y = graph.tanh(y).unwrap();
    let y = graph.bias_add(y, bias).unwrap();
    let y = graph.add(y, x).unwrap(); // around the convolution
    let y = graph.conv2d(y, kernel, same).unwrap(); // the same kernel again
    let y = graph.bias_add(y, bias).unwrap();
    let square = graph.mul(y, y).unwrap();
    let twice = graph.add(square, square).unwrap();
    let flat = graph.flatten(twice).unwrap();
    let other = graph.reshape(y, &[2, 12]).unwrap(); // two views of two kinds
    let other = graph.softmax(other).unwrap();
    let other = graph.flatten(other).unwrap();
    let tied = graph.param("tied", Shape::fixed(&[24, 2]), Init::Fill(0.0));
    let coded = graph.matmul(flat, tied).unwrap();
    let coded = graph.sigmoid(coded).unwrap();
    let decoded = graph.apply(Matmul { transpose_a: false, transpose_b: true }, &[coded, tied]).unwrap();
    let decoded = graph.mul(decoded, other).unwrap();
    let [decoded, coded] = [decoded, coded].map(|y| weighed(&mut graph, y));
    let loss = graph.add(decoded, coded).unwrap();
    check_all("used twice", graph, loss, 2);
}

#[test]
fn sums_and_repetitions_over_every_set_of_axes_have_their_slopes() {
    for set in 1..16 {
        let axes: Vec<usize> = (0..4).filter(|axis| set >> axis & 1 == 1).collect();
        let mut graph = Graph::new();
        let x = graph.input("x", batched(&[2, 3, 2]));
        let y = graph.sigmoid(x).unwrap();
        let sum = graph.sum(y, &axes).unwrap();
        let sum = graph.mul(sum, sum).unwrap();
        let repeated = graph.apply(Broadcast { shape: graph.shape(x), axes: Axes::new(&axes) }, &[sum]).unwrap();
        let y = graph.mul(repeated, y).unwrap();
        let [y, sum] = [y, sum].map(|y| weighed(&mut graph, y));
        let loss = graph.add(y, sum).unwrap();
        check_all(&format!("sum over {axes:?}"), graph, loss, 2);
    }
}

/// Draws for a layer; what does not fit is left out.
fn layer() -> impl Strategy<Value = (Layer, bool)> {
    let pair = |most: usize| [1..=most, 1..=most];
    let sides = prop::array::uniform4(0..3usize);
    let explicit = sides.prop_map(|[top, bottom, left, right]| Padding::Explicit { top, bottom, left, right });
    let padding = prop_oneof![Just(Padding::Valid), Just(Padding::Same), explicit];
    let draw = (pair(3), pair(2), pair(2), padding);
    let draw = draw.prop_map(|(kernel, stride, dilation, padding)| window(kernel, stride, dilation, padding));
    let draw = (0..6, draw, 1..3usize, any::<bool>(), prop::sample::select(&FUNCTIONS[..]));
    draw.prop_map(|(kind, window, filters, depthwise, function)| match kind {
        0 => (Layer::MaxPooling2d { window }, false),
        1 => (Layer::AveragePooling2d { window }, false),
        2 => (Layer::Activation { function }, false),
        _ => (conv(filters, window, 1, function), depthwise),
    })
}

/// A classifier of as many of the layers as fit.
fn drawn_classifier(input: [usize; 3], draws: Vec<(Layer, bool)>, flat: bool) -> (Graph, TensorId) {
    let end = [if flat { Layer::Flatten } else { Layer::GlobalAveragePooling2d }, Layer::dense(3, None)];
    let (mut layers, mut channels) = (Vec::new(), input[2]);
    for (mut layer, depthwise) in draws {
        if let Layer::Conv2d { filters, groups, .. } = &mut layer
            && depthwise
        {
            (*filters, *groups) = (*filters * channels, channels);
        }
        layers.push(layer);
        match classifier(input, &[&layers[..], &end].concat()) {
            Ok(_) => channels = if let Some(Layer::Conv2d { filters, .. }) = layers.last() { *filters } else { channels },
            Err(_) => drop(layers.pop()),
        }
    }
    classifier(input, &[&layers[..], &end].concat()).expect("each layer was tried")
}

/// A graph in which anything may be used again: on `[N, 4]` tensors, each step an operator and the places of its operands.
fn drawn_graph(steps: &[(usize, Index, Index)]) -> (Graph, TensorId) {
    let mut graph = Graph::new();
    let mut all = ["x", "y"].map(|name| graph.input(name, batched(&[4]))).to_vec();
    let weight = graph.param("weight", Shape::fixed(&[4, 4]), Init::Fill(0.0));
    let bias = graph.param("bias", Shape::fixed(&[4]), Init::Fill(0.0));
    for (kind, a, b) in steps {
        let (a, b) = (all[a.index(all.len())], all[b.index(all.len())]);
        let matmul = |transpose_a, transpose_b| Matmul { transpose_a, transpose_b };
        let y = match kind {
            0 => graph.add(a, b),
            1 => graph.mul(a, b),
            2 => graph.bias_add(a, bias),
            3 => graph.apply(matmul(false, false), &[a, weight]),
            4 => graph.apply(matmul(false, true), &[a, weight]),
            5 => graph.softmax(a),
            6 => {
                let moments = graph.apply(matmul(true, false), &[a, b]).unwrap();
                let y = graph.matmul(b, moments).unwrap();
                graph.tanh(y)
            }
            7 => {
                let square = graph.reshape(a, &[2, 2]).unwrap();
                let sum = graph.sum(square, &[0, 2]).unwrap();
                let y = graph.apply(Broadcast { shape: graph.shape(square), axes: Axes::new(&[0, 2]) }, &[sum]).unwrap();
                graph.flatten(y)
            }
            kind => graph.activation(a, FUNCTIONS[kind % 5]),
        };
        all.push(y.unwrap());
    }
    let ends: Vec<TensorId> = all.iter().rev().take(2).map(|&y| weighed(&mut graph, y)).collect();
    let loss = graph.add(ends[0], ends[1]).unwrap();
    (graph, loss)
}

/// What is drawn is the same in every run.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn drawn_classifiers_have_the_slopes_of_their_losses(
        (height, width, channels) in (3..7usize, 3..7usize, 1..4usize),
        layers in prop::collection::vec(layer(), 1..5),
        (flat, batch) in (any::<bool>(), 1..4usize),
    ) {
        let (graph, loss) = drawn_classifier([height, width, channels], layers, flat);
        let wrt = floats(&graph);
        let found = check(graph, loss, &wrt, batch, 6);
        println!("{found:?}");
        prop_assert!(found.as_ref().is_ok_and(|found| found.compared > 4 * found.kinks), "{found:?}");
    }

    #[test]
    fn drawn_graphs_have_the_slopes_of_their_losses(
        steps in prop::collection::vec((0..13usize, any::<Index>(), any::<Index>()), 2..9),
        batch in 1..4usize,
    ) {
        let (graph, loss) = drawn_graph(&steps);
        let wrt: Vec<TensorId> =
            floats(&graph).into_iter().filter(|&leaf| gradients(&mut graph.clone(), loss, &[leaf]).is_ok()).collect();
        let found = check(graph, loss, &wrt, batch, 8);
        println!("{found:?}");
        prop_assert!(found.as_ref().is_ok_and(|found| found.compared > 4 * found.kinks), "{found:?}");
    }
}

#[test]
fn a_wrong_gradient_is_told() {
    let verdict = |op: Op, spoil: Spoil| {
        let mut graph = Graph::new();
        let x = graph.input("x", batched(&[3]));
        let w = graph.param("w", Shape::fixed(&[3, 3]), Init::Fill(0.0));
        let y = graph.matmul(x, w).unwrap();
        let operands = if op.rules().name() == "matmul" { vec![y, w] } else { vec![y; op.rules().arity()] };
        let y = graph.apply(Op::Custom(Arc::new(Wrong { op, spoil })), &operands).unwrap();
        let y = graph.sigmoid(y).unwrap();
        let loss = weighed(&mut graph, y);
        let wrt = floats(&graph);
        check(graph, loss, &wrt, 2, usize::MAX)
    };
    let tanh = || Activation { function: Function::Tanh }.into();
    let told = |verdict: Result<Found, String>| verdict.unwrap_err();
    for op in [tanh(), Add.into(), Mul.into(), Matmul::default().into()] {
        assert!(verdict(op, |_, _, _, right| Ok(right)).is_ok());
    }
    let passed_on = told(verdict(tanh(), |_, _, dy, _| Ok(vec![Some(dy)])));
    assert!(passed_on.starts_with("x: element 0 of the gradient is") && passed_on.contains("the slope"), "{passed_on}");
    told(verdict(tanh(), |graph, _, _, right| scale(graph, right, -1.0)));
    told(verdict(tanh(), |graph, _, _, right| scale(graph, right, 1.0 + 1e-5)));
    told(verdict(tanh(), |graph, _, _, right| scale(graph, right, f32::NAN)));
    told(verdict(tanh(), |graph, _, _, right| scale(graph, right, 0.0)));
    told(verdict(tanh(), |_, _, _, _| Ok(vec![None]))); // the loss seems not to depend on x
    told(verdict(Add.into(), |_, _, _, right| Ok(vec![right[0], None]))); // one of two uses forgotten
    told(verdict(Matmul::default().into(), |graph, inputs, dy, right| Ok(vec![Some(graph.matmul(dy, inputs[1])?), right[1]])));
}
