// conv2d_relu_pool_cooperative_quads: y[n, ph, pw, o] = the maximum over a window's 2×2 pixels of relu(conv2d(x, w)[n, oh, ow, o] + b[o])
//
//   x      [N, H, W, CHANNELS]            CHANNELS a multiple of 4
//   w      [KH, KW, CHANNELS, FILTERS]    FILTERS a multiple of 4
//   b      [FILTERS]
//   y      [N, PH, PW, FILTERS]           every element written exactly once
//   place  [N, PH, PW, FILTERS] bytes     where in its window the maximum is, 0 to 3 in row-major order, the first if they tie,
//                                       or 4 where ReLU left nothing of it
//
// What conv2d_relu_pool_cooperative does, with loads and stores of four: four neighbouring channels of x, which are four terms of a row,
// and four filters of w. Products of matrices take so few instructions that those of staging are the kernel's time. So what there is to
// count is counted once for four elements; where each row's window of x begins, once; and at which tap a step is, for all invocations
// alike where all its terms are of one tap. The first four fours that an invocation stages of each factor are loaded a step ahead, as they
// are stored, so that they come while the step before is multiplied. Both factors are staged in fours of terms, as matrix units take them:
// of w an invocation loads four terms of four columns, and rounding to f16 puts them in another order at no cost.
//
// Workgroup memory holds fours too. Matrices are loaded from it by pointers to fours, with strides in fours, which SPIR-V has and Metal's
// language has not: there the text is the one for single elements, as src/ops/cooperative.rs writes it.
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

// What workgroup memory holds; single elements where src/ops/cooperative.rs writes so.
const WIDTH = 4u;
alias Staged = vec4<f16>;
alias Summed = vec4<f32>;

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
override LANES: u32 = TILE_M / BLOCK * (TILE_N / BLOCK) * SUBGROUP; // a multiple of STEP / 4
override PITCH: u32 = STEP / 4u + 2u;      // fours from a row or column to the next, odd in pairs, which spreads a term over the banks
override LEFT: u32 = TILE_M * PITCH;       // fours staged of x, before those of w
override RIGHT: u32 = TILE_N * PITCH;      // … and of w
override APART: u32 = LANES / (STEP / 4u); // rows of x, or fours of columns of w, staged at a turn: of w two turns are enough
override ONE_TAP: bool = CHANNELS % STEP == 0u; // whether all terms of a step are of one tap

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

// Of x [row][k], of w [column][k].
var<workgroup> staged: array<Staged, (LEFT + RIGHT) * 4u / WIDTH>;
var<workgroup> sums: array<Summed, TILE_M / 2u * TILE_N / WIDTH>; // half the rows of each block: [row][column]
// Where each row's window begins, and that as an index of x, in fours, which wraps if it is in the padding.
var<workgroup> windows: array<vec4<i32>, TILE_M>;

// Where an invocation's terms of a step lie.
struct Terms {
    tap_h: i32,
    tap_w: i32,
    x: i32, // from where a row's window begins, in fours
    w: u32, // of the first column, in fours
    inside: bool,
}

// Four terms of a row, as they are loaded, and whether they count: what does not is loaded from somewhere else.
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
    let pitch = PITCH * 4u / WIDTH;
    let pitch_sums = TILE_N / WIDTH;
    let rows = call.batch * PH * PW * 4u;
    // As if it were not known when this is compiled: drivers would unroll the loop of a few steps, which takes twice the registers.
    let depth = select(0u, KH * KW * CHANNELS, rows != 0u);
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
        let at = ((i32(n * H) + h) * i32(W) + v) * i32(CHANNELS / 4u);
        windows[i] = vec4(select(OUTSIDE, h, row < rows), v, at, 0);
    }
    workgroupBarrier();

    // The block's quarters: s01 is right of s00 and s10 below.
    var s00 = Sums();
    var s01 = Sums();
    var s10 = Sums();
    var s11 = Sums();
    // Neighbouring invocations take neighbouring fours of terms; an invocation stays at one four of every step.
    let four = lane % (STEP / 4u);
    let first = lane / (STEP / 4u);
    let terms0 = terms_of(0u, four);
    var x_ahead = load_four_x(terms0, first);
    var w_ahead = load_w(terms0, column0, first, 0u);
    var w_next = load_w(terms0, column0, first, 1u);
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        stage_x(four, first, 0u, x_ahead[0]);
        stage_x(four, first, 1u, x_ahead[1]);
        stage_x(four, first, 2u, x_ahead[2]);
        stage_x(four, first, 3u, x_ahead[3]);
        for (var turn = 4u; turn * APART < TILE_M; turn += 1u) {
            stage_x(four, first, turn, load_x(terms_of(k0, four), first, turn));
        }
        stage_w(four, first, 0u, w_ahead);
        stage_w(four, first, 1u, w_next);
        workgroupBarrier();
        let terms = terms_of(k0 + STEP, four);
        x_ahead = load_four_x(terms, first);
        w_ahead = load_w(terms, column0, first, 0u);
        w_next = load_w(terms, column0, first, 1u);
        for (var s = 0u; s < STEP; s += EDGE) {
            let i0 = block_row * pitch + s / WIDTH;
            let i1 = i0 + EDGE * pitch;
            let j0 = LEFT * 4u / WIDTH + block_column * pitch + s / WIDTH;
            let j1 = j0 + EDGE * pitch;
            let rows0 = coopLoadT<Left>(&staged[i0], pitch);
            let rows1 = coopLoadT<Left>(&staged[i1], pitch);
            let columns0 = coopLoad<Right>(&staged[j0], pitch);
            let columns1 = coopLoad<Right>(&staged[j1], pitch);
            s00 = coopMultiplyAdd(rows0, columns0, s00);
            s01 = coopMultiplyAdd(rows0, columns1, s01);
            s10 = coopMultiplyAdd(rows1, columns0, s10);
            s11 = coopMultiplyAdd(rows1, columns1, s11);
        }
        workgroupBarrier();
    }
    let at0 = block_row / 2u * pitch_sums + block_column / WIDTH;
    let at1 = at0 + EDGE / WIDTH;
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

// Those of the step from `k0` on; past the last, the last.
fn terms_of(k0: u32, four: u32) -> Terms {
    let last = KH * KW * CHANNELS - 4u;
    let k = min(k0 + 4u * four, last);
    let tap = select(k, min(k0, last), ONE_TAP) / CHANNELS;
    let tap_h = i32(tap / KW * DILATION_H);
    let tap_w = i32(tap % KW * DILATION_W);
    let channels = i32((k - tap * CHANNELS) / 4u);
    return Terms(tap_h, tap_w, (tap_h * i32(W) + tap_w) * i32(CHANNELS / 4u) + channels, k * (FILTERS / 4u), k == k0 + 4u * four);
}

// What is staged in the first four turns.
fn load_four_x(terms: Terms, first: u32) -> array<Four, 4> {
    return array(load_x(terms, first, 0u), load_x(terms, first, 1u), load_x(terms, first, 2u), load_x(terms, first, 3u));
}

// Whether the i-th of so many rows or fours, staged at this turn, is past the last. Of a whole turn a compiler knows that none is.
fn beyond(i: u32, turn: u32, extent: u32) -> bool {
    return turn * APART >= extent || (turn * APART + APART > extent && i >= extent);
}

// Of the row that is staged at this turn. Without a branch, in which some compilers would wait for what is loaded.
fn load_x(terms: Terms, first: u32, turn: u32) -> Four {
    let row = first + turn * APART;
    if beyond(row, turn, TILE_M) {
        return Four();
    }
    let window = windows[row];
    // A negative place is a huge one when unsigned.
    let inside = terms.inside & (u32(window.x + terms.tap_h) < H) & (u32(window.y + terms.tap_w) < W);
    return Four(x[select(0u, u32(window.z + terms.x), inside)], inside);
}

fn stage_x(four: u32, first: u32, turn: u32, ahead: Four) {
    let row = first + turn * APART;
    if !beyond(row, turn, TILE_M) {
        stage(row * PITCH + four, select(vec4<f16>(), vec4<f16>(ahead.value), ahead.inside));
    }
}

// Of the four columns that are staged at this turn; a column of the matrix is a term. Past the last column, of that one, which is not
// stored; past the last term, of that one, which meets zeros of x.
fn load_w(terms: Terms, column0: u32, first: u32, turn: u32) -> mat4x4<f32> {
    let here = first + turn * APART;
    if beyond(here, turn, TILE_N / 4u) {
        return mat4x4<f32>();
    }
    let down = FILTERS / 4u;
    let at = terms.w + min(column0 / 4u + here, down - 1u);
    return mat4x4(w[at], w[at + down], w[at + 2u * down], w[at + 3u * down]);
}

fn stage_w(four: u32, first: u32, turn: u32, value: mat4x4<f32>) {
    let here = first + turn * APART;
    if !beyond(here, turn, TILE_N / 4u) {
        let columns = transpose(value);
        let at = LEFT + 4u * here * PITCH + four;
        stage(at, vec4<f16>(columns[0]));
        stage(at + PITCH, vec4<f16>(columns[1]));
        stage(at + 2u * PITCH, vec4<f16>(columns[2]));
        stage(at + 3u * PITCH, vec4<f16>(columns[3]));
    }
}

fn stage(at: u32, four: vec4<f16>) {
    staged[at] = four;
}

fn summed(at: u32) -> vec4<f32> {
    return sums[at];
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
        let at = here * (TILE_N / 4u) + i % (TILE_N / 4u);
        let bias = b[column / 4u];
        var best = relu(summed(at) + bias);
        var where_ = vec4<u32>();
        for (var other = 1u; other < 4u; other += 1u) {
            let value = relu(summed(at + other * (TILE_N / 4u)) + bias);
            let better = beats(value, best);
            best = select(best, value, better);
            where_ = select(where_, vec4(other), better);
        }
        where_ = select(where_, vec4(STOPPED), is_zero(best));
        let to = (row / 4u * FILTERS + column) / 4u;
        y[to] = vec4<Y>(best);
        place[to] = where_.x | where_.y << 8u | where_.z << 16u | where_.w << 24u;
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
