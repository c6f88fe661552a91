//! Every operator on every executor against its reference.

mod common;

use std::cell::Cell;
use std::collections::BTreeSet;

use common::examples::examples;
use common::{check_kernels, check_op, keeps, shared_gpus};
use shadernet::ops::activation::Function;
use shadernet::ops::reduce::Axes;
use shadernet::ops::*;
use shadernet::shape::{Shape, TensorType};

fn fixed(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::fixed(extents))
}

fn batched(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::batched(extents))
}

#[test]
fn matmul_agrees_with_reference_on_ragged_tiles() {
    for [m, n, k] in [[1, 1, 1], [64, 64, 16], [65, 63, 17], [3, 130, 70], [4, 8, 6], [132, 20, 36]] {
        for (transpose_a, transpose_b) in [(false, false), (true, false), (false, true), (true, true)] {
            let op = Matmul { transpose_a, transpose_b };
            let a = if transpose_a { [k, m] } else { [m, k] };
            let b = if transpose_b { [n, k] } else { [k, n] };
            let worst = check_op(op, &[fixed(&a), fixed(&b)], 1).unwrap();
            println!("{op:?} {m} {n} {k}: {worst:.3} of the tolerance");
        }
    }
}

#[test]
fn matmul_takes_the_batch_as_rows_or_as_depth() {
    for batch in [0, 1, 16, 67] {
        check_op(Matmul::default(), &[batched(&[33]), fixed(&[33, 10])], batch).unwrap();
        check_op(Matmul { transpose_b: true, ..Matmul::default() }, &[batched(&[10]), fixed(&[33, 10])], batch).unwrap();
        check_op(Matmul { transpose_a: true, ..Matmul::default() }, &[batched(&[33]), batched(&[10])], batch).unwrap();
        check_op(Matmul::default(), &[batched(&[32]), fixed(&[32, 12])], batch).unwrap();
        check_op(Matmul { transpose_b: true, ..Matmul::default() }, &[batched(&[12]), fixed(&[36, 12])], batch).unwrap();
        check_op(Matmul { transpose_a: true, ..Matmul::default() }, &[batched(&[36]), batched(&[12])], batch).unwrap();
    }
}

#[test]
fn elementwise_operators_agree_with_reference() {
    let functions = [Function::Relu, Function::LeakyRelu { slope: 0.3 }, Function::Sigmoid, Function::Tanh, Function::Gelu];
    for function in functions {
        for (ty, batch) in [(batched(&[5, 3]), 0), (batched(&[7, 9, 4]), 3), (fixed(&[1000]), 1)] {
            check_op(Activation { function }, &[ty], batch).unwrap();
            check_op(ActivationGrad { function }, &[ty, ty], batch).unwrap();
        }
    }
    for (ty, batch) in [(batched(&[5, 3]), 2), (fixed(&[257]), 1)] {
        check_op(Add, &[ty, ty], batch).unwrap();
        check_op(Mul, &[ty, ty], batch).unwrap();
    }
    for channels in [1, 3, 32, 300] {
        check_op(BiasAdd, &[batched(&[5, 3, channels]), fixed(&[channels])], 3).unwrap();
    }
}

#[test]
fn sum_and_broadcast_agree_with_reference_over_every_set_of_axes() {
    for axes in 1..16u8 {
        let list: Vec<usize> = (0..4).filter(|axis| axes >> axis & 1 == 1).collect();
        for batch in [0, 1, 3] {
            let x = batched(&[5, 7, 9]);
            check_op(Sum { axes: Axes::new(&list) }, &[x], batch).unwrap();
            let y = (Sum { axes: Axes::new(&list) }).infer(&[x]).unwrap();
            check_op(Broadcast { shape: x.shape, axes: Axes::new(&list) }, &[y], batch).unwrap();
        }
    }
    check_op(Sum { axes: Axes::new(&[0, 1, 2]) }, &[batched(&[30, 30, 32])], 5).unwrap();
    for (x, slices) in [(batched(&[30, 30, 32]), 64), (batched(&[5, 4]), 7), (batched(&[12]), 1), (fixed(&[700, 4]), 3)] {
        for batch in [0, 1, 5] {
            check_op(SumSlices { slices }, &[x], batch).unwrap();
        }
    }
    check_op(Sum { axes: Axes::new(&[0, 1]) }, &[batched(&[5, 260])], 27).unwrap();
    check_op(Sum { axes: Axes::new(&[0]) }, &[fixed(&[3, 20, 20])], 1).unwrap();
    check_op(Sum { axes: Axes::new(&[0, 2, 4]) }, &[fixed(&[3, 4, 5, 6, 7])], 1).unwrap();
}

/// Checks all kernels of the examples of these operators. A test for each, so that drivers that compile slowly compile side by side.
fn every_kernel_of(operators: &[&str]) {
    if shared_gpus().is_empty() {
        return;
    }
    let (mut names, count) = (BTreeSet::new(), Cell::new(0));
    let kept = || keeps(count.replace(count.get() + 1));
    for example in examples().into_iter().filter(|example| operators.contains(&example.op.rules().name())) {
        let found = check_kernels(example.op.clone(), &example.types, example.batch, |_| kept());
        names.extend(found.unwrap_or_else(|e| panic!("{:?}: {e}", example.op)));
    }
    let tiled = names.iter().filter(|name| name.contains('/')).count();
    assert!(tiled >= 6 * operators.len() || !keeps(1), "too few tiles of {operators:?}: {names:?}");
}

#[test]
fn every_kernel_of_matmul_agrees_with_reference() {
    every_kernel_of(&["matmul"]);
}

#[test]
fn every_kernel_of_convolution_agrees_with_reference() {
    every_kernel_of(&["conv2d", "conv2d_relu_pool"]);
}

#[test]
fn every_kernel_of_input_gradients_agrees_with_reference() {
    every_kernel_of(&["conv2d_input_grad", "conv2d_relu_pool_input_grad"]);
}

#[test]
fn every_kernel_of_weight_gradients_agrees_with_reference() {
    every_kernel_of(&["conv2d_weight_grad", "conv2d_relu_pool_weight_grad", "conv2d_relu_pool_grad"]);
}
