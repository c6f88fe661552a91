// conv2d_relu_pool: y[n, ph, pw, o] = the maximum over the 2×2 pixels of a window of relu(conv2d(x, w)[n, oh, ow, o] + b[o])
//
//   x      [N, H, W, CHANNELS]
//   w      [KH, KW, CHANNELS, FILTERS]    FILTERS a multiple of 4
//   b      [FILTERS]
//   y      [N, PH, PW, FILTERS]           every element written exactly once
//   place  [N, PH, PW, FILTERS] bytes     where in its window the maximum is, 0 to 3 in row-major order, the first if they tie
//
// A matrix product that never stores its left factor, and of its result only what pooling leaves: rows are the places of the
// N·PH·PW windows, four of a window together, so that each 4×4 quarter of an invocation's block holds a whole window of four
// filters. K runs over KH·KW·CHANNELS in the order of w, columns are the FILTERS. One workgroup computes a TILE_M×TILE_N tile,
// one invocation a BLOCK_M×BLOCK_N block of it. Where each row's window of x begins is worked out once, into shared memory;
// then per step along K the workgroup stages STEP×TILE_M of the windows and STEP×TILE_N of w. Padding and what lies past an
// edge is staged as zero.
//
// Dispatch: ceil(4·N·PH·PW / TILE_M) · ceil(FILTERS / TILE_N) workgroups, the tiles of the same rows side by side.
// CPU twin: `Conv2dReluPool::reference` in src/ops/conv2d/relu_pool/mod.rs.

// What is stored as f16 where src/ops/stored.rs writes so; sums are f32 in any case.
alias X = f32;
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
override TILE_M: u32;   // rows of a workgroup's tile
override TILE_N: u32;   // and its columns
override STEP: u32;     // elements of K staged at a time
override BLOCK_M: u32;  // rows of an invocation's block, 4 or 8
override BLOCK_N: u32;  // and its columns, 4 or 8
override LANES: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N);

const OUTSIDE = 1i << 30u; // a window that sees no pixel begins here

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<Y>;
@group(0) @binding(4) var<storage, read_write> place: array<u32>; // four bytes each
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> x_tile: array<f32, (TILE_M + 1u) * STEP>; // [k][row]; the odd pitch spreads a column over the banks
var<workgroup> w_tile: array<f32, TILE_N * STEP>;        // [k][column]
var<workgroup> row_h: array<i32, TILE_M>;                // where each row's window begins
var<workgroup> row_w: array<i32, TILE_M>;
var<workgroup> row_at: array<i32, TILE_M>;               // … as an index of x, which wraps if it is in the padding

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pitch = TILE_M + 1u;
    let rows = call.batch * PH * PW * 4u;
    let depth = KH * KW * CHANNELS;
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let block_row = lane / (TILE_N / BLOCK_N) * BLOCK_M;
    let block_column = lane % (TILE_N / BLOCK_N) * BLOCK_N;

    for (var i = lane; i < TILE_M; i += LANES) {
        let row = row0 + i;
        let window = row / 4u;
        let n = window / (PH * PW);
        let h = i32((window / PW % PH * 2u + row / 2u % 2u) * STRIDE_H) - i32(PAD_H);
        let v = i32((window % PW * 2u + row % 2u) * STRIDE_W) - i32(PAD_W);
        row_h[i] = select(OUTSIDE, h, row < rows);
        row_w[i] = v;
        row_at[i] = ((i32(n * H) + h) * i32(W) + v) * i32(CHANNELS);
    }
    workgroupBarrier();

    // The block's quarters, or what it has of them: s01 is right of s00 and s10 below. A column of the matrix is a row of the block.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        // Neighbouring invocations take neighbouring channels of a pixel; an invocation stays at one k of every step.
        let step = lane % STEP;
        let k = k0 + step;
        let tap = k / CHANNELS;
        let tap_h = i32(tap / KW * DILATION_H);
        let tap_w = i32(tap % KW * DILATION_W);
        let offset = (tap_h * i32(W) + tap_w) * i32(CHANNELS) + i32(k % CHANNELS);
        for (var row = lane / STEP; row < TILE_M; row += LANES / STEP) {
            // A negative place is a huge one when unsigned.
            var value = 0.0;
            if k < depth && u32(row_h[row] + tap_h) < H && u32(row_w[row] + tap_w) < W {
                value = f32(x[u32(row_at[row] + offset)]);
            }
            x_tile[step * pitch + row] = value;
        }
        for (var i = lane; i < TILE_N * STEP; i += LANES) {
            let column = column0 + i % TILE_N;
            let k_w = k0 + i / TILE_N;
            var value = 0.0;
            if k_w < depth && column < FILTERS {
                value = w[k_w * FILTERS + column];
            }
            w_tile[i] = value;
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP; s += 1u) {
            let i = s * pitch + block_row;
            let j = s * TILE_N + block_column;
            let rows0 = x_quad(i);
            let columns0 = w_quad(j);
            s00 += outer(rows0, columns0);
            var columns1 = vec4<f32>();
            if BLOCK_N == 8u {
                columns1 = w_quad(j + 4u);
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
        workgroupBarrier();
    }
    let row = row0 + block_row;
    let column = column0 + block_column;
    pool(row, rows, column, s00);
    if BLOCK_N == 8u {
        pool(row, rows, column + 4u, s01);
    }
    if BLOCK_M == 8u {
        pool(row + 4u, rows, column, s10);
        if BLOCK_N == 8u {
            pool(row + 4u, rows, column + 4u, s11);
        }
    }
}

// Stores what pooling leaves of a window, four rows from `row` on, for four filters.
fn pool(row: u32, rows: u32, column: u32, z: mat4x4<f32>) {
    if row >= rows || column >= FILTERS {
        return;
    }
    // Bias and ReLU first: what ties after them is a tie.
    let bias = vec4(b[column], b[column + 1u], b[column + 2u], b[column + 3u]);
    var best = relu(z[0] + bias);
    var where_ = vec4<u32>();
    let value1 = relu(z[1] + bias);
    let better1 = beats(value1, best);
    best = select(best, value1, better1);
    where_ = select(where_, vec4(1u), better1);
    let value2 = relu(z[2] + bias);
    let better2 = beats(value2, best);
    best = select(best, value2, better2);
    where_ = select(where_, vec4(2u), better2);
    let value3 = relu(z[3] + bias);
    let better3 = beats(value3, best);
    best = select(best, value3, better3);
    where_ = select(where_, vec4(3u), better3);

    let at = row / 4u * FILTERS + column;
    y[at] = Y(best.x);
    y[at + 1u] = Y(best.y);
    y[at + 2u] = Y(best.z);
    y[at + 3u] = Y(best.w);
    place[at / 4u] = where_.x | where_.y << 8u | where_.z << 16u | where_.w << 24u;
}

// A NaN stays one.
fn relu(z: vec4<f32>) -> vec4<f32> {
    return select(z, vec4<f32>(), z < vec4<f32>());
}

// Whether v is larger than best, a NaN being larger than any number. By bits, since compilers may assume that no NaN exists.
fn beats(v: vec4<f32>, best: vec4<f32>) -> vec4<bool> {
    return !is_nan(best) & (is_nan(v) | (v > best));
}

fn is_nan(v: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(v) & vec4(0x7fffffffu)) > vec4(0x7f800000u);
}

fn x_quad(i: u32) -> vec4<f32> {
    return vec4(x_tile[i], x_tile[i + 1u], x_tile[i + 2u], x_tile[i + 3u]);
}

fn w_quad(i: u32) -> vec4<f32> {
    return vec4(w_tile[i], w_tile[i + 1u], w_tile[i + 2u], w_tile[i + 3u]);
}

// Each row times each column; a column of the matrix is a row.
fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(columns * rows.x, columns * rows.y, columns * rows.z, columns * rows.w);
}
