//! Mutations of the kernels of a classifier's end.

use shadernet::ops::*;
use shadernet::shape::{DType, TensorType};

use super::common::Altered;
use super::common::examples::{Example, batched, example, fixed, integers, labels, output};
use super::dense::PRODUCT;
use super::{TIES, Target, target};

/// A head's operands.
fn head(features: usize, units: usize, classes: usize) -> Vec<TensorType> {
    let [w1, w2] = [fixed(&[features, units]), fixed(&[units, classes])];
    vec![batched(&[features]), w1, fixed(&[units]), w2, fixed(&[classes]), labels(), fixed(&[])]
}

fn grad(features: usize, units: usize, classes: usize) -> Vec<TensorType> {
    let operands = head(features, units, classes);
    vec![operands[0], output(MlpHead, &operands), operands[1]]
}

/// The end of a training step of 300 images.
fn tick() -> Example {
    let types = [output(MlpHead, &head(6, 4, 10)), integers(&[2]), fixed(&[7, 2]), fixed(&[4])];
    example(MlpHeadTick { tick: Adam::default().tick() }, &types, 300)
}

pub(super) fn targets() -> Vec<Target> {
    let large = Altered::drawn(MlpHead, 4, (95.0, 100.0));
    // Without weights the logits are the biases, of which there are few different ones.
    let tied = Altered::drawn(Altered::drawn(MlpHead, 3, (0.0, 0.0)), 4, TIES);
    vec![
        target(
            example(MlpHead, &head(300, 128, 10), 35),
            &[
                ["no relu", "select(z[i], 0.0, z[i] < 0.0)", "z[i]"],
                ["what relu stopped goes through", "select(sum, 0.0, hidden[i] <= 0.0)", "sum"],
                ["the first image in place of the second", "let at = image * FEATURES + k", "let at = k"],
                ["features of this turn again", "k + 16u * parts, k + 31u * parts < FEATURES", "k, k + 31u * parts < FEATURES"],
                ["fours left out", "k += 4u * parts", "k += 8u * parts"],
                ["the second four in the first's place", "k + 4u * parts, parts, now.w_4", "k, parts, now.w_4"],
                ["units kept left out", "sum += dot(four_hidden(image, lane, 12u), kept[3]);", ""],
                ["the features left over left out", "for (; k < FEATURES; k += parts)", "for (; k < 0u; k += parts)"],
                ["a part left out", "part < LANES / across", "part + 1u < LANES / across"],
                ["bias of the first units", "b1[first + 1u]", "b1[1u]"],
                ["the tree's last round left out", "half > 0u", "half > 1u"],
                ["an image too many", "if n < call.batch {", "if n <= call.batch {"],
                ["maximum not added back", "(most - claimed)", "(-claimed)"],
                ["not divided by the batch", "(dloss[0] / f32(call.batch))", "dloss[0]"],
                ["label off by one", "== label;", "== label + 1u;"],
                ["weights not transposed", "* w2[unit * CLASSES + c]", "* w2[c * UNITS + unit]"],
            ],
        ),
        target(example(large, &head(33, 8, 5), 7), &[["no maximum", "most = max(most, v);", "most = 0.0;"]]),
        target(
            example(tied, &head(6, 4, 10), 300),
            &[
                ["the last of equals counts", "c < label && v == claimed", "c > label && v == claimed"],
                ["any of equals counts", " || (c < label && v == claimed)", ""],
            ],
        ),
        target(
            example(MlpHeadGrad { dx: DType::F32 }, &grad(70, 36, 5), 67),
            &[
                &PRODUCT[..],
                &[
                    ["factors of dx not turned", "near * PITCH + far, p.of_x)", "far * PITCH + near, p.of_x)"],
                    ["this step's again in the next", "ahead = load(p, t0 + STEP, lane);", "ahead = load(p, t0, lane);"],
                    ["the next images' features", "n * FEATURES + feature", "(n + 1u) % call.batch * FEATURES + feature"],
                    ["the hidden layer's gradient as the logits'", "2u * UNITS, CLASSES, p.column0", "UNITS, CLASSES, p.column0"],
                    ["bias counts the first step only", "bias += run", "bias = run"],
                    ["every bias of the first tile", "db1[p.column0 + lane]", "db1[lane]"],
                    ["a tile of dw2 taken for one of dw1", "group >= tiles_k * tiles_u", "group > tiles_k * tiles_u"],
                    ["a tile of dx too late", "let place = group - before_x;", "let place = group - before_x + 1u;"],
                    ["a row too many", "    if row >= p.rows {", "    if row > p.rows {"],
                ],
            ]
            .concat(),
        ),
        target(
            example(MlpHeadLoss, &[output(MlpHead, &head(6, 4, 10))], 300),
            &[
                ["only the last round of rows", "total += vec2", "total = vec2"],
                ["loss not divided by the batch", " / f32(max(call.batch, 1u))", ""],
                ["another column", "rows[end - 2u]", "rows[end - 3u]"],
                ["the tree's last round left out", "half > 0u", "half > 1u"],
            ],
        ),
        target(
            tick(),
            &[
                ["only the last round of rows", "total += vec2", "total = vec2"],
                ["loss not divided by the batch", " / f32(max(call.batch, 1u))", ""],
                ["loss in both columns", "= sums[0].y", "= sums[0].x"],
                ["the next row", "let done = clock[0]", "let done = clock[0] + 1u"],
                ["one image a step", "clock[1] += call.batch", "clock[1] += 1u"],
                ["rounding not carried along", " + excess) - excess", ")"],
            ],
        ),
    ]
}

/// The kernels without one of their barriers. A logit of 3 classes is shared by 32 invocations, more than a subgroup has.
pub(super) fn races() -> Vec<Target> {
    let staged = ["no barrier after staging", "workgroupBarrier();\n        ahead", "ahead"];
    let handed = ["no barrier before sums are taken", "workgroupBarrier();\n        if part < half", "if part < half"];
    vec![
        target(
            example(MlpHead, &head(70, 128, 3), 35),
            &[
                ["no barrier after staging", "workgroupBarrier();\n    hide(lane)", "hide(lane)"],
                ["no barrier before parts are added", "quads[lane] = sum;\n    workgroupBarrier();", "quads[lane] = sum;"],
                ["no barrier in the tree", "workgroupBarrier();\n        if lane % SHARERS", "if lane % SHARERS"],
            ],
        ),
        // With more images the next one's first barrier hides it.
        target(
            example(Altered::named(MlpHead, "/1"), &head(70, 128, 3), 35),
            &[["no barrier after the hidden layer", "    workgroupBarrier();\n}\n\n// Loss", "}\n\n// Loss"]],
        ),
        // One invocation for each logit, in several subgroups.
        target(
            example(MlpHead, &head(6, 4, 100), 4),
            &[
                ["no barrier after the logits", "workgroupBarrier();\n    judge", "judge"],
                ["no barrier after the exponentials", "workgroupBarrier();\n    if !taken", "if !taken"],
                ["no barrier after the logits' gradients", "judge(image0, lane);\n    workgroupBarrier();", "judge(image0, lane);"],
            ],
        ),
        target(example(MlpHeadGrad { dx: DType::F32 }, &grad(70, 36, 5), 67), &[staged, handed]),
        target(
            example(MlpHeadLoss, &[output(MlpHead, &head(6, 4, 10))], 300),
            &[["no barrier in the tree", "workgroupBarrier();\n        if lane", "if lane"]],
        ),
        target(tick(), &[["no barrier in the tree", "workgroupBarrier();\n        if lane", "if lane"]]),
    ]
}
