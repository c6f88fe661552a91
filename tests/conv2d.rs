//! Convolution and its two gradients on every executor against their references.

mod common;

use common::{check_op, keeps, shared_gpus};
use shadernet::exec::Executor;
use shadernet::exec::gpu::GpuExecutor;
use shadernet::graph::{Graph, Init};
use shadernet::ops::window::Padding;
use shadernet::ops::{Conv2d, Conv2dInputGrad, Conv2dWeightGrad, Rules, Style};
use shadernet::plan::Plan;
use shadernet::shape::{Shape, TensorType};

/// Checks the three operators at a batch, and returns the worst error of each in units of the tolerance.
fn check(conv: Conv2d, image: [usize; 3], kernel: [usize; 2], filters: usize, batch: usize) -> [f64; 3] {
    let x = TensorType::f32(Shape::batched(&image));
    let w = TensorType::f32(Shape::fixed(&[kernel[0], kernel[1], image[2] / conv.groups, filters]));
    let y = conv.infer(&[x, w]).unwrap();
    let input_grad = Conv2dInputGrad { conv, input: [image[0], image[1]] };
    let weight_grad = Conv2dWeightGrad { conv, kernel, slices: 3 };
    let case = format!("{conv:?} of {x} with {w}, batch {batch}");
    let failed = |e: String| panic!("{case}: {e}");
    [
        check_op(conv, &[x, w], batch).unwrap_or_else(failed),
        check_op(input_grad, &[y, w], batch).unwrap_or_else(failed),
        check_op(weight_grad, &[x, y], batch).unwrap_or_else(failed),
    ]
}

/// Every padding, dilation, group count and window at one stride. A test each, so that drivers that compile slowly compile side by
/// side.
fn every_option(stride: [usize; 2]) {
    let explicit = Padding::Explicit { top: 2, bottom: 0, left: 1, right: 3 };
    let mut worst = [0.0f64; 3];
    let mut n = stride[0];
    for padding in [Padding::Valid, Padding::Same, explicit] {
        for dilation in [[1, 1], [2, 1]] {
            for (groups, channels, filters) in [(1, 3, 5), (2, 4, 6), (3, 3, 3)] {
                for kernel in [[1, 1], [3, 3], [2, 3]] {
                    n += 1;
                    if !keeps(n) {
                        continue;
                    }
                    let conv = Conv2d { stride, padding, dilation, groups };
                    // Batches go in threes, so that a thinned grid has all of them.
                    let found = check(conv, [7, 6, channels], kernel, filters, [3, 1, 0, 2][n / 3 % 4]);
                    worst = [0, 1, 2].map(|i| worst[i].max(found[i]));
                }
            }
        }
    }
    println!("worst errors in units of the tolerance: {worst:.3?}");
}

#[test]
fn convolution_agrees_with_reference_at_stride_1() {
    every_option([1, 1]);
}

#[test]
fn convolution_agrees_with_reference_at_stride_2_and_1() {
    every_option([2, 1]);
}

#[test]
fn convolution_agrees_with_reference_at_stride_3_and_2() {
    every_option([3, 2]);
}

/// Channels and filters in fours, as the kernels of registers need them, and filters alone.
#[test]
fn convolution_in_quads_agrees_with_reference() {
    let explicit = Padding::Explicit { top: 2, bottom: 0, left: 1, right: 3 };
    for (stride, padding, dilation, groups, channels, filters, kernel, batch) in [
        ([1, 1], Padding::Valid, [1, 1], 1, 4, 20, [3, 3], 3),
        ([2, 1], Padding::Same, [1, 2], 2, 8, 40, [2, 3], 2),
        ([3, 2], explicit, [2, 1], 1, 12, 16, [3, 2], 1),
        ([1, 2], explicit, [1, 1], 3, 12, 12, [1, 1], 0),
        ([2, 2], Padding::Same, [1, 1], 1, 3, 36, [3, 3], 2),
        ([1, 1], explicit, [2, 2], 2, 10, 8, [2, 3], 3),
    ] {
        let conv = Conv2d { stride, padding, dilation, groups };
        println!("{conv:?} {channels} {kernel:?} {filters}: {:.3?}", check(conv, [7, 6, channels], kernel, filters, batch));
    }
}

#[test]
fn convolution_agrees_with_reference_on_sizes_around_the_tiles() {
    let conv = Conv2d::default();
    let same = Conv2d { padding: Padding::Same, ..conv };
    for (conv, image, kernel, filters, batch) in [
        (conv, [32, 32, 3], [3, 3], 32, 2),
        (conv, [15, 15, 32], [3, 3], 64, 2),
        (conv, [6, 6, 64], [3, 3], 128, 3),
        (conv, [8, 8, 1], [1, 1], 1, 1),
        (same, [8, 8, 16], [1, 1], 33, 1),
        (same, [8, 8, 17], [1, 1], 65, 1),
        (same, [9, 7, 65], [2, 2], 63, 1),
        (Conv2d { groups: 2, ..same }, [5, 5, 66], [3, 3], 130, 1),
        (Conv2d { groups: 40, ..same }, [9, 9, 40], [3, 3], 80, 2),
        (Conv2d { stride: [2, 2], ..same }, [33, 33, 8], [5, 5], 12, 1),
    ] {
        println!("{conv:?} {image:?} {kernel:?} {filters}: {:.3?}", check(conv, image, kernel, filters, batch));
    }
}

#[test]
fn executors_pick_the_kernel_of_their_style_and_plans_show_all() {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[8, 8, 4])));
    let w = graph.param("w", Shape::fixed(&[3, 3, 4, 8]), Init::Fill(0.5));
    let y = graph.conv2d(x, w, Conv2d::default()).unwrap();
    let plan = Plan::new(&graph, &[y], 2).unwrap();
    let lines: Vec<String> = plan.to_string().lines().take(4).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert!(lines[1].starts_with("0 conv2d 1 [N, 8, 8, 4]") && lines[2] == "or registers conv2d_registers 3", "{lines:?}");
    assert!(lines[3].starts_with("or portable conv2d/") && lines[3].ends_with("more of other tiles"), "{lines:?}");
    for gpu in shared_gpus() {
        for (style, kernel) in [(Style::Portable, "conv2d"), (Style::Registers, "conv2d_registers")] {
            let exec = GpuExecutor::new(gpu.clone().with_style(style));
            // Hardware is opened without what this kernel of registers needs.
            assert_eq!(exec.pick(&plan.steps()[0]).launch.kernel.name, if exec.shares() { kernel } else { "conv2d" });
        }
    }
}
