//! Mutations of what mixed precision adds: kernels that load and store f16, casts, and the scaled loss.

use shadernet::ops::window::Padding;
use shadernet::ops::*;
use shadernet::shape::{DType, Shape, TensorType};

use super::common::Altered;
use super::common::examples::{batched, example, fixed, integers, output};
use super::{Target, target};

/// All that f16 has no larger number than.
const LARGEST: (f64, f64) = (65_504.0, 65_504.0);

pub(super) fn targets() -> Vec<Target> {
    blocks().into_iter().chain(layers()).chain(scaled()).collect()
}

fn half(ty: TensorType) -> TensorType {
    TensorType { dtype: DType::F16, ..ty }
}

fn blocks() -> Vec<Target> {
    let conv = Conv2d { stride: [2, 1], padding: Padding::Explicit { top: 1, bottom: 0, left: 2, right: 1 }, dilation: [1, 2], groups: 1 };
    let (x, w, b) = (half(batched(&[13, 9, 5])), fixed(&[3, 2, 5, 68]), fixed(&[68]));
    let block = Conv2dReluPool { conv, output: DType::F16 };
    let y = output(block, &[x, w, b]);
    let place = TensorType { dtype: DType::U8, ..y };
    let dx = Conv2dReluPoolInputGrad { conv, input: [13, 9], output: DType::F16 };
    let dw = Conv2dReluPoolWeightGrad { conv, kernel: [3, 2], slices: 4 };
    vec![
        target(
            example(block, &[x, w, b], 3),
            &[
                ["places of the next filters", "place[at] = where_.x |", "place[at] = where_.y |"],
                ["summed in what is stored", "vec4<f32>(image.value)", "vec4<f32>(X(0.01) * image.value)"],
            ],
        ),
        target(
            example(dx, &[y, place, w], 3),
            &[
                ["the next gradient", "Returned(dy[i], place[i]", "Returned(dy[i + 1u], place[i]"],
                ["one element of four stored", "DX(s[i][c])", "DX(s[i][0])"],
            ],
        ),
        target(
            example(dw, &[x, y, place], 3),
            &[
                ["the next gradients", "Returned(dy[at], place[at])", "Returned(dy[at + 1u], place[at])"],
                ["the next channel", "i32(row % CHANNELS);", "i32(row % CHANNELS + 1u);"],
            ],
        ),
        target(example(Cast { to: DType::F16 }, &[batched(&[7, 9, 5])], 3), &[["of the other sign", "Y(x[i])", "Y(-x[i])"]]),
        target(
            example(Cast { to: DType::F32 }, &[half(batched(&[7, 9, 5]))], 3),
            &[["the first image alone", "LEN * call.batch", "LEN"], ["the neighbour's", "Y(x[i])", "Y(x[i ^ 1u])"]],
        ),
    ]
}

fn layers() -> Vec<Target> {
    let [x, y] = [half(batched(&[70])), half(batched(&[37]))];
    let w = fixed(&[70, 37]);
    vec![
        target(
            example(Dense { relu: true, output: DType::F16 }, &[x, w, fixed(&[37])], 35),
            &[["no relu", "RELU && z < 0.0", "false && z < 0.0"], ["the next feature", "FEATURES + k]);", "FEATURES + k + 1u]);"]],
        ),
        target(
            example(DenseGrad { relu: true, dx: DType::F16 }, &[x, y, y, w], 35),
            &[
                ["what relu stopped goes through", "select(f32(dy[i]), 0.0, y[i] <= 0.0)", "f32(dy[i])"],
                ["one element of four stored", "= DX(values[i]);", "= DX(values[0]);"],
            ],
        ),
    ]
}

fn scaled() -> Vec<Target> {
    let (param, rate, clock, scalar) = (fixed(&[3, 100]), fixed(&[8]), integers(&[2]), fixed(&[]));
    let grads = [5, 700, 3, 9].map(|len| TensorType::f16(Shape::batched(&[len])));
    let types = [grads[0], grads[1], grads[2], grads[3], rate];
    let overflow = |operand, range| example(Altered::drawn(Overflow { count: 4 }, operand, range), &types, 3);
    let tick = Adam::default().scaled_tick();
    let tick_types = [scalar, scalar, clock, fixed(&[7, 2]), rate, scalar];
    // The step before the scale doubles; what is drawn for the scale is at most 1.
    let soon = ScaledTick { growth_interval: 1, ..tick };
    let adam = Adam { epsilon: 0.1, ..Adam::default() };
    let moments = Adam::moments(param);
    vec![
        target(
            overflow(0, LARGEST),
            &[["the largest number is none", "= 0x7bffu", "= 0x7c00u"], ["the first not looked at", "grad0[i]", "grad1[i]"]],
        ),
        target(overflow(1, LARGEST), &[["the second not looked at", "grad1[i]", "grad0[i]"], ["another element", "&rate[5]", "&rate[6]"]]),
        target(overflow(2, LARGEST), &[["the third not looked at", "2u * i < LEN2 * call.batch", "2u * i > LEN2 * call.batch"]]),
        target(overflow(3, LARGEST), &[["the last not looked at", "grad3[i]", "grad0[i]"], ["not one", "0x3f800000u", "0x40000000u"]]),
        // Nothing overflows here; the sign is no part of a size.
        target(overflow(1, (-1.0, -0.5)), &[["the sign counts", "word >> 16u & 0x7fffu", "word >> 16u & 0xffffu"]]),
        target(
            example(tick, &tick_types, 3),
            &[
                ["loss in both columns", "= correct[0]", "= loss[0]"],
                ["steps without overflow not counted", "good = rate[6] + 1.0", "good = rate[6]"],
                ["the rate stays", "        next_rate();\n", ""],
                ["rounding not carried along", " + excess) - excess", ")"],
            ],
        ),
        target(
            example(soon, &tick_types, 3),
            &[
                ["the scale stays", "loss_scale[0] *= 2.0", "loss_scale[0] *= 1.0"],
                ["its inverse stays", "rate[4] *= 0.5", "rate[4] *= 1.0"],
            ],
        ),
        target(
            // All of the rate is 1 or more: a step that overflowed.
            example(Altered::drawn(tick, 4, (1.0, 2.0)), &tick_types, 3),
            &[
                ["the scale stays", "loss_scale[0] *= 0.5", "loss_scale[0] *= 1.0"],
                ["its inverse stays", "rate[4] *= 2.0", "rate[4] *= 1.0"],
                ["the overflow stays", "rate[5] = 0.0", "rate[5] = 1.0"],
                ["growth goes on", "rate[6] = good", "rate[6] += good"],
            ],
        ),
        target(
            example(adam, &[param, moments, param, rate], 1),
            &[
                ["the gradient stays scaled", "total *= rate[4]", "total *= 1.0"],
                ["another factor", "total *= rate[4]", "total *= rate[6]"],
            ],
        ),
        target(
            example(Altered::drawn(adam, 3, (1.0, 2.0)), &[param, moments, param, rate], 1),
            &[["steps where one has overflowed", " || (SCALED && rate[5] >= 1.0)", ""]],
        ),
        target(
            example(Altered::registers(adam), &[param, moments, param, rate], 1),
            &[["the gradient stays scaled", "total *= rate[1].x", "total *= 1.0"]],
        ),
        target(
            example(Altered::drawn(Altered::registers(adam), 3, (1.0, 2.0)), &[param, moments, param, rate], 1),
            &[["steps where one has overflowed", " || (SCALED && rate[1].y >= 1.0)", ""]],
        ),
        target(
            example(AdamGroup { adam, count: 2 }, &[param, param, moments, moments, param, param, rate], 1),
            &[["the gradient stays scaled", "total *= rate[4]", "total *= 1.0"]],
        ),
        target(
            example(Altered::drawn(AdamGroup { adam, count: 2 }, 6, (1.0, 2.0)), &[param, param, moments, moments, param, param, rate], 1),
            &[["steps where one has overflowed", " && !(SCALED && rate[5] >= 1.0)", ""]],
        ),
    ]
}
