// conv2d_registers: y[n, oh, ow, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · w[kh, kw, c, o]   over kh, kw, c
//
//   x  [N, H, W, GROUPS·CHANNELS]               CHANNELS a multiple of 4
//   w  [KH, KW, CHANNELS, GROUPS·FILTERS]       FILTERS a multiple of 4
//   y  [N, OH, OW, GROUPS·FILTERS]              every element written exactly once
//
// The product of conv2d without workgroup memory and barriers, for adapters on which those are slow. One invocation computes
// a tile of 16 output pixels by 16 filters of a group in registers, as 4×4 matrices: along K, tap by tap, it takes 4 channels
// of the 16 windows and the 4×16 of w that they meet. Padding counts as zero; past an edge the last pixel or filter is
// computed again and not stored. The windows are all loaded before w: LLVM then keeps more of them in registers.
//
// Dispatch: ceil(N·OH·OW / (16·LANES)) · GROUPS · ceil(FILTERS / 16) workgroups; an invocation's neighbours are at the other
// filters of its pixels.
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

const TILE = 16u; // edge of an invocation's tile of y
const LANES = 16u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Where the windows of four rows begin.
struct Rows {
    h: vec4<i32>,
    v: vec4<i32>,
    at: vec4<i32>, // as an index of x, which is negative if it is in the padding
}

fn windows(first: u32, rows: u32, part: u32) -> Rows {
    let row = min(vec4(first, first + 1u, first + 2u, first + 3u), vec4(rows - 1u));
    let h = vec4<i32>(row / OW % OH * STRIDE_H) - i32(PAD_H);
    let v = vec4<i32>(row % OW * STRIDE_W) - i32(PAD_W);
    let at = (vec4<i32>(row / (OH * OW) * H) + h) * i32(W) + v;
    return Rows(h, v, at * i32(GROUPS * CHANNELS / 4u) + i32(part * CHANNELS / 4u));
}

// The pixels that four rows see through a tap.
struct Pixels {
    inside: vec4<bool>,
    at: vec4<u32>, // as an index of x: 0 for padding
}

fn pixels(rows: Rows, tap_h: i32, tap_w: i32) -> Pixels {
    // A negative place is a huge one when unsigned.
    let inside = (vec4<u32>(rows.h + tap_h) < vec4(H)) & (vec4<u32>(rows.v + tap_w) < vec4(W));
    let at = vec4<u32>(rows.at + (tap_h * i32(W) + tap_w) * i32(GROUPS * CHANNELS / 4u));
    return Pixels(inside, select(vec4(0u), at, inside));
}

// Four channels of four rows, a column each.
fn load(seen: Pixels, c: u32) -> mat4x4<f32> {
    return mat4x4(
        select(vec4<f32>(), x[seen.at.x + c], seen.inside.x),
        select(vec4<f32>(), x[seen.at.y + c], seen.inside.y),
        select(vec4<f32>(), x[seen.at.z + c], seen.inside.z),
        select(vec4<f32>(), x[seen.at.w + c], seen.inside.w),
    );
}

// Four filters' weights for four channels, a column each.
fn weights(at: u32) -> mat4x4<f32> {
    let pitch = GROUPS * FILTERS / 4u;
    return mat4x4(w[at], w[at + pitch], w[at + 2u * pitch], w[at + 3u * pitch]);
}

@compute @workgroup_size(16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = call.batch * OH * OW;
    let tiles_n = (FILTERS + TILE - 1u) / TILE;
    let tile = (group.y * groups.x + group.x) * LANES + lane;
    let row = tile / (tiles_n * GROUPS) * TILE;
    let part = tile / tiles_n % GROUPS;
    let column = tile % tiles_n * TILE;
    if row >= rows {
        return;
    }
    let rows0 = windows(row, rows, part);
    let rows1 = windows(row + 4u, rows, part);
    let rows2 = windows(row + 8u, rows, part);
    let rows3 = windows(row + 12u, rows, part);
    // The four quads of columns, as indices of a row of w or of y.
    let quads = min(vec4(column, column + 4u, column + 8u, column + 12u), vec4(FILTERS - 4u)) / 4u + part * FILTERS / 4u;

    // s12: rows 4 to 7, columns 8 to 11. A column of the matrix is a row of the tile.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s02 = mat4x4<f32>();
    var s03 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    var s12 = mat4x4<f32>();
    var s13 = mat4x4<f32>();
    var s20 = mat4x4<f32>();
    var s21 = mat4x4<f32>();
    var s22 = mat4x4<f32>();
    var s23 = mat4x4<f32>();
    var s30 = mat4x4<f32>();
    var s31 = mat4x4<f32>();
    var s32 = mat4x4<f32>();
    var s33 = mat4x4<f32>();
    for (var tap = 0u; tap < KH * KW; tap += 1u) {
        let tap_h = i32(tap / KW * DILATION_H);
        let tap_w = i32(tap % KW * DILATION_W);
        let seen0 = pixels(rows0, tap_h, tap_w);
        let seen1 = pixels(rows1, tap_h, tap_w);
        let seen2 = pixels(rows2, tap_h, tap_w);
        let seen3 = pixels(rows3, tap_h, tap_w);
        for (var c = 0u; c < CHANNELS / 4u; c += 1u) {
            let a0 = load(seen0, c);
            let a1 = load(seen1, c);
            let a2 = load(seen2, c);
            let a3 = load(seen3, c);
            let at = quads + (tap * CHANNELS / 4u + c) * (GROUPS * FILTERS);
            let b0 = weights(at.x);
            s00 += b0 * a0;
            s10 += b0 * a1;
            s20 += b0 * a2;
            s30 += b0 * a3;
            let b1 = weights(at.y);
            s01 += b1 * a0;
            s11 += b1 * a1;
            s21 += b1 * a2;
            s31 += b1 * a3;
            let b2 = weights(at.z);
            s02 += b2 * a0;
            s12 += b2 * a1;
            s22 += b2 * a2;
            s32 += b2 * a3;
            let b3 = weights(at.w);
            s03 += b3 * a0;
            s13 += b3 * a1;
            s23 += b3 * a2;
            s33 += b3 * a3;
        }
    }
    let last = vec4(column, column + 4u, column + 8u, column + 12u) < vec4(FILTERS);
    store(row, rows, quads.x, last.x, s00, s10, s20, s30);
    store(row, rows, quads.y, last.y, s01, s11, s21, s31);
    store(row, rows, quads.z, last.z, s02, s12, s22, s32);
    store(row, rows, quads.w, last.w, s03, s13, s23, s33);
}

// Stores a quad of columns of all rows.
fn store(row: u32, rows: u32, quad: u32, wanted: bool, s0: mat4x4<f32>, s1: mat4x4<f32>, s2: mat4x4<f32>, s3: mat4x4<f32>) {
    if wanted {
        store_rows(row, rows, quad, s0);
        store_rows(row + 4u, rows, quad, s1);
        store_rows(row + 8u, rows, quad, s2);
        store_rows(row + 12u, rows, quad, s3);
    }
}

fn store_rows(row: u32, rows: u32, quad: u32, s: mat4x4<f32>) {
    let pitch = GROUPS * FILTERS / 4u;
    let at = row * pitch + quad;
    if row < rows {
        y[at] = s[0];
    }
    if row + 1u < rows {
        y[at + pitch] = s[1];
    }
    if row + 2u < rows {
        y[at + 2u * pitch] = s[2];
    }
    if row + 3u < rows {
        y[at + 3u * pitch] = s[3];
    }
}
