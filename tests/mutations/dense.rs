//! Mutations of the kernels of dense layers.

use shadernet::ops::*;
use shadernet::shape::DType;

use super::common::examples::{batched, example, fixed};
use super::{Fault, Target, target};

/// The same product is in all kernels of dense layers.
pub(super) const PRODUCT: [Fault; 3] = [
    ["a part's terms counted twice", "s < STEP / PARTS;", "s <= STEP / PARTS;"],
    ["the tree's last round left out", "half > 0u", "half > 1u"],
    ["only the last step", "sum2 += tiles[i", "sum2 = tiles[i"],
];

pub(super) fn targets() -> Vec<Target> {
    let [x, w, y] = [batched(&[70]), fixed(&[70, 37]), batched(&[37])];
    let forward = [
        ["no relu", "RELU && z < 0.0", "false && z < 0.0"],
        ["bias of the first units", "b[column + i]", "b[i]"],
        ["a row too many", "    if row >= call.batch {", "    if row > call.batch {"],
    ];
    let backward = [
        ["what relu stopped goes through", "select(f32(dy[i]), 0.0, y[i] <= 0.0)", "f32(dy[i])"],
        ["weights not transposed", "tiles[PLANE + near * PITCH + far] = load_w", "tiles[PLANE + far * PITCH + near] = load_w"],
        ["bias counts the first step only", "bias += run", "bias = run"],
        ["every bias of the first tile", "db[column0 + lane]", "db[lane]"],
        ["a tile of dw taken for one of dx", "tile >= tiles_k * tiles_u;", "tile + 1u >= tiles_k * tiles_u;"],
        ["a row too many", "    if row >= rows {", "    if row > rows {"],
    ];
    vec![
        target(example(Dense { relu: true, output: DType::F32 }, &[x, w, fixed(&[37])], 35), &[&PRODUCT[..], &forward].concat()),
        target(example(DenseGrad { relu: true, dx: DType::F32 }, &[x, y, y, w], 35), &[&PRODUCT[..], &backward].concat()),
    ]
}

/// The kernels without one of their barriers.
pub(super) fn races() -> Vec<Target> {
    let [x, w, y] = [batched(&[70]), fixed(&[70, 37]), batched(&[37])];
    let staged = ["no barrier after staging", "workgroupBarrier();\n        for (var s", "for (var s"];
    let handed = ["no barrier before sums are taken", "workgroupBarrier();\n        if part < half", "if part < half"];
    vec![
        target(example(Dense { relu: true, output: DType::F32 }, &[x, w, fixed(&[37])], 35), &[staged, handed]),
        target(example(DenseGrad { relu: true, dx: DType::F32 }, &[x, y, y, w], 35), &[staged, handed]),
    ]
}
