//! What a training step has beside its convolutions: dense layers, the loss, the optimiser.

use shadernet::ops::reduce::Axes;
use shadernet::shape::DType;

use super::*;

/// A perceptron of two dense layers over drawn rows, with all that trains it.
pub(super) struct Perceptron {
    pub(super) graph: Graph,
    labels: TensorId,
    /// Product, sum with the bias, and result of the first layer; the last is its ReLU.
    pub(super) hidden: [TensorId; 3],
    pub(super) loss: TensorId,
    pub(super) correct: TensorId,
    pub(super) grads: Vec<TensorId>,
    updates: Vec<TensorId>,
}

/// With 70 hidden units, which no kernel of a whole head takes: they are not in fours.
fn perceptron(classes: usize, function: Function) -> Perceptron {
    perceptron_of(70, classes, function)
}

pub(super) fn perceptron_of(units: usize, classes: usize, function: Function) -> Perceptron {
    let mut graph = Graph::new();
    let pixels = graph.input("x", TensorType::f32(Shape::batched(&[4, 5])));
    let labels = graph.input("labels", TensorType::u32(Shape::batched(&[])));
    let scale = graph.param("scale", Shape::fixed(&[20, 33]), Init::Fill(0.0));
    let flat = graph.flatten(pixels).unwrap();
    let x = graph.matmul(flat, scale).unwrap();
    let mut param = |name: &str, extents: &[usize]| graph.param(name, Shape::fixed(extents), Init::Fill(0.0));
    let params = [param("w0", &[33, units]), param("b0", &[units]), param("w1", &[units, classes]), param("b1", &[classes]), scale];
    graph.scope("dense");
    let product = graph.matmul(x, params[0]).unwrap();
    let biased = graph.bias_add(product, params[1]).unwrap();
    let hidden = [product, biased, graph.activation(biased, function).unwrap()];
    let logits = graph.matmul(hidden[2], params[2]).unwrap();
    let logits = graph.bias_add(logits, params[3]).unwrap();
    let loss = graph.softmax_cross_entropy(logits, labels).unwrap();
    let correct = graph.correct(logits, labels).unwrap();
    let grads = gradients(&mut graph, loss, &params).unwrap();
    let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[4])), 0.25);
    let update = |(&param, &grad): (&TensorId, &TensorId)| {
        let moments = graph.state("moments", Adam::moments(graph.ty(param)), 0.5);
        graph.adam(Adam { epsilon: 0.1, ..Adam::default() }, param, moments, grad, rate).unwrap()
    };
    let updates = params.iter().zip(&grads).map(update).collect();
    Perceptron { graph, labels, hidden, loss, correct, grads, updates }
}

impl Perceptron {
    pub(super) fn roots(&self) -> Vec<TensorId> {
        [&[self.loss, self.correct], &self.updates[..]].concat()
    }

    pub(super) fn leaves(&self, batch: usize) -> BTreeMap<TensorId, Vec<f64>> {
        let classes = self.graph.shape(self.grads[3]).last() as f64;
        let values = self.graph.nodes().filter_map(|(id, node)| {
            let seed = id.index() as u64;
            let len = node.ty.shape.len(batch);
            match node.role {
                Role::Input if id == self.labels => Some((id, (0..len).map(|i| (noise(seed, i) * classes).floor()).collect())),
                Role::Input | Role::Param(_) => Some((id, (0..len).map(|i| f64::from((noise(seed, i) - 0.5) as f32)).collect())),
                _ => None,
            }
        });
        values.collect()
    }
}

/// Names of a plan's operators, in order.
pub(super) fn names(plan: &Plan) -> Vec<&'static str> {
    plan.steps().iter().map(|step| step.op.rules().name()).collect()
}

pub(super) fn count(plan: &Plan, name: &str) -> usize {
    names(plan).iter().filter(|&&other| other == name).count()
}

#[test]
fn a_perceptrons_step_is_eight_dispatches_that_change_what_the_plain_ones_change() {
    let net = perceptron(7, Function::Relu);
    let wanted = ["matmul", "dense", "dense", "loss_head", "dense_grad", "dense_grad", "matmul", "adam_group"];
    assert_eq!(names(&fused_like_plain(&net)), wanted);
    let registers = Plan::for_style(Style::Registers, &net.graph, &net.roots(), 40).unwrap();
    assert_eq!((count(&registers, "loss_head"), count(&registers, "adam"), count(&registers, "dense")), (1, 5, 0));
}

/// The fused plan, which does on every executor what the plain one does by the references; the one for registers does it too.
pub(super) fn fused_like_plain(net: &Perceptron) -> Arc<Plan> {
    let roots = net.roots();
    let [plain, fused] = [Plan::new, Plan::fused].map(|make| Arc::new(make(&net.graph, &roots, 40).unwrap()));
    fused.verify().unwrap();
    let registers = Plan::for_style(Style::Registers, &net.graph, &roots, 40).unwrap();
    let changed: Vec<TensorId> = plain.leaves().iter().map(|leaf| leaf.tensor).collect();
    for batch in [1, 33, 40] {
        let values = net.leaves(batch);
        let [mut want, mut got, mut other] = [values.clone(), values.clone(), values.clone()];
        let results = [(&*plain, &mut want), (&*fused, &mut got), (&registers, &mut other)]
            .map(|(plan, leaves)| reference::run(plan, leaves, batch).unwrap());
        for root in [net.loss, net.correct] {
            compare(&results[1][&root], &results[0][&root], 1e-14).unwrap();
            compare(&results[2][&root], &results[0][&root], 1e-14).unwrap();
        }
        for leaf in &changed {
            compare(&got[leaf], &want[leaf], 1e-14).unwrap();
            compare(&other[leaf], &want[leaf], 1e-14).unwrap();
        }
        for mut exec in executors() {
            let id = exec.load(fused.clone()).unwrap();
            for (&leaf, value) in &values {
                exec.write(leaf, &common::to_bytes(value, net.graph.ty(leaf).dtype)).unwrap();
            }
            exec.poison(id).unwrap();
            exec.run(id, &[batch]).unwrap();
            exec.guards().unwrap();
            for (&tensor, want) in results[0].iter().chain(&want).filter(|(id, _)| net.graph.ty(**id).dtype == DType::F32) {
                let got = common::from_bytes(&exec.read(id, tensor, batch).unwrap(), DType::F32);
                compare(&got, want, 4e-6).unwrap_or_else(|e| panic!("{}: node {}: {e}", exec.device(), tensor.index()));
            }
        }
    }
    fused
}

#[test]
fn dense_layers_keep_what_something_else_reads() {
    let mut net = perceptron(7, Function::Relu);
    let fused = |net: &Perceptron, more: &[TensorId]| Plan::fused(&net.graph, &[&net.roots(), more].concat(), 4).unwrap();
    let [product, biased, hidden] = net.hidden;
    assert_eq!([count(&fused(&net, &[]), "dense"), count(&fused(&net, &[]), "dense_grad")], [2, 2]);
    // The result may be read; what goes into ReLU takes ReLU out of the layer, and the product is the layer's end.
    assert_eq!(count(&fused(&net, &[hidden]), "dense"), 2);
    let plan = fused(&net, &[biased]);
    assert_eq!([count(&plan, "dense"), count(&plan, "dense_grad"), count(&plan, "activation_grad")], [2, 2, 1]);
    assert!(plan.readable(biased).is_some());
    assert_eq!([count(&fused(&net, &[product]), "dense"), count(&fused(&net, &[product]), "dense_grad")], [1, 1]);
    let reader = net.graph.activation(product, Function::Tanh).unwrap();
    assert_eq!(count(&fused(&net, &[reader]), "dense"), 1);
    // Another activation stays outside.
    let tanh = perceptron(7, Function::Tanh);
    assert_eq!([count(&fused(&tanh, &[]), "dense"), count(&fused(&tanh, &[]), "activation_grad")], [2, 1]);
}

#[test]
fn a_layer_without_a_gradient_for_its_input_is_fused_forward() {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[6])));
    let [w, b] = [&[6, 5][..], &[5]].map(|extents| graph.param("w", Shape::fixed(extents), Init::Fill(0.0)));
    let y = graph.matmul(x, w).unwrap();
    let y = graph.bias_add(y, b).unwrap();
    let y = graph.relu(y).unwrap();
    let loss = graph.sum(y, &[0, 1]).unwrap();
    let grads = gradients(&mut graph, loss, &[w, b]).unwrap();
    let roots = [&[loss], &grads[..]].concat();
    let [plain, fused] = [Plan::new, Plan::fused].map(|make| make(&graph, &roots, 3).unwrap());
    assert_eq!(names(&fused), ["dense", "sum", "broadcast", "activation_grad", "sum", "matmul"]);
    let draw = |id: TensorId, len: usize| (0..len).map(|i| noise(id.index() as u64, i) - 0.5).collect::<Vec<f64>>();
    let values: BTreeMap<_, _> = [(x, draw(x, 18)), (w, draw(w, 30)), (b, draw(b, 5))].into();
    let [want, got] = [&plain, &fused].map(|plan| reference::run(plan, &mut values.clone(), 3).unwrap());
    for root in &roots {
        compare(&got[root], &want[root], 1e-14).unwrap();
    }
}

#[test]
fn the_loss_is_fused_where_all_three_are_asked_of_few_classes() {
    let heads = |net: &Perceptron, roots: &[TensorId]| count(&Plan::fused(&net.graph, roots, 4).unwrap(), "loss_head");
    let net = perceptron(128, Function::Relu);
    assert_eq!(heads(&net, &net.roots()), 1);
    let without_count = [&[net.loss], &net.updates[..]].concat();
    assert_eq!(heads(&net, &without_count), 0);
    assert_eq!(heads(&net, &[net.loss, net.correct]), 0);
    let many = perceptron(129, Function::Relu);
    assert_eq!(heads(&many, &many.roots()), 0);
    // A loss that is scaled has a gradient that is computed.
    let mut net = perceptron(7, Function::Relu);
    let half = net.graph.constant(net.graph.ty(net.loss), 0.5);
    let scaled = net.graph.mul(net.loss, half).unwrap();
    let params = net.graph.params();
    let grads = gradients(&mut net.graph, scaled, &params).unwrap();
    assert_eq!(heads(&net, &[&[net.loss, net.correct], &grads[..]].concat()), 0);
}

/// Parameters of three elements each, a step of Adam for each, and what comes between two steps.
fn steps(between: impl Fn(&mut Graph, &[TensorId], TensorId) -> Option<TensorId>) -> Plan {
    let mut graph = Graph::new();
    let ty = TensorType::f32(Shape::fixed(&[3]));
    let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[4])), 0.5);
    let params: Vec<TensorId> = (0..2).map(|_| graph.param("w", ty.shape, Init::Fill(0.0))).collect();
    let mut roots = Vec::new();
    for (i, &param) in params.iter().enumerate() {
        if i == 1 {
            roots.extend(between(&mut graph, &params, rate));
        }
        let moments = graph.state("moments", Adam::moments(ty), 0.5);
        let grad = graph.input("grad", ty);
        roots.push(graph.adam(Adam::default(), param, moments, grad, rate).unwrap());
    }
    Plan::fused(&graph, &roots, 1).unwrap()
}

#[test]
fn steps_of_adam_are_grouped_unless_something_reads_or_changes_meanwhile_what_they_change_or_read() {
    assert_eq!(names(&steps(|_, _, _| None)), ["adam_group"]);
    let unrelated = |graph: &mut Graph, params: &[TensorId], _| Some(graph.relu(params[1]).unwrap());
    assert_eq!(names(&steps(unrelated)), ["relu", "adam_group"]);
    let read = |graph: &mut Graph, params: &[TensorId], _| Some(graph.relu(params[0]).unwrap());
    assert_eq!(names(&steps(read)), ["adam", "adam", "relu"]);
    let read_by_a_view = |graph: &mut Graph, params: &[TensorId], _| {
        let view = graph.reshape(params[0], &[3, 1]).unwrap();
        Some(graph.relu(view).unwrap())
    };
    assert_eq!(names(&steps(read_by_a_view)), ["adam", "adam", "relu"]);
    let ticked = |graph: &mut Graph, _: &[TensorId], rate| {
        let row = ["loss", "correct"].map(|name| graph.input(name, TensorType::f32(Shape::fixed(&[]))));
        let clock = graph.state("clock", TensorType::u32(Shape::fixed(&[2])), 0.0);
        let log = graph.state("log", TensorType::f32(Shape::fixed(&[1, 2])), 0.0);
        Some(graph.tick(Adam::default().tick(), row, clock, log, rate).unwrap())
    };
    assert_eq!(names(&steps(ticked)), ["adam", "tick", "adam"]);
}

#[test]
fn effects_come_as_early_as_what_they_follow_allows() {
    let mut graph = Graph::new();
    let ty = TensorType::f32(Shape::fixed(&[3]));
    let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[4])), 0.5);
    let [free, read, viewed] = ["free", "read", "viewed"].map(|name| graph.param(name, ty.shape, Init::Fill(0.0)));
    let (grad, x) = (graph.input("grad", ty), graph.input("x", ty));
    let early = graph.tanh(x).unwrap();
    let reader = graph.relu(read).unwrap();
    let view = graph.reshape(viewed, &[3, 1]).unwrap();
    let sum = graph.sum(view, &[0]).unwrap();
    let late = graph.gelu(x).unwrap();
    let mut roots = vec![early, reader, sum, late];
    // Settings of their own, so that they stay apart.
    for (param, beta1) in [(viewed, 0.9), (read, 0.8), (free, 0.7)] {
        let moments = graph.state("moments", Adam::moments(ty), 0.5);
        roots.push(graph.adam(Adam { beta1, ..Adam::default() }, param, moments, grad, rate).unwrap());
    }
    let plan = Plan::fused(&graph, &roots, 1).unwrap();
    assert_eq!(names(&plan), ["adam", "tanh", "relu", "adam", "sum", "adam", "gelu"]);
    let start: BTreeMap<_, _> = [free, read, viewed, grad, x].map(|id| (id, vec![id.index() as f64, -0.5, 0.25])).into();
    let [mut want, mut got] = [start.clone(), start];
    let wanted = reference::run(&Plan::new(&graph, &roots, 1).unwrap(), &mut want, 1).unwrap();
    assert_eq!((reference::run(&plan, &mut got, 1).unwrap(), got), (wanted, want));
}

#[test]
fn sums_of_slices_go_into_adam_unless_something_else_reads_them_or_they_lie_in_a_leaf() {
    let plan = |in_leaf: bool, read: bool, axes: &[usize], slices: TensorType| {
        let mut graph = Graph::new();
        let param = graph.param("w", Shape::fixed(&[2, 3]), Init::Fill(0.0));
        let moments = graph.state("moments", Adam::moments(graph.ty(param)), 0.5);
        let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[4])), 0.5);
        let leaf = graph.input("slices", slices);
        let slices = if in_leaf { leaf } else { graph.tanh(leaf).unwrap() };
        let grad = graph.apply(Sum { axes: Axes::new(axes) }, &[slices]).unwrap();
        let mut roots = vec![graph.adam(Adam::default(), param, moments, grad, rate).unwrap()];
        roots.extend(read.then_some(grad));
        names(&Plan::fused(&graph, &roots, 2).unwrap())
    };
    let slices = TensorType::f32(Shape::fixed(&[5, 2, 3]));
    assert_eq!(plan(false, false, &[0], slices), ["tanh", "adam"]);
    assert_eq!(plan(true, false, &[0], slices), ["sum", "adam"]);
    assert_eq!(plan(false, true, &[0], slices), ["tanh", "sum", "adam"]);
    assert_eq!(plan(false, false, &[1], TensorType::f32(Shape::fixed(&[2, 5, 3]))), ["tanh", "sum", "adam"]);
    assert_eq!(plan(false, false, &[0], TensorType::f32(Shape::batched(&[2, 3]))), ["tanh", "sum", "adam"]);
}

#[test]
fn for_kernels_of_registers_long_sums_that_only_adam_reads_are_left_in_slices() {
    let net = perceptron(8, Function::Relu);
    for (more, counts) in [(None, [1, 1]), (Some(net.grads[3]), [0, 2])] {
        let roots: Vec<TensorId> = net.roots().into_iter().chain(more).collect();
        let plan = Plan::for_style(Style::Registers, &net.graph, &roots, 40).unwrap();
        // The first bias has 70 elements, no multiple of 4.
        assert_eq!([count(&plan, "sum_slices"), count(&plan, "sum")], counts);
        let [mut want, mut got] = [net.leaves(33), net.leaves(33)];
        reference::run(&Plan::new(&net.graph, &roots, 40).unwrap(), &mut want, 33).unwrap();
        reference::run(&plan, &mut got, 33).unwrap();
        plan.leaves().iter().for_each(|leaf| assert!(compare(&got[&leaf.tensor], &want[&leaf.tensor], 1e-14).is_ok()));
    }
    assert_eq!(count(&Plan::fused(&net.graph, &net.roots(), 40).unwrap(), "sum_slices"), 0);
}
