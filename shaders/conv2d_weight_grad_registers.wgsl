// conv2d_weight_grad_registers: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · dy[n, oh, ow, o]
//                               over the output pixels (n, oh, ow) of slice s
//
//   x   [N, H, W, GROUPS·CHANNELS]                   CHANNELS a multiple of 4
//   dy  [N, OH, OW, GROUPS·FILTERS]                  FILTERS a multiple of 4
//   dw  [SLICES, KH, KW, CHANNELS, GROUPS·FILTERS]   every element written exactly once
//
// The products of conv2d_weight_grad without workgroup memory and barriers, for adapters on which those are slow. The
// N·OH·OW output pixels are cut into SLICES equal runs; another kernel adds the slices. One invocation computes a tile of 16
// rows, in the order of w, by 16 filters of a slice in registers, as 4×4 matrices: along the run it takes 4 pixels of dy, and
// the 16 channels of x that these see through the taps of its rows. Padding and what lies past the run counts as zero; past an
// edge the last row or filter is computed again and not stored. All of x is loaded before dy: LLVM then keeps more of it in
// registers.
//
// Dispatch: ceil(SLICES · ceil(KH·KW·CHANNELS / 16) · GROUPS · ceil(FILTERS / 16) / LANES) workgroups; an invocation's
// neighbours are at the other filters of its rows.
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

const TILE = 16u; // edge of an invocation's tile of dw
const LANES = 16u;

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

// Four output pixels of a run.
struct Pixels {
    inside: vec4<bool>, // of the run
    h: vec4<i32>,       // the corner of the window
    v: vec4<i32>,
    image: vec4<u32>,   // first row of the image in x
}

fn pixels_of(first: u32, end: u32) -> Pixels {
    let k = vec4(first, first + 1u, first + 2u, first + 3u);
    return Pixels(k < vec4(end), vec4<i32>(k / OW % OH * STRIDE_H), vec4<i32>(k % OW * STRIDE_W), k / (OH * OW) * H);
}

// Four rows of four pixels: a column holds the pixels of a row.
fn load(taps: Taps, pixels: Pixels) -> mat4x4<f32> {
    // A negative place is a huge one when unsigned.
    let h = vec4<u32>(pixels.h + taps.h);
    let v = vec4<u32>(pixels.v + taps.v);
    let inside = pixels.inside & (h < vec4(H)) & (v < vec4(W));
    let at = select(vec4(0u), ((pixels.image + h) * W + v) * (GROUPS * CHANNELS / 4u) + taps.channel, inside);
    return transpose(mat4x4(
        select(vec4<f32>(), x[at.x], inside.x),
        select(vec4<f32>(), x[at.y], inside.y),
        select(vec4<f32>(), x[at.z], inside.z),
        select(vec4<f32>(), x[at.w], inside.w),
    ));
}

// Four filters of four pixels, a column for each pixel.
fn gradients(at: vec4<u32>) -> mat4x4<f32> {
    return mat4x4(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
}

@compute @workgroup_size(16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = KH * KW * CHANNELS;
    let tiles_m = (rows + TILE - 1u) / TILE;
    let tiles_n = (FILTERS + TILE - 1u) / TILE;
    let tile = (group.y * groups.x + group.x) * LANES + lane;
    let slice = tile / (tiles_m * GROUPS * tiles_n);
    if slice >= SLICES {
        return;
    }
    let row = tile / (GROUPS * tiles_n) % tiles_m * TILE;
    let part = tile / tiles_n % GROUPS;
    let column = tile % tiles_n * TILE;
    let images = call.batch * OH * OW;
    let run = (images + SLICES - 1u) / SLICES;
    let first = min(slice * run, images);
    let end = min(first + run, images);
    let taps0 = taps(row, rows, part);
    let taps1 = taps(row + 4u, rows, part);
    let taps2 = taps(row + 8u, rows, part);
    let taps3 = taps(row + 12u, rows, part);
    // The four quads of columns, as indices of a row of dy or of dw.
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
    for (var k = first; k < end; k += 4u) {
        let pixels = pixels_of(k, end);
        let at = min(vec4(k, k + 1u, k + 2u, k + 3u), vec4(end - 1u)) * (GROUPS * FILTERS / 4u);
        let a0 = load(taps0, pixels);
        let a1 = load(taps1, pixels);
        let a2 = load(taps2, pixels);
        let a3 = load(taps3, pixels);
        let b0 = gradients(at + quads.x);
        s00 += b0 * a0;
        s10 += b0 * a1;
        s20 += b0 * a2;
        s30 += b0 * a3;
        let b1 = gradients(at + quads.y);
        s01 += b1 * a0;
        s11 += b1 * a1;
        s21 += b1 * a2;
        s31 += b1 * a3;
        let b2 = gradients(at + quads.z);
        s02 += b2 * a0;
        s12 += b2 * a1;
        s22 += b2 * a2;
        s32 += b2 * a3;
        let b3 = gradients(at + quads.w);
        s03 += b3 * a0;
        s13 += b3 * a1;
        s23 += b3 * a2;
        s33 += b3 * a3;
    }
    let wanted = vec4(column, column + 4u, column + 8u, column + 12u) < vec4(FILTERS);
    let out = slice * rows;
    store(row, rows, out, quads.x, wanted.x, s00, s10, s20, s30);
    store(row, rows, out, quads.y, wanted.y, s01, s11, s21, s31);
    store(row, rows, out, quads.z, wanted.z, s02, s12, s22, s32);
    store(row, rows, out, quads.w, wanted.w, s03, s13, s23, s33);
}

// Stores a quad of columns of all rows.
fn store(
    row: u32,
    rows: u32,
    first: u32,
    quad: u32,
    wanted: bool,
    s0: mat4x4<f32>,
    s1: mat4x4<f32>,
    s2: mat4x4<f32>,
    s3: mat4x4<f32>,
) {
    if wanted {
        store_rows(row, rows, first, quad, s0);
        store_rows(row + 4u, rows, first, quad, s1);
        store_rows(row + 8u, rows, first, quad, s2);
        store_rows(row + 12u, rows, first, quad, s3);
    }
}

fn store_rows(row: u32, rows: u32, first: u32, quad: u32, s: mat4x4<f32>) {
    let pitch = GROUPS * FILTERS / 4u;
    let at = (first + row) * pitch + quad;
    if row < rows {
        dw[at] = s[0];
    }
    if row + 1u < rows {
        dw[at + pitch] = s[1];
    }
    if row + 2u < rows {
        dw[at + 2u * pitch] = s[2];
    }
    if row + 3u < rows {
        dw[at + 3u * pitch] = s[3];
    }
}
