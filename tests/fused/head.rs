//! The end of a classifier as one chain: two dense layers, the loss and all gradients.

use super::step::{Perceptron, count, fused_like_plain, names, perceptron_of};
use super::*;

fn heads(net: &Perceptron, more: &[TensorId]) -> usize {
    count(&Plan::fused(&net.graph, &[&net.roots(), more].concat(), 4).unwrap(), "mlp_head")
}

#[test]
fn a_classifiers_end_is_three_dispatches_that_change_what_the_plain_ones_change() {
    for (units, classes) in [(72, 7), (8, 1)] {
        let net = perceptron_of(units, classes, Function::Relu);
        assert_eq!(names(&fused_like_plain(&net)), ["matmul", "mlp_head", "mlp_head_grad", "mlp_head_loss", "matmul", "adam_group"]);
    }
}

#[test]
fn the_end_of_a_step_takes_note_of_a_heads_loss_in_the_same_dispatch() {
    let mut net = perceptron_of(72, 7, Function::Relu);
    let clock = net.graph.state("clock", TensorType::u32(Shape::fixed(&[2])), 0.0);
    let log = net.graph.state("log", TensorType::f32(Shape::fixed(&[3, 2])), 0.0);
    let rate = net.graph.state("rate", TensorType::f32(Shape::fixed(&[4])), 0.5);
    let tick = net.graph.tick(Adam::default().tick(), [net.loss, net.correct], clock, log, rate).unwrap();
    let roots = [&net.roots()[2..], &[tick]].concat();
    let [plain, fused] = [Plan::new, Plan::fused].map(|make| Arc::new(make(&net.graph, &roots, 40).unwrap()));
    fused.verify().unwrap();
    // As early as what it reads is there; a rate that the optimiser reads too makes it the last.
    let wanted = ["matmul", "mlp_head", "mlp_head_tick", "mlp_head_grad", "matmul", "adam_group"];
    assert_eq!(names(&fused), wanted);
    let [mut want, mut got] = [net.leaves(33), net.leaves(33)];
    for leaves in [&mut want, &mut got] {
        leaves.insert(clock, vec![1.0, 33.0]);
    }
    reference::run(&plain, &mut want, 33).unwrap();
    reference::run(&fused, &mut got, 33).unwrap();
    for leaf in plain.leaves().iter().map(|leaf| leaf.tensor) {
        compare(&got[&leaf], &want[&leaf], 1e-14).unwrap();
    }
    assert!(want[&clock] == [2.0, 66.0] && want[&log][2] > 0.0, "{:?} {:?}", want[&clock], want[&log]);
    for mut exec in executors() {
        let id = exec.load(fused.clone()).unwrap();
        for (&leaf, value) in &net.leaves(33) {
            exec.write(leaf, &common::to_bytes(value, net.graph.ty(leaf).dtype)).unwrap();
        }
        exec.write(clock, &common::to_bytes(&[1.0, 33.0], DType::U32)).unwrap();
        exec.run(id, &[33]).unwrap();
        exec.guards().unwrap();
        for leaf in [clock, log, rate] {
            let dtype = net.graph.ty(leaf).dtype;
            let read = common::from_bytes(&exec.read(id, leaf, 33).unwrap(), dtype);
            compare(&read, &want[&leaf], 4e-6).unwrap_or_else(|e| panic!("{}: {}: {e}", exec.device(), net.graph.ty(leaf)));
        }
    }
    // What something else reads is there for it to read.
    let read = Plan::fused(&net.graph, &[&[net.loss], &roots[..]].concat(), 4).unwrap();
    assert_eq!((count(&read, "mlp_head_tick"), count(&read, "mlp_head_loss"), count(&read, "tick")), (0, 1, 1));
}

#[test]
fn the_loss_of_a_row_without_a_class_is_nan_and_the_others_are_right() {
    let net = perceptron_of(8, 3, Function::Relu);
    let [plain, fused] = [Plan::new, Plan::fused].map(|make| Arc::new(make(&net.graph, &net.roots(), 4).unwrap()));
    let mut values = net.leaves(4);
    let labels = net.graph.nodes().find(|(_, node)| node.role == Role::Input && node.ty.dtype == DType::U32).unwrap().0;
    values.insert(labels, vec![0.0, 3.0, 2.0, 1.0]);
    let want = reference::run(&plain, &mut values.clone(), 4).unwrap();
    let right = want[&net.correct][0];
    for mut exec in executors() {
        let id = exec.load(fused.clone()).unwrap();
        for (&leaf, value) in &values {
            exec.write(leaf, &common::to_bytes(value, net.graph.ty(leaf).dtype)).unwrap();
        }
        exec.run(id, &[4]).unwrap();
        let mut read = |tensor| common::from_bytes(&exec.read(id, tensor, 4).unwrap(), DType::F32)[0];
        assert!(read(net.loss).is_nan() && want[&net.loss][0].is_nan());
        assert_eq!(read(net.correct), right);
    }
}

#[test]
fn what_something_else_reads_or_no_kernel_takes_is_left_in_parts() {
    let net = perceptron_of(72, 7, Function::Relu);
    assert_eq!(heads(&net, &[]), 1);
    assert_eq!(heads(&net, &net.grads), 1, "gradients are what a head gives");
    for inner in net.hidden {
        assert_eq!(heads(&net, &[inner]), 0);
    }
    let without_count = Plan::fused(&net.graph, &[&[net.loss], &net.roots()[2..]].concat(), 4).unwrap();
    assert_eq!(count(&without_count, "mlp_head"), 0);
    // Another activation, units that are not in fours, too many classes, weights too many for a cache.
    for (units, classes, function) in
        [(72, 7, Function::Tanh), (70, 7, Function::Relu), (72, 129, Function::Relu), (4096, 7, Function::Relu)]
    {
        let net = perceptron_of(units, classes, function);
        assert_eq!(heads(&net, &[]), 0, "{units} units, {classes} classes");
    }
}
