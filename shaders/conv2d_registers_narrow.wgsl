// conv2d_registers_narrow: y[n, oh, ow, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · w[kh, kw, c, o]   over kh, kw, c
//
//   x  [N, H, W, GROUPS·CHANNELS]               any CHANNELS, such as the 3 of a picture
//   w  [KH, KW, CHANNELS, GROUPS·FILTERS]       FILTERS a multiple of 4
//   y  [N, OH, OW, GROUPS·FILTERS]              every element written exactly once
//
// conv2d_registers for channels that do not come in fours: along K, which goes over taps and channels, it takes four steps at a
// time, each with a tap and a channel of its own; those past the end count as zero.
//
// Dispatch: ceil(N·OH·OW / 32) · GROUPS · ceil(FILTERS / 32) workgroups, for subgroups of SPREAD invocations or more.
// CPU twin: `Conv2d::reference` in src/ops/conv2d/mod.rs.

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
override DEPTH = KH * KW * CHANNELS;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Where a row's window begins.
struct Row {
    h: i32,
    v: i32,
    at: i32, // as an index of x, which is negative if it is in the padding
}

fn window(wanted: u32, rows: u32, part: u32) -> Row {
    let row = min(wanted, rows - 1u);
    let h = i32(row / OW % OH * STRIDE_H) - i32(PAD_H);
    let v = i32(row % OW * STRIDE_W) - i32(PAD_W);
    let at = (i32(row / (OH * OW) * H) + h) * i32(W) + v;
    return Row(h, v, at * i32(GROUPS * CHANNELS) + i32(part * CHANNELS));
}

// What a row sees at four steps along K.
fn seen(row: Row, k: vec4<u32>) -> vec4<f32> {
    let tap = k / CHANNELS;
    let tap_h = vec4<i32>(tap / KW * DILATION_H);
    let tap_w = vec4<i32>(tap % KW * DILATION_W);
    // A negative place is a huge one when unsigned.
    let inside = (k < vec4(DEPTH)) & (vec4<u32>(row.h + tap_h) < vec4(H)) & (vec4<u32>(row.v + tap_w) < vec4(W));
    let at = vec4<u32>(row.at + (tap_h * i32(W) + tap_w) * i32(GROUPS * CHANNELS) + vec4<i32>(k % CHANNELS));
    let safe = select(vec4(0u), at, inside);
    return select(vec4<f32>(), vec4(x[safe.x], x[safe.y], x[safe.z], x[safe.w]), inside);
}

// Four filters' weights for a step along K.
fn weights(k: u32, quad: u32) -> vec4<f32> {
    return select(vec4<f32>(), w[min(k, DEPTH - 1u) * (GROUPS * FILTERS / 4u) + quad], k < DEPTH);
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
    let rows = call.batch * OH * OW;
    let tiles_n = (FILTERS + 4u * LANES - 1u) / (4u * LANES);
    let tile = group.y * groups.x + group.x;
    let row = tile / (tiles_n * GROUPS) * TILE;
    let part = tile / tiles_n % GROUPS;
    let column = (tile % tiles_n * LANES + lane) * 4u;
    if row >= rows {
        return;
    }
    var windows: array<Row, MOST>;
    for (var i = 0u; i < TILE / SPREAD; i += 1u) {
        windows[i] = window(row + i * SPREAD + id % SPREAD, rows, part);
    }
    // The invocation's filters, as an index of a row of w or of y.
    let pitch = GROUPS * FILTERS / 4u;
    let quad = min(column, FILTERS - 4u) / 4u + part * FILTERS / 4u;

    // s1: rows 4 to 7. A column of the matrix is a row of the tile.
    var s0 = mat4x4<f32>();
    var s1 = mat4x4<f32>();
    var s2 = mat4x4<f32>();
    var s3 = mat4x4<f32>();
    var s4 = mat4x4<f32>();
    var s5 = mat4x4<f32>();
    var s6 = mat4x4<f32>();
    var s7 = mat4x4<f32>();
    for (var k = 0u; k < DEPTH; k += 4u) {
        let steps = vec4(k, k + 1u, k + 2u, k + 3u);
        var own: array<vec4<f32>, MOST>;
        for (var i = 0u; i < TILE / SPREAD; i += 1u) {
            own[i] = seen(windows[i], steps);
        }
        let four_weights = mat4x4(weights(k, quad), weights(k + 1u, quad), weights(k + 2u, quad), weights(k + 3u, quad));
        s0 += four_weights * four(&own, 0u);
        s1 += four_weights * four(&own, 4u);
        s2 += four_weights * four(&own, 8u);
        s3 += four_weights * four(&own, 12u);
        s4 += four_weights * four(&own, 16u);
        s5 += four_weights * four(&own, 20u);
        s6 += four_weights * four(&own, 24u);
        s7 += four_weights * four(&own, 28u);
    }
    if column >= FILTERS {
        return;
    }
    // In a loop: a third of the time that a software adapter compiled went into stores.
    for (var m = 0u; m < min(TILE, rows - row + 3u) / 4u; m += 1u) {
        let first = row + 4u * m;
        y[first * pitch + quad] = pick(m, s0[0], s1[0], s2[0], s3[0], s4[0], s5[0], s6[0], s7[0]);
        if first + 1u < rows {
            y[(first + 1u) * pitch + quad] = pick(m, s0[1], s1[1], s2[1], s3[1], s4[1], s5[1], s6[1], s7[1]);
        }
        if first + 2u < rows {
            y[(first + 2u) * pitch + quad] = pick(m, s0[2], s1[2], s2[2], s3[2], s4[2], s5[2], s6[2], s7[2]);
        }
        if first + 3u < rows {
            y[(first + 3u) * pitch + quad] = pick(m, s0[3], s1[3], s2[3], s3[3], s4[3], s5[3], s6[3], s7[3]);
        }
    }
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
