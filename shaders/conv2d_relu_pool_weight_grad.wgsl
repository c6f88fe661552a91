// conv2d_relu_pool_weight_grad: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · g[n, oh, ow, o]
//                               db[s, o] = Σ g[n, oh, ow, o]       over the pixels of y of slice s and their places
//
//   x      [N, H, W, CHANNELS]
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   y      [N, PH, PW, FILTERS]
//   place  [N, PH, PW, FILTERS] bytes
//   dw     [SLICES, KH, KW, CHANNELS, FILTERS]   every element written exactly once
//   db     [SLICES, FILTERS]                     likewise
//
// g, the gradient of the convolution's output, is not stored: it is dy where the window's maximum was and ReLU let it through,
// 0 elsewhere, and found so while it is staged. The N·PH·PW pixels of y are cut into SLICES equal runs; another kernel adds
// the slices. Each is a matrix product that never stores its left factor: rows are KH·KW·CHANNELS in the order of w, K runs
// over the four places of the slice's pixels, columns are the FILTERS. One workgroup computes a TILE_M×TILE_N tile of a slice,
// one invocation a BLOCK_M×BLOCK_N block of it. Per step along K the workgroup stages STEP×TILE_M of x and STEP×TILE_N of g;
// padding and what lies past an edge is staged as zero. The workgroups of a slice's first rows add up db too.
//
// Dispatch: SLICES · ceil(KH·KW·CHANNELS / TILE_M) · ceil(FILTERS / TILE_N) workgroups, those of a slice together.
// CPU twin: `Conv2dReluPoolWeightGrad::reference` in src/ops/conv2d/relu_pool/grad.rs.

// What is stored as f16 where src/ops/stored.rs writes so; sums are f32 in any case.
alias X = f32;
alias DY = f32;
alias Y = f32;

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
override TILE_M: u32;   // rows of a workgroup's tile
override TILE_N: u32;   // and its columns
override STEP: u32;     // elements of K staged at a time
override BLOCK_M: u32;  // rows of an invocation's block, 4 or 8
override BLOCK_N: u32;  // and its columns, 4 or 8
override LANES: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N);

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> dy: array<DY>;
@group(0) @binding(2) var<storage, read> y: array<Y>;
@group(0) @binding(3) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(4) var<storage, read_write> dw: array<f32>;
@group(0) @binding(5) var<storage, read_write> db: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> x_tile: array<f32, TILE_M * STEP>;  // [k][row]
var<workgroup> g_tile: array<f32, TILE_N * STEP>; // [k][column]

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = KH * KW * CHANNELS;
    let tiles_m = (rows + TILE_M - 1u) / TILE_M;
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let slice = tile / (tiles_m * tiles_n);
    if slice >= SLICES {
        return;
    }
    let row0 = tile / tiles_n % tiles_m * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let block_row = lane / (TILE_N / BLOCK_N) * BLOCK_M;
    let block_column = lane % (TILE_N / BLOCK_N) * BLOCK_N;

    let pixels = call.batch * PH * PW;
    let run = (pixels + SLICES - 1u) / SLICES;
    let first = min(slice * run, pixels) * 4u;
    let end = min(first + run * 4u, pixels * 4u);

    // An invocation stays at one row of x_tile, so at one tap and channel; its neighbours are at the neighbouring channels.
    let row = row0 + lane % TILE_M;
    let tap = row / CHANNELS;
    let tap_h = i32(tap / KW * DILATION_H) - i32(PAD_H);
    let tap_w = i32(tap % KW * DILATION_W) - i32(PAD_W);
    let channel = row % CHANNELS;

    // The block's quarters, or what it has of them: s01 is right of s00 and s10 below. A column of the matrix is a row of the block.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    var bias = 0.0;
    for (var k0 = first; k0 < end; k0 += STEP) {
        for (var i = lane; i < TILE_M * STEP; i += LANES) {
            let k = k0 + i / TILE_M;
            // A negative place is a huge one when unsigned.
            let pixel = k / 4u;
            let h = u32(i32((pixel / PW % PH * 2u + k / 2u % 2u) * STRIDE_H) + tap_h);
            let v = u32(i32((pixel % PW * 2u + k % 2u) * STRIDE_W) + tap_w);
            var value = 0.0;
            if k < end && row < rows && h < H && v < W {
                value = f32(x[((pixel / (PH * PW) * H + h) * W + v) * CHANNELS + channel]);
            }
            x_tile[i] = value;
        }
        for (var i = lane; i < TILE_N * STEP; i += LANES) {
            let k = k0 + i / TILE_N;
            let column = column0 + i % TILE_N;
            var value = 0.0;
            if k < end && column < FILTERS {
                value = gradient(k / 4u * FILTERS + column, k % 4u);
            }
            g_tile[i] = value;
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP; s += 1u) {
            let i = s * TILE_M + block_row;
            let j = s * TILE_N + block_column;
            let rows0 = x_quad(i);
            let columns0 = g_quad(j);
            s00 += outer(rows0, columns0);
            var columns1 = vec4<f32>();
            if BLOCK_N == 8u {
                columns1 = g_quad(j + 4u);
                s01 += outer(rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = x_quad(i + 4u);
                s10 += outer(rows1, columns0);
                if BLOCK_N == 8u {
                    s11 += outer(rows1, columns1);
                }
            }
        }
        if row0 == 0u && lane < TILE_N {
            for (var s = 0u; s < STEP; s += 1u) {
                bias += g_tile[s * TILE_N + lane];
            }
        }
        workgroupBarrier();
    }
    if row0 == 0u && lane < TILE_N && column0 + lane < FILTERS {
        db[slice * FILTERS + column0 + lane] = bias;
    }
    let first_row = row0 + block_row;
    let column = column0 + block_column;
    store(slice, first_row, rows, column, s00);
    if BLOCK_N == 8u {
        store(slice, first_row, rows, column + 4u, s01);
    }
    if BLOCK_M == 8u {
        store(slice, first_row + 4u, rows, column, s10);
        if BLOCK_N == 8u {
            store(slice, first_row + 4u, rows, column + 4u, s11);
        }
    }
}

fn store(slice: u32, row: u32, rows: u32, column: u32, s: mat4x4<f32>) {
    store_row(slice, row, rows, column, s[0]);
    store_row(slice, row + 1u, rows, column, s[1]);
    store_row(slice, row + 2u, rows, column, s[2]);
    store_row(slice, row + 3u, rows, column, s[3]);
}

fn store_row(slice: u32, row: u32, rows: u32, column: u32, values: vec4<f32>) {
    if row >= rows {
        return;
    }
    for (var i = 0u; i < 4u && column + i < FILTERS; i += 1u) {
        dw[(slice * rows + row) * FILTERS + column + i] = values[i];
    }
}

// The gradient of the convolution's output at one place of a window, given the element of y.
fn gradient(i: u32, here: u32) -> f32 {
    let there = place[i / 4u] >> i % 4u * 8u & 0xffu;
    return select(f32(dy[i]), 0.0, there != here || y[i] <= 0.0);
}

fn x_quad(i: u32) -> vec4<f32> {
    return vec4(x_tile[i], x_tile[i + 1u], x_tile[i + 2u], x_tile[i + 3u]);
}

fn g_quad(i: u32) -> vec4<f32> {
    return vec4(g_tile[i], g_tile[i + 1u], g_tile[i + 2u], g_tile[i + 3u]);
}

// Each row times each column; a column of the matrix is a row.
fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(columns * rows.x, columns * rows.y, columns * rows.z, columns * rows.w);
}
