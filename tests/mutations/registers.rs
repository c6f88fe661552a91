//! Faults of the kernels that keep to registers.

use super::*;

/// Faults of an operator's kernel of registers.
fn variant(op: impl Into<Op>, types: &[TensorType], batch: usize, faults: &[Fault]) -> Target {
    target(example(Altered::registers(op), types, batch), faults)
}

pub(crate) fn targets() -> Vec<Target> {
    let mut all = products();
    all.extend(rest());
    all
}

fn products() -> Vec<Target> {
    let conv = Conv2d { stride: [2, 1], padding: Padding::Explicit { top: 1, bottom: 0, left: 2, right: 1 }, dilation: [1, 2], groups: 3 };
    let (x, w) = (batched(&[9, 7, 12]), fixed(&[3, 2, 4, 48]));
    let y = output(conv, &[x, w]);
    let (x_narrow, w_narrow) = (batched(&[9, 7, 9]), fixed(&[3, 2, 3, 48]));
    let matmul = |transpose_a, transpose_b| Matmul { transpose_a, transpose_b };
    let row_too_many = ["stores a row too many", "row + 3u < rows", "row + 3u < rows + 16u"];
    vec![
        variant(
            conv,
            &[x, w],
            3,
            &[
                ["padding of the other sign", "OW * STRIDE_W) - i32(PAD_W)", "OW * STRIDE_W) + i32(PAD_W)"],
                ["padding counts", "(vec4<u32>(rows.v + tap_w) < vec4(W))", "vec4(true)"],
                ["always the first group of x", " + i32(part * CHANNELS / 4u)", ""],
                ["rows and columns of a tile exchanged", "s12 += b2 * a1", "s12 += b1 * a2"],
                ["dilation ignored", "tap % KW * DILATION_W", "tap % KW"],
            ],
        ),
        variant(
            conv,
            &[x_narrow, w_narrow],
            3,
            &[
                ["last channel left out", "c < CHANNELS;", "c + 1u < CHANNELS;"],
                ["stride of the other axis", "OH * STRIDE_H", "OH * STRIDE_W"],
                ["weights of a row's neighbour", "weights * rows.x", "weights * rows.y"],
            ],
        ),
        variant(
            Conv2dInputGrad { conv, input: [9, 7] },
            &[y, w],
            19,
            &[
                ["window not turned round", "rows.v - tap_w", "rows.v + tap_w"],
                ["taps between two strides counted", "(oh * STRIDE_H == vec4<u32>(h)) & ", ""],
                ["images and pixels exchanged in the result", "* (H * W) + pixel)", "* (H * W) + pixel % W)"],
                ["weights not transposed", "transpose(mat4x4(", "(mat4x4("],
            ],
        ),
        variant(
            Conv2dWeightGrad { conv, kernel: [3, 2], slices: 7 },
            &[x, y],
            3,
            &[
                ["slices overlap", "min(first + run, images)", "images"],
                ["what lies past the run counts", "pixels.inside & (h", "(h"],
                ["image forgotten", "k / (OH * OW) * H", "0u * k"],
            ],
        ),
        variant(
            Conv2dWeightGrad { conv, kernel: [3, 2], slices: 7 },
            &[x_narrow, y],
            3,
            &[
                ["slices overlap", "min(first + run, images)", "images"],
                ["rows and columns of the window exchanged", "tap / KW * DILATION_H", "tap % KW * DILATION_H"],
            ],
        ),
        variant(
            matmul(false, true),
            &[batched(&[36]), fixed(&[68, 36])],
            37,
            &[
                [
                    "b as if not transposed",
                    "* (depth / 4u) + k / 4u;\n        return transpose(mat4x4(b",
                    "* (depth / 4u) + k / 4u;\n        return (mat4x4(b",
                ],
                row_too_many,
            ],
        ),
        variant(
            matmul(true, false),
            &[batched(&[36]), batched(&[20])],
            67,
            &[["last step along K left out", "k < depth;", "k + 4u <= depth;"]],
        ),
    ]
}

fn rest() -> Vec<Target> {
    let x = batched(&[7, 9, 8]);
    let pool =
        Window { kernel: [2, 3], stride: [2, 3], dilation: [1, 1], padding: Padding::Explicit { top: 1, bottom: 0, left: 1, right: 2 } };
    let pooled = output(MaxPool2d { window: pool }, &[x]);
    let (adam, param) = (Adam { epsilon: 0.1, ..Adam::default() }, fixed(&[3, 100]));
    vec![
        variant(Sum { axes: Axes::new(&[0]) }, &[fixed(&[200, 260])], 1, &[["only the last run", "total += run", "total = run"]]),
        variant(
            adam,
            &[param, Adam::moments(param), fixed(&[150, 3, 100]), fixed(&[4])],
            1,
            &[
                ["only the last run", "total += run", "total = run"],
                ["the last slice left out", "first + RUN, SLICES)", "first + RUN, SLICES - 1u)"],
                ["epsilon inside the root", "sqrt(v) + EPSILON", "sqrt(v + EPSILON)"],
                ["no bias correction", "rates.x * sqrt(rates.z) / rates.y", "rates.x"],
                ["moments exchanged", "v_before = moments[quads + i]", "v_before = moments[i]"],
                ["the last quad left out", "if i >= quads", "if i + 1u >= quads"],
            ],
        ),
        variant(
            Altered::drawn(MaxPool2dGrad { window: pool }, 0, TIES),
            &[x, pooled],
            3,
            &[
                ["last of equals wins", "(v > best)", "(v >= best)"],
                ["padding wins", "if iy < H && ix < W {\n                let v", "{\n                let v"],
                [
                    "padding of the other sign",
                    "ox * SX + kx - PX;\n            if iy < H && ix < W {\n                let here",
                    "ox * SX + kx + PX;\n            if iy < H && ix < W {\n                let here",
                ],
            ],
        ),
        variant(
            BiasAdd,
            &[x, fixed(&[8])],
            3,
            &[["bias of the next channels", "bias[i %", "bias[(i + 1u) %"], ["an element too many", "i < select", "i <= select"]],
        ),
        variant(
            Activation { function: Function::Relu },
            &[x],
            3,
            &[["relu of the other sign", "select(v, vec4<f32>(), v <", "select(v, vec4<f32>(), v >"]],
        ),
        variant(
            Altered::drawn(ActivationGrad { function: Function::Relu }, 0, TIES),
            &[x, x],
            3,
            &[["gradient of relu at 0", "vec4<f32>(), v <= vec4<f32>()", "vec4<f32>(), v < vec4<f32>()"]],
        ),
    ]
}
