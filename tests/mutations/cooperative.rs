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
fn blocks() -> [(Op, Vec<TensorType>); 3] {
    let conv = Conv2d { stride: [2, 1], padding: Padding::Explicit { top: 1, bottom: 0, left: 2, right: 1 }, dilation: [1, 2], groups: 1 };
    let half = |ty: TensorType| TensorType { dtype: DType::F16, ..ty };
    let (x, w, b) = (half(batched(&[13, 9, 37])), fixed(&[3, 2, 37, 68]), fixed(&[68]));
    let forward = Conv2dReluPool { conv, output: DType::F16 };
    let y = output(forward, &[x, w, b]);
    let place = TensorType { dtype: DType::U8, ..y };
    let dx = Conv2dReluPoolInputGrad { conv, input: [13, 9], output: DType::F16 };
    let dw = Conv2dReluPoolWeightGrad { conv, kernel: [3, 2], slices: 4 };
    [(forward.into(), vec![x, w, b]), (dx.into(), vec![y, place, w]), (dw.into(), vec![x, y, place])]
}

fn broken(number: usize, faults: &[Fault]) -> Target {
    let (op, types) = blocks()[number].clone();
    target(example(Altered::named(op, "_cooperative_f16_x_y/64x32x32/8"), &types, 3), faults)
}

pub(super) fn targets() -> Vec<Target> {
    let quarter = ["a quarter from the rows above", "coopMultiplyAdd(rows1, columns1, s11)", "coopMultiplyAdd(rows0, columns1, s11)"];
    let columns = ["a quarter from the columns before", "coopMultiplyAdd(rows0, columns1, s01)", "coopMultiplyAdd(rows0, columns0, s01)"];
    let fresh =
        ["sums of the last step alone", "s10 = coopMultiplyAdd(rows1, columns0, s10)", "s10 = coopMultiplyAdd(rows1, columns0, s11)"];
    let halves = ["the lower half where the upper is", "row0 + EDGE, ", "row0, "];
    let later = ["the second matrix of a step left out", "s < STEP; s += EDGE", "s < EDGE; s += EDGE"];
    vec![
        broken(
            0,
            &[
                quarter,
                columns,
                fresh,
                halves,
                later,
                ["windows of a workgroup's later rows not set", "i < TILE_M; i += LANES", "i < 32u; i += LANES"],
                ["w read across", "coopLoadT<Right>(&w_tile[j0]", "coopLoad<Right>(&w_tile[j0]"],
                ["no padding", "u32(row_w[row] + tap_w) < W", "true"],
                ["what relu stopped has a place", "select(where_, vec4(STOPPED), is_zero(best))", "where_"],
                ["no bias", "relu(sums_quad(at) + bias)", "relu(sums_quad(at))"],
                ["a window's last pixel left out", "other < 4u; other", "other < 3u; other"],
                ["rows of the next block", "here / EDGE * BLOCK", "here / EDGE * EDGE"],
            ],
        ),
        target(
            example(Altered::named(blocks()[1].0.clone(), "_cooperative_f16_dy_dx/64x32x32/8"), &blocks()[1].1, 3),
            &[
                quarter,
                columns,
                fresh,
                halves,
                later,
                ["w read across", "coopLoad<Right>(&w_tile[j1]", "coopLoadT<Right>(&w_tile[j1]"],
                ["channels past the last", "row < rows && column < CHANNELS", "row < rows"],
                ["taps between strides too", "oh * STRIDE_H == u32(h) && ", ""],
            ],
        ),
        target(
            example(Altered::named(blocks()[2].0.clone(), "_cooperative_f16_x_dy/64x32x32/8"), &blocks()[2].1, 3),
            &[
                quarter,
                columns,
                fresh,
                halves,
                later,
                ["x read across", "coopLoad<Left>(&x_tile[i0]", "coopLoadT<Left>(&x_tile[i0]"],
                ["the next slice too", "min(first + run * 4u, pixels * 4u)", "pixels * 4u"],
                ["the bias of a step's first half", "s < STEP; s += 1u", "s < STEP / 2u; s += 1u"],
                ["rows past the last", "slice < SLICES && row < rows && column < FILTERS", "slice < SLICES && column < FILTERS"],
            ],
        ),
    ]
}

/// The same without one of their barriers.
pub(super) fn races() -> Vec<Target> {
    let staged = ["no barrier after staging", "workgroupBarrier();\n        for (var s", "for (var s"];
    let forward = [
        staged,
        ["no barrier before the next staging", "workgroupBarrier();\n    }\n    let at0", "}\n    let at0"],
        ["no barrier before pooling", "workgroupBarrier();\n    pool(lane, row0, ", "pool(lane, row0, "],
        ["no barrier after pooling", "workgroupBarrier();\n    coopStoreT(s10", "coopStoreT(s10"],
    ];
    vec![broken(0, &forward)]
}
