//! Faults of the tiled kernels that only larger blocks show.

use super::*;

/// In blocks of 8×8, of which an invocation has four quarters.
fn eights(op: impl Into<Op>, types: &[TensorType], batch: usize, faults: &[Fault]) -> Target {
    target(example(Altered::named(op, "/64x64x16/8x8"), types, batch), faults)
}

pub(crate) fn targets() -> Vec<Target> {
    let conv = Conv2d::default();
    let (x, w, b) = (batched(&[12, 9, 40]), fixed(&[3, 2, 40, 68]), fixed(&[68]));
    let y = output(conv, &[x, w]);
    let pooled = output(Conv2dReluPool { conv, output: DType::F32 }, &[x, w, b]);
    let place = TensorType { dtype: DType::U8, ..pooled };
    let right =
        ["the right quarters left out", "if BLOCK_N == 8u {\n                columns1", "if BLOCK_N == 9u {\n                columns1"];
    let lower = ["the lower right quarter as the upper one", "s11 += outer(rows1, columns1)", "s11 += outer(rows0, columns1)"];
    let lower_added = [lower[0], "s11 = added(s11, rows1, columns1)", "s11 = added(s11, rows0, columns1)"];
    let stored = |find, replacement| ["a quarter stored in another's columns", find, replacement];
    vec![
        eights(
            Matmul::default(),
            &[fixed(&[70, 33]), fixed(&[33, 67])],
            1,
            &[right, lower, stored("store(row, column + 4u, rows, s01)", "store(row, column, rows, s01)")],
        ),
        eights(
            conv,
            &[x, w],
            3,
            &[right, lower, ["windows of a workgroup's later rows not set", "i < TILE_M; i += LANES", "i < 32u; i += LANES"]],
        ),
        eights(
            Conv2dInputGrad { conv, input: [12, 9] },
            &[y, w],
            3,
            &[right, lower, ["later rows' pixels not set", "i < TILE_M; i += LANES", "i < 32u; i += LANES"]],
        ),
        eights(Conv2dWeightGrad { conv, kernel: [3, 2], slices: 4 }, &[x, y], 3, &[right, lower]),
        target(
            example(Altered::named(Conv2dReluPool { conv, output: DType::F32 }, "/64x64x16/8x8x2"), &[x, w, b], 3),
            &[
                right,
                lower_added,
                stored("column + TILE_N / 2u, s11)", "column, s11)"),
                ["windows of a workgroup's later rows not set", "i < TILE_M; i += LANES", "i < 32u; i += LANES"],
            ],
        ),
        eights(
            Conv2dReluPool { conv, output: DType::F32 },
            &[batched(&[12, 9, 5]), fixed(&[3, 2, 5, 68]), b],
            3,
            &[
                right,
                lower_added,
                stored("column + TILE_N / 2u, s11)", "column, s11)"),
                ["the second pixels of this step again", "load_x(k0 + STEP + step, first, 1u)", "load_x(k0 + step, first, 1u)"],
                ["a turn left out", "var turn = 2u; turn * APART", "var turn = 3u; turn * APART"],
                ["later windows not set", "i < WINDOWS; i += LANES", "i < 8u; i += LANES"],
            ],
        ),
        target(
            example(
                Altered::named(Conv2dReluPoolInputGrad { conv, input: [12, 9], output: DType::F32 }, "/64x64x16/8x8x2"),
                &[pooled, place, w],
                3,
            ),
            &[right, lower_added, stored("column + TILE_N / 2u, s11)", "column, s11)")],
        ),
        target(
            example(Conv2dReluPoolWeightGrad { conv, kernel: [3, 2], slices: 5 }, &[x, pooled, place], 3),
            &[right, lower_added, stored("column + TILE_N / 2u, s11)", "column, s11)")],
        ),
        target(
            example(Altered::named(Conv2dReluPoolGrad { conv, slices: 5 }, "/64x64+64x64x16/8x8x2"), &[x, pooled, place, w], 3),
            &[
                [
                    "later rows' pixels not set",
                    "turn * APART < TILE_MX; turn += 1u) {\n        let pixel",
                    "turn < 1u; turn += 1u) {\n        let pixel",
                ],
                stored("column + TILE_N / 2u, s11)", "column, s11)"),
                stored("column + TILE_NX / 2u, s11)", "column, s11)"),
            ],
        ),
    ]
}
