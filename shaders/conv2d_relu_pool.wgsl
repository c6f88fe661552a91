// conv2d_relu_pool: y[n, ph, pw, o] = the maximum over the 2×2 pixels of a window of relu(conv2d(x, w)[n, oh, ow, o] + b[o])
//
//   x      [N, H, W, CHANNELS]
//   w      [KH, KW, CHANNELS, FILTERS]    FILTERS a multiple of 4
//   b      [FILTERS]
//   y      [N, PH, PW, FILTERS]           every element written exactly once
//   place  [N, PH, PW, FILTERS] bytes     where in its window the maximum is, 0 to 3 in row-major order, the first if they tie,
//                                       or 4 where ReLU left nothing of it
//
// A matrix product that never stores its left factor, and of its result only what pooling leaves: rows are the places of the
// N·PH·PW windows, four of a window together, so that each 4×4 quarter of an invocation's block holds a whole window of four
// filters. K runs over KH·KW·CHANNELS in the order of w, columns are the FILTERS. One workgroup computes a TILE_M×TILE_N tile,
// one invocation a BLOCK_M×BLOCK_N block of it. Where each window of x begins is worked out once, into shared memory; then per
// step along K an invocation stages one term of the four places of a window, and one term of four filters of w, the first two of
// either loaded a step ahead. Padding and what lies past an edge is staged as zero.
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
override BLOCK_M: u32;  // rows of an invocation's block, 4 or 8: then they are two windows, half a tile apart
override BLOCK_N: u32;  // and its columns, 4 or 8: two fours, likewise
override LANES: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N);
override WINDOWS: u32 = TILE_M / 4u;      // of the tile
override PITCH: u32 = WINDOWS + 1u;       // from a term of all windows to the next; odd, so that terms lie in different banks
override LEFT: u32 = PITCH * STEP;        // fours staged of x, before those of w
override RIGHT: u32 = TILE_N / 4u * STEP; // … and of w
override APART: u32 = LANES / STEP;       // windows staged at a turn
override FEW: bool = KH * KW * CHANNELS <= 2u * STEP; // steps, which drivers unroll
// Whether no window reaches past an edge of x.
override WHOLE: bool = PAD_H + PAD_W == 0u && 2u * PH * STRIDE_H + (KH - 1u) * DILATION_H < H + STRIDE_H
    && 2u * PW * STRIDE_W + (KW - 1u) * DILATION_W < W + STRIDE_W;

const OUTSIDE = 1i << 30u; // a window that sees no pixel begins here
const STOPPED = 4u; // the place of a maximum that ReLU made zero

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<Y>>;
@group(0) @binding(4) var<storage, read_write> place: array<u32>; // four bytes each
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Of x, fours of a window's places: [term][window]. Of w, fours of columns: [term][column].
var<workgroup> staged: array<vec4<f32>, LEFT + RIGHT>;
var<workgroup> window_h: array<i32, WINDOWS>;  // where each window's first place begins
var<workgroup> window_w: array<i32, WINDOWS>;
var<workgroup> window_at: array<i32, WINDOWS>; // … as an index of x, which wraps if it is in the padding

// A term of the four places of a window, as it is loaded, and which of them count: what does not is loaded from somewhere else.
struct Image {
    value: vec4<X>,
    inside: vec4<bool>,
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = call.batch * PH * PW * 4u;
    // More than a few steps as if they were not known when this is compiled: drivers that know that there is a first leave the loop at its
    // end, and then some load there what the next step stages, as the last has none.
    let depth = select(0u, KH * KW * CHANNELS, FEW || rows != 0u);
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let block_row = lane / (TILE_N / BLOCK_N) * 4u;
    let block_column = lane % (TILE_N / BLOCK_N) * 4u;

    for (var i = lane; i < WINDOWS; i += LANES) {
        let window = row0 / 4u + i;
        let h = i32(window / PW % PH * 2u * STRIDE_H) - i32(PAD_H);
        let v = i32(window % PW * 2u * STRIDE_W) - i32(PAD_W);
        window_h[i] = select(OUTSIDE, h, window * 4u < rows);
        window_w[i] = v;
        window_at[i] = ((i32(window / (PH * PW) * H) + h) * i32(W) + v) * i32(CHANNELS);
    }
    workgroupBarrier();

    // The block's quarters, or what it has of them: s01 is half a tile right of s00, and s10 below. A matrix's column is a row.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    // Neighbouring invocations take neighbouring channels of a pixel; an invocation stays at one term of every step.
    let step = lane % STEP;
    let first = lane / STEP;
    var x_ahead = load_x(step, first, 0u);
    var x_next = load_x(step, first, 1u);
    var w_ahead = load_w(0u, column0, lane, 0u);
    var w_next = load_w(0u, column0, lane, 1u);
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        stage_x(step, first, 0u, x_ahead);
        stage_x(step, first, 1u, x_next);
        for (var turn = 2u; turn * APART < WINDOWS; turn += 1u) {
            stage_x(step, first, turn, load_x(k0 + step, first, turn));
        }
        stage_w(k0, lane, 0u, w_ahead);
        stage_w(k0, lane, 1u, w_next);
        for (var turn = 2u; turn * LANES < RIGHT; turn += 1u) {
            stage_w(k0, lane, turn, load_w(k0, column0, lane, turn));
        }
        workgroupBarrier();
        x_ahead = load_x(k0 + STEP + step, first, 0u);
        x_next = load_x(k0 + STEP + step, first, 1u);
        w_ahead = load_w(k0 + STEP, column0, lane, 0u);
        w_next = load_w(k0 + STEP, column0, lane, 1u);
        for (var s = 0u; s < STEP; s += 4u) {
            let i = s * PITCH + block_row / 4u;
            let j = LEFT + s * (TILE_N / 4u) + block_column / 4u;
            let rows0 = fours(i, PITCH);
            let columns0 = fours(j, TILE_N / 4u);
            s00 = added(s00, rows0, columns0);
            var columns1 = mat4x4<f32>();
            if BLOCK_N == 8u {
                columns1 = fours(j + TILE_N / 8u, TILE_N / 4u);
                s01 = added(s01, rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = fours(i + WINDOWS / 2u, PITCH);
                s10 = added(s10, rows1, columns0);
                if BLOCK_N == 8u {
                    s11 = added(s11, rows1, columns1);
                }
            }
        }
        workgroupBarrier();
    }
    let row = row0 + block_row;
    let column = column0 + block_column;
    pool(row, rows, column, s00);
    if BLOCK_N == 8u {
        pool(row, rows, column + TILE_N / 2u, s01);
    }
    if BLOCK_M == 8u {
        pool(row + TILE_M / 2u, rows, column, s10);
        if BLOCK_N == 8u {
            pool(row + TILE_M / 2u, rows, column + TILE_N / 2u, s11);
        }
    }
}

// Whether a term is past the last. Where no step has such terms a compiler knows that none is.
fn past(k: u32) -> bool {
    return KH * KW * CHANNELS % STEP != 0u && k >= KH * KW * CHANNELS;
}

// A term of the four places of the window that is staged at this turn; past the last, that one again. Without a branch, in which some
// compilers would wait for what is loaded.
fn load_x(term: u32, first: u32, turn: u32) -> Image {
    let window = first + turn * APART;
    if window_beyond(window, turn) {
        return Image();
    }
    let k = min(term, KH * KW * CHANNELS - 1u);
    let tap = k / CHANNELS;
    let tap_h = i32(tap / KW * DILATION_H);
    let tap_w = i32(tap % KW * DILATION_W);
    let at = window_at[window] + (tap_h * i32(W) + tap_w) * i32(CHANNELS) + i32(k % CHANNELS);
    let down = i32(STRIDE_H * W * CHANNELS);
    let right = i32(STRIDE_W * CHANNELS);
    // A negative place is a huge one when unsigned. A window that is not there is past all edges.
    let h = window_h[window] + tap_h;
    let v = window_w[window] + tap_w;
    let there = !past(term) & (h < OUTSIDE);
    let upper = there & (WHOLE | (u32(h) < H));
    let lower = there & (WHOLE | (u32(h + i32(STRIDE_H)) < H));
    let west = WHOLE | (u32(v) < W);
    let east = WHOLE | (u32(v + i32(STRIDE_W)) < W);
    let inside = vec4(upper & west, upper & east, lower & west, lower & east);
    // Where none can be past an edge, those of the first window will do.
    let from_ = select(0, at, there);
    let i = select(vec4<u32>(), vec4<u32>(vec4(from_, from_ + right, from_ + down, from_ + down + right)), inside | vec4(WHOLE));
    return Image(vec4(x[i.x], x[i.y], x[i.z], x[i.w]), inside);
}

fn stage_x(step: u32, first: u32, turn: u32, image: Image) {
    let window = first + turn * APART;
    if !window_beyond(window, turn) {
        staged[step * PITCH + window] = select(vec4<f32>(), vec4<f32>(image.value), image.inside);
    }
}

// Whether a window that is staged at this turn is past the last. Of a whole turn a compiler knows that none is.
fn window_beyond(window: u32, turn: u32) -> bool {
    return turn * APART >= WINDOWS || (turn * APART + APART > WINDOWS && window >= WINDOWS);
}

// Four columns of the term that is staged at this turn, of the tile of w that begins at `k0` and `column0`. Past the last column those
// again, of which nothing is stored; past the last term that one again. In a loop whoever stages none loads too, for there some compilers
// would wait in a branch; of steps that are unrolled they would take what is not in a branch into that in which it is staged.
fn load_w(k0: u32, column0: u32, lane: u32, turn: u32) -> vec4<f32> {
    let i = lane + turn * LANES;
    if turn * LANES >= RIGHT || (FEW && turn * LANES + LANES > RIGHT && i >= RIGHT) {
        return vec4<f32>();
    }
    let k = min(k0 + i / (TILE_N / 4u), KH * KW * CHANNELS - 1u);
    let column = min(column0 + i % (TILE_N / 4u) * 4u, FILTERS - 4u);
    return w[(k * FILTERS + column) / 4u];
}

// Past the last term zeros: what was loaded may be infinite.
fn stage_w(k0: u32, lane: u32, turn: u32, value: vec4<f32>) {
    let i = lane + turn * LANES;
    if turn * LANES < RIGHT && i < RIGHT {
        staged[LEFT + i] = select(value, vec4<f32>(), past(k0 + i / (TILE_N / 4u)));
    }
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
    where_ = select(where_, vec4(STOPPED), is_zero(best));

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

fn is_zero(v: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(v) & vec4(0x7fffffffu)) == vec4<u32>();
}

fn is_nan(v: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(v) & vec4(0x7fffffffu)) > vec4(0x7f800000u);
}

// Four fours.
fn fours(i: u32, apart: u32) -> mat4x4<f32> {
    return mat4x4(staged[i], staged[i + apart], staged[i + 2u * apart], staged[i + 3u * apart]);
}

// `s` and four terms, one after another.
fn added(s: mat4x4<f32>, rows: mat4x4<f32>, columns: mat4x4<f32>) -> mat4x4<f32> {
    var sum = s + outer(rows[0], columns[0]);
    sum += outer(rows[1], columns[1]);
    sum += outer(rows[2], columns[2]);
    return sum + outer(rows[3], columns[3]);
}

// Each row times each column; a column of the matrix is a row.
fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(columns * rows.x, columns * rows.y, columns * rows.z, columns * rows.w);
}
