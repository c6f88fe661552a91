// conv2d_weight_grad_registers: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · dy[n, oh, ow, o]
//                               over the output pixels (n, oh, ow) of slice s
//
//   x   [N, H, W, GROUPS·CHANNELS]                   CHANNELS a multiple of 4
//   dy  [N, OH, OW, GROUPS·FILTERS]                  FILTERS a multiple of 4
//   dw  [SLICES, KH, KW, CHANNELS, GROUPS·FILTERS]   every element written exactly once
//
// The products of conv2d_weight_grad without workgroup memory and barriers, for adapters on which those are slow. The
// N·OH·OW output pixels are cut into SLICES equal runs; another kernel adds the slices. A workgroup computes 32 rows, in the
// order of w, by 32 filters of a slice, an invocation four of the filters, in registers, as 4×4 matrices: along the run it takes
// 4 pixels of dy, and the 32 channels of x that these see through the taps of its rows. All invocations need the same of x: each
// loads, of the four channels of a tap at a pixel, one in SPREAD, and has the others from its neighbours, which costs such
// adapters far less than a load. Padding and what lies past the run counts as zero; past an edge the last row or filter is
// computed again and not stored.
//
// Dispatch: SLICES · ceil(KH·KW·CHANNELS / 32) · GROUPS · ceil(FILTERS / 32) workgroups, for subgroups of SPREAD invocations or
// more.
// CPU twin: `Conv2dWeightGrad::reference` in src/ops/conv2d/grad.rs.

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
override SLICES: u32;

override SPREAD: u32;   // invocations of a subgroup that share the loads of a tile, 4 or 8

const TILE = 32u;  // rows of a tile
const LANES = 8u;  // invocations of a workgroup, with four columns each
const MOST = 8u;   // vectors that an invocation loads for all: TILE / SPREAD of them are used

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dw: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// What four rows are: four channels of one tap.
struct Taps {
    h: i32,
    v: i32,
    channel: u32, // as an index of a pixel of x
}

fn taps(row: u32, rows: u32, part: u32) -> Taps {
    let quad = min(row, rows - 4u) / 4u;
    let tap = quad / (CHANNELS / 4u);
    let h = i32(tap / KW * DILATION_H) - i32(PAD_H);
    let v = i32(tap % KW * DILATION_W) - i32(PAD_W);
    return Taps(h, v, part * CHANNELS / 4u + quad % (CHANNELS / 4u));
}

// An output pixel of a run.
struct Pixel {
    inside: bool, // of the run
    h: i32,       // the corner of the window
    v: i32,
    image: u32,   // first row of the image in x
}

fn pixel(k: u32, end: u32) -> Pixel {
    return Pixel(k < end, i32(k / OW % OH * STRIDE_H), i32(k % OW * STRIDE_W), k / (OH * OW) * H);
}

// Four rows of a pixel.
fn load(taps: Taps, pixel: Pixel) -> vec4<f32> {
    // A negative place is a huge one when unsigned.
    let h = u32(pixel.h + taps.h);
    let v = u32(pixel.v + taps.v);
    let inside = pixel.inside & (h < H) & (v < W);
    let at = select(0u, ((pixel.image + h) * W + v) * (GROUPS * CHANNELS / 4u) + taps.channel, inside);
    return select(vec4<f32>(), x[at], inside);
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
    let rows = KH * KW * CHANNELS;
    let tiles_m = (rows + TILE - 1u) / TILE;
    let tiles_n = (FILTERS + 4u * LANES - 1u) / (4u * LANES);
    let tile = group.y * groups.x + group.x;
    let slice = tile / (tiles_m * GROUPS * tiles_n);
    if slice >= SLICES {
        return;
    }
    let row = tile / (GROUPS * tiles_n) % tiles_m * TILE;
    let part = tile / tiles_n % GROUPS;
    let column = (tile % tiles_n * LANES + lane) * 4u;
    let images = call.batch * OH * OW;
    let run = (images + SLICES - 1u) / SLICES;
    let first_pixel = min(slice * run, images);
    let end = min(first_pixel + run, images);
    // Of the four pixels an invocation loads one, of the tile's taps some.
    var own_taps: array<Taps, MOST>;
    for (var i = 0u; i < TILE / SPREAD; i += 1u) {
        own_taps[i] = taps(row + (i * SPREAD + id % SPREAD) / 4u * 4u, rows, part);
    }
    // The invocation's filters, as an index of a row of dy or of dw.
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
    for (var k = first_pixel; k < end; k += 4u) {
        let seen = pixel(k + id % 4u, end);
        var own: array<vec4<f32>, MOST>;
        for (var i = 0u; i < TILE / SPREAD; i += 1u) {
            own[i] = load(own_taps[i], seen);
        }
        let at = min(vec4(k, k + 1u, k + 2u, k + 3u), vec4(end - 1u)) * pitch + quad;
        let gradients = mat4x4(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
        s0 += gradients * transpose(four(&own, 0u));
        s1 += gradients * transpose(four(&own, 4u));
        s2 += gradients * transpose(four(&own, 8u));
        s3 += gradients * transpose(four(&own, 12u));
        s4 += gradients * transpose(four(&own, 16u));
        s5 += gradients * transpose(four(&own, 20u));
        s6 += gradients * transpose(four(&own, 24u));
        s7 += gradients * transpose(four(&own, 28u));
    }
    if column >= FILTERS {
        return;
    }
    // In a loop: a third of the time that a software adapter compiled went into stores.
    for (var m = 0u; m < min(TILE, rows - row) / 4u; m += 1u) {
        let first = row + 4u * m;
        dw[(slice * rows + first) * pitch + quad] = pick(m, s0[0], s1[0], s2[0], s3[0], s4[0], s5[0], s6[0], s7[0]);
        dw[(slice * rows + first + 1u) * pitch + quad] = pick(m, s0[1], s1[1], s2[1], s3[1], s4[1], s5[1], s6[1], s7[1]);
        dw[(slice * rows + first + 2u) * pitch + quad] = pick(m, s0[2], s1[2], s2[2], s3[2], s4[2], s5[2], s6[2], s7[2]);
        dw[(slice * rows + first + 3u) * pitch + quad] = pick(m, s0[3], s1[3], s2[3], s3[3], s4[3], s5[3], s6[3], s7[3]);
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
