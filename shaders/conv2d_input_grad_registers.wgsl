// conv2d_input_grad_registers: dx[n, h, v, c] = Σ dy[n, oh, ow, o] · w[kh, kw, c, o]
//                              over o and those kh, kw for which h = oh·stride + kh·dilation - pad and v likewise
//
//   dy  [N, OH, OW, GROUPS·FILTERS]             FILTERS a multiple of 4
//   w   [KH, KW, CHANNELS, GROUPS·FILTERS]
//   dx  [N, H, W, GROUPS·CHANNELS]              CHANNELS a multiple of 4; every element written exactly once
//
// The product of conv2d_input_grad without workgroup memory and barriers, for adapters on which those are slow. One
// invocation computes a tile of 16 input pixels by 16 channels of a group in registers, as 4×4 matrices: along K, tap by tap,
// it takes 4 filters of the 16 output pixels that saw its pixels through the tap, and the 16×4 of w that they meet. Rows are in
// the order [H, W, N], so that the 16 are one pixel of 16 images where the batch allows it: then a tap that falls between two
// strides or past an edge does so for all of them, and is passed over. Where it is not, it counts as zero. Past the last pixel
// or channel, that one is computed again and not stored. All of dy is loaded before w: LLVM then keeps more of it in registers.
//
// Dispatch: ceil(N·H·W / (16·LANES)) · GROUPS · ceil(CHANNELS / 16) workgroups; an invocation's neighbours are at the other
// channels of its pixels.
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

const TILE = 16u; // edge of an invocation's tile of dx
const LANES = 16u;

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Four rows' pixels, counted from the corner of the padding.
struct Rows {
    h: vec4<i32>,
    v: vec4<i32>,
    image: vec4<u32>, // first output pixel of the image
}

fn windows(first: u32, rows: u32) -> Rows {
    let row = min(vec4(first, first + 1u, first + 2u, first + 3u), vec4(rows - 1u));
    let pixel = row / call.batch;
    return Rows(vec4<i32>(pixel / W + PAD_H), vec4<i32>(pixel % W + PAD_W), (row - pixel * call.batch) * (OH * OW));
}

// The output pixels that saw four rows through a tap.
struct Pixels {
    inside: vec4<bool>,
    at: vec4<u32>, // as an index of dy: 0 where there is none
}

fn pixels(rows: Rows, tap_h: i32, tap_w: i32, part: u32) -> Pixels {
    // Negative where the tap lies before the first window: then huge when unsigned, and past OH even when divided, unless the
    // stride is huge too; so it is tested.
    let h = rows.h - tap_h;
    let v = rows.v - tap_w;
    let oh = vec4<u32>(h) / STRIDE_H;
    let ow = vec4<u32>(v) / STRIDE_W;
    let exact = (oh * STRIDE_H == vec4<u32>(h)) & (ow * STRIDE_W == vec4<u32>(v));
    let inside = exact & (h >= vec4(0)) & (v >= vec4(0)) & (oh < vec4(OH)) & (ow < vec4(OW));
    let at = (rows.image + oh * OW + ow) * (GROUPS * FILTERS / 4u) + part * FILTERS / 4u;
    return Pixels(inside, select(vec4(0u), at, inside));
}

// Four filters of four rows, a column each.
fn load(seen: Pixels, o: u32) -> mat4x4<f32> {
    return mat4x4(
        select(vec4<f32>(), dy[seen.at.x + o], seen.inside.x),
        select(vec4<f32>(), dy[seen.at.y + o], seen.inside.y),
        select(vec4<f32>(), dy[seen.at.z + o], seen.inside.z),
        select(vec4<f32>(), dy[seen.at.w + o], seen.inside.w),
    );
}

// Four channels' weights for four filters, a column for each filter.
fn weights(at: u32) -> mat4x4<f32> {
    let pitch = GROUPS * FILTERS / 4u;
    return transpose(mat4x4(w[at], w[at + pitch], w[at + 2u * pitch], w[at + 3u * pitch]));
}

@compute @workgroup_size(16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = call.batch * H * W;
    let tiles_n = (CHANNELS + TILE - 1u) / TILE;
    let tile = (group.y * groups.x + group.x) * LANES + lane;
    let row = tile / (tiles_n * GROUPS) * TILE;
    let part = tile / tiles_n % GROUPS;
    let column = tile % tiles_n * TILE;
    if row >= rows {
        return;
    }
    let rows0 = windows(row, rows);
    let rows1 = windows(row + 4u, rows);
    let rows2 = windows(row + 8u, rows);
    let rows3 = windows(row + 12u, rows);
    // The four quads of columns: first channels.
    let quads = min(vec4(column, column + 4u, column + 8u, column + 12u), vec4(CHANNELS - 4u));

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
        let seen0 = pixels(rows0, tap_h, tap_w, part);
        let seen1 = pixels(rows1, tap_h, tap_w, part);
        let seen2 = pixels(rows2, tap_h, tap_w, part);
        let seen3 = pixels(rows3, tap_h, tap_w, part);
        if !any(seen0.inside | seen1.inside | seen2.inside | seen3.inside) {
            continue;
        }
        for (var o = 0u; o < FILTERS / 4u; o += 1u) {
            let a0 = load(seen0, o);
            let a1 = load(seen1, o);
            let a2 = load(seen2, o);
            let a3 = load(seen3, o);
            let at = (tap * CHANNELS + quads) * (GROUPS * FILTERS / 4u) + part * FILTERS / 4u + o;
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
    let last = vec4(column, column + 4u, column + 8u, column + 12u) < vec4(CHANNELS);
    store(row, rows, (part * CHANNELS + quads.x) / 4u, last.x, s00, s10, s20, s30);
    store(row, rows, (part * CHANNELS + quads.y) / 4u, last.y, s01, s11, s21, s31);
    store(row, rows, (part * CHANNELS + quads.z) / 4u, last.z, s02, s12, s22, s32);
    store(row, rows, (part * CHANNELS + quads.w) / 4u, last.w, s03, s13, s23, s33);
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
    store_row(row, rows, quad, s[0]);
    store_row(row + 1u, rows, quad, s[1]);
    store_row(row + 2u, rows, quad, s[2]);
    store_row(row + 3u, rows, quad, s[3]);
}

fn store_row(row: u32, rows: u32, quad: u32, values: vec4<f32>) {
    if row < rows {
        let pixel = row / call.batch;
        dx[((row - pixel * call.batch) * (H * W) + pixel) * (GROUPS * CHANNELS / 4u) + quad] = values;
    }
}
