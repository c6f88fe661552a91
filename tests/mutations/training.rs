//! Mutations of the kernels that a training step has beside its layers: the optimiser, the counters, the batch.

use shadernet::ops::*;
use shadernet::shape::{Shape, TensorType};

use super::common::examples::{example, fixed, integers};
use super::{Target, target};

pub(super) fn targets() -> Vec<Target> {
    let adam = Adam { epsilon: 0.1, ..Adam::default() }; // large enough that its place shows
    let (param, rate, clock, scalar) = (fixed(&[3, 100]), fixed(&[4]), integers(&[2]), fixed(&[]));
    let (moments, bias) = (Adam::moments(param), fixed(&[5]));
    let shard = |images| TensorType::u8(Shape::fixed(&[images, 4 * 5 * 3]));
    let gather = GatherBatch { height: 4, width: 5, channels: 3, images_per_shard: 5, images: 13, scale: 1.0 / 255.0 };
    let order = integers(&[40]);
    vec![
        target(
            example(adam, &[param, moments, param, rate], 1),
            &[
                ["epsilon inside the root", "sqrt(v) + EPSILON", "sqrt(v + EPSILON)"],
                ["no bias correction", "rate[0] * sqrt(rate[2]) / rate[1]", "rate[0]"],
                ["the gradient not squared", "total * total - moments", "total - moments"],
                ["the other moment's decay", "(total - moments[i]) * STEP1", "(total - moments[i]) * STEP2"],
                ["the last element left out", "|| i >= LEN", "|| i + 1u >= LEN"],
            ],
        ),
        target(
            example(adam, &[param, moments, fixed(&[150, 3, 100]), rate], 1),
            &[
                ["the last slice left out", "SHARERS * RUN, SLICES)", "SHARERS * RUN, SLICES - 1u)"],
                ["the tree's last round left out", "half >= elements", "half > elements"],
            ],
        ),
        target(example(adam, &[bias, fixed(&[2, 5]), fixed(&[2100, 5]), rate], 1), &[["only the last run", "total += run", "total = run"]]),
        target(
            example(
                AdamGroup { adam, count: 3 },
                &[&[param, bias, bias, moments, fixed(&[2, 5]), fixed(&[2, 5]), fixed(&[150, 3, 100])][..], &[fixed(&[3, 5]); 2], &[rate]]
                    .concat(),
                1,
            ),
            &[
                ["epsilon inside the root", "sqrt(v) + EPSILON", "sqrt(v + EPSILON)"],
                ["no bias correction", "rate[0] * sqrt(rate[2]) / rate[1]", "rate[0]"],
                ["the gradient not squared", "total * total - before.z", "total - before.z"],
                ["the other moment's decay", "(total - before.y) * STEP1", "(total - before.y) * STEP2"],
                ["a length of the one before", "group - END0, LEN1,", "group - END0, LEN0,"],
                ["slices of the one before", "LEN1, SLICES1,", "LEN1, SLICES0,"],
                ["a workgroup too few of the first", "group < END0", "group + 1u < END0"],
                ["the third where the second is", "ELEMENTS2, W2, M2, G2", "ELEMENTS2, W1, M1, G1"],
                ["the last slice left out", "sharers * RUN, part.slices)", "sharers * RUN, part.slices - 1u)"],
                ["the fifth slice left out", " + right.x + right.y", " + right.y"],
                ["slices that are not there", "let there = slices < vec4(end)", "let there = slices <= vec4(end)"],
                ["the tree's last round left out", "half >= part.elements", "half > part.elements"],
                ["gradients not aligned", "G1: u32 = (SLICES0 * LEN0 + 63u) / 64u * 64u", "G1: u32 = SLICES0 * LEN0"],
                ["parameters not aligned", "W1: u32 = (LEN0 + 63u) / 64u * 64u", "W1: u32 = LEN0"],
                ["moments of one", "M1: u32 = (2u * LEN0 ", "M1: u32 = (LEN0 "],
                ["the last element left out", "i < part.len && !", "i + 1u < part.len && !"],
            ],
        ),
        target(
            example(Record, &[scalar, scalar, clock, fixed(&[7, 2])], 3),
            &[
                ["loss in both columns", "= correct[0]", "= loss[0]"],
                ["the next row", "step = clock[0]", "step = clock[0] + 1u"],
                ["one image a step", "clock[1] += call.batch", "clock[1] += 1u"],
            ],
        ),
        target(
            example(adam.tick(), &[scalar, scalar, clock, fixed(&[7, 2]), rate], 3),
            &[
                ["rounding not carried along", " + excess) - excess", ")"],
                ["loss in both columns", "= correct[0]", "= loss[0]"],
                ["one image a step", "clock[1] += call.batch", "clock[1] += 1u"],
            ],
        ),
        target(
            example(gather, &[shard(5), shard(5), shard(3), integers(&[12]), order, clock], 8),
            &[
                ["the next place of the order", "order[start + n]", "order[start + n + 1u]"],
                ["bytes of a word in the other order", "at % 4u * 8u", "(3u - at % 4u) * 8u"],
                ["always the first shard", "image / PER_SHARD,", "0u,"],
                ["the epoch's start", "start = clock[1]", "start = 0u"],
                ["labels of the first image", "own = place(i)", "own = place(0u)"],
                ["the last label left out", "if i < call.batch {", "if i + 1u < call.batch {"],
            ],
        ),
        target(
            example(ScaleBytes { scale: 1.0 / 255.0 }, &[TensorType::u8(Shape::batched(&[5, 7, 3]))], 3),
            &[
                ["bytes of a word in the other order", "i % 4u * 8u", "(3u - i % 4u) * 8u"],
                ["always the first word", "x[i / 4u]", "x[0]"],
                ["the scale's first bits only", " + f32(byte) * LOW", " + f32(byte) * LOW * 0.0"],
                ["only the first image", "LEN * call.batch", "LEN"],
            ],
        ),
    ]
}

/// The barrier left out of Adam's sums of slices.
pub(super) fn races() -> Vec<Target> {
    let adam = Adam::default();
    let tree = ["no barrier in the tree", "workgroupBarrier();\n            if lane", "if lane"];
    let [one, other] = [9, 5].map(|len| [fixed(&[len]), fixed(&[2, len]), fixed(&[300, len])]);
    let group: Vec<TensorType> = (0..3).flat_map(|operand| [one[operand], other[operand]]).chain([fixed(&[4])]).collect();
    vec![
        target(example(adam, &[one[0], one[1], one[2], fixed(&[4])], 1), &[tree]),
        target(example(AdamGroup { adam, count: 2 }, &group, 1), &[tree]),
    ]
}
