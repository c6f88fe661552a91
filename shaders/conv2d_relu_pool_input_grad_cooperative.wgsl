// conv2d_relu_pool_input_grad_cooperative: dx[n, h, v, c] = Σ g[n, oh, ow, o] · w[kh, kw, c, o]
//                    over o and those kh, kw for which h = oh·stride + kh·dilation - pad and v likewise
//
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   place  [N, PH, PW, FILTERS] bytes    as the forward kernel leaves them
//   w      [KH, KW, CHANNELS, FILTERS]
//   dx     [N, H, W, CHANNELS]            every element written exactly once
//
// conv2d_relu_pool_input_grad by cooperative matrices: g, the gradient of the convolution's output, and w are rounded to f16 as they are
// staged, and products summed in f32. Rows are the N·H·W input pixels, K runs over KH·KW·FILTERS, columns are the CHANNELS. One
// workgroup computes a TILE_M×TILE_N tile, one subgroup a BLOCK×BLOCK block of it, as 2×2 matrices of EDGE×EDGE. Per step along K the
// workgroup stages TILE_M×STEP of g and TILE_N×STEP of w, transposed as it lies in memory; taps that fall between two strides and
// what lies past an edge are zero. The sums go through shared memory, so that only those inside of dx are stored: the upper half
// of each block first, then the lower.
//
// A workgroup has exactly as many invocations as its subgroups, all of which do all that concerns matrices; what index or stride
// they load and store with is worked out before (naga 30 panics at an expression there).
//
// Dispatch: ceil(N·H·W / TILE_M) · ceil(CHANNELS / TILE_N) workgroups, the tiles of the same rows side by side.
// CPU twin: `Conv2dReluPoolInputGrad::reference` in src/ops/conv2d/relu_pool/grad.rs.

enable f16;
enable wgpu_cooperative_matrix;

// What is stored as f16 where src/ops/stored.rs writes so.
alias DY = f32;
alias DX = f32;

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

const OUTSIDE = -(1i << 30u); // no output pixel sees a row that lies here

@group(0) @binding(0) var<storage, read> dy: array<DY>;
@group(0) @binding(1) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<DX>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> g_tile: array<f16, TILE_M * (STEP + 8u)>; // [row][k]; the odd pitch spreads a column over the banks
var<workgroup> w_tile: array<f16, TILE_N * (STEP + 8u)>; // [column][k], likewise
var<workgroup> sums: array<f32, TILE_M / 2u * TILE_N>;   // half the rows of each block: [row][column]
var<workgroup> row_h: array<i32, TILE_M>;                 // each row's pixel, counted from the corner of the padding
var<workgroup> row_w: array<i32, TILE_M>;
var<workgroup> row_image: array<u32, TILE_M>;             // first pixel of y of its image

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pitch = STEP + 8u;
    let pitch_sums = TILE_N;
    let rows = call.batch * H * W;
    let depth = KH * KW * FILTERS;
    let tiles_n = (CHANNELS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let subgroup = lane / SUBGROUP;
    let block_row = subgroup / (TILE_N / BLOCK) * BLOCK;
    let block_column = subgroup % (TILE_N / BLOCK) * BLOCK;

    for (var i = lane; i < TILE_M; i += LANES) {
        let row = row0 + i;
        row_h[i] = select(OUTSIDE, i32(row / W % H + PAD_H), row < rows);
        row_w[i] = i32(row % W + PAD_W);
        row_image[i] = row / (H * W) * (PH * PW);
    }
    workgroupBarrier();

    // The block's quarters: s01 is right of s00 and s10 below.
    var s00 = Sums();
    var s01 = Sums();
    var s10 = Sums();
    var s11 = Sums();
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
            g_tile[row * pitch + step] = f16(value);
        }
        for (var column = lane / STEP; column < TILE_N; column += LANES / STEP) {
            var value = 0.0;
            if k < depth && column0 + column < CHANNELS {
                value = w[(tap * CHANNELS + column0 + column) * FILTERS + channel];
            }
            w_tile[column * pitch + step] = f16(value);
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP; s += EDGE) {
            let i0 = block_row * pitch + s;
            let i1 = i0 + EDGE * pitch;
            let j0 = block_column * pitch + s;
            let j1 = j0 + EDGE * pitch;
            let rows0 = coopLoadT<Left>(&g_tile[i0], pitch);
            let rows1 = coopLoadT<Left>(&g_tile[i1], pitch);
            let columns0 = coopLoad<Right>(&w_tile[j0], pitch);
            let columns1 = coopLoad<Right>(&w_tile[j1], pitch);
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
    store(lane, row0, rows, column0);
    workgroupBarrier();
    coopStoreT(s10, &sums[at0], pitch_sums);
    coopStoreT(s11, &sums[at1], pitch_sums);
    workgroupBarrier();
    store(lane, row0 + EDGE, rows, column0);
}

// Stores what `sums` has of dx. The first row of each block there is `row0` and BLOCK more for each block above.
fn store(lane: u32, row0: u32, rows: u32, column0: u32) {
    for (var i = lane; i < TILE_M / 2u * TILE_N; i += LANES) {
        let here = i / TILE_N;
        let row = row0 + here / EDGE * BLOCK + here % EDGE;
        let column = column0 + i % TILE_N;
        if row < rows && column < CHANNELS {
            dx[row * CHANNELS + column] = DX(sums[i]);
        }
    }
}

// The gradient of the convolution's output at one place of a window, given the element of dy.
fn gradient(i: u32, here: u32) -> f32 {
    let there = place[i / 4u] >> i % 4u * 8u & 0xffu;
    return select(f32(dy[i]), 0.0, there != here);
}
