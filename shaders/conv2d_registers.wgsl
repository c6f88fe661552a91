// conv2d_registers: y[n, oh, ow, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · w[kh, kw, c, o]   over kh, kw, c
//
//   x  [N, H, W, GROUPS·CHANNELS]               CHANNELS a multiple of 4
//   w  [KH, KW, CHANNELS, GROUPS·FILTERS]       FILTERS a multiple of 4
//   y  [N, OH, OW, GROUPS·FILTERS]              every element written exactly once
//
// The product of conv2d without workgroup memory and barriers, for adapters on which those are slow. A workgroup computes 32
// output pixels by 32 filters of a group, an invocation four of the filters, in registers, as 4×4 matrices: along K, tap by tap,
// it takes 4 channels of the 32 windows and the 4×4 of w that they meet. All invocations need the same windows: each loads those
// of one row in SPREAD, and has the others from its neighbours, which costs such adapters far less than a load. Padding counts
// as zero; past an edge the last pixel or filter is computed again and not stored.
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

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
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
    return Row(h, v, at * i32(GROUPS * CHANNELS / 4u) + i32(part * CHANNELS / 4u));
}

// The pixel that a row sees through a tap.
struct Pixel {
    inside: bool,
    at: u32, // as an index of x: 0 for padding
}

fn pixel(row: Row, tap_h: i32, tap_w: i32) -> Pixel {
    // A negative place is a huge one when unsigned.
    let inside = (u32(row.h + tap_h) < H) & (u32(row.v + tap_w) < W);
    let at = u32(row.at + (tap_h * i32(W) + tap_w) * i32(GROUPS * CHANNELS / 4u));
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
