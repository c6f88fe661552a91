// conv2d_relu_pool_registers: y[n, ph, pw, o] = the maximum over a 2×2 window of relu(conv2d(x, w)[n, oh, ow, o] + b[o])
//
//   x      [N, H, W, CHANNELS]            CHANNELS a multiple of 4
//   w      [KH, KW, CHANNELS, FILTERS]    FILTERS a multiple of 4
//   b      [FILTERS]
//   y      [N, PH, PW, FILTERS]           every element written exactly once
//   place  [N, PH, PW, FILTERS] bytes     where in its window the maximum is, 0 to 3 in row-major order, the first if they tie,
//                                       or 4 where ReLU left nothing of it
//
// The product of conv2d_relu_pool without workgroup memory and barriers, for adapters on which those are slow. Rows are the places
// of the N·PH·PW windows, four of a window together. A workgroup computes 8 windows by 32 filters, an invocation four of the
// filters, in registers, a 4×4 matrix for each window: along K, tap by tap, it takes 4 channels of what the 32 places see and the
// 4×4 of w that they meet. All invocations need the same of x: each loads one row in SPREAD, and has the others from its
// neighbours, which costs such adapters far less than a load. Padding counts as zero; past an edge the last place or filter is
// computed again and not stored.
//
// Dispatch: ceil(4·N·PH·PW / 32) · ceil(FILTERS / 32) workgroups, for subgroups of SPREAD invocations or more.
// CPU twin: `Conv2dReluPool::reference` in src/ops/conv2d/relu_pool/mod.rs.

override H: u32;
override W: u32;
override PH: u32;
override PW: u32;
override KH: u32;
override KW: u32;
override STRIDE_H: u32;
override STRIDE_W: u32;
override DILATION_H: u32;
override DILATION_W: u32;
override PAD_H: u32;    // rows of padding above
override PAD_W: u32;    // columns of padding on the left
override CHANNELS: u32; // of x
override FILTERS: u32;  // channels of y
override SPREAD: u32;   // invocations of a subgroup that share the loads of a tile, 4 or 8

const TILE = 32u;  // rows of a tile
const LANES = 8u;  // invocations of a workgroup, with four columns each
const MOST = 8u;   // vectors that an invocation loads for all: TILE / SPREAD of them are used
const STOPPED = 4u; // the place of a maximum that ReLU made zero

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> place: array<u32>; // four bytes each
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Where a row's window of x begins: that of a place of y's pixel.
struct Row {
    h: i32,
    v: i32,
    at: i32, // as an index of x, which is negative if it is in the padding
}

fn window(wanted: u32, rows: u32) -> Row {
    let row = min(wanted, rows - 1u);
    let pixel = row / 4u;
    let place = row % 4u;
    let h = i32((pixel / PW % PH * 2u + place / 2u) * STRIDE_H) - i32(PAD_H);
    let v = i32((pixel % PW * 2u + place % 2u) * STRIDE_W) - i32(PAD_W);
    let at = (i32(pixel / (PH * PW) * H) + h) * i32(W) + v;
    return Row(h, v, at * i32(CHANNELS / 4u));
}

// The pixel that a row sees through a tap.
struct Pixel {
    inside: bool,
    at: u32, // as an index of x: 0 for padding
}

fn pixel(row: Row, tap_h: i32, tap_w: i32) -> Pixel {
    // A negative place is a huge one when unsigned.
    let inside = (u32(row.h + tap_h) < H) & (u32(row.v + tap_w) < W);
    let at = u32(row.at + (tap_h * i32(W) + tap_w) * i32(CHANNELS / 4u));
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
    let rows = call.batch * PH * PW * 4u;
    let tiles_n = (FILTERS + 4u * LANES - 1u) / (4u * LANES);
    let tile = group.y * groups.x + group.x;
    let row = tile / tiles_n * TILE;
    let column = (tile % tiles_n * LANES + lane) * 4u;
    if row >= rows {
        return;
    }
    var windows: array<Row, MOST>;
    for (var i = 0u; i < TILE / SPREAD; i += 1u) {
        windows[i] = window(row + i * SPREAD + id % SPREAD, rows);
    }
    let pitch = FILTERS / 4u;
    let quad = min(column, FILTERS - 4u) / 4u;

    // s1: the second window. A column of the matrix is a row of the tile, a place.
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
        for (var i = 0u; i < TILE / SPREAD; i += 1u) {
            seen[i] = pixel(windows[i], i32(tap / KW * DILATION_H), i32(tap % KW * DILATION_W));
        }
        for (var c = 0u; c < CHANNELS / 4u; c += 1u) {
            var own: array<vec4<f32>, MOST>;
            for (var i = 0u; i < TILE / SPREAD; i += 1u) {
                own[i] = select(vec4<f32>(), x[seen[i].at + c], seen[i].inside);
            }
            let at = (tap * CHANNELS + 4u * c) * pitch + quad;
            let weights = mat4x4(w[at], w[at + pitch], w[at + 2u * pitch], w[at + 3u * pitch]);
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
    if column >= FILTERS {
        return;
    }
    let bias = b[column / 4u];
    // In a loop, which a software adapter compiles sooner.
    for (var m = 0u; m < min(TILE, rows - row) / 4u; m += 1u) {
        // Bias and ReLU first: what ties after them is a tie.
        var best = relu(pick(m, s0[0], s1[0], s2[0], s3[0], s4[0], s5[0], s6[0], s7[0]) + bias);
        var where_ = vec4<u32>();
        let value1 = relu(pick(m, s0[1], s1[1], s2[1], s3[1], s4[1], s5[1], s6[1], s7[1]) + bias);
        let better1 = beats(value1, best);
        best = select(best, value1, better1);
        where_ = select(where_, vec4(1u), better1);
        let value2 = relu(pick(m, s0[2], s1[2], s2[2], s3[2], s4[2], s5[2], s6[2], s7[2]) + bias);
        let better2 = beats(value2, best);
        best = select(best, value2, better2);
        where_ = select(where_, vec4(2u), better2);
        let value3 = relu(pick(m, s0[3], s1[3], s2[3], s3[3], s4[3], s5[3], s6[3], s7[3]) + bias);
        let better3 = beats(value3, best);
        best = select(best, value3, better3);
        where_ = select(where_, vec4(3u), better3);
        where_ = select(where_, vec4(STOPPED), is_zero(best));

        let at = ((row / 4u + m) * FILTERS + column) / 4u;
        y[at] = best;
        place[at] = where_.x | where_.y << 8u | where_.z << 16u | where_.w << 24u;
    }
}

// A NaN stays one.
fn relu(z: vec4<f32>) -> vec4<f32> {
    return select(z, vec4<f32>(), z < vec4<f32>());
}

// Whether v is larger than best, a NaN being larger than any number. By bits, since compilers may assume that no NaN exists.
fn beats(v: vec4<f32>, best: vec4<f32>) -> vec4<bool> {
    return !is_nan(best) & (is_nan(v) | (v > best));
}

fn is_zero(v: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(v) & vec4(0x7fffffffu)) == vec4<u32>();
}

fn is_nan(v: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(v) & vec4(0x7fffffffu)) > vec4(0x7f800000u);
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
