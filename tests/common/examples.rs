//! One or more applications of every operator that has a kernel, for tests that go over all kernels.

use shadernet::ops::activation::Function;
use shadernet::ops::adam::GROUP;
use shadernet::ops::reduce::Axes;
use shadernet::ops::window::{Padding, Window};
use shadernet::ops::*;
use shadernet::shape::{DType, Shape, TensorType};

/// An operator on operands of these types, at this batch.
#[derive(Clone, Debug)]
pub struct Example {
    pub op: Op,
    pub types: Vec<TensorType>,
    pub batch: usize,
}

pub fn example(op: impl Into<Op>, types: &[TensorType], batch: usize) -> Example {
    Example { op: op.into(), types: types.to_vec(), batch }
}

pub fn fixed(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::fixed(extents))
}

pub fn batched(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::batched(extents))
}

pub fn integers(extents: &[usize]) -> TensorType {
    TensorType::u32(Shape::fixed(extents))
}

/// A label for each image.
pub fn labels() -> TensorType {
    TensorType::u32(Shape::batched(&[]))
}

/// What `op` gives for these operands.
pub fn output(op: impl Into<Op>, types: &[TensorType]) -> TensorType {
    op.into().rules().infer(types).unwrap_or_else(|e| panic!("{e}"))
}

pub const FUNCTIONS: [Function; 5] =
    [Function::Relu, Function::LeakyRelu { slope: 0.3 }, Function::Sigmoid, Function::Tanh, Function::Gelu];

/// Every operator with a kernel, in the order of the list of operators.
pub fn examples() -> Vec<Example> {
    let mut all = Vec::new();
    for function in FUNCTIONS {
        for x in [batched(&[7, 9, 5]), batched(&[7, 9, 4])] {
            all.push(example(Activation { function }, &[x], 3));
            all.push(example(ActivationGrad { function }, &[x, x], 3));
        }
    }
    let adam = Adam::default();
    let (param, rate, clock, scalar) = (fixed(&[3, 100]), fixed(&[4]), integers(&[2]), fixed(&[]));
    let moments = Adam::moments(param);
    for grad in [param, fixed(&[5, 3, 100]), fixed(&[70, 3, 100])] {
        all.push(example(adam, &[param, moments, grad, rate], 1));
    }
    all.push(example(adam, &[fixed(&[37]), fixed(&[2, 37]), fixed(&[70, 37]), rate], 1));
    let (bias, moments1) = (fixed(&[37]), fixed(&[2, 37]));
    for [grad, grad1] in [[param, bias], [fixed(&[5, 3, 100]), bias], [fixed(&[70, 3, 100]), fixed(&[70, 37])]] {
        all.push(example(AdamGroup { adam, count: 2 }, &[param, bias, moments, moments1, grad, grad1, rate], 1));
    }
    all.push(adam_group(1, rate));
    all.push(adam_group(GROUP, rate));
    let log = fixed(&[7, 2]);
    all.push(example(Record, &[scalar, scalar, clock, log], 3));
    all.push(example(adam.tick(), &[scalar, scalar, clock, log, rate], 3));
    scaled(&mut all);
    all.push(example(Add, &[batched(&[33, 9]); 2], 3));
    all.push(example(Mul, &[fixed(&[300]); 2], 1));
    all.push(example(FmaChains, &[fixed(&[2])], 2));
    for channels in [33, 36] {
        all.push(example(BiasAdd, &[batched(&[5, 3, channels]), fixed(&[channels])], 3));
    }
    for (transpose_a, transpose_b) in [(false, false), (true, false), (false, true), (true, true)] {
        let a = fixed(&if transpose_a { [33, 70] } else { [70, 33] });
        let b = fixed(&if transpose_b { [67, 33] } else { [33, 67] });
        all.push(example(Matmul { transpose_a, transpose_b }, &[a, b], 1));
    }
    for (transpose_a, transpose_b) in [(false, false), (true, false), (false, true), (true, true)] {
        let a = fixed(&if transpose_a { [36, 68] } else { [68, 36] });
        let b = fixed(&if transpose_b { [20, 36] } else { [36, 20] });
        all.push(example(Matmul { transpose_a, transpose_b }, &[a, b], 1));
    }
    all.push(example(Matmul::default(), &[batched(&[33]), fixed(&[33, 10])], 67));
    all.push(example(Matmul { transpose_a: true, transpose_b: false }, &[batched(&[33]), batched(&[10])], 67));
    convolutions(&mut all);
    all.extend(relu_pools());
    all.extend(dense_layers());
    all.extend(heads());
    pools(&mut all);
    for axes in [&[0, 1, 2][..], &[0, 3], &[1, 3], &[3]] {
        let (x, axes) = (batched(&[5, 7, 9]), Axes::new(axes));
        all.push(example(Sum { axes }, &[x], 3));
        all.push(example(Broadcast { shape: x.shape, axes }, &[output(Sum { axes }, &[x])], 3));
    }
    all.push(example(Sum { axes: Axes::new(&[0]) }, &[batched(&[260])], 67));
    all.push(example(SumSlices { slices: 7 }, &[batched(&[5, 9, 20])], 3));
    all.push(example(Sum { axes: Axes::new(&[0]) }, &[fixed(&[7, 13, 20])], 1));
    for columns in [10, 300] {
        let x = batched(&[columns]);
        all.push(example(Softmax, &[x], 3));
        all.push(example(SoftmaxGrad, &[x, x], 3));
        all.push(example(SoftmaxCrossEntropy, &[x, labels()], 5));
        all.push(example(SoftmaxCrossEntropyGrad, &[x, labels(), scalar], 5));
        all.push(example(Accuracy, &[x, labels()], 30));
        all.push(example(LossHead, &[x, labels(), scalar], 30));
    }
    let shards = [5, 5, 3].map(|images| TensorType::u8(Shape::fixed(&[images, 4 * 5 * 3])));
    let gather = GatherBatch { height: 4, width: 5, channels: 3, images_per_shard: 5, images: 13, scale: 1.0 / 255.0 };
    for ty in [TensorType::u8(Shape::batched(&[5, 7, 3])), TensorType::u8(Shape::fixed(&[301]))] {
        all.push(example(ScaleBytes { scale: 1.0 / 255.0 }, &[ty], 3));
    }
    all.push(example(gather, &[shards[0], shards[1], shards[2], integers(&[13]), integers(&[13]), clock], 3));
    all
}

/// A step of Adam for parameters of many sizes, those of a tensor and a bias in turn, with slices of many counts.
pub fn adam_group(count: usize, rate: TensorType) -> Example {
    let extents = |i: usize| if i.is_multiple_of(2) { vec![3, 1 + 21 * i] } else { vec![64 * i.div_ceil(3)] };
    let param = |i: usize| fixed(&extents(i));
    let grad = |i: usize| if i % 3 == 2 { param(i) } else { fixed(&[&[[1, 9, 0, 40, 192][i % 5].max(2)], &extents(i)[..]].concat()) };
    let params = (0..count).map(param).chain((0..count).map(|i| Adam::moments(param(i))));
    let types: Vec<TensorType> = params.chain((0..count).map(grad)).chain([rate]).collect();
    example(AdamGroup { adam: Adam::default(), count }, &types, 1)
}

/// Casts, and what a scaled loss needs.
fn scaled(all: &mut Vec<Example>) {
    let (param, rate, clock, scalar) = (fixed(&[3, 100]), fixed(&[8]), integers(&[2]), fixed(&[]));
    for to in [DType::F16, DType::F32] {
        let dtype = if to == DType::F16 { DType::F32 } else { DType::F16 };
        all.push(example(Cast { to }, &[TensorType { dtype, ..batched(&[7, 9, 5]) }], 3));
        all.push(example(Cast { to }, &[TensorType { dtype, ..fixed(&[301]) }], 1));
    }
    let grads = [5, 700, 3, 9].map(|len| TensorType::f16(Shape::batched(&[len])));
    all.push(example(Overflow { count: 4 }, &[grads[0], grads[1], grads[2], grads[3], rate], 3));
    all.push(example(Overflow { count: 1 }, &[grads[0], grads[0], grads[0], grads[0], rate], 3));
    all.push(example(Adam::default().scaled_tick(), &[scalar, scalar, clock, fixed(&[7, 2]), rate, scalar], 3));
    let moments = Adam::moments(param);
    all.push(example(Adam::default(), &[param, moments, fixed(&[40, 3, 100]), rate], 1));
    let group = AdamGroup { adam: Adam::default(), count: 2 };
    all.push(example(group, &[param, param, moments, moments, param, fixed(&[40, 3, 100]), rate], 1));
}

fn convolutions(all: &mut Vec<Example>) {
    let asymmetric = Padding::Explicit { top: 1, bottom: 0, left: 0, right: 2 };
    let strided = Conv2d { stride: [2, 1], padding: Padding::Same, ..Conv2d::default() };
    let dilated = Conv2d { stride: [1, 2], padding: asymmetric, dilation: [2, 1], groups: 3 };
    let quads = Conv2d { groups: 2, ..strided };
    for (conv, [channels, filters]) in
        [(Conv2d::default(), [3, 70]), (strided, [17, 33]), (dilated, [6, 9]), (quads, [8, 40]), (Conv2d::default(), [3, 32])]
    {
        let (x, w) = (batched(&[9, 7, channels]), fixed(&[3, 2, channels / conv.groups, filters]));
        let y = output(conv, &[x, w]);
        all.push(example(conv, &[x, w], 3));
        all.push(example(Conv2dInputGrad { conv, input: [9, 7] }, &[y, w], 3));
        for slices in [1, 4] {
            all.push(example(Conv2dWeightGrad { conv, kernel: [3, 2], slices }, &[x, y], 3));
        }
    }
}

/// Convolutions with pooling, and the gradients of each: operators with more than one output.
pub fn relu_pools() -> Vec<Example> {
    let asymmetric = Padding::Explicit { top: 1, bottom: 0, left: 2, right: 1 };
    let strided = Conv2d { stride: [2, 1], padding: Padding::Same, ..Conv2d::default() };
    let dilated = Conv2d { stride: [1, 2], padding: asymmetric, dilation: [2, 1], groups: 1 };
    let mut all = Vec::new();
    for (conv, [channels, filters]) in [(Conv2d::default(), [3, 68]), (strided, [17, 36]), (dilated, [6, 4])] {
        let (x, w, b) = (batched(&[12, 9, channels]), fixed(&[3, 2, channels, filters]), fixed(&[filters]));
        let y = output(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, b]);
        let place = TensorType { dtype: DType::U8, ..y };
        let whole = [[DType::F32, DType::F32], [DType::F16, DType::F16]];
        let between = [[DType::F16, DType::F32], [DType::F32, DType::F16]]; // the first block of a network, and the last
        for &[to, from] in whole.iter().chain(&between).take(if filters == 4 { 4 } else { 2 }) {
            let (xs, dys) = (TensorType { dtype: from, ..x }, TensorType { dtype: to, ..y });
            all.push(example(Conv2dReluPool { conv, output: to }, &[xs, w, b], 3));
            let fours = channels.next_multiple_of(4);
            let (x4, w4) = (batched(&[12, 9, fours]), fixed(&[3, 2, fours, filters]));
            let x4s = TensorType { dtype: from, ..x4 };
            all.push(example(Conv2dReluPool { conv, output: to }, &[x4s, w4, b], 3));
            for w in [w, w4] {
                all.push(example(Conv2dReluPoolInputGrad { conv, input: [12, 9], output: from }, &[dys, place, w], 3));
            }
            for slices in [1, 5] {
                if [to, from] == [DType::F32; 2] {
                    all.push(example(Conv2dReluPoolGrad { conv, slices }, &[x4, y, place, w4], 3));
                }
                for x in [x4s, xs] {
                    all.push(example(Conv2dReluPoolWeightGrad { conv, kernel: [3, 2], slices }, &[x, dys, place], 3));
                }
            }
        }
    }
    // Three tiles of dx side by side, and after them a number of those of dw that three does not divide.
    let (conv, x, w) = (Conv2d::default(), batched(&[6, 5, 72]), fixed(&[3, 2, 72, 36]));
    let y = output(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, fixed(&[36])]);
    all.push(example(Conv2dReluPoolGrad { conv, slices: 5 }, &[x, y, TensorType { dtype: DType::U8, ..y }, w], 3));
    // Images enough for tiles of one pixel, of few filters, where many taps see nothing of it; and more taps than are listed.
    for (conv, image, kernel, [channels, filters], batch) in
        [(dilated, [7, 6], [3, 2], [4, 12], 70), (Conv2d::default(), [13, 13], [12, 11], [4, 4], 2)]
    {
        let (x, w) = (batched(&[image[0], image[1], channels]), fixed(&[kernel[0], kernel[1], channels, filters]));
        let y = output(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, fixed(&[filters])]);
        let place = TensorType { dtype: DType::U8, ..y };
        all.push(example(Conv2dReluPoolInputGrad { conv, input: image, output: DType::F32 }, &[y, place, w], batch));
        if batch > 64 {
            all.push(example(Conv2dReluPoolGrad { conv, slices: 2 }, &[x, y, place, w], batch));
        }
    }
    all
}

/// Dense layers and their gradients, with ReLU and without.
pub fn dense_layers() -> Vec<Example> {
    let mut all = Vec::new();
    for (relu, [features, units]) in [(true, [70, 37]), (false, [33, 10])] {
        let (x, w, y) = (batched(&[features]), fixed(&[features, units]), batched(&[units]));
        for [to, from] in [[DType::F32, DType::F32], [DType::F16, DType::F16], [DType::F32, DType::F16]] {
            let (xs, dys) = (TensorType { dtype: from, ..x }, TensorType { dtype: to, ..y });
            all.push(example(Dense { relu, output: to }, &[xs, w, fixed(&[units])], 35));
            all.push(example(DenseGrad { relu, dx: from }, &[xs, dys, dys, w], 35));
        }
    }
    all
}

/// Ends of classifiers: some features and units left over, too many classes for four images of a workgroup, and few of everything.
pub fn heads() -> Vec<Example> {
    let mut all = Vec::new();
    for (features, units, classes) in [(70, 128, 10), (33, 36, 70), (1, 4, 1)] {
        let [w1, w2] = [fixed(&[features, units]), fixed(&[units, classes])];
        for dtype in [DType::F32, DType::F16] {
            let x = TensorType { dtype, ..batched(&[features]) };
            let operands = [x, w1, fixed(&[units]), w2, fixed(&[classes]), labels(), fixed(&[])];
            let rows = output(MlpHead, &operands);
            all.push(example(MlpHead, &operands, 35));
            all.push(example(MlpHeadGrad { dx: dtype }, &[x, rows, w1], 35));
            all.push(example(MlpHeadLoss, &[rows], 300));
            all.push(example(MlpHeadTick { tick: Adam::default().tick() }, &[rows, integers(&[2]), fixed(&[7, 2]), fixed(&[4])], 300));
        }
    }
    all
}

fn pools(all: &mut Vec<Example>) {
    let asymmetric = Padding::Explicit { top: 1, bottom: 0, left: 0, right: 1 };
    for window in [
        Window { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], padding: Padding::Valid },
        Window { kernel: [3, 2], stride: [2, 1], dilation: [1, 2], padding: Padding::Same },
        Window { kernel: [3, 3], stride: [1, 2], dilation: [1, 1], padding: asymmetric },
    ] {
        let x = batched(&[9, 7, 5]);
        let y = output(MaxPool2d { window }, &[x]);
        all.push(example(MaxPool2d { window }, &[x], 3));
        all.push(example(MaxPool2dGrad { window }, &[x, y], 3));
        all.push(example(AvgPool2d { window }, &[x], 3));
        all.push(example(AvgPool2dGrad { window, input: [9, 7] }, &[y], 3));
    }
    let apart = Window { kernel: [2, 2], stride: [2, 3], dilation: [1, 1], padding: asymmetric };
    let x = batched(&[9, 7, 8]);
    all.push(example(MaxPool2dGrad { window: apart }, &[x, output(MaxPool2d { window: apart }, &[x])], 3));
}
