//! Mutations of the kernels that pool.

use shadernet::ops::window::{Padding, Window};
use shadernet::ops::*;
use shadernet::shape::{DType, TensorType};

use super::common::Altered;
use super::common::examples::{batched, example, fixed, output};
use super::{Fault, LAST_STEP, TIES, Target, target};

/// Of invocations that share a block.
const SHARED: [Fault; 2] = [
    ["a part left out", "i < PARTS; i += 1u", "i + 1u < PARTS; i += 1u"],
    ["terms of the next part counted too", "s < SHARES", "s <= SHARES"],
];

/// Of an invocation that stages more than its first two fours.
const MORE_TURNS: Fault = ["a turn left out", "var turn = 2u; turn * APART < TILE_M", "var turn = 3u; turn * APART < TILE_M"];

/// Of the gradient of images, alone or beside that of the weight.
const OF_IMAGES: [Fault; 11] = [
    ["window not turned round", "there.y - terms.tap % KW", "there.y + terms.tap % KW"],
    ["places exchanged", "h % 2u * 2u + v % 2u", "v % 2u * 2u + h % 2u"],
    ["a window past the last", "2u * PW * STRIDE_W)", "2u * PW * STRIDE_W + 2u)"],
    ["between two strides", " && all(at % vec2(STRIDE_H, STRIDE_W) == vec2<u32>())", ""],
    ["terms for rows", "transpose(fours(i, spot", "(fours(i, spot"],
    ["terms for columns", "transpose(fours(j, spot", "(fours(j, spot"],
    ["weights of the next tap", "w[(min(terms.tap, KH * KW - 1u) * CHANNELS", "w[((terms.tap + 1u) % (KH * KW) * CHANNELS"],
    ["pixels of this step again in the next", "        left_ahead = load_pixel(terms, 0u);\n", ""],
    ["weights of this step again in the next", "        right_ahead = load_w(terms, column0 + first, 0u);\n", ""],
    ["the same filters again", "terms.filters %= FILTERS", "terms.filters = 0u"],
    ["always the first tap", "taps[terms.tap]", "taps[0]"],
];

/// Of its tiles of one pixel, or of two.
const OF_ONE_PIXEL: [Fault; 3] = [
    ["a tap that some saw left out", "|| saw(position(last), tap)", ""],
    ["a tap left out", "count += 1u;\n        }", "count += select(1u, 0u, count == 3u);\n        }"],
    ["the last step left out", "k0 < depth; k0", "k0 + STEP < depth; k0"],
];

/// Of convolutions with pooling.
pub(super) fn relu_pools() -> Vec<Target> {
    let conv = Conv2d { stride: [2, 1], padding: Padding::Explicit { top: 1, bottom: 0, left: 2, right: 1 }, dilation: [1, 2], groups: 1 };
    let (x, w, b) = (batched(&[13, 9, 5]), fixed(&[3, 2, 5, 68]), fixed(&[68]));
    let (x4, w4) = (batched(&[13, 9, 12]), fixed(&[3, 2, 12, 68])); // channels in fours
    let (x20, w20) = (batched(&[13, 9, 20]), fixed(&[3, 2, 20, 68])); // … that are more than half a tile
    let y = output(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, b]);
    let place = TensorType { dtype: DType::U8, ..y };
    let plain = Conv2d::default();
    let y_plain = output(Conv2dReluPool { conv: plain, output: DType::F32 }, &[x20, w20, b]);
    let place_plain = TensorType { dtype: DType::U8, ..y_plain };
    let tied = Conv2dReluPool { conv: Conv2d::default(), output: DType::F32 };
    vec![
        target(
            example(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, b], 3),
            &[
                LAST_STEP,
                ["padding of the other sign", "- i32(PAD_W)", "+ i32(PAD_W)"],
                ["places exchanged", "vec4(x[i.x], x[i.y], x[i.z], x[i.w])", "vec4(x[i.x], x[i.z], x[i.y], x[i.w])"],
                ["a pixel past the edge", "u32(h + i32(STRIDE_H)) < H", "u32(h) < H"],
                ["padding is another pixel", "select(vec4<f32>(), vec4<f32>(image.value), image.inside)", "vec4<f32>(image.value)"],
                ["the last place left out", "where_ = select(where_, vec4(3u), better3);", ""],
                ["what relu stopped has a place", "select(where_, vec4(STOPPED), is_zero(best))", "where_"],
                ["bias of the first filters", "b[column / 4u]", "b[0]"],
                ["no relu", "select(z, vec4<f32>(), z < vec4<f32>())", "z"],
                ["a window too many", "row >= rows ||", "row > rows ||"],
                ["pixels of this step again in the next", "load_x(k0 + STEP + step, first, 0u)", "load_x(k0 + step, first, 0u)"],
                ["weights of this step again in the next", "load_w(k0 + STEP, column0, lane, 0u)", "load_w(k0, column0, lane, 0u)"],
            ],
        ),
        target(example(Altered::named(Conv2dReluPool { conv, output: DType::F32 }, "/32x32x32/4x4x4"), &[x4, w4, b], 3), &SHARED),
        target(example(Altered::named(Conv2dReluPool { conv, output: DType::F32 }, "/128x32x16/8x8x2"), &[x4, w4, b], 3), &[MORE_TURNS]),
        target(
            example(Altered::named(Conv2dReluPool { conv, output: DType::F32 }, "/32x32x32/8x8x8"), &[x4, w4, b], 3),
            &[
                ["the second pixels of this step again", "load_x(k0 + STEP, four, first, 1u)", "load_x(k0, four, first, 1u)"],
                ["the second weights of this step again", "load_w(k0 + STEP, column0, lane, 1u)", "load_w(k0, column0, lane, 1u)"],
            ],
        ),
        target(
            example(Conv2dReluPoolGrad { conv, slices: 1 }, &[x20, y, place, w20], 3),
            &[
                ["the second pixels of this step again", "        left_next = load_pixel(terms, 1u);\n", ""],
                ["the second weights of this step again", "        right_next = load_w(terms, column0 + first, 1u);\n", ""],
                ["the left columns of dx again", "fours(j + TILE_NX / 8u", "fours(j"],
            ],
        ),
        target(
            // No bias and weights of one step leave pixels that tie, at zero and above.
            example(Altered::drawn(tied, 1, (0.0, 0.0)), &[x, w, b], 3),
            &[["last of equals wins", "(v > best)", "(v >= best)"]],
        ),
        target(
            example(Conv2dReluPool { conv, output: DType::F32 }, &[x4, w4, b], 3),
            &[
                LAST_STEP,
                ["padding of the other sign", "- i32(PAD_W)", "+ i32(PAD_W)"],
                ["places exchanged", "row / 2u % 2u", "row % 2u"],
                ["the last place left out", "where_ = select(where_, vec4(3u), better3);", ""],
                ["what relu stopped has a place", "select(where_, vec4(STOPPED), is_zero(best))", "where_"],
                ["bias of the first filters", "b[column / 4u]", "b[0]"],
                ["no relu", "select(z, vec4<f32>(), z < vec4<f32>())", "z"],
                ["a window too many", "row >= rows ||", "row > rows ||"],
                ["terms for rows", "return transpose(mat4x4", "return (mat4x4"],
                ["the upper rows again", "terms_of_rows(i + TILE_M / 8u)", "terms_of_rows(i)"],
                ["the left columns again", "columns_of_terms(j + TILE_N / 8u)", "columns_of_terms(j)"],
                ["a quarter in another's place", "row + TILE_M / 2u, rows, column, s10", "row + TILE_M / 2u, rows, column, s00"],
                ["pixels of this step again in the next", "load_x(k0 + STEP, four, first, 0u)", "load_x(k0, four, first, 0u)"],
                ["weights of this step again in the next", "load_w(k0 + STEP, column0, lane, 0u)", "load_w(k0, column0, lane, 0u)"],
                ["the first four of channels", "i32(k - tap * CHANNELS)", "0"],
                ["padding is another pixel", "select(vec4<f32>(), vec4<f32>(ahead.value), ahead.inside)", "vec4<f32>(ahead.value)"],
            ],
        ),
        target(example(Altered::drawn(tied, 1, (0.0, 0.0)), &[x4, w4, b], 3), &[["last of equals wins", "(v > best)", "(v >= best)"]]),
        target(
            example(Altered::named(Conv2dReluPoolGrad { conv, slices: 4 }, "/32x32+32x32x32/4x4x4"), &[x4, y, place, w4], 3),
            &[
                SHARED[0],
                [
                    "terms of the next part of dw counted too",
                    "s < SHARES; s += 1u) {\n            let i = left + s * TILE_M;",
                    "s <= SHARES; s += 1u) {\n            let i = left + s * TILE_M;",
                ],
                [
                    "terms of the next part of dx counted too",
                    "s < SHARES; s += 1u) {\n            let i = left + s * PITCH;",
                    "s <= SHARES; s += 1u) {\n            let i = left + s * PITCH;",
                ],
            ],
        ),
        target(
            example(Altered::named(Conv2dReluPoolGrad { conv, slices: 4 }, "/128x32+128x32x16/8x8x2"), &[x4, y, place, w4], 3),
            &[MORE_TURNS],
        ),
        target(example(Conv2dReluPoolInputGrad { conv, input: [13, 9], output: DType::F32 }, &[y, place, w20], 3), &OF_IMAGES),
        target(
            example(Conv2dReluPoolInputGrad { conv, input: [13, 9], output: DType::F32 }, &[y, place, w], 3),
            &[
                ["a row too many", "row + i < rows &&", "row + i <= rows &&"],
                ["a channel too many", "column + c < CHANNELS", "column + c <= CHANNELS"],
                ["images in the order of pixels", "(image * (H * W) + pixel) * CHANNELS", "(row + i) * CHANNELS"],
                ["what did not win gets a gradient", "differs != vec4<u32>());", "vec4(false));"],
                ["the upper rows again", "fours(i + TILE_M / 8u", "fours(i"],
                ["the second pixels of this step again", "        left_next = load_pixel(terms, 1u);\n", ""],
            ],
        ),
        target(
            example(Conv2dReluPoolInputGrad { conv: plain, input: [13, 9], output: DType::F32 }, &[y_plain, place_plain, w20], 67),
            &OF_ONE_PIXEL,
        ),
        target(
            example(
                Altered::named(Conv2dReluPoolInputGrad { conv, input: [13, 9], output: DType::F32 }, "/32x32x32/4x4x4"),
                &[y, place, w4],
                3,
            ),
            &SHARED,
        ),
        target(
            example(Conv2dReluPoolWeightGrad { conv, kernel: [3, 2], slices: 4 }, &[x, y, place], 3),
            &[
                SHARED[0],
                SHARED[1],
                ["slices overlap", "min(begin + run, pixels)", "pixels"],
                ["image forgotten", "window / (PH * PW) * H", "0u"],
                ["every bias of the first columns", "db[(slice * FILTERS + column) / 4u]", "db[slice * FILTERS / 4u]"],
                ["bias of twos", "select(0.0, 1.0,", "select(0.0, 2.0,"],
                ["places exchanged", "vec4(x[i.x], x[i.y], x[i.z], x[i.w])", "vec4(x[i.x], x[i.z], x[i.y], x[i.w])"],
                ["a pixel past the edge", "let east = WHOLE | (u32(v + i32(STRIDE_W)) < W);", "let east = true;"],
                ["padding is another pixel", "image.value), image.inside)", "image.value), image.inside | vec4(row < KH * KW * CHANNELS))"],
                [
                    "bytes of places exchanged",
                    "vec4(0xffu, 0xff00u, 0xff0000u, 0xff000000u)",
                    "vec4(0xffu, 0xff0000u, 0xff00u, 0xff000000u)",
                ],
                ["what did not win gets a gradient", "differs != vec4<u32>()", "vec4(false)"],
                [
                    "windows of this step again in the next",
                    "load_x(window0 + WINDOWS, end, row, first, 0u)",
                    "load_x(window0, end, row, first, 0u)",
                ],
                ["gradients of this step again in the next", "load_g(window0 + WINDOWS, end", "load_g(window0, end"],
            ],
        ),
        target(
            example(Conv2dReluPoolGrad { conv, slices: 4 }, &[x4, y, place, w4], 3),
            &[
                ["slices overlap", "min(begin + run, pixels)", "pixels"],
                ["every bias of the first tile", "db[(slice * FILTERS + column0) / 4u + lane]", "db[slice * FILTERS / 4u + lane]"],
                ["bias counts the first step only", "bias += staged", "bias = staged"],
                ["a workgroup of dx taken for one of dw", "tile < of_input {", "tile + 1u < of_input {"],
                ["tiles of dw begin one too late", "tile - of_input, lane", "tile - of_input + 1u, lane"],
                ["images in the order of pixels", "((image * (H * W) + pixel) * CHANNELS", "((row + i) * CHANNELS"],
                ["what did not win gets a gradient", "differs != vec4<u32>());", "vec4(false));"],
                [
                    "bytes of places exchanged",
                    "vec4(0xffu, 0xff00u, 0xff0000u, 0xff000000u)",
                    "vec4(0xffu, 0xff0000u, 0xff00u, 0xff000000u)",
                ],
                ["the upper rows of dw again", "fours(i + TILE_M / 8u", "fours(i"],
                ["the left columns of dw again", "fours(j + TILE_N / 8u", "fours(j"],
                ["the upper rows of dx again", "fours(i + TILE_MX / 8u", "fours(i"],
                ["images of this step again in the next", "load_image(window0 + STEP / 4u", "load_image(window0"],
                ["gradients of this step again in the next", "load_gradient(window0 + STEP / 4u", "load_gradient(window0"],
                ["places of x exchanged", "mat4x4(x[i.x], x[i.y], x[i.z], x[i.w])", "mat4x4(x[i.x], x[i.z], x[i.y], x[i.w])"],
                ["a pixel of x past the edge", "let east = WHOLE | (u32(v + i32(STRIDE_W)) < W);", "let east = true;"],
                ["padding is another pixel", "select(vec4<f32>(), image.value[1], image.inside.y)", "image.value[1]"],
                ["windows of the next slice", "select(NOWHERE, 0u, inside));", "0u);"],
                ["image forgotten", "i32(window / (PH * PW) * H)", "0"],
                ["a place's gradient for all", "back.here + here", "back.here"],
            ],
        ),
        target(example(Conv2dReluPoolGrad { conv, slices: 4 }, &[x4, y, place, w4], 3), &OF_IMAGES),
        target(example(Conv2dReluPoolGrad { conv: plain, slices: 1 }, &[x20, y_plain, place_plain, w20], 67), &OF_ONE_PIXEL),
    ]
}

/// Barriers left out of convolutions with pooling.
pub(super) fn races() -> Vec<Target> {
    let conv = Conv2d::default();
    let (x, w, b) = (batched(&[9, 7, 5]), fixed(&[3, 2, 5, 68]), fixed(&[68]));
    let (x4, w4) = (batched(&[9, 7, 8]), fixed(&[3, 2, 8, 68]));
    let y = output(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, b]);
    let place = TensorType { dtype: DType::U8, ..y };
    let sized = ["no barrier after the rows' windows", "workgroupBarrier();\n\n    // The block", "// The block"];
    let listed = ["no barrier after the list of taps", "workgroupBarrier();\n\n    // The block", "// The block"];
    let next = ["no barrier before the next staging", "workgroupBarrier();\n    }\n    let", "}\n    let"];
    let next_of_dw = ["no barrier before the next staging for dw", "workgroupBarrier();\n    }\n    if row0", "}\n    if row0"];
    let handed = [
        ["no barrier before sums are taken", "workgroupBarrier();\n    var sum = mat2x4", "var sum = mat2x4"],
        ["no barrier before the next are handed over", "workgroupBarrier();\n    return sum;", "return sum;"],
    ];
    let ahead = ["no barrier after staging", "workgroupBarrier();\n        x_ahead", "x_ahead"];
    let staged_of_dw = ["no barrier after staging for dw", "workgroupBarrier();\n        if row0", "if row0"];
    let staged_of_dx = ["no barrier after staging for dx", "workgroupBarrier();\n        terms = moved", "terms = moved"];
    let dx = Conv2dReluPoolInputGrad { conv, input: [9, 7], output: DType::F32 };
    vec![
        target(example(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, b], 3), &[ahead, next]),
        target(example(Conv2dReluPool { conv, output: DType::F32 }, &[x, fixed(&[3, 2, 5, 32]), fixed(&[32])], 3), &[sized]),
        target(example(Conv2dReluPool { conv, output: DType::F32 }, &[x4, w4, b], 3), &[ahead, next]),
        target(example(Altered::named(Conv2dReluPool { conv, output: DType::F32 }, "/32x32x32/4x4x4"), &[x4, w4, b], 3), &handed),
        target(example(Altered::named(Conv2dReluPoolGrad { conv, slices: 1 }, "/32x32+32x32x32/4x4x4"), &[x4, y, place, w4], 9), &handed),
        target(example(Conv2dReluPoolGrad { conv, slices: 1 }, &[x4, y, place, w4], 67), &[listed]),
        target(
            example(
                Altered::named(Conv2dReluPool { conv, output: DType::F32 }, "/128x32x16/4x4"),
                &[x4, fixed(&[3, 2, 8, 32]), fixed(&[32])],
                3,
            ),
            &[sized],
        ),
        target(example(dx, &[y, place, w], 9), &[staged_of_dx, next, handed[0], handed[1]]),
        target(example(dx, &[y, place, w], 67), &[listed]),
        target(
            example(Conv2dReluPoolWeightGrad { conv, kernel: [3, 2], slices: 1 }, &[x, y, place], 9),
            &[ahead, next, handed[0], handed[1]],
        ),
        target(example(Conv2dReluPoolGrad { conv, slices: 1 }, &[x4, y, place, w4], 9), &[staged_of_dw, staged_of_dx, next_of_dw, next]),
    ]
}

/// Of pooling alone.
pub(super) fn pools() -> Vec<Target> {
    let padding = Padding::Explicit { top: 1, bottom: 0, left: 1, right: 2 };
    let window = Window { kernel: [3, 2], stride: [2, 1], dilation: [1, 2], padding };
    let x = batched(&[9, 7, 5]);
    let y = output(MaxPool2d { window }, &[x]);
    vec![
        target(
            example(MaxPool2d { window }, &[x], 3),
            &[
                ["starts at 0", "!found || ", ""],
                ["stride of the other axis", "oy * SY", "oy * SX"],
                ["padding of the other sign", "kx * DX - PX", "kx * DX + PX"],
            ],
        ),
        target(
            example(Altered::drawn(MaxPool2dGrad { window }, 0, TIES), &[x, y], 3),
            &[
                ["the last of equals wins", "other < tap)", "other > tap)"],
                ["every one of equals wins", "select(beats(v, own), !beats(own, v), other < tap)", "beats(v, own)"],
            ],
        ),
        target(
            example(AvgPool2d { window }, &[x], 3),
            &[["padding counted", "f32(count)", "f32(KH * KW)"], ["dilation ignored", "kx * DX", "kx"]],
        ),
        target(
            example(AvgPool2dGrad { window, input: [9, 7] }, &[y], 3),
            &[["padding counted", "f32(rows * columns)", "f32(KH * KW)"], ["between two strides", "top % SY != 0u || ", ""]],
        ),
    ]
}
