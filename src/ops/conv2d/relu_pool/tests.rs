//! The CPU's kernels with every width of vectors that this processor has.

use std::collections::BTreeMap;
use std::sync::Arc;

use pulp::Arch;

use super::*;
use crate::exec::cpu::CpuExecutor;
use crate::exec::{Executor, read_f32, reference, write_f32};
use crate::kernels::FORCED;
use crate::ops::checks::noise;
use crate::ops::window::Padding;
use crate::plan::Plan;

/// A block and its two gradients in one graph.
struct Example {
    plan: Arc<Plan>,
    leaves: [TensorId; 4],
    roots: Vec<TensorId>,
    batch: usize,
}

fn example(conv: Conv2d, [h, w, channels]: [usize; 3], kernel: [usize; 2], filters: usize, slices: usize, batch: usize) -> Example {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[h, w, channels])));
    let weight = graph.input("w", TensorType::f32(Shape::fixed(&[kernel[0], kernel[1], channels, filters])));
    let b = graph.input("b", TensorType::f32(Shape::fixed(&[filters])));
    let y = graph.apply(Conv2dReluPool { conv, output: DType::F32 }, &[x, weight, b]).unwrap();
    let place = graph.extra_outputs(y)[0];
    let dy = graph.input("dy", graph.ty(y));
    let dx = graph.apply(Conv2dReluPoolInputGrad { conv, input: [h, w], output: DType::F32 }, &[dy, place, weight]).unwrap();
    let dw = graph.apply(Conv2dReluPoolWeightGrad { conv, kernel, slices }, &[x, dy, place]).unwrap();
    let roots = vec![y, dx, dw, graph.extra_outputs(dw)[0], place];
    let plan = Arc::new(Plan::new(&graph, &roots, batch).unwrap());
    Example { plan, leaves: [x, weight, b, dy], roots, batch }
}

/// Windows of one row and of several, panels of filters that are full and not, runs of every length that has a case of its own,
/// patches that reach to the images' last element, padding, steps and holes, and pixels beside the padding that no window sees.
/// Of those that are transformed: blocks of windows that are full and not, one alone, channels that end within a vector.
fn examples() -> Vec<Example> {
    let plain = Conv2d::default();
    let same = Conv2d { padding: Padding::Same, ..plain };
    let wide = Conv2d { stride: [2, 3], dilation: [2, 2], padding: Padding::Same, ..plain };
    let holes = Conv2d { dilation: [3, 1], ..plain };
    let past = Conv2d { stride: [3, 3], padding: Padding::Explicit { top: 1, bottom: 0, left: 2, right: 0 }, ..plain };
    vec![
        example(plain, [32, 32, 3], [3, 3], 32, 5, 3),
        example(plain, [15, 15, 32], [3, 3], 64, 3, 2),
        example(plain, [6, 6, 64], [3, 3], 36, 2, 5),
        example(same, [7, 9, 5], [5, 3], 4, 1, 4),
        example(wide, [17, 23, 7], [3, 2], 20, 4, 3),
        example(holes, [13, 6, 21], [3, 3], 68, 1, 1),
        example(past, [13, 14, 4], [1, 2], 4, 2, 2),
        example(plain, [2, 3, 1], [1, 1], 8, 9, 6),
        example(plain, [5, 5, 50], [2, 2], 44, 2, 2),
        example(same, [9, 7, 19], [3, 3], 20, 2, 3),
        example(plain, [5, 4, 33], [3, 3], 68, 1, 1),
        example(plain, [7, 11, 16], [3, 3], 16, 3, 9),
    ]
}

/// Every result, by vectors so wide.
fn run(example: &Example, values: &[Vec<f64>], arch: Arch) -> Vec<Vec<f32>> {
    FORCED.set(Some(arch));
    let mut exec = CpuExecutor::new(Some(1)).unwrap();
    let id = exec.load(example.plan.clone()).unwrap();
    for (&leaf, values) in example.leaves.iter().zip(values) {
        write_f32(&mut exec, leaf, &values.iter().map(|&v| v as f32).collect::<Vec<_>>()).unwrap();
    }
    exec.poison(id).unwrap();
    exec.run(id, &[example.batch]).unwrap();
    FORCED.set(None);
    let mut read = |&root| match example.plan.readable(root).unwrap().ty.dtype {
        DType::U8 => exec.read(id, root, example.batch).unwrap().into_iter().map(f32::from).collect(),
        _ => read_f32(&mut exec, id, root, example.batch).unwrap(),
    };
    example.roots.iter().map(&mut read).collect()
}

fn archs() -> Vec<Arch> {
    let mut archs = vec![Arch::Scalar, Arch::new()];
    #[cfg(target_arch = "x86_64")]
    archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
    archs
}

/// So many numbers around zero for each leaf.
fn drawn(example: &Example) -> Vec<Vec<f64>> {
    let len = |leaf| example.plan.readable(leaf).unwrap().ty.shape.len(example.batch);
    let draw = |(seed, &leaf)| (0..len(leaf)).map(|k| f64::from((noise(seed, k) - 0.5) as f32)).collect();
    example.leaves.iter().enumerate().map(draw).collect()
}

fn referenced(example: &Example, values: &[Vec<f64>]) -> BTreeMap<TensorId, Vec<f64>> {
    let mut leaves = example.leaves.iter().copied().zip(values.iter().cloned()).collect();
    reference::run(&example.plan, &mut leaves, example.batch).unwrap()
}

#[test]
fn any_width_of_vectors_gives_the_references_numbers_and_forward_the_same_bits() {
    let archs = archs();
    for example in examples() {
        let values = drawn(&example);
        let wanted = referenced(&example, &values);
        let results: Vec<_> = archs.iter().map(|&arch| run(&example, &values, arch)).collect();
        for (arch, results) in archs.iter().zip(&results) {
            for (i, (root, got)) in example.roots.iter().zip(results).enumerate() {
                let largest = wanted[root].iter().fold(0.0, |most: f64, v| most.max(v.abs()));
                for (got, want) in got.iter().zip(&wanted[root]) {
                    assert!((f64::from(*got) - want).abs() <= 1e-5 * largest, "{arch:?}, result {i}: {got} for {want}");
                }
            }
        }
        // Forward, and of the bias's gradient, terms have one order.
        let bits = |results: &Vec<Vec<f32>>| [0, 3].map(|i| results[i].iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        for (arch, other) in archs.iter().zip(&results).skip(1) {
            assert!(bits(&results[0]) == bits(other), "{arch:?} differs in its bits");
        }
    }
}

/// An image or its padding may be even, and then patches tie: the first place has the gradient, also where sums are of transforms.
/// A NaN is in the results that see it and in no other, and is the largest of its window.
#[test]
fn ties_and_nans_are_where_the_reference_has_them() {
    // But for the largest two: the reference takes its time.
    for example in examples().into_iter().skip(2) {
        for stripes in [[0, 0], [1, 0], [0, 1]] {
            let mut values = drawn(&example);
            let extents = example.plan.readable(example.leaves[0]).unwrap().ty.shape.inner().to_vec();
            let [width, channels] = [extents[1], extents[2]];
            for (k, x) in values[0].iter_mut().enumerate() {
                let [h, w, c] = [k / channels / width % extents[0], k / channels % width, k % channels];
                *x = f64::from((noise(9, (h * stripes[0] + w * stripes[1]) * channels + c) - 0.5) as f32);
            }
            // An element of the first image, then the last filter's bias too.
            for nan in [None, Some((0, width * channels)), Some((2, values[2].len() - 1))] {
                if let Some((leaf, at)) = nan {
                    values[leaf][at] = f64::NAN;
                }
                let wanted = referenced(&example, &values);
                let [y, place] = [example.roots[0], example.roots[4]];
                for arch in archs() {
                    let got = run(&example, &values, arch);
                    for (k, (got_y, y)) in got[0].iter().zip(&wanted[&y]).enumerate() {
                        assert!(got_y.is_nan() == y.is_nan(), "{arch:?}: {got_y} for {y}, {nan:?}");
                        assert!(
                            f64::from(got[4][k]) == wanted[&place][k],
                            "{arch:?}: place {} for {}, {nan:?}",
                            got[4][k],
                            wanted[&place][k]
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn both_gradients_at_once_refuse_what_does_not_fit_and_f16() {
    let f32 = |extents: &[usize]| TensorType::f32(Shape::batched(extents));
    let (x, y, w) = (f32(&[8, 6, 8]), f32(&[3, 2, 4]), TensorType::f32(Shape::fixed(&[3, 3, 8, 4])));
    let place = TensorType { dtype: DType::U8, ..y };
    let grad = Conv2dReluPoolGrad { conv: Conv2d::default(), slices: 2 };
    assert_eq!(grad.infer(&[x, y, place, w]).unwrap().shape, Shape::fixed(&[2, 3, 3, 8, 4]));
    let half = |ty: TensorType| TensorType { dtype: DType::F16, ..ty };
    for [x, dy] in [[half(x), y], [x, half(y)]] {
        let error = grad.infer(&[x, dy, place, w]).unwrap_err().to_string();
        assert!(error.contains("f16") && error.contains("expected f32"), "{error}");
    }
    let wider = TensorType::f32(Shape::fixed(&[3, 3, 6, 4]));
    assert!(grad.infer(&[x, y, place, wider]).unwrap_err().to_string().contains("w has dx"));
    let odd = [f32(&[8, 6, 5]), y, place, TensorType::f32(Shape::fixed(&[3, 3, 5, 4]))];
    assert!(grad.infer(&odd).unwrap_err().to_string().contains("5 channels, expected a multiple of 4"));
}
