// conv2d_relu_pool_cooperative: y[n, ph, pw, o] = the maximum over the 2×2 pixels of a window of relu(conv2d(x, w)[n, oh, ow, o] + b[o])
//
//   x      [N, H, W, CHANNELS]
//   w      [KH, KW, CHANNELS, FILTERS]    FILTERS a multiple of 4
//   b      [FILTERS]
//   y      [N, PH, PW, FILTERS]           every element written exactly once
//   place  [N, PH, PW, FILTERS] bytes     where in its window the maximum is, 0 to 3 in row-major order, the first if they tie,
//                                       or 4 where ReLU left nothing of it
//
// conv2d_relu_pool by cooperative matrices: x and w are rounded to f16 as they are staged, and products summed in f32. The rows are
// those of that kernel: the places of the N·PH·PW windows, four of a window together. One workgroup computes a TILE_M×TILE_N tile,
// one subgroup a BLOCK×BLOCK block of it, as 2×2 matrices of EDGE×EDGE. Where each row's window of x begins is worked out once; then
// per step along K the workgroup stages TILE_M×STEP of the windows and STEP×TILE_N of w. Padding and what lies past an edge is
// staged as zero. A matrix has no elements that could be compared, so the sums go through shared memory to be pooled, the upper
// half of each block first, then the lower.
//
// A workgroup has exactly as many invocations as its subgroups, all of which do all that concerns matrices; what index or stride
// they load and store with is worked out before (naga 30 panics at an expression there).
//
// Dispatch: ceil(4·N·PH·PW / TILE_M) · ceil(FILTERS / TILE_N) workgroups, the tiles of the same rows side by side.
// CPU twin: `Conv2dReluPool::reference` in src/ops/conv2d/relu_pool/mod.rs.

enable f16;
enable wgpu_cooperative_matrix;

// What is stored as f16 where src/ops/stored.rs writes so.
alias X = f32;
alias Y = f32;

// 16 in all four where src/ops/cooperative.rs writes so.
const EDGE = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;

const BLOCK = 2u * EDGE;

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
override TILE_M: u32;   // rows of a workgroup's tile, a multiple of BLOCK
override TILE_N: u32;   // and its columns, likewise
override STEP: u32;     // elements of K staged at a time, a multiple of EDGE
override SUBGROUP: u32; // invocations of a subgroup
override LANES: u32 = TILE_M / BLOCK * (TILE_N / BLOCK) * SUBGROUP; // a multiple of STEP

const OUTSIDE = 1i << 30u; // a window that sees no pixel begins here
const STOPPED = 4u; // the place of a maximum that ReLU made zero

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<Y>;
@group(0) @binding(4) var<storage, read_write> place: array<u32>; // four bytes each
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> x_tile: array<f16, TILE_M * (STEP + 8u)>; // [row][k]; the odd pitch spreads a column over the banks
var<workgroup> w_tile: array<f16, STEP * (TILE_N + 8u)>; // [k][column], likewise
var<workgroup> sums: array<f32, TILE_M / 2u * TILE_N>;   // half the rows of each block: [row][column]
var<workgroup> row_h: array<i32, TILE_M>;                // where each row's window begins
var<workgroup> row_w: array<i32, TILE_M>;
var<workgroup> row_at: array<i32, TILE_M>;               // … as an index of x, which wraps if it is in the padding

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pitch = STEP + 8u;
    let pitch_n = TILE_N + 8u;
    let pitch_sums = TILE_N;
    let rows = call.batch * PH * PW * 4u;
    let depth = KH * KW * CHANNELS;
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let subgroup = lane / SUBGROUP;
    let block_row = subgroup / (TILE_N / BLOCK) * BLOCK;
    let block_column = subgroup % (TILE_N / BLOCK) * BLOCK;

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

    // The block's quarters: s01 is right of s00 and s10 below.
    var s00 = Sums();
    var s01 = Sums();
    var s10 = Sums();
    var s11 = Sums();
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
            var value = f16();
            if k < depth && u32(row_h[row] + tap_h) < H && u32(row_w[row] + tap_w) < W {
                value = f16(x[u32(row_at[row] + offset)]);
            }
            x_tile[row * pitch + step] = value;
        }
        for (var i = lane; i < TILE_N * STEP; i += LANES) {
            let column = column0 + i % TILE_N;
            let k_w = k0 + i / TILE_N;
            var value = f16();
            if k_w < depth && column < FILTERS {
                value = f16(w[k_w * FILTERS + column]);
            }
            w_tile[i / TILE_N * pitch_n + i % TILE_N] = value;
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP; s += EDGE) {
            let i0 = block_row * pitch + s;
            let i1 = i0 + EDGE * pitch;
            let j0 = s * pitch_n + block_column;
            let j1 = j0 + EDGE;
            let rows0 = coopLoadT<Left>(&x_tile[i0], pitch);
            let rows1 = coopLoadT<Left>(&x_tile[i1], pitch);
            let columns0 = coopLoadT<Right>(&w_tile[j0], pitch_n);
            let columns1 = coopLoadT<Right>(&w_tile[j1], pitch_n);
            s00 = coopMultiplyAdd(rows0, columns0, s00);
            s01 = coopMultiplyAdd(rows0, columns1, s01);
            s10 = coopMultiplyAdd(rows1, columns0, s10);
            s11 = coopMultiplyAdd(rows1, columns1, s11);
        }
        workgroupBarrier();
    }
    let at0 = block_row / 2u * pitch_sums + block_column;
    let at1 = at0 + EDGE;
    coopStoreT(s00, &sums[at0], pitch_sums);
    coopStoreT(s01, &sums[at1], pitch_sums);
    workgroupBarrier();
    pool(lane, row0, rows, column0);
    workgroupBarrier();
    coopStoreT(s10, &sums[at0], pitch_sums);
    coopStoreT(s11, &sums[at1], pitch_sums);
    workgroupBarrier();
    pool(lane, row0 + EDGE, rows, column0);
}

// Stores what pooling leaves of the windows in `sums`, four rows each, for four filters at a time. The first row of each block
// there is `row0` and BLOCK more for each block above.
fn pool(lane: u32, row0: u32, rows: u32, column0: u32) {
    for (var i = lane; i < TILE_M / 8u * (TILE_N / 4u); i += LANES) {
        let here = i / (TILE_N / 4u) * 4u;
        let row = row0 + here / EDGE * BLOCK + here % EDGE;
        let column = column0 + i % (TILE_N / 4u) * 4u;
        if row >= rows || column >= FILTERS {
            continue;
        }
        // Bias and ReLU first: what ties after them is a tie.
        let at = here * TILE_N + column - column0;
        let bias = vec4(b[column], b[column + 1u], b[column + 2u], b[column + 3u]);
        var best = relu(sums_quad(at) + bias);
        var where_ = vec4<u32>();
        for (var other = 1u; other < 4u; other += 1u) {
            let value = relu(sums_quad(at + other * TILE_N) + bias);
            let better = beats(value, best);
            best = select(best, value, better);
            where_ = select(where_, vec4(other), better);
        }
        where_ = select(where_, vec4(STOPPED), is_zero(best));
        let to = row / 4u * FILTERS + column;
        y[to] = Y(best.x);
        y[to + 1u] = Y(best.y);
        y[to + 2u] = Y(best.z);
        y[to + 3u] = Y(best.w);
        place[to / 4u] = where_.x | where_.y << 8u | where_.z << 16u | where_.w << 24u;
    }
}

// A NaN stays one.
fn relu(z: vec4<f32>) -> vec4<f32> {
    return select(z, vec4<f32>(), z < vec4<f32>());
}

// Whether v is larger than best, a NaN being larger than any number. By bits, since compilers may assume that no NaN exists.
fn beats(v: vec4<f32>, best: vec4<f32>) -> vec4<bool> {
    return !is_nan(best) & (is_nan(v) | (v > best));
}

fn is_zero(v: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(v) & vec4(0x7fffffffu)) == vec4<u32>();
}

fn is_nan(v: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(v) & vec4(0x7fffffffu)) > vec4(0x7f800000u);
}

fn sums_quad(i: u32) -> vec4<f32> {
    return vec4(sums[i], sums[i + 1u], sums[i + 2u], sums[i + 3u]);
}
