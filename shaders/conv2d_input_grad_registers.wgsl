// conv2d_input_grad_registers: dx[n, h, v, c] = Σ dy[n, oh, ow, o] · w[kh, kw, c, o]
//                              over o and those kh, kw for which h = oh·stride + kh·dilation - pad and v likewise
//
//   dy  [N, OH, OW, GROUPS·FILTERS]             FILTERS a multiple of 4
//   w   [KH, KW, CHANNELS, GROUPS·FILTERS]
//   dx  [N, H, W, GROUPS·CHANNELS]              CHANNELS a multiple of 4; every element written exactly once
//
// The product of conv2d_input_grad without workgroup memory and barriers, for adapters on which those are slow. A workgroup
// computes 32 input pixels by 32 channels of a group, an invocation four of the channels, in registers, as 4×4 matrices: along
// K, tap by tap, it takes 4 filters of the 32 output pixels that saw its pixels through the tap, and the 4×4 of w that they meet.
// All invocations need the same pixels: each loads those of one row in SPREAD, and has the others from its neighbours, which costs
// such adapters far less than a load. Rows are in the order [H, W, N], so that the 32 are one pixel of 32 images where the batch
// allows it: then a tap that falls between two strides or past an edge does so for all of them, and is passed over. Where it is
// not, it counts as zero. Past the last pixel or channel, that one is computed again and not stored.
//
// Dispatch: ceil(N·H·W / 32) · GROUPS · ceil(CHANNELS / 32) workgroups, for subgroups of SPREAD invocations or more.
// CPU twin: `Conv2dInputGrad::reference` in src/ops/conv2d/grad.rs.

override H: u32;
override W: u32;
override OH: u32;
override OW: u32;
override KH: u32;
override KW: u32;
override STRIDE_H: u32;
override STRIDE_W: u32;
override DILATION_H: u32;
override DILATION_W: u32;
override PAD_H: u32;    // rows of padding above
override PAD_W: u32;    // columns of padding on the left
override GROUPS: u32;
override CHANNELS: u32; // of x, in one group
override FILTERS: u32;  // channels of y, in one group

override SPREAD: u32;   // invocations of a subgroup that share the loads of a tile, 4 or 8

const TILE = 32u;  // rows of a tile
const LANES = 8u;  // invocations of a workgroup, with four columns each
const MOST = 8u;   // vectors that an invocation loads for all: TILE / SPREAD of them are used

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// A row's pixel, counted from the corner of the padding.
struct Row {
    h: i32,
    v: i32,
    image: u32, // first output pixel of the image
}

fn row_of(wanted: u32, rows: u32) -> Row {
    let row = min(wanted, rows - 1u);
    let pixel = row / call.batch;
    return Row(i32(pixel / W + PAD_H), i32(pixel % W + PAD_W), (row - pixel * call.batch) * (OH * OW));
}

// The output pixel that saw a row through a tap.
struct Pixel {
    inside: bool,
    at: u32, // as an index of dy: 0 where there is none
}

fn pixel(row: Row, tap_h: i32, tap_w: i32, part: u32) -> Pixel {
    // Negative where the tap lies before the first window: then huge when unsigned, and past OH even when divided, unless the
    // stride is huge too; so it is tested.
    let h = row.h - tap_h;
    let v = row.v - tap_w;
    let oh = u32(h) / STRIDE_H;
    let ow = u32(v) / STRIDE_W;
    let exact = (oh * STRIDE_H == u32(h)) & (ow * STRIDE_W == u32(v));
    let inside = exact & (h >= 0) & (v >= 0) & (oh < OH) & (ow < OW);
    let at = (row.image + oh * OW + ow) * (GROUPS * FILTERS / 4u) + part * FILTERS / 4u;
    return Pixel(inside, select(0u, at, inside));
}

// Four of the tile's vectors, a column each.
fn four(own: ptr<function, array<vec4<f32>, MOST>>, first: u32) -> mat4x4<f32> {
    return mat4x4(one(own, first), one(own, first + 1u), one(own, first + 2u), one(own, first + 3u));
}

fn one(own: ptr<function, array<vec4<f32>, MOST>>, i: u32) -> vec4<f32> {
    return subgroupShuffle((*own)[i / SPREAD], i % SPREAD);
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) id: u32,
) {
    let rows = call.batch * H * W;
    let tiles_n = (CHANNELS + 4u * LANES - 1u) / (4u * LANES);
    let tile = group.y * groups.x + group.x;
    let row = tile / (tiles_n * GROUPS) * TILE;
    let part = tile / tiles_n % GROUPS;
    let column = (tile % tiles_n * LANES + lane) * 4u;
    if row >= rows {
        return;
    }
    var own_rows: array<Row, MOST>;
    for (var i = 0u; i < TILE / SPREAD; i += 1u) {
        own_rows[i] = row_of(row + i * SPREAD + id % SPREAD, rows);
    }
    // The first of the invocation's channels.
    let channel = min(column, CHANNELS - 4u);
    let pitch = GROUPS * FILTERS / 4u;

    // s1: rows 4 to 7. A column of the matrix is a row of the tile.
    var s0 = mat4x4<f32>();
    var s1 = mat4x4<f32>();
    var s2 = mat4x4<f32>();
    var s3 = mat4x4<f32>();
    var s4 = mat4x4<f32>();
    var s5 = mat4x4<f32>();
    var s6 = mat4x4<f32>();
    var s7 = mat4x4<f32>();
    for (var tap = 0u; tap < KH * KW; tap += 1u) {
        var seen: array<Pixel, MOST>;
        var some = false;
        for (var i = 0u; i < TILE / SPREAD; i += 1u) {
            seen[i] = pixel(own_rows[i], i32(tap / KW * DILATION_H), i32(tap % KW * DILATION_W), part);
            some |= seen[i].inside;
        }
        if !subgroupAny(some) {
            continue;
        }
        for (var o = 0u; o < FILTERS / 4u; o += 1u) {
            var own: array<vec4<f32>, MOST>;
            for (var i = 0u; i < TILE / SPREAD; i += 1u) {
                own[i] = select(vec4<f32>(), dy[seen[i].at + o], seen[i].inside);
            }
            let at = (tap * CHANNELS + channel) * pitch + part * FILTERS / 4u + o;
            let weights = transpose(mat4x4(w[at], w[at + pitch], w[at + 2u * pitch], w[at + 3u * pitch]));
            s0 += weights * four(&own, 0u);
            s1 += weights * four(&own, 4u);
            s2 += weights * four(&own, 8u);
            s3 += weights * four(&own, 12u);
            s4 += weights * four(&own, 16u);
            s5 += weights * four(&own, 20u);
            s6 += weights * four(&own, 24u);
            s7 += weights * four(&own, 28u);
        }
    }
    if column >= CHANNELS {
        return;
    }
    // In a loop: a third of the time that a software adapter compiled went into stores.
    for (var m = 0u; m < min(TILE, rows - row + 3u) / 4u; m += 1u) {
        let first = row + 4u * m;
        dx[place(first, part, channel)] = pick(m, s0[0], s1[0], s2[0], s3[0], s4[0], s5[0], s6[0], s7[0]);
        if first + 1u < rows {
            dx[place(first + 1u, part, channel)] = pick(m, s0[1], s1[1], s2[1], s3[1], s4[1], s5[1], s6[1], s7[1]);
        }
        if first + 2u < rows {
            dx[place(first + 2u, part, channel)] = pick(m, s0[2], s1[2], s2[2], s3[2], s4[2], s5[2], s6[2], s7[2]);
        }
        if first + 3u < rows {
            dx[place(first + 3u, part, channel)] = pick(m, s0[3], s1[3], s2[3], s3[3], s4[3], s5[3], s6[3], s7[3]);
        }
    }
}

// Four channels of a row, as an index of dx.
fn place(row: u32, part: u32, channel: u32) -> u32 {
    let pixel = row / call.batch;
    let image = row - pixel * call.batch;
    return ((image * (H * W) + pixel) * (GROUPS * CHANNELS) + part * CHANNELS + channel) / 4u;
}

// The i-th of eight, without a branch or a place in memory.
fn pick(
    i: u32,
    v0: vec4<f32>,
    v1: vec4<f32>,
    v2: vec4<f32>,
    v3: vec4<f32>,
    v4: vec4<f32>,
    v5: vec4<f32>,
    v6: vec4<f32>,
    v7: vec4<f32>,
) -> vec4<f32> {
    let low = select(select(v0, v1, i == 1u), select(v2, v3, i == 3u), i >= 2u);
    let high = select(select(v4, v5, i == 5u), select(v6, v7, i == 7u), i >= 6u);
    return select(low, high, i >= 4u);
}
