// conv2d_relu_pool_weight_grad_cooperative: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · g[n, oh, ow, o]
//                               db[s, o] = Σ g[n, oh, ow, o]       over the pixels of y of slice s and their places
//
//   x      [N, H, W, CHANNELS]
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   place  [N, PH, PW, FILTERS] bytes    as the forward kernel leaves them
//   dw     [SLICES, KH, KW, CHANNELS, FILTERS]   every element written exactly once
//   db     [SLICES, FILTERS]                     likewise
//
// conv2d_relu_pool_weight_grad by cooperative matrices: x and g, the gradient of the convolution's output, are rounded to f16 as they
// are staged, and products summed in f32. Of each slice, rows are KH·KW·CHANNELS in the order of w, K runs over the four places of the
// slice's pixels, columns are the FILTERS. One workgroup computes a TILE_M×TILE_N tile of a slice, one subgroup a BLOCK×BLOCK block of
// it, as 2×2 matrices of EDGE×EDGE. Per step along K the workgroup stages STEP×TILE_M of x and STEP×TILE_N of g; padding and what lies
// past an edge is staged as zero. The workgroups of a slice's first rows add up db too. The sums go through shared memory, so that
// only those inside of dw are stored: the upper half of each block first, then the lower.
//
// A workgroup has exactly as many invocations as its subgroups, all of which do all that concerns matrices; what index or stride
// they load and store with is worked out before (naga 30 panics at an expression there).
//
// Dispatch: SLICES · ceil(KH·KW·CHANNELS / TILE_M) · ceil(FILTERS / TILE_N) workgroups, those of a slice together.
// CPU twin: `Conv2dReluPoolWeightGrad::reference` in src/ops/conv2d/relu_pool/grad.rs.

enable f16;
enable wgpu_cooperative_matrix;

// What is stored as f16 where src/ops/stored.rs writes so.
alias X = f32;
alias DY = f32;

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
override SLICES: u32;
override TILE_M: u32;   // rows of a workgroup's tile, a multiple of BLOCK
override TILE_N: u32;   // and its columns, likewise
override STEP: u32;     // elements of K staged at a time, a multiple of EDGE
override SUBGROUP: u32; // invocations of a subgroup
override LANES: u32 = TILE_M / BLOCK * (TILE_N / BLOCK) * SUBGROUP; // at least TILE_N

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> dy: array<DY>;
@group(0) @binding(2) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(3) var<storage, read_write> dw: array<f32>;
@group(0) @binding(4) var<storage, read_write> db: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> x_tile: array<f16, STEP * (TILE_M + 8u)>; // [k][row]; the odd pitch spreads a column over the banks
var<workgroup> g_tile: array<f16, STEP * (TILE_N + 8u)>; // [k][column], likewise
var<workgroup> sums: array<f32, TILE_M / 2u * TILE_N>;   // half the rows of each block: [row][column]

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pitch = TILE_M + 8u;
    let pitch_n = TILE_N + 8u;
    let pitch_sums = TILE_N;
    let rows = KH * KW * CHANNELS;
    let tiles_m = (rows + TILE_M - 1u) / TILE_M;
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    // Past the last slice, where folding adds workgroups, there is nothing to add and nothing is stored.
    let slice = tile / (tiles_m * tiles_n);
    let row0 = tile / tiles_n % tiles_m * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let subgroup = lane / SUBGROUP;
    let block_row = subgroup / (TILE_N / BLOCK) * BLOCK;
    let block_column = subgroup % (TILE_N / BLOCK) * BLOCK;

    let pixels = call.batch * PH * PW;
    let run = (pixels + SLICES - 1u) / SLICES;
    let first = min(min(slice, SLICES) * run, pixels) * 4u;
    let end = min(first + run * 4u, pixels * 4u);

    // The block's quarters: s01 is right of s00 and s10 below.
    var s00 = Sums();
    var s01 = Sums();
    var s10 = Sums();
    var s11 = Sums();
    var bias = 0.0;
    for (var k0 = first; k0 < end; k0 += STEP) {
        // Neighbouring invocations take neighbouring channels of a pixel.
        for (var i = lane; i < TILE_M * STEP; i += LANES) {
            let k = k0 + i / TILE_M;
            let row = row0 + i % TILE_M;
            let tap = row / CHANNELS;
            // A negative place is a huge one when unsigned.
            let pixel = k / 4u;
            let h = u32(i32((pixel / PW % PH * 2u + k / 2u % 2u) * STRIDE_H + tap / KW * DILATION_H) - i32(PAD_H));
            let v = u32(i32((pixel % PW * 2u + k % 2u) * STRIDE_W + tap % KW * DILATION_W) - i32(PAD_W));
            var value = f16();
            if k < end && row < rows && h < H && v < W {
                value = f16(x[((pixel / (PH * PW) * H + h) * W + v) * CHANNELS + row % CHANNELS]);
            }
            x_tile[i / TILE_M * pitch + i % TILE_M] = value;
        }
        for (var i = lane; i < TILE_N * STEP; i += LANES) {
            let k = k0 + i / TILE_N;
            let column = column0 + i % TILE_N;
            var value = 0.0;
            if k < end && column < FILTERS {
                value = gradient(k / 4u * FILTERS + column, k % 4u);
            }
            g_tile[i / TILE_N * pitch_n + i % TILE_N] = f16(value);
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP; s += EDGE) {
            let i0 = s * pitch + block_row;
            let i1 = i0 + EDGE;
            let j0 = s * pitch_n + block_column;
            let j1 = j0 + EDGE;
            let rows0 = coopLoad<Left>(&x_tile[i0], pitch);
            let rows1 = coopLoad<Left>(&x_tile[i1], pitch);
            let columns0 = coopLoadT<Right>(&g_tile[j0], pitch_n);
            let columns1 = coopLoadT<Right>(&g_tile[j1], pitch_n);
            s00 = coopMultiplyAdd(rows0, columns0, s00);
            s01 = coopMultiplyAdd(rows0, columns1, s01);
            s10 = coopMultiplyAdd(rows1, columns0, s10);
            s11 = coopMultiplyAdd(rows1, columns1, s11);
        }
        if row0 == 0u && lane < TILE_N {
            for (var s = 0u; s < STEP; s += 1u) {
                bias += f32(g_tile[s * pitch_n + lane]);
            }
        }
        workgroupBarrier();
    }
    if slice < SLICES && row0 == 0u && lane < TILE_N && column0 + lane < FILTERS {
        db[slice * FILTERS + column0 + lane] = bias;
    }
    let at0 = block_row / 2u * pitch_sums + block_column;
    let at1 = at0 + EDGE;
    coopStoreT(s00, &sums[at0], pitch_sums);
    coopStoreT(s01, &sums[at1], pitch_sums);
    workgroupBarrier();
    store(lane, slice, row0, column0);
    workgroupBarrier();
    coopStoreT(s10, &sums[at0], pitch_sums);
    coopStoreT(s11, &sums[at1], pitch_sums);
    workgroupBarrier();
    store(lane, slice, row0 + EDGE, column0);
}

// Stores what `sums` has of dw. The first row of each block there is `row0` and BLOCK more for each block above.
fn store(lane: u32, slice: u32, row0: u32, column0: u32) {
    let rows = KH * KW * CHANNELS;
    for (var i = lane; i < TILE_M / 2u * TILE_N; i += LANES) {
        let here = i / TILE_N;
        let row = row0 + here / EDGE * BLOCK + here % EDGE;
        let column = column0 + i % TILE_N;
        if slice < SLICES && row < rows && column < FILTERS {
            dw[(slice * rows + row) * FILTERS + column] = sums[i];
        }
    }
}

// The gradient of the convolution's output at one place of a window, given the element of dy.
fn gradient(i: u32, here: u32) -> f32 {
    let there = place[i / 4u] >> i % 4u * 8u & 0xffu;
    return select(f32(dy[i]), 0.0, there != here);
}
