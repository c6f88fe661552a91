//! Faults of the kernels that keep to registers.

use super::*;

/// Faults of an operator's kernel of registers.
fn variant(op: impl Into<Op>, types: &[TensorType], batch: usize, faults: &[Fault]) -> Target {
    target(example(Altered::registers(op), types, batch), faults)
}

pub(crate) fn targets() -> Vec<Target> {
    let mut all = products();
    all.extend(relu_pools());
    all.extend(rest());
    all
}

fn products() -> Vec<Target> {
    let conv = Conv2d { stride: [2, 1], padding: Padding::Explicit { top: 1, bottom: 0, left: 2, right: 1 }, dilation: [1, 2], groups: 3 };
    let (x, w) = (batched(&[9, 7, 12]), fixed(&[3, 2, 4, 48]));
    let y = output(conv, &[x, w]);
    let (x_narrow, w_narrow) = (batched(&[9, 7, 9]), fixed(&[3, 2, 3, 48]));
    let matmul = |transpose_a, transpose_b| Matmul { transpose_a, transpose_b };
    let row_too_many = ["stores a row too many", "first + 3u < rows", "first + 3u < rows + 16u"];
    vec![
        variant(
            conv,
            &[x, w],
            3,
            &[
                ["padding of the other sign", "OW * STRIDE_W) - i32(PAD_W)", "OW * STRIDE_W) + i32(PAD_W)"],
                ["padding counts", "(u32(row.v + tap_w) < W)", "true"],
                ["always the first group of x", " + i32(part * CHANNELS / 4u)", ""],
                ["rows of a tile exchanged", "s1 += weights * four(&own, 4u)", "s1 += weights * four(&own, 8u)"],
                ["what the next invocation loaded", "i % SPREAD)", "(i + 1u) % SPREAD)"],
                ["dilation ignored", "tap % KW * DILATION_W", "tap % KW"],
            ],
        ),
        variant(
            conv,
            &[x_narrow, w_narrow],
            3,
            &[
                ["last steps along K left out", "k < DEPTH;", "k + 4u < DEPTH;"],
                ["stride of the other axis", "OH * STRIDE_H", "OH * STRIDE_W"],
                ["weights of the step before", "weights(k + 1u, quad)", "weights(k, quad)"],
            ],
        ),
        variant(
            Conv2dInputGrad { conv, input: [9, 7] },
            &[y, w],
            19,
            &[
                ["window not turned round", "row.v - tap_w", "row.v + tap_w"],
                ["taps between two strides counted", "(oh * STRIDE_H == u32(h)) & ", ""],
                ["images and pixels exchanged in the result", "* (H * W) + pixel)", "* (H * W) + pixel % W)"],
                ["weights not transposed", "transpose(mat4x4(", "(mat4x4("],
                ["a tap that some saw passed over", "subgroupAny(some)", "subgroupAll(some)"],
            ],
        ),
        variant(
            Conv2dWeightGrad { conv, kernel: [3, 2], slices: 7 },
            &[x, y],
            3,
            &[
                ["slices overlap", "min(first_pixel + run, images)", "images"],
                ["what lies past the run counts", "pixel.inside & (h < H)", "(h < H)"],
                ["image forgotten", "k / (OH * OW) * H", "0u * k"],
            ],
        ),
        variant(
            Conv2dWeightGrad { conv, kernel: [3, 2], slices: 7 },
            &[x_narrow, y],
            3,
            &[
                ["slices overlap", "min(first_pixel + run, images)", "images"],
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
            &[
                ["last step along K left out", "k < depth;", "k + 4u <= depth;"],
                ["a as if not transposed", "return transpose(vectors)", "return vectors"],
            ],
        ),
        variant(
            matmul(false, true),
            &[batched(&[33]), fixed(&[71, 33])],
            37,
            &[
                ["b as if not transposed", "columns * depth + safe", "safe * N + columns"],
                ["a column too many", "column + 3u < N", "column + 3u < N + 8u"],
                ["rows of a quad exchanged", "pick(i % 4u, v0, v1,", "pick(i % 4u, v1, v0,"],
            ],
        ),
        variant(
            matmul(true, false),
            &[batched(&[33]), batched(&[10])],
            67,
            &[
                ["a as if not transposed", "safe * rows + row", "row * depth + safe"],
                ["last step along K left out", "k < depth; k", "k + 4u <= depth; k"],
            ],
        ),
    ]
}

/// Of convolutions with pooling.
fn relu_pools() -> Vec<Target> {
    let conv = Conv2d { stride: [2, 1], padding: Padding::Explicit { top: 1, bottom: 0, left: 2, right: 1 }, dilation: [1, 2], groups: 1 };
    let (x, w, b) = (batched(&[13, 9, 12]), fixed(&[3, 2, 12, 68]), fixed(&[68]));
    let (x_narrow, w_narrow) = (batched(&[13, 9, 5]), fixed(&[3, 2, 5, 68]));
    let block = Conv2dReluPool { conv, output: DType::F32 };
    let y = output(block, &[x, w, b]);
    let place = TensorType { dtype: DType::U8, ..y };
    let weight_grad = Conv2dReluPoolWeightGrad { conv, kernel: [3, 2], slices: 4 };
    let forward = [
        ["padding of the other sign", "STRIDE_W) - i32(PAD_W)", "STRIDE_W) + i32(PAD_W)"],
        ["places exchanged", "+ place / 2u) * STRIDE_H", "+ place % 2u) * STRIDE_H"],
        ["the last place left out", "where_ = select(where_, vec4(3u), better3);", ""],
        ["what relu stopped has a place", "select(where_, vec4(STOPPED), is_zero(best))", "where_"],
        ["bias of the first filters", "b[column / 4u]", "b[0]"],
        ["no relu", "select(z, vec4<f32>(), z < vec4<f32>())", "z"],
        ["a window too many", "min(TILE, rows - row) / 4u", "min(TILE, rows - row + 4u) / 4u"],
        ["what the next invocation loaded", "i % SPREAD)", "(i + 1u) % SPREAD)"],
    ];
    let backward = [
        ["slices overlap", "min(first_window + run, windows)", "windows"],
        ["what did not win gets a gradient", "value, places == vec4(2u))", "value, places >= vec4(2u))"],
        ["bias of three places", "gradients[2] + gradients[3]", "gradients[2]"],
    ];
    vec![
        variant(block, &[x, w, b], 3, &[&forward[..], &[["padding counts", "(u32(row.v + tap_w) < W)", "true"]]].concat()),
        variant(
            block,
            &[x_narrow, w_narrow, b],
            3,
            &[&forward[..], &[["last steps along K left out", "k < DEPTH;", "k + 4u < DEPTH;"]]].concat(),
        ),
        variant(
            // No bias and weights of one step leave pixels that tie, at zero and above.
            Altered::drawn(Conv2dReluPool { conv: Conv2d::default(), output: DType::F32 }, 1, (0.0, 0.0)),
            &[x, w, b],
            3,
            &[["last of equals wins", "(v > best)", "(v >= best)"]],
        ),
        variant(
            Altered::drawn(Conv2dReluPool { conv: Conv2d::default(), output: DType::F32 }, 1, (0.0, 0.0)),
            &[x_narrow, w_narrow, b],
            3,
            &[["last of equals wins", "(v > best)", "(v >= best)"]],
        ),
        variant(
            Conv2dReluPoolInputGrad { conv, input: [13, 9], output: DType::F32 },
            &[y, place, w],
            19,
            &[
                ["window not turned round", "row.v - tap_w", "row.v + tap_w"],
                ["taps between two strides counted", "(oh * STRIDE_H == u32(h)) & ", ""],
                ["places exchanged", "oh % 2u * 2u + ow % 2u", "ow % 2u * 2u + oh % 2u"],
                ["what did not win gets a gradient", "dy, differs == vec4<u32>()", "dy, vec4(true)"],
                ["a tap that some saw passed over", "subgroupAny(some)", "subgroupAll(some)"],
                ["weights not transposed", "transpose(mat4x4(", "(mat4x4("],
                ["images and pixels exchanged in the result", "* (H * W) + pixel)", "* (H * W) + pixel % W)"],
            ],
        ),
        variant(
            weight_grad,
            &[x, y, place],
            3,
            &[
                &backward[..],
                &[
                    ["image forgotten", "k / (PH * PW) * H", "0u * k"],
                    ["rows and columns of a window exchanged", "* 2u + here / 2u) * STRIDE_H", "* 2u + here % 2u) * STRIDE_H"],
                    ["every bias of the first filters", "db[slice * pitch + quad]", "db[slice * pitch]"],
                ],
            ]
            .concat(),
        ),
        variant(
            weight_grad,
            &[x_narrow, y, place],
            3,
            &[
                &backward[..],
                &[
                    ["image forgotten", "i32(k / (PH * PW) * H)", "0"],
                    ["rows and columns of a window exchanged", "vec4(0u, 0u, 1u, 1u)", "vec4(0u, 1u, 0u, 1u)"],
                    ["slices where the first is", "(slice * rows + first) * pitch", "first * pitch"],
                ],
            ]
            .concat(),
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
