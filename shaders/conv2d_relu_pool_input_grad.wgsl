// conv2d_relu_pool_input_grad: dx[n, h, v, c] = Σ g[n, oh, ow, o] · w[kh, kw, c, o]
//                    over o and those kh, kw for which h = oh·stride + kh·dilation - pad and v likewise
//
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   place  [N, PH, PW, FILTERS] bytes    as the forward kernel leaves them
//   w      [KH, KW, CHANNELS, FILTERS]
//   dx     [N, H, W, CHANNELS]            every element written exactly once
//
// g, the gradient of the convolution's output, is not stored: it is dy where the window's maximum was, if ReLU let it through,
// 0 elsewhere, and found so while it is staged. A matrix product that never stores its left factor: rows are the N·H·W input
// pixels, K runs over KH·KW·FILTERS, columns are the CHANNELS. Each input pixel gathers from the output pixels that saw it, so
// nothing is added to twice. One workgroup computes a TILE_M×TILE_N tile, one invocation a BLOCK_M×BLOCK_N block of it. Per
// step along K the workgroup stages STEP×TILE_M of g and STEP×TILE_N of w; taps that fall between two strides and what lies
// past an edge are zero.
//
// Dispatch: ceil(N·H·W / TILE_M) · ceil(CHANNELS / TILE_N) workgroups, the tiles of the same rows side by side.
// CPU twin: `Conv2dReluPoolInputGrad::reference` in src/ops/conv2d/relu_pool/grad.rs.

// What is stored as f16 where src/ops/stored.rs writes so; sums are f32 in any case.
alias DY = f32;
alias DX = f32;

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
override TILE_M: u32;   // rows of a workgroup's tile
override TILE_N: u32;   // and its columns
override STEP: u32;     // elements of K staged at a time
override BLOCK_M: u32;  // rows of an invocation's block, 4 or 8
override BLOCK_N: u32;  // and its columns, 4 or 8
override LANES: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N);

const OUTSIDE = -(1i << 30u); // no output pixel sees a row that lies here

@group(0) @binding(0) var<storage, read> dy: array<DY>;
@group(0) @binding(1) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<DX>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> g_tile: array<f32, (TILE_M + 1u) * STEP>; // [k][row]; the odd pitch spreads a column over the banks
var<workgroup> w_tile: array<f32, (TILE_N + 1u) * STEP>;  // [k][column], likewise
var<workgroup> row_h: array<i32, TILE_M>;                 // each row's pixel, counted from the corner of the padding
var<workgroup> row_w: array<i32, TILE_M>;
var<workgroup> row_image: array<u32, TILE_M>;             // first pixel of y of its image

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pitch = TILE_M + 1u;
    let pitch_n = TILE_N + 1u;
    let rows = call.batch * H * W;
    let depth = KH * KW * FILTERS;
    let tiles_n = (CHANNELS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let block_row = lane / (TILE_N / BLOCK_N) * BLOCK_M;
    let block_column = lane % (TILE_N / BLOCK_N) * BLOCK_N;

    for (var i = lane; i < TILE_M; i += LANES) {
        let row = row0 + i;
        row_h[i] = select(OUTSIDE, i32(row / W % H + PAD_H), row < rows);
        row_w[i] = i32(row % W + PAD_W);
        row_image[i] = row / (H * W) * (PH * PW);
    }
    workgroupBarrier();

    // The block's quarters, or what it has of them: s01 is right of s00 and s10 below. A column of the matrix is a row of the block.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        // Neighbouring invocations take neighbouring channels of dy and of w; one stays at one k of every step.
        let step = lane % STEP;
        let k = k0 + step;
        let tap = k / FILTERS;
        let tap_h = i32(tap / KW * DILATION_H);
        let tap_w = i32(tap % KW * DILATION_W);
        let channel = k % FILTERS;
        for (var row = lane / STEP; row < TILE_M; row += LANES / STEP) {
            // Negative where the tap lies before the first window: then huge when unsigned, and past PH even when divided,
            // unless the stride is huge too; so it is tested.
            let h = row_h[row] - tap_h;
            let v = row_w[row] - tap_w;
            let oh = u32(h) / STRIDE_H;
            let ow = u32(v) / STRIDE_W;
            var value = 0.0;
            if k < depth && h >= 0 && v >= 0 && oh * STRIDE_H == u32(h) && ow * STRIDE_W == u32(v) && oh / 2u < PH && ow / 2u < PW {
                value = gradient((row_image[row] + oh / 2u * PW + ow / 2u) * FILTERS + channel, oh % 2u * 2u + ow % 2u);
            }
            g_tile[step * pitch + row] = value;
        }
        for (var column = lane / STEP; column < TILE_N; column += LANES / STEP) {
            var value = 0.0;
            if k < depth && column0 + column < CHANNELS {
                value = w[(tap * CHANNELS + column0 + column) * FILTERS + channel];
            }
            w_tile[step * pitch_n + column] = value;
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP; s += 1u) {
            let i = s * pitch + block_row;
            let j = s * pitch_n + block_column;
            let rows0 = g_quad(i);
            let columns0 = w_quad(j);
            s00 += outer(rows0, columns0);
            var columns1 = vec4<f32>();
            if BLOCK_N == 8u {
                columns1 = w_quad(j + 4u);
                s01 += outer(rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = g_quad(i + 4u);
                s10 += outer(rows1, columns0);
                if BLOCK_N == 8u {
                    s11 += outer(rows1, columns1);
                }
            }
        }
        workgroupBarrier();
    }
    let row = row0 + block_row;
    let column = column0 + block_column;
    store(row, rows, column, s00);
    if BLOCK_N == 8u {
        store(row, rows, column + 4u, s01);
    }
    if BLOCK_M == 8u {
        store(row + 4u, rows, column, s10);
        if BLOCK_N == 8u {
            store(row + 4u, rows, column + 4u, s11);
        }
    }
}

fn store(row: u32, rows: u32, column: u32, s: mat4x4<f32>) {
    store_row(row, rows, column, s[0]);
    store_row(row + 1u, rows, column, s[1]);
    store_row(row + 2u, rows, column, s[2]);
    store_row(row + 3u, rows, column, s[3]);
}

fn store_row(row: u32, rows: u32, column: u32, values: vec4<f32>) {
    if row >= rows {
        return;
    }
    for (var i = 0u; i < 4u && column + i < CHANNELS; i += 1u) {
        dx[row * CHANNELS + column + i] = DX(values[i]);
    }
}

// The gradient of the convolution's output at one place of a window, given the element of dy.
fn gradient(i: u32, here: u32) -> f32 {
    let there = place[i / 4u] >> i % 4u * 8u & 0xffu;
    return select(f32(dy[i]), 0.0, there != here);
}

fn g_quad(i: u32) -> vec4<f32> {
    return vec4(g_tile[i], g_tile[i + 1u], g_tile[i + 2u], g_tile[i + 3u]);
}

fn w_quad(i: u32) -> vec4<f32> {
    return vec4(w_tile[i], w_tile[i + 1u], w_tile[i + 2u], w_tile[i + 3u]);
}

// Each row times each column; a column of the matrix is a row.
fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(columns * rows.x, columns * rows.y, columns * rows.z, columns * rows.w);
}
