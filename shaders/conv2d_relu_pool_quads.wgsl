// conv2d_relu_pool_quads: y[n, ph, pw, o] = the maximum over the 2×2 pixels of a window of relu(conv2d(x, w)[n, oh, ow, o] + b[o])
//
//   x      [N, H, W, CHANNELS]           CHANNELS a multiple of 4
//   w      [KH, KW, CHANNELS, FILTERS]    FILTERS a multiple of 4
//   b      [FILTERS]
//   y      [N, PH, PW, FILTERS]           every element written exactly once
//   place  [N, PH, PW, FILTERS] bytes     where in its window the maximum is, 0 to 3 in row-major order, the first if they tie,
//                                       or 4 where ReLU left nothing of it
//
// What conv2d_relu_pool does, with loads and stores of four: four neighbouring channels of x, which are four terms of a row, and four
// filters of w. Four terms are four loads of x and four of w from shared memory, and 64 products for each quarter of a block, with
// nothing to count between them.
//
// The first two fours that an invocation stages of each factor are loaded a step ahead, so that they come while the step before is
// computed. A tile with fewer blocks than a workgroup should have invocations has PARTS for each block: each part takes its share of
// every step's fours, and their sums meet at the end, in order.
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
override BLOCK_M: u32;  // rows of an invocation's block, 4 or 8: then they are two fours, half a tile apart
override BLOCK_N: u32;  // and its columns, likewise
override PARTS: u32;    // STEP is a multiple of four times as many
override SIDE: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N); // invocations of a part
override LANES: u32 = SIDE * PARTS;
override PITCH: u32 = TILE_M + 13u;        // from four terms of all rows to the next four, which spreads both over the banks
override LEFT: u32 = PITCH * (STEP / 4u);  // fours staged of x, before those of w
override RIGHT: u32 = TILE_N / 4u * STEP;  // … and of w
override APART: u32 = LANES / (STEP / 4u); // rows staged of x at a turn
override ONE_TAP: bool = CHANNELS % STEP == 0u; // whether all terms of a step are of one tap
override SHARES: u32 = STEP / 4u / PARTS;  // fours of terms that an invocation takes of a step

const OUTSIDE = 1i << 30u; // a window that sees no pixel begins here
const STOPPED = 4u; // the place of a maximum that ReLU made zero

@group(0) @binding(0) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<Y>>;
@group(0) @binding(4) var<storage, read_write> place: array<u32>; // four bytes each
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Of x, fours of terms: [four][row], in the order of `spot`. Of w, fours of columns: [term][column]. In the end, the parts' sums.
var<workgroup> staged: array<vec4<f32>, LEFT + RIGHT>;
var<workgroup> row_h: array<i32, TILE_M>;                    // where each row's window begins
var<workgroup> row_w: array<i32, TILE_M>;
var<workgroup> row_at: array<i32, TILE_M>;                   // … as an index of x, which wraps if it is in the padding

// A four of a row's terms, as it is loaded, and whether it counts: what does not is loaded from somewhere else.
struct Four {
    value: vec4<X>,
    inside: bool,
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = call.batch * PH * PW * 4u;
    // As if it were not known when this is compiled: drivers that know that there is a first step leave the loop at its end, and then some
    // load there what the next step stages, as the last has none.
    let depth = select(0u, KH * KW * CHANNELS, rows != 0u);
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let part = lane / SIDE;
    let block = lane % SIDE;
    let block_row = block / (TILE_N / BLOCK_N) * 4u;
    let block_column = block % (TILE_N / BLOCK_N) * 4u;

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

    // The block's quarters, or what it has of them: s01 is half a tile right of s00, and s10 below. A matrix's column is a row.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    // Neighbouring invocations take neighbouring fours of a pixel; an invocation stays at one four of every step.
    let four = lane % (STEP / 4u);
    let first = lane / (STEP / 4u);
    let left = part * SHARES * PITCH + block_row / 4u;
    let right = LEFT + part * SHARES * TILE_N + block_column / 4u;
    var x_ahead = load_x(0u, four, first, 0u);
    var x_next = load_x(0u, four, first, 1u);
    var w_ahead = load_w(0u, column0, lane, 0u);
    var w_next = load_w(0u, column0, lane, 1u);
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        stage_x(four, first, 0u, x_ahead);
        stage_x(four, first, 1u, x_next);
        for (var turn = 2u; turn * APART < TILE_M; turn += 1u) {
            stage_x(four, first, turn, load_x(k0, four, first, turn));
        }
        stage_w(k0, lane, 0u, w_ahead);
        stage_w(k0, lane, 1u, w_next);
        for (var turn = 2u; turn * LANES < RIGHT; turn += 1u) {
            stage_w(k0, lane, turn, load_w(k0, column0, lane, turn));
        }
        workgroupBarrier();
        x_ahead = load_x(k0 + STEP, four, first, 0u);
        x_next = load_x(k0 + STEP, four, first, 1u);
        w_ahead = load_w(k0 + STEP, column0, lane, 0u);
        w_next = load_w(k0 + STEP, column0, lane, 1u);
        for (var s = 0u; s < SHARES; s += 1u) {
            let i = left + s * PITCH;
            let j = right + s * TILE_N;
            let rows0 = terms_of_rows(i);
            let columns0 = columns_of_terms(j);
            s00 = added(s00, rows0, columns0);
            var columns1 = mat4x4<f32>();
            if BLOCK_N == 8u {
                columns1 = columns_of_terms(j + TILE_N / 8u);
                s01 = added(s01, rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = terms_of_rows(i + TILE_M / 8u);
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
    finish(0u, part, block, row, rows, column, s00);
    if BLOCK_N == 8u {
        finish(1u, part, block, row, rows, column + TILE_N / 2u, s01);
    }
    if BLOCK_M == 8u {
        finish(2u, part, block, row + TILE_M / 2u, rows, column, s10);
        if BLOCK_N == 8u {
            finish(3u, part, block, row + TILE_M / 2u, rows, column + TILE_N / 2u, s11);
        }
    }
}

// Sums the parts' quarters and stores what pooling leaves; of each quarter another part does so.
fn finish(quarter: u32, part: u32, block: u32, row: u32, rows: u32, column: u32, own: mat4x4<f32>) {
    if PARTS == 1u {
        pool(row, rows, column, own);
        return;
    }
    let owner = (PARTS / 2u + quarter) % PARTS;
    let upper = meet(part, owner, block, own[0], own[1]);
    let lower = meet(part, owner, block, own[2], own[3]);
    if part == owner {
        pool(row, rows, column, mat4x4(upper[0], upper[1], lower[0], lower[1]));
    }
}

// Where a row's four is staged: what the invocations of a subgroup read at a time lies side by side, and what they stage at a time in
// different banks.
fn spot(row: u32) -> u32 {
    return row % 4u * (TILE_M / 4u + 4u) + row / 4u;
}

// Whether a term is past the last. Where no step has such terms a compiler knows that none is.
fn past(k: u32) -> bool {
    return KH * KW * CHANNELS % STEP != 0u && k >= KH * KW * CHANNELS;
}

// A four of the terms from `k0` on, of the row that is staged at this turn. Without a branch, in which some compilers would wait for what
// is loaded. In the step past the last it may be any four, which is not staged.
fn load_x(k0: u32, four: u32, first: u32, turn: u32) -> Four {
    let row = first + turn * APART;
    if row_beyond(row, turn) {
        return Four();
    }
    let k = k0 + 4u * four;
    let tap = select(k, k0, ONE_TAP) / CHANNELS;
    let tap_h = i32(tap / KW * DILATION_H);
    let tap_w = i32(tap % KW * DILATION_W);
    // A negative place is a huge one when unsigned.
    let inside = !past(k) & (u32(row_h[row] + tap_h) < H) & (u32(row_w[row] + tap_w) < W);
    let offset = (tap_h * i32(W) + tap_w) * i32(CHANNELS) + i32(k - tap * CHANNELS);
    return Four(x[select(0u, u32(row_at[row] + offset) / 4u, inside)], inside);
}

fn stage_x(four: u32, first: u32, turn: u32, ahead: Four) {
    let row = first + turn * APART;
    if !row_beyond(row, turn) {
        staged[four * PITCH + spot(row)] = select(vec4<f32>(), vec4<f32>(ahead.value), ahead.inside);
    }
}

// Whether a row that is staged at this turn is past the last. Of a whole turn a compiler knows that none is.
fn row_beyond(row: u32, turn: u32) -> bool {
    return turn * APART >= TILE_M || (turn * APART + APART > TILE_M && row >= TILE_M);
}

// Four columns of the term that is staged at this turn, of the tile of w that begins at `k0` and `column0`. Past the last column those
// again, of which nothing is stored; past the last term that one again. Whoever stages none loads too.
fn load_w(k0: u32, column0: u32, lane: u32, turn: u32) -> vec4<f32> {
    if turn * LANES >= RIGHT {
        return vec4<f32>();
    }
    let i = lane + turn * LANES;
    let k = min(k0 + i / (TILE_N / 4u), KH * KW * CHANNELS - 1u);
    let column = min(column0 + i % (TILE_N / 4u) * 4u, FILTERS - 4u);
    return w[(k * FILTERS + column) / 4u];
}

// Past the last term zeros: what was loaded may be infinite.
fn stage_w(k0: u32, lane: u32, turn: u32, value: vec4<f32>) {
    let i = lane + turn * LANES;
    if !four_beyond(i, turn) {
        staged[LEFT + i] = select(value, vec4<f32>(), past(k0 + i / (TILE_N / 4u)));
    }
}

// Whether a four of w that is staged at this turn is past the last, likewise.
fn four_beyond(i: u32, turn: u32) -> bool {
    return turn * LANES >= RIGHT || (turn * LANES + LANES > RIGHT && i >= RIGHT);
}

// The sums of all parts, in order whoever the owner is, for the owner.
fn meet(part: u32, owner: u32, block: u32, own0: vec4<f32>, own1: vec4<f32>) -> mat2x4<f32> {
    staged[2u * part * SIDE + block] = own0;
    staged[(2u * part + 1u) * SIDE + block] = own1;
    workgroupBarrier();
    var sum = mat2x4<f32>();
    for (var i = 0u; part == owner && i < PARTS; i += 1u) {
        sum += mat2x4(staged[2u * i * SIDE + block], staged[(2u * i + 1u) * SIDE + block]);
    }
    workgroupBarrier();
    return sum;
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

// Four terms of four rows, a column for each term.
fn terms_of_rows(i: u32) -> mat4x4<f32> {
    let apart = TILE_M / 4u + 4u;
    return transpose(mat4x4(staged[i], staged[i + apart], staged[i + 2u * apart], staged[i + 3u * apart]));
}

// Four columns of four terms, likewise.
fn columns_of_terms(j: u32) -> mat4x4<f32> {
    let apart = TILE_N / 4u;
    return mat4x4(staged[j], staged[j + apart], staged[j + 2u * apart], staged[j + 3u * apart]);
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
