// conv2d_relu_pool_quads: y[n, ph, pw, o] = the maximum over the 2×2 pixels of a window of relu(conv2d(x, w)[n, oh, ow, o] + b[o])
//
//   x      [N, H, W, CHANNELS]           CHANNELS a multiple of 4
//   w      [KH, KW, CHANNELS, FILTERS]    FILTERS a multiple of 4
//   b      [FILTERS]
//   y      [N, PH, PW, FILTERS]           every element written exactly once
//   place  [N, PH, PW, FILTERS] bytes     where in its window the maximum is, 0 to 3 in row-major order, the first if they tie
//
// What conv2d_relu_pool does, with loads and stores of four: four neighbouring channels of x, which are four terms of a row, and four
// filters of w. A row's four terms are spread over four rows of the staged tile. The first four that an invocation stages of each factor
// is loaded a step ahead, so that it comes while the step before is computed. A tile too small for the invocations of a workgroup, one
// for each block, has PARTS times as many: each part takes its share of every step's terms, and their sums meet at the end, in order.
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
override PARTS: u32;    // 1, or with blocks of 4×4 more, of which STEP is a multiple
override SIDE: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N); // invocations of a part
override LANES: u32 = SIDE * PARTS;

const OUTSIDE = 1i << 30u; // a window that sees no pixel begins here

@group(0) @binding(0) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<Y>>;
@group(0) @binding(4) var<storage, read_write> place: array<u32>; // four bytes each
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Neighbouring rows are different invocations' to stage, and one that writes an element of a vector may write all of it.
var<workgroup> x_tile: array<f32, (TILE_M + 4u) * STEP>;     // [k][row]; the pitch spreads a column over the banks
var<workgroup> w_tile: array<vec4<f32>, TILE_N / 4u * STEP>; // [k][column]
var<workgroup> row_h: array<i32, TILE_M>;                    // where each row's window begins
var<workgroup> row_w: array<i32, TILE_M>;
var<workgroup> row_at: array<i32, TILE_M>;                   // … as an index of x, which wraps if it is in the padding

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pitch = TILE_M + 4u;
    let rows = call.batch * PH * PW * 4u;
    let depth = KH * KW * CHANNELS;
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let part = lane / SIDE;
    let block = lane % SIDE;
    let block_row = block / (TILE_N / BLOCK_N) * BLOCK_M;
    let block_column = block % (TILE_N / BLOCK_N) * BLOCK_N;

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
    // Neighbouring invocations take neighbouring fours of a pixel; an invocation stays at four terms of every step.
    let step = lane % (STEP / 4u) * 4u;
    let first = lane / (STEP / 4u);
    var x_ahead = load_x(step, first);
    var w_ahead = load_w(0u, column0, lane);
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        stage_x(step, first, x_ahead);
        for (var row = first + LANES / (STEP / 4u); row < TILE_M; row += LANES / (STEP / 4u)) {
            stage_x(step, row, load_x(k0 + step, row));
        }
        if lane < TILE_N / 4u * STEP {
            w_tile[lane] = w_ahead;
        }
        for (var i = lane + LANES; i < TILE_N / 4u * STEP; i += LANES) {
            w_tile[i] = load_w(k0, column0, i);
        }
        workgroupBarrier();
        x_ahead = load_x(k0 + STEP + step, first);
        w_ahead = load_w(k0 + STEP, column0, lane);
        for (var s = part * (STEP / PARTS); s < (part + 1u) * (STEP / PARTS); s += 1u) {
            let i = s * pitch + block_row;
            let j = (s * TILE_N + block_column) / 4u;
            let rows0 = x_quad(i);
            let columns0 = w_tile[j];
            s00 += outer(rows0, columns0);
            var columns1 = vec4<f32>();
            if BLOCK_N == 8u {
                columns1 = w_tile[j + 1u];
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
    if PARTS > 1u {
        s00 = mat4x4(meet(part, block, s00[0]), meet(part, block, s00[1]), meet(part, block, s00[2]), meet(part, block, s00[3]));
        if part != PARTS / 2u {
            return;
        }
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

// Four terms of a row, from `k` on.
fn load_x(k: u32, row: u32) -> vec4<f32> {
    let tap = k / CHANNELS;
    let tap_h = i32(tap / KW * DILATION_H);
    let tap_w = i32(tap % KW * DILATION_W);
    // A negative place is a huge one when unsigned.
    if row >= TILE_M || k >= KH * KW * CHANNELS || u32(row_h[row] + tap_h) >= H || u32(row_w[row] + tap_w) >= W {
        return vec4<f32>();
    }
    let offset = (tap_h * i32(W) + tap_w) * i32(CHANNELS) + i32(k % CHANNELS);
    return vec4<f32>(x[u32(row_at[row] + offset) / 4u]);
}

fn stage_x(step: u32, row: u32, value: vec4<f32>) {
    if row >= TILE_M {
        return;
    }
    let pitch = TILE_M + 4u;
    let at = step * pitch + row;
    x_tile[at] = value.x;
    x_tile[at + pitch] = value.y;
    x_tile[at + 2u * pitch] = value.z;
    x_tile[at + 3u * pitch] = value.w;
}

// The four columns at place `i` of the tile of w that begins at `k0` and `column0`.
fn load_w(k0: u32, column0: u32, i: u32) -> vec4<f32> {
    let k = k0 + i / (TILE_N / 4u);
    let column = column0 + i % (TILE_N / 4u) * 4u;
    if k >= KH * KW * CHANNELS || column >= FILTERS {
        return vec4<f32>();
    }
    return w[(k * FILTERS + column) / 4u];
}

// The sum of the parts' sums at a block, in order, its own last, for the part in the middle.
fn meet(part: u32, block: u32, own: vec4<f32>) -> vec4<f32> {
    if part != PARTS / 2u {
        w_tile[select(part - 1u, part, part < PARTS / 2u) * SIDE + block] = own;
    }
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var i = 0u; part == PARTS / 2u && i + 1u < PARTS; i += 1u) {
        sum += w_tile[i * SIDE + block];
    }
    workgroupBarrier();
    return sum + own;
}

// Stores what pooling leaves of a window, four rows from `row` on, for four filters.
fn pool(row: u32, rows: u32, column: u32, z: mat4x4<f32>) {
    if row >= rows || column >= FILTERS {
        return;
    }
    // Bias and ReLU first: what ties after them is a tie.
    let bias = b[column / 4u];
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

    let at = (row / 4u * FILTERS + column) / 4u;
    y[at] = vec4<Y>(best);
    place[at] = where_.x | where_.y << 8u | where_.z << 16u | where_.w << 24u;
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

// Each row times each column; a column of the matrix is a row.
fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(columns * rows.x, columns * rows.y, columns * rows.z, columns * rows.w);
}
