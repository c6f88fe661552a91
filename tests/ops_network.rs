//! Pooling, softmax, loss, Adam, counters and gathering on every executor against their references, over ragged sizes.

mod common;

use common::check_op;
use shadernet::ops::adam::GROUP;
use shadernet::ops::window::{Padding, Window};
use shadernet::ops::*;
use shadernet::shape::{Shape, TensorType};

fn fixed(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::fixed(extents))
}

fn batched(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::batched(extents))
}

fn list(len: usize) -> TensorType {
    TensorType::u32(Shape::fixed(&[len]))
}

/// The worst error of a grid, printed when it is done.
struct Worst(&'static str, f64);

impl Worst {
    fn check(&mut self, op: impl Into<Op>, types: &[TensorType], batch: usize) {
        let op = op.into();
        match check_op(op.clone(), types, batch) {
            Ok(error) => self.1 = self.1.max(error),
            Err(problem) => panic!("{op:?} on {types:?} at batch {batch}: {problem}"),
        }
    }
}

impl Drop for Worst {
    fn drop(&mut self) {
        println!("{}: at most {:.3} of the tolerance", self.0, self.1);
    }
}

#[test]
fn pooling_agrees_with_reference_over_windows_strides_and_padding() {
    let mut worst = Worst("pooling", 0.0);
    let asymmetric = Padding::Explicit { top: 1, bottom: 0, left: 0, right: 2 };
    let mut windows = Vec::new();
    for (kernel, stride) in [([1, 1], [1, 1]), ([2, 2], [2, 2]), ([3, 3], [1, 1]), ([3, 2], [2, 1]), ([2, 2], [3, 3]), ([3, 3], [2, 2])] {
        for padding in [Padding::Valid, Padding::Same, asymmetric] {
            windows.push(Window { kernel, stride, dilation: [1, 1], padding });
        }
    }
    windows.push(Window { kernel: [2, 3], stride: [1, 2], dilation: [3, 1], padding: Padding::Valid });
    windows.push(Window { kernel: [2, 2], stride: [1, 1], dilation: [2, 2], padding: asymmetric });
    let mut cases = 0;
    for (i, window) in windows.into_iter().enumerate() {
        for (j, [height, width, channels]) in [[4, 5, 1], [7, 6, 4], [9, 9, 35]].into_iter().enumerate() {
            let x = batched(&[height, width, channels]);
            let Ok(y) = (MaxPool2d { window }).infer(&[x]) else { continue }; // a window of padding alone is refused
            let batch = [0, 1, 3][(i + j) % 3];
            worst.check(MaxPool2d { window }, &[x], batch);
            worst.check(MaxPool2dGrad { window }, &[x, y], batch);
            worst.check(AvgPool2d { window }, &[x], batch);
            worst.check(AvgPool2dGrad { window, input: [height, width] }, &[y], batch);
            cases += 1;
        }
    }
    assert!(cases >= 40, "only {cases} windows fit");
}

#[test]
fn pooling_of_the_network_and_of_a_whole_image_agrees_with_reference() {
    let mut worst = Worst("pooling of 30×30×32", 0.0);
    let x = batched(&[30, 30, 32]);
    let window = Window { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], padding: Padding::Valid };
    worst.check(MaxPool2d { window }, &[x], 5);
    worst.check(MaxPool2dGrad { window }, &[x, batched(&[15, 15, 32])], 5);
    let whole = Window { kernel: [30, 30], ..window };
    worst.check(AvgPool2d { window: whole }, &[x], 3);
    worst.check(AvgPool2dGrad { window: whole, input: [30, 30] }, &[batched(&[1, 1, 32])], 3);
}

#[test]
fn softmax_agrees_with_reference_around_its_sharing_of_rows() {
    let mut worst = Worst("softmax", 0.0);
    for (i, columns) in [1, 2, 8, 9, 10, 16, 17, 100, 1000, 3000].into_iter().enumerate() {
        let x = batched(&[columns]);
        let batch = [0, 1, 3, 131][i % 4];
        worst.check(Softmax, &[x], batch);
        worst.check(SoftmaxGrad, &[x, x], batch);
    }
    for x in [fixed(&[5]), fixed(&[3, 4, 9]), batched(&[3, 5, 6])] {
        worst.check(Softmax, &[x], 3);
        worst.check(SoftmaxGrad, &[x, x], 3);
    }
}

#[test]
fn loss_its_gradient_and_accuracy_agree_with_reference() {
    let mut worst = Worst("loss", 0.0);
    for columns in [1, 2, 8, 9, 10, 33, 1000, 3000] {
        for batch in if columns <= 10 { vec![0, 1, 16, 64, 259, 1000] } else { vec![1, 67] } {
            let types = [batched(&[columns]), TensorType::u32(Shape::batched(&[])), fixed(&[])];
            worst.check(SoftmaxCrossEntropy, &types[..2], batch);
            worst.check(SoftmaxCrossEntropyGrad, &types, batch);
            worst.check(Accuracy, &types[..2], batch);
            worst.check(LossHead, &types, batch);
        }
    }
}

#[test]
fn adam_and_the_counters_agree_with_reference() {
    let mut worst = Worst("adam", 0.0);
    let rate = fixed(&[4]);
    for ty in [fixed(&[1]), fixed(&[255]), fixed(&[3, 3, 32, 64]), fixed(&[128, 10])] {
        let adam = Adam::default();
        worst.check(adam, &[ty, Adam::moments(ty), ty, rate], 1);
        for slices in [1, 2, 16, 39, 192] {
            let grad = fixed(&[&[slices], ty.shape.inner()].concat());
            worst.check(adam, &[ty, Adam::moments(ty), grad, rate], 1);
            let (bias, grad1) = (fixed(&[33]), fixed(&[slices, 33]));
            let pair = AdamGroup { adam, count: 2 };
            worst.check(pair, &[ty, bias, Adam::moments(ty), Adam::moments(bias), grad, grad1, rate], 1);
            worst.check(pair, &[bias, ty, Adam::moments(bias), Adam::moments(ty), grad1, ty, rate], 1);
        }
    }
    for count in 1..=GROUP {
        let group = common::examples::adam_group(count, rate);
        worst.check(group.op, &group.types, 1);
    }
    for batch in [0, 1, 64] {
        for steps in [1, 5] {
            let types = [fixed(&[]), fixed(&[]), list(2), fixed(&[steps, 2]), rate];
            worst.check(Record, &types[..4], batch);
            worst.check(Adam::default().tick(), &types, batch);
        }
    }
}

#[test]
fn gathering_agrees_with_reference_over_odd_sizes_and_shards() {
    let mut worst = Worst("gathering", 0.0);
    for [height, width, channels] in [[1, 1, 1], [3, 3, 1], [5, 7, 3], [32, 32, 3]] {
        let bytes = height * width * channels;
        let shard = |images| TensorType::u8(Shape::fixed(&[images, bytes]));
        for batch in [0, 1, 3, 17] {
            let op = GatherBatch { height, width, channels, images_per_shard: 5, images: 12, scale: 1.0 / 255.0 };
            worst.check(op, &[shard(5), shard(5), shard(2), list(12), list(20), list(2)], batch);
            let op = GatherBatch { images: 5, ..op };
            worst.check(op, &[shard(5), shard(5), shard(5), list(4), list(3), list(2)], batch);
        }
    }
}
