// conv2d_relu_pool_weight_grad_cooperative_quads: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · g[n, oh, ow, o]
//                               db[s, o] = Σ g[n, oh, ow, o]       over the pixels of y of slice s and their places
//
//   x      [N, H, W, CHANNELS]            CHANNELS a multiple of 4
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   place  [N, PH, PW, FILTERS] bytes    as the forward kernel leaves them
//   dw     [SLICES, KH, KW, CHANNELS, FILTERS]   every element written exactly once
//   db     [SLICES, FILTERS]                     likewise
//
// What conv2d_relu_pool_weight_grad_cooperative does, with loads and stores of four: four neighbouring channels of x, which are four rows,
// and four filters of dy with their places. Products of matrices take so few instructions that those of staging are the kernel's time. So
// an invocation stages four rows or columns of a window's four places: of x at one tap all along, where the window lies is counted once for
// all it stages; of g, which is dy at one place and 0 at the others, one load is four terms. It adds up db of what it loads, the workgroups
// of a slice's first rows do, and their invocations' sums meet at the end. What an invocation stages is loaded a step ahead, as it is
// stored, so that it comes while the step before is multiplied. Both factors are staged in fours of terms, as matrix units take them.
//
// Workgroup memory holds fours too. Matrices are loaded from it by pointers to fours, with strides in fours, which SPIR-V has and Metal's
// language has not: there the text is the one for single elements, as src/ops/cooperative.rs writes it.
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
override SLICES: u32;
override TILE_M: u32;   // rows of a workgroup's tile, a multiple of BLOCK
override TILE_N: u32;   // and its columns, likewise
override STEP: u32;     // elements of K staged at a time, a multiple of EDGE
override SUBGROUP: u32; // invocations of a subgroup
override LANES: u32 = TILE_M / BLOCK * (TILE_N / BLOCK) * SUBGROUP; // a multiple of STEP / 4
override WINDOWS: u32 = STEP / 4u;     // of a step
override PITCH: u32 = WINDOWS + 2u;    // fours from a row or column to the next, odd in pairs, which spreads a term over the banks
override LEFT: u32 = TILE_M * PITCH;   // fours staged of x, before those of g
override RIGHT: u32 = TILE_N * PITCH;  // … and of g
override APART: u32 = LANES / WINDOWS; // fours of rows or columns staged at a turn: two turns are enough

const STOPPED = 0x04040404u; // places of four maxima that ReLU made zero, which alone have these bits

@group(0) @binding(0) var<storage, read> x: array<vec4<X>>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<DY>>;
@group(0) @binding(2) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(3) var<storage, read_write> dw: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> db: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Of x [row][k], of g [column][k]; a four of K is a window.
var<workgroup> staged: array<Staged, (LEFT + RIGHT) * 4u / WIDTH>;
var<workgroup> sums: array<Summed, TILE_M / 2u * TILE_N / WIDTH>; // half the rows of each block: [row][column]; in the end, of db

// Four rows, neighbouring channels of one tap, that an invocation stages.
struct Rows {
    tap_h: i32,  // where the tap lies in a window, counted from its first pixel, which is in the padding
    tap_w: i32,
    offset: i32, // of that, and the channels, as an index of x in fours
    inside: bool,
}

// The window that it stages of a step.
struct Window {
    h: i32, // its first pixel, counted from the corner of the padding
    v: i32,
    at: i32, // … as an index of x in fours, as if there were none
    inside: bool,
}

// Four channels at the four places of a window, as they are loaded, and which of them count: what does not is loaded from somewhere else.
struct Image {
    value: mat4x4<X>,
    inside: vec4<bool>,
}

// Four filters of a window: what comes back to them, as it is loaded, and their maxima's places.
struct Returned {
    gradient: vec4<DY>,
    place: u32,
    nowhere: u32, // what makes the places such that nothing comes through, if there is no window
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pitch = PITCH * 4u / WIDTH;
    let pitch_sums = TILE_N / WIDTH;
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
    let begin = min(min(slice, SLICES) * run, pixels);
    let end = min(begin + run, pixels);

    // The block's quarters: s01 is right of s00 and s10 below.
    var s00 = Sums();
    var s01 = Sums();
    var s10 = Sums();
    var s11 = Sums();
    var bias = mat2x4<f32>();
    // Neighbouring invocations take neighbouring windows; an invocation stays at the same rows and columns.
    let own_rows0 = rows_of(row0, lane, 0u);
    let own_rows1 = rows_of(row0, lane, 1u);
    var x_ahead = load_x(begin, end, own_rows0, lane);
    var x_next = load_x(begin, end, own_rows1, lane);
    var g_ahead = load_g(begin, end, column0, lane, 0u);
    var g_next = load_g(begin, end, column0, lane, 1u);
    for (var window0 = begin; window0 < end; window0 += WINDOWS) {
        stage_x(lane, 0u, x_ahead);
        stage_x(lane, 1u, x_next);
        bias[0] += stage_g(lane, 0u, g_ahead);
        bias[1] += stage_g(lane, 1u, g_next);
        workgroupBarrier();
        x_ahead = load_x(window0 + WINDOWS, end, own_rows0, lane);
        x_next = load_x(window0 + WINDOWS, end, own_rows1, lane);
        g_ahead = load_g(window0 + WINDOWS, end, column0, lane, 0u);
        g_next = load_g(window0 + WINDOWS, end, column0, lane, 1u);
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
    store(lane, slice, row0, column0);
    workgroupBarrier();
    coopStoreT(s10, &sums[at0], pitch_sums);
    coopStoreT(s11, &sums[at1], pitch_sums);
    workgroupBarrier();
    store(lane, slice, row0 + EDGE, column0);
    if row0 == 0u {
        // Where the invocation alone has just read.
        sum_bias(lane, 0u, bias[0]);
        sum_bias(lane, 1u, bias[1]);
        workgroupBarrier();
        store_bias(lane, slice, column0);
    }
}

// Whether the i-th of so many fours of rows or columns, staged at a turn, is past the last. Of a whole turn a compiler knows that none is.
fn beyond(i: u32, turn: u32, extent: u32) -> bool {
    return turn * APART >= extent || (turn * APART + APART > extent && i >= extent);
}

// Those that an invocation stages at this turn.
fn rows_of(row0: u32, lane: u32, turn: u32) -> Rows {
    let here = lane / WINDOWS + turn * APART;
    let row = row0 + 4u * here;
    let tap = row / CHANNELS;
    let h = i32(tap / KW * DILATION_H) - i32(PAD_H);
    let v = i32(tap % KW * DILATION_W) - i32(PAD_W);
    let offset = (h * i32(W) + v) * i32(CHANNELS / 4u) + i32(row % CHANNELS / 4u);
    return Rows(h, v, offset, row < KH * KW * CHANNELS && !beyond(here, turn, TILE_M / 4u));
}

fn window_of(window: u32, end: u32) -> Window {
    let h = i32(window / PW % PH * 2u * STRIDE_H);
    let v = i32(window % PW * 2u * STRIDE_W);
    return Window(h, v, ((i32(window / (PH * PW) * H) + h) * i32(W) + v) * i32(CHANNELS / 4u), window < end);
}

// Of the invocation's window, of those from `window0` on. Without a branch, in which some compilers would wait for what is loaded.
fn load_x(window0: u32, end: u32, rows: Rows, lane: u32) -> Image {
    let window = window_of(window0 + lane % WINDOWS, end);
    let there = window.inside & rows.inside;
    let at = window.at + rows.offset;
    let down = i32(STRIDE_H * W * (CHANNELS / 4u));
    let right = i32(STRIDE_W * (CHANNELS / 4u));
    // A negative place is a huge one when unsigned.
    let h = window.h + rows.tap_h;
    let v = window.v + rows.tap_w;
    let upper = there & (u32(h) < H);
    let lower = there & (u32(h + i32(STRIDE_H)) < H);
    let west = u32(v) < W;
    let east = u32(v + i32(STRIDE_W)) < W;
    let inside = vec4(upper & west, upper & east, lower & west, lower & east);
    let i = select(vec4<u32>(), vec4<u32>(vec4(at, at + right, at + down, at + down + right)), inside);
    return Image(mat4x4<X>(x[i.x], x[i.y], x[i.z], x[i.w]), inside);
}

fn stage_x(lane: u32, turn: u32, image: Image) {
    let here = lane / WINDOWS + turn * APART;
    if beyond(here, turn, TILE_M / 4u) {
        return;
    }
    let rows = transpose(image.value);
    let at = 4u * here * PITCH + lane % WINDOWS;
    stage(at, select(vec4<f16>(), vec4<f16>(rows[0]), image.inside));
    stage(at + PITCH, select(vec4<f16>(), vec4<f16>(rows[1]), image.inside));
    stage(at + 2u * PITCH, select(vec4<f16>(), vec4<f16>(rows[2]), image.inside));
    stage(at + 3u * PITCH, select(vec4<f16>(), vec4<f16>(rows[3]), image.inside));
}

// What comes back to four filters of the invocation's window, of those from `window0` on: those that are staged at this turn.
fn load_g(window0: u32, end: u32, column0: u32, lane: u32, turn: u32) -> Returned {
    let here = lane / WINDOWS + turn * APART;
    let window = window0 + lane % WINDOWS;
    let column = column0 + 4u * here;
    if beyond(here, turn, TILE_N / 4u) {
        return Returned();
    }
    let inside = (window < end) & (column < FILTERS);
    let at = select(0u, (window * FILTERS + column) / 4u, inside);
    return Returned(dy[at], place[at], select(STOPPED, 0u, inside));
}

// Gives what it adds to db.
fn stage_g(lane: u32, turn: u32, back: Returned) -> vec4<f32> {
    let here = lane / WINDOWS + turn * APART;
    if beyond(here, turn, TILE_N / 4u) {
        return vec4<f32>();
    }
    let value = vec4<f16>(back.gradient);
    let places = back.place | back.nowhere;
    let at = LEFT + 4u * here * PITCH + lane % WINDOWS;
    stage(at, at_place(value.x, places));
    stage(at + PITCH, at_place(value.y, places >> 8u));
    stage(at + 2u * PITCH, at_place(value.z, places >> 16u));
    stage(at + 3u * PITCH, at_place(value.w, places >> 24u));
    let stopped = (vec4(places & STOPPED) >> vec4(0u, 8u, 16u, 24u)) & vec4(0xffu);
    return select(vec4<f32>(), vec4<f32>(back.gradient), stopped == vec4<u32>());
}

// The gradient at the four places of a window.
fn at_place(value: f16, place: u32) -> vec4<f16> {
    return select(vec4<f16>(), vec4(value), vec4(place & 0xffu) == vec4(0u, 1u, 2u, 3u));
}

fn stage(at: u32, four: vec4<f16>) {
    staged[at] = four;
}

fn sum(at: u32, four: vec4<f32>) {
    sums[at] = four;
}

fn summed(at: u32) -> vec4<f32> {
    return sums[at];
}

// Stores what `sums` has of dw. The first row of each block there is `row0` and BLOCK more for each block above.
fn store(lane: u32, slice: u32, row0: u32, column0: u32) {
    let rows = KH * KW * CHANNELS;
    for (var i = lane; i < TILE_M / 2u * (TILE_N / 4u); i += LANES) {
        let here = i / (TILE_N / 4u);
        let row = row0 + here / EDGE * BLOCK + here % EDGE;
        let column = column0 + i % (TILE_N / 4u) * 4u;
        if slice < SLICES && row < rows && column < FILTERS {
            dw[((slice * rows + row) * FILTERS + column) / 4u] = summed(i);
        }
    }
}

// Keeps what an invocation added up of the columns of a turn: [columns][window].
fn sum_bias(lane: u32, turn: u32, bias: vec4<f32>) {
    let here = lane / WINDOWS + turn * APART;
    if !beyond(here, turn, TILE_N / 4u) {
        sum(here * WINDOWS + lane % WINDOWS, bias);
    }
}

// Stores what `sums` has of db.
fn store_bias(lane: u32, slice: u32, column0: u32) {
    let column = column0 + 4u * lane;
    if slice >= SLICES || lane >= TILE_N / 4u || column >= FILTERS {
        return;
    }
    var total = vec4<f32>();
    for (var i = 0u; i < WINDOWS; i += 1u) {
        total += summed(lane * WINDOWS + i);
    }
    db[(slice * FILTERS + column) / 4u] = total;
}
