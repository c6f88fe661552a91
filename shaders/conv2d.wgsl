// conv2d: y[n, oh, ow, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · w[kh, kw, c, o]   over kh, kw, c
//
//   x  [N, H, W, GROUPS·CHANNELS]
//   w  [KH, KW, CHANNELS, GROUPS·FILTERS]
//   y  [N, OH, OW, GROUPS·FILTERS]        every element written exactly once
//
// A matrix product that never stores its left factor: rows are the N·OH·OW output pixels, K runs over KH·KW·CHANNELS in the
// order of w, columns are the FILTERS of one group. One workgroup computes a TILE_M×TILE_N tile, one invocation a 4×4 block
// of it. Where each row's window begins is worked out once, into shared memory; then per step of 16 along K the workgroup
// stages 16×TILE_M of the windows and 16×TILE_N of w. Padding and what lies past an edge is staged as zero.
//
// Dispatch: ceil(N·OH·OW / TILE_M) · GROUPS · ceil(FILTERS / TILE_N) workgroups, the tiles of the same rows side by side.
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
override TILE_N: u32;   // 64 or 32

const AREA = 4096u;   // elements of a tile of y
const MAX_TILE_M = 128u;
const MAX_TILE_N = 64u;
const STEP = 16u;     // elements of K staged at a time
const BLOCK = 4u;     // edge of an invocation's block of y
const LANES = 256u;
const OUTSIDE = 1i << 30u; // a window that sees no pixel begins here

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> x_tile: array<f32, (MAX_TILE_M + 1u) * STEP>; // [k][row]; the odd pitch spreads a column over the banks
var<workgroup> w_tile: array<f32, MAX_TILE_N * STEP>;        // [k][column]
var<workgroup> row_h: array<i32, MAX_TILE_M>;                // where each row's window begins
var<workgroup> row_w: array<i32, MAX_TILE_M>;
var<workgroup> row_at: array<i32, MAX_TILE_M>;               // … as an index of x, which wraps if it is in the padding

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile_m = AREA / TILE_N;
    let pitch = tile_m + 1u;
    let rows = call.batch * OH * OW;
    let depth = KH * KW * CHANNELS;
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / (tiles_n * GROUPS) * tile_m;
    let part = tile / tiles_n % GROUPS;
    let column0 = tile % tiles_n * TILE_N;
    let block_row = lane / (TILE_N / BLOCK) * BLOCK;
    let block_column = lane % (TILE_N / BLOCK) * BLOCK;

    if lane < tile_m {
        let row = row0 + lane;
        let n = row / (OH * OW);
        let h = i32(row / OW % OH * STRIDE_H) - i32(PAD_H);
        let v = i32(row % OW * STRIDE_W) - i32(PAD_W);
        row_h[lane] = select(OUTSIDE, h, row < rows);
        row_w[lane] = v;
        row_at[lane] = ((i32(n * H) + h) * i32(W) + v) * i32(GROUPS * CHANNELS) + i32(part * CHANNELS);
    }
    workgroupBarrier();

    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        // Neighbouring invocations take neighbouring channels of a pixel; an invocation stays at one k of every step.
        let step = lane % STEP;
        let k = k0 + step;
        let tap = k / CHANNELS;
        let tap_h = i32(tap / KW * DILATION_H);
        let tap_w = i32(tap % KW * DILATION_W);
        let offset = (tap_h * i32(W) + tap_w) * i32(GROUPS * CHANNELS) + i32(k % CHANNELS);
        for (var row = lane / STEP; row < tile_m; row += LANES / STEP) {
            // A negative place is a huge one when unsigned.
            var value = 0.0;
            if k < depth && u32(row_h[row] + tap_h) < H && u32(row_w[row] + tap_w) < W {
                value = x[u32(row_at[row] + offset)];
            }
            x_tile[step * pitch + row] = value;
        }
        for (var i = lane; i < TILE_N * STEP; i += LANES) {
            let column = column0 + i % TILE_N;
            let k_w = k0 + i / TILE_N;
            var value = 0.0;
            if k_w < depth && column < FILTERS {
                value = w[k_w * (GROUPS * FILTERS) + part * FILTERS + column];
            }
            w_tile[i] = value;
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP; s += 1u) {
            let i = s * pitch + block_row;
            let j = s * TILE_N + block_column;
            let right = vec4(w_tile[j], w_tile[j + 1u], w_tile[j + 2u], w_tile[j + 3u]);
            sum0 += x_tile[i] * right;
            sum1 += x_tile[i + 1u] * right;
            sum2 += x_tile[i + 2u] * right;
            sum3 += x_tile[i + 3u] * right;
        }
        workgroupBarrier();
    }
    let row = row0 + block_row;
    let column = column0 + block_column;
    store(row, rows, part, column, sum0);
    store(row + 1u, rows, part, column, sum1);
    store(row + 2u, rows, part, column, sum2);
    store(row + 3u, rows, part, column, sum3);
}

fn store(row: u32, rows: u32, part: u32, column: u32, values: vec4<f32>) {
    if row >= rows {
        return;
    }
    for (var i = 0u; i < BLOCK && column + i < FILTERS; i += 1u) {
        y[row * (GROUPS * FILTERS) + part * FILTERS + column + i] = values[i];
    }
}
