// conv2d_weight_grad_registers_narrow: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · dy[n, oh, ow, o]
//                                      over the output pixels (n, oh, ow) of slice s
//
//   x   [N, H, W, GROUPS·CHANNELS]                   any CHANNELS, such as the 3 of a picture
//   dy  [N, OH, OW, GROUPS·FILTERS]                  FILTERS a multiple of 4
//   dw  [SLICES, KH, KW, CHANNELS, GROUPS·FILTERS]   every element written exactly once
//
// conv2d_weight_grad_registers for channels that do not come in fours: each of the 16 rows has a tap and a channel of its
// own, and it takes one pixel of dy at a time.
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

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dw: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// What four rows are: the tap and the channel of each.
struct Taps {
    h: vec4<i32>,
    v: vec4<i32>,
    at: vec4<i32>, // as an index of x, from the corner of a window
}

fn taps(first: u32, rows: u32, part: u32) -> Taps {
    let row = min(vec4(first, first + 1u, first + 2u, first + 3u), vec4(rows - 1u));
    let tap = row / CHANNELS;
    let h = vec4<i32>(tap / KW * DILATION_H);
    let v = vec4<i32>(tap % KW * DILATION_W);
    return Taps(h, v, (h * i32(W) + v) * i32(GROUPS * CHANNELS) + vec4<i32>(row % CHANNELS + part * CHANNELS));
}

// The window of an output pixel.
struct Pixel {
    h: i32,
    v: i32,
    at: i32, // as an index of x, which is negative if it is in the padding
}

fn window(k: u32) -> Pixel {
    let h = i32(k / OW % OH * STRIDE_H) - i32(PAD_H);
    let v = i32(k % OW * STRIDE_W) - i32(PAD_W);
    return Pixel(h, v, ((i32(k / (OH * OW) * H) + h) * i32(W) + v) * i32(GROUPS * CHANNELS));
}

// Four rows of a pixel.
fn load(taps: Taps, pixel: Pixel) -> vec4<f32> {
    // A negative place is a huge one when unsigned.
    let inside = (vec4<u32>(pixel.h + taps.h) < vec4(H)) & (vec4<u32>(pixel.v + taps.v) < vec4(W));
    let at = select(vec4(0u), vec4<u32>(pixel.at + taps.at), inside);
    return select(vec4<f32>(), vec4(x[at.x], x[at.y], x[at.z], x[at.w]), inside);
}

// What a pixel adds to four rows, a column each, of four filters.
fn product(gradients: vec4<f32>, rows: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(gradients * rows.x, gradients * rows.y, gradients * rows.z, gradients * rows.w);
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
    for (var k = first; k < end; k += 1u) {
        let pixel = window(k);
        let at = k * (GROUPS * FILTERS / 4u);
        let a0 = load(taps0, pixel);
        let a1 = load(taps1, pixel);
        let a2 = load(taps2, pixel);
        let a3 = load(taps3, pixel);
        let b0 = dy[at + quads.x];
        s00 += product(b0, a0);
        s10 += product(b0, a1);
        s20 += product(b0, a2);
        s30 += product(b0, a3);
        let b1 = dy[at + quads.y];
        s01 += product(b1, a0);
        s11 += product(b1, a1);
        s21 += product(b1, a2);
        s31 += product(b1, a3);
        let b2 = dy[at + quads.z];
        s02 += product(b2, a0);
        s12 += product(b2, a1);
        s22 += product(b2, a2);
        s32 += product(b2, a3);
        let b3 = dy[at + quads.w];
        s03 += product(b3, a0);
        s13 += product(b3, a1);
        s23 += product(b3, a2);
        s33 += product(b3, a3);
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
