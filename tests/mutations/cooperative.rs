//! Mutations of the kernels of cooperative matrices, as cut for matrices of 8×8 by 8 invocations: those of Mesa's software adapter.

use shadernet::ops::window::Padding;
use shadernet::ops::*;
use shadernet::shape::{DType, TensorType};

use super::common::Altered;
use super::common::examples::{batched, example, fixed, output};
use super::{Fault, Target, target};

/// What the adapter must have for the kernels that are broken here.
pub(super) const MATRICES: Matrices = Matrices { edge: 8, subgroup: 8 };

/// The operators with the types of their operands: strides, padding and holes, sizes that no tile divides, more than one tile each way.
fn blocks(image: [usize; 3], filters: usize) -> [(Op, Vec<TensorType>); 3] {
    let conv = Conv2d { stride: [2, 1], padding: Padding::Explicit { top: 1, bottom: 0, left: 2, right: 1 }, dilation: [1, 2], groups: 1 };
    let half = |ty: TensorType| TensorType { dtype: DType::F16, ..ty };
    let (x, w, b) = (half(batched(&image)), fixed(&[3, 2, image[2], filters]), fixed(&[filters]));
    let forward = Conv2dReluPool { conv, output: DType::F16 };
    let y = output(forward, &[x, w, b]);
    let place = TensorType { dtype: DType::U8, ..y };
    let dx = Conv2dReluPoolInputGrad { conv, input: [image[0], image[1]], output: DType::F16 };
    let dw = Conv2dReluPoolWeightGrad { conv, kernel: [3, 2], slices: 4 };
    [(forward.into(), vec![x, w, b]), (dx.into(), vec![y, place, w]), (dw.into(), vec![x, y, place])]
}

/// Where channels do not come in fours, and where they do.
const ONES: [usize; 3] = [13, 9, 37];
const FOURS: [usize; 3] = [13, 9, 36];

fn forward(image: [usize; 3], kernel: &'static str, faults: &[Fault]) -> Target {
    let [(op, types), ..] = blocks(image, 68);
    target(example(Altered::named(op, kernel), &types, 3), faults)
}

/// With this many filters and images.
fn input_grad(filters: usize, batch: usize, faults: &[Fault]) -> Target {
    let [_, (op, types), _] = blocks(if batch > 3 { [5, 6, 20] } else { ONES }, filters);
    target(example(Altered::named(op, "_cooperative_f16_dy_dx/64x32x32/8"), &types, batch), faults)
}

fn weight_grad(image: [usize; 3], kernel: &'static str, faults: &[Fault]) -> Target {
    let [.., (op, types)] = blocks(image, 68);
    target(example(Altered::named(op, kernel), &types, 3), faults)
}

const FORWARD: &str = "_cooperative_f16_x_y/64x32x32/8";
const FORWARD_QUADS: &str = "_cooperative_quads_f16_x_y/64x32x32/8";
const WEIGHT_GRAD: &str = "_cooperative_f16_x_dy/64x32x32/8";
const WEIGHT_GRAD_QUADS: &str = "_cooperative_quads_f16_x_dy/64x32x32/8";

pub(super) fn targets() -> Vec<Target> {
    let products = [
        ["a quarter from the rows above", "coopMultiplyAdd(rows1, columns1, s11)", "coopMultiplyAdd(rows0, columns1, s11)"],
        ["a quarter from the columns before", "coopMultiplyAdd(rows0, columns1, s01)", "coopMultiplyAdd(rows0, columns0, s01)"],
        ["sums of the last step alone", "s10 = coopMultiplyAdd(rows1, columns0, s10)", "s10 = coopMultiplyAdd(rows1, columns0, s11)"],
        ["the second matrix of a step left out", "s < STEP; s += EDGE", "s < EDGE; s += EDGE"],
        ["rows of the next block", "here / EDGE * BLOCK", "here / EDGE * EDGE"],
    ];
    let halves = ["the lower half where the upper is", "row0 + EDGE, ", "row0, "];
    let pooled = [
        halves,
        ["windows of a workgroup's later rows not set", "i < TILE_M; i += LANES", "i < 32u; i += LANES"],
        ["what relu stopped has a place", "select(where_, vec4(STOPPED), is_zero(best))", "where_"],
        ["a window's last pixel left out", "other < 4u; other", "other < 3u; other"],
    ];
    let rows_past = ["rows past the last", "slice < SLICES && row < rows && column < FILTERS", "slice < SLICES && column < FILTERS"];
    let ones = [
        ["w read across", "coopLoadT<Right>(&w_tile[j0]", "coopLoad<Right>(&w_tile[j0]"],
        ["no padding", "u32(row_w[row] + tap_w) < W", "true"],
        ["no bias", "relu(sums_quad(at) + bias)", "relu(sums_quad(at))"],
    ];
    let past = ["terms past the last", "k == k0 + 4u * four", "true"];
    let fours = [
        ["w read across", "coopLoad<Right>(&staged[j0]", "coopLoadT<Right>(&staged[j0]"],
        ["w staged as it lies", "let columns = transpose(value);", "let columns = value;"],
        ["no padding", "(u32(window.y + terms.tap_w) < W)", "true"],
        ["what is loaded in place of padding", "vec4<f16>(ahead.value), ahead.inside", "vec4<f16>(ahead.value), true"],
        ["no bias", "relu(summed(at) + bias)", "relu(summed(at))"],
        ["all terms of a step of one tap", "CHANNELS % STEP == 0u", "true"],
        past,
        ["the first step's x again", "x_ahead = load_four_x(terms, ", "x_ahead = load_four_x(terms0, "],
        ["the first step's w again", "w_ahead = load_w(terms, ", "w_ahead = load_w(terms0, "],
        ["what another turn loaded", "1u, x_ahead[1]", "1u, x_ahead[2]"],
        ["a turn left out", "var turn = 4u; turn * APART", "var turn = 5u; turn * APART"],
    ];
    let weight_ones = [
        halves,
        ["x read across", "coopLoad<Left>(&x_tile[i0]", "coopLoadT<Left>(&x_tile[i0]"],
        ["the next slice too", "min(first + run * 4u, pixels * 4u)", "pixels * 4u"],
        ["the bias of a step's first half", "s < STEP; s += 1u", "s < STEP / 2u; s += 1u"],
        rows_past,
    ];
    let weight_fours = [
        halves,
        ["x read across", "coopLoadT<Left>(&staged[i0]", "coopLoad<Left>(&staged[i0]"],
        ["x staged as it lies", "transpose(image.value)", "image.value"],
        ["the next slice too", "min(begin + run, pixels)", "pixels"],
        ["windows of the next slice in the bias", "(window < end) & (column < FILTERS)", "column < FILTERS"],
        ["the bias of half the windows", "i < WINDOWS; i += 1u", "i < WINDOWS / 2u; i += 1u"],
        ["what relu stopped in the bias", "stopped == vec4<u32>()", "vec4(true)"],
        ["no padding on the right", "upper & east", "upper"],
        [
            "a row's x at another's",
            "at + 2u * PITCH, select(vec4<f16>(), vec4<f16>(rows[2])",
            "at + 2u * PITCH, select(vec4<f16>(), vec4<f16>(rows[1])",
        ],
        ["what comes back, at every place", "vec4(place & 0xffu) == vec4(0u, 1u, 2u, 3u)", "vec4(true)"],
        ["what another turn loaded", "1u, x_next)", "1u, x_ahead)"],
        ["this step's windows again", "load_x(window0 + WINDOWS, end, own_rows0, lane)", "load_x(window0, end, own_rows0, lane)"],
        ["this step's gradient again", "load_g(window0 + WINDOWS, end, column0, lane, 0u)", "load_g(window0, end, column0, lane, 0u)"],
        rows_past,
    ];
    vec![
        forward(ONES, FORWARD, &[&products[..], &pooled, &ones].concat()),
        forward(FOURS, FORWARD_QUADS, &[&products[..], &pooled, &fours].concat()),
        input_grad(
            68,
            3,
            &[
                &products[..],
                &[
                    ["the lower half where the upper is", "store(lane, EDGE, ", "store(lane, 0u, "],
                    ["w read across", "coopLoad<Right>(&staged[j1]", "coopLoadT<Right>(&staged[j1]"],
                    ["channels past the last", "pixel.x != OUTSIDE && column < CHANNELS", "pixel.x != OUTSIDE"],
                    ["rows past the last", "pixel.x != OUTSIDE && column < CHANNELS", "column < CHANNELS"],
                    ["taps between strides too", " | (h % STRIDE_H != 0u)", ""],
                    ["later rows' pixels not set", "i < TILE_M; i += LANES", "i < 32u; i += LANES"],
                    ["all terms of a step of one tap", "FILTERS % STEP == 0u", "true"],
                    past,
                    ["the first step's gradient again", "        g_ahead = load_four_g(terms, ", "        g_ahead = load_four_g(terms0, "],
                    ["another column's w", "min(column0 + column, CHANNELS - 1u)", "min(column, CHANNELS - 1u)"],
                    ["a turn left out", "var turn = 4u; turn * APART < TILE_M", "var turn = 5u; turn * APART < TILE_M"],
                    ["what comes back, at every place", "places == vec4(back.here)", "vec4(true)"],
                ],
            ]
            .concat(),
        ),
        // Tiles of many pixels, whose terms are of one tap to a step.
        input_grad(64, 3, &[["taps passed over in tiles of many pixels", "pixel1 - pixel0 < 2u", "pixel1 >= pixel0"]]),
        // Tiles of one pixel or two.
        input_grad(
            64,
            70,
            &[
                ["a tap passed over that the first pixel was seen through", "(seen(corners.xy, tap).here != NOWHERE) | ", ""],
                ["a tap passed over that the last pixel was seen through", " | (seen(corners.zw, tap).here != NOWHERE)", ""],
                ["a tap too many passed over", "next += FILTERS", "next += 2u * FILTERS"],
                [
                    "images and pixels exchanged in the result",
                    "vec2(PH * PW, H * W) + vec2(0u, pixel)",
                    "vec2(PH * PW, H) + vec2(0u, pixel)",
                ],
            ],
        ),
        weight_grad(ONES, WEIGHT_GRAD, &[&products[..], &weight_ones].concat()),
        weight_grad(FOURS, WEIGHT_GRAD_QUADS, &[&products[..], &weight_fours].concat()),
    ]
}

/// The same without one of their barriers.
pub(super) fn races() -> Vec<Target> {
    let staging = ["no barrier before the next staging", "workgroupBarrier();\n    }\n    let at0", "}\n    let at0"];
    let after = ["no barrier after the first half", "workgroupBarrier();\n    coopStoreT(s10", "coopStoreT(s10"];
    let rows = ["no barrier after the rows' windows", "workgroupBarrier();\n\n    // The block's", "\n    // The block's"];
    let pooling = ["no barrier before pooling", "workgroupBarrier();\n    pool(lane, row0, ", "pool(lane, row0, "];
    vec![
        forward(
            ONES,
            FORWARD,
            &[["no barrier after staging", "workgroupBarrier();\n        for (var s", "for (var s"], staging, pooling, after],
        ),
        forward(
            FOURS,
            FORWARD_QUADS,
            &[rows, ["no barrier after staging", "workgroupBarrier();\n        let terms", "let terms"], staging, pooling, after],
        ),
        input_grad(
            68,
            3,
            &[
                rows,
                ["no barrier after staging", "workgroupBarrier();\n        k0 = ", "k0 = "],
                staging,
                ["no barrier before storing", "workgroupBarrier();\n    store(lane, 0u", "store(lane, 0u"],
                after,
            ],
        ),
        weight_grad(
            FOURS,
            WEIGHT_GRAD_QUADS,
            &[
                ["no barrier after staging", "workgroupBarrier();\n        x_ahead", "x_ahead"],
                staging,
                ["no barrier before storing", "workgroupBarrier();\n    store(lane, slice, row0, ", "store(lane, slice, row0, "],
                after,
                ["no barrier before the bias", "workgroupBarrier();\n        store_bias(", "store_bias("],
            ],
        ),
    ]
}
