// conv2d_relu_pool_weight_grad_registers_narrow: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · g[n, oh, ow, o]
//                               db[s, o] = Σ g[n, oh, ow, o]       over the pixels of y of slice s and their places
//
//   x      [N, H, W, CHANNELS]                   any CHANNELS, such as the 3 of a picture
//   dy     [N, PH, PW, FILTERS]                  FILTERS a multiple of 4
//   place  [N, PH, PW, FILTERS] bytes            as the forward kernel leaves them
//   dw     [SLICES, KH, KW, CHANNELS, FILTERS]   every element written exactly once
//   db     [SLICES, FILTERS]                     likewise
//
// conv2d_relu_pool_weight_grad_registers for channels that do not come in fours: each of the 32 rows has a tap and a channel of
// its own, and an invocation loads the four places of one row in SPREAD.
//
// Dispatch: SLICES · ceil(KH·KW·CHANNELS / 32) · ceil(FILTERS / 32) workgroups, for subgroups of SPREAD invocations or more.
// CPU twin: `Conv2dReluPoolWeightGrad::reference` in src/ops/conv2d/relu_pool/grad.rs.

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
override SLICES: u32;
override SPREAD: u32;   // invocations of a subgroup that share the loads of a tile, 4 or 8

const TILE = 32u;  // rows of a tile
const LANES = 8u;  // invocations of a workgroup, with four columns each
const MOST = 8u;   // vectors that an invocation loads for all: TILE / SPREAD of them are used

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(3) var<storage, read_write> dw: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> db: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// What a row is: a channel of a tap.
struct Tap {
    h: i32,
    v: i32,
    at: i32, // as an index of x, from the corner of a window
}

fn tap_of(wanted: u32, rows: u32) -> Tap {
    let row = min(wanted, rows - 1u);
    let tap = row / CHANNELS;
    let h = i32(tap / KW * DILATION_H);
    let v = i32(tap % KW * DILATION_W);
    return Tap(h, v, (h * i32(W) + v) * i32(CHANNELS) + i32(row % CHANNELS));
}

// The places of a window.
struct Pixels {
    h: vec4<i32>, // the corner of what each sees of x
    v: vec4<i32>,
    at: vec4<i32>, // as an index of x, which is negative if it is in the padding
}

fn pixels(k: u32) -> Pixels {
    let h = vec4<i32>((k / PW % PH * 2u + vec4(0u, 0u, 1u, 1u)) * STRIDE_H) - i32(PAD_H);
    let v = vec4<i32>((k % PW * 2u + vec4(0u, 1u, 0u, 1u)) * STRIDE_W) - i32(PAD_W);
    return Pixels(h, v, ((i32(k / (PH * PW) * H) + h) * i32(W) + v) * i32(CHANNELS));
}

// A row of four places.
fn load(tap: Tap, pixels: Pixels) -> vec4<f32> {
    // A negative place is a huge one when unsigned.
    let inside = (vec4<u32>(pixels.h + tap.h) < vec4(H)) & (vec4<u32>(pixels.v + tap.v) < vec4(W));
    let at = select(vec4(0u), vec4<u32>(pixels.at + tap.at), inside);
    return select(vec4<f32>(), vec4(x[at.x], x[at.y], x[at.z], x[at.w]), inside);
}

// The gradient of four filters at the four places of a window, a column each.
fn through(at: u32) -> mat4x4<f32> {
    let places = vec4(place[at]) >> vec4(0u, 8u, 16u, 24u) & vec4(0xffu);
    let value = dy[at];
    return mat4x4(
        select(vec4<f32>(), value, places == vec4(0u)),
        select(vec4<f32>(), value, places == vec4(1u)),
        select(vec4<f32>(), value, places == vec4(2u)),
        select(vec4<f32>(), value, places == vec4(3u)),
    );
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
    let slice = tile / (tiles_m * tiles_n);
    if slice >= SLICES {
        return;
    }
    let row = tile / tiles_n % tiles_m * TILE;
    let column = (tile % tiles_n * LANES + lane) * 4u;
    let windows = call.batch * PH * PW;
    let run = (windows + SLICES - 1u) / SLICES;
    let first_window = min(slice * run, windows);
    let end = min(first_window + run, windows);
    var taps: array<Tap, MOST>;
    for (var i = 0u; i < TILE / SPREAD; i += 1u) {
        taps[i] = tap_of(row + i * SPREAD + id % SPREAD, rows);
    }
    let pitch = FILTERS / 4u;
    let quad = min(column, FILTERS - 4u) / 4u;

    var bias = vec4<f32>();
    // s1: rows 4 to 7. A column of the matrix is a row of the tile.
    var s0 = mat4x4<f32>();
    var s1 = mat4x4<f32>();
    var s2 = mat4x4<f32>();
    var s3 = mat4x4<f32>();
    var s4 = mat4x4<f32>();
    var s5 = mat4x4<f32>();
    var s6 = mat4x4<f32>();
    var s7 = mat4x4<f32>();
    for (var k = first_window; k < end; k += 1u) {
        let gradients = through(k * pitch + quad);
        bias += gradients[0] + gradients[1] + gradients[2] + gradients[3];
        let seen = pixels(k);
        var own: array<vec4<f32>, MOST>;
        for (var i = 0u; i < TILE / SPREAD; i += 1u) {
            own[i] = load(taps[i], seen);
        }
        s0 += gradients * four(&own, 0u);
        s1 += gradients * four(&own, 4u);
        s2 += gradients * four(&own, 8u);
        s3 += gradients * four(&own, 12u);
        s4 += gradients * four(&own, 16u);
        s5 += gradients * four(&own, 20u);
        s6 += gradients * four(&own, 24u);
        s7 += gradients * four(&own, 28u);
    }
    if column >= FILTERS {
        return;
    }
    if row == 0u {
        db[slice * pitch + quad] = bias;
    }
    // In a loop: a third of the time that a software adapter compiled went into stores.
    for (var m = 0u; m < min(TILE, rows - row + 3u) / 4u; m += 1u) {
        let first = row + 4u * m;
        dw[(slice * rows + first) * pitch + quad] = pick(m, s0[0], s1[0], s2[0], s3[0], s4[0], s5[0], s6[0], s7[0]);
        if first + 1u < rows {
            dw[(slice * rows + first + 1u) * pitch + quad] = pick(m, s0[1], s1[1], s2[1], s3[1], s4[1], s5[1], s6[1], s7[1]);
        }
        if first + 2u < rows {
            dw[(slice * rows + first + 2u) * pitch + quad] = pick(m, s0[2], s1[2], s2[2], s3[2], s4[2], s5[2], s6[2], s7[2]);
        }
        if first + 3u < rows {
            dw[(slice * rows + first + 3u) * pitch + quad] = pick(m, s0[3], s1[3], s2[3], s3[3], s4[3], s5[3], s6[3], s7[3]);
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
