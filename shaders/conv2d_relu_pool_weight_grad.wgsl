// conv2d_relu_pool_weight_grad: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · g[n, oh, ow, o]
//                               db[s, o] = Σ g[n, oh, ow, o]       over the pixels of y of slice s and their places
//
//   x      [N, H, W, CHANNELS]
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   place  [N, PH, PW, FILTERS] bytes    as the forward kernel leaves them
//   dw     [SLICES, KH, KW, CHANNELS, FILTERS]   every element written exactly once
//   db     [SLICES, FILTERS]                     likewise
//
// g, the gradient of the convolution's output, is not stored: it is dy where the window's maximum was, if ReLU let it through,
// 0 elsewhere, and found so while it is staged. The N·PH·PW pixels of y are cut into SLICES equal runs; another kernel adds
// the slices. Each is a matrix product that never stores its left factor: rows are KH·KW·CHANNELS in the order of w, and one more, of
// ones, for db; K runs over the four places of the slice's pixels, columns are the FILTERS.
//
// One workgroup computes a TILE_M×TILE_N tile of a slice, PARTS invocations a block of it. A step along K is STEP/4 windows. An
// invocation stages one row's pixels of a window as a four of terms, and four filters of a window as four terms of four columns; its first
// two windows of x, and its first of g, are loaded a step ahead. Padding and what lies past an edge is staged as zero. Each part takes its
// share of every step's windows, and their sums meet at the end, in order.
//
// Dispatch: SLICES · ceil((KH·KW·CHANNELS + 1) / TILE_M) · ceil(FILTERS / TILE_N) workgroups, those of a slice together.
// CPU twin: `Conv2dReluPoolWeightGrad::reference` in src/ops/conv2d/relu_pool/grad.rs.

// What is stored as f16 where src/ops/stored.rs writes so; sums are f32 in any case.
alias X = f32;
alias DY = f32;

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
override TILE_M: u32;   // rows of a workgroup's tile, of which LANES is a multiple
override TILE_N: u32;   // and its columns
override STEP: u32;     // elements of K staged at a time
override BLOCK_M: u32;  // rows of an invocation's block, 4 or 8: then they are two fours, half a tile apart
override BLOCK_N: u32;  // and its columns, likewise
override PARTS: u32;    // STEP is a multiple of four times as many
override SIDE: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N); // invocations of a part
override LANES: u32 = SIDE * PARTS;
override WINDOWS: u32 = STEP / 4u;         // of a step
override PITCH: u32 = TILE_M + 6u;         // from a window of all rows to the next window
override LEFT: u32 = PITCH * WINDOWS;      // fours staged of x, before those of g
override RIGHT: u32 = TILE_N / 4u * STEP;  // … and of g
override APART: u32 = LANES / TILE_M;      // windows staged of x at a turn
override SHARES: u32 = WINDOWS / PARTS;    // windows that an invocation takes of a step
// Whether no window reaches past an edge of x.
override WHOLE: bool = PAD_H + PAD_W == 0u && 2u * PH * STRIDE_H + (KH - 1u) * DILATION_H < H + STRIDE_H
    && 2u * PW * STRIDE_W + (KW - 1u) * DILATION_W < W + STRIDE_W;

const NOWHERE = 0x05050505u; // the places of four output pixels that are not there

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<DY>>;
@group(0) @binding(2) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(3) var<storage, read_write> dw: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> db: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Of x, fours of terms: [window][row], in the order of `spot`. Of g, fours of columns: [term][column]. In the end, the parts' sums.
var<workgroup> staged: array<vec4<f32>, LEFT + RIGHT>;

// A row's pixels of a window, as they are loaded, and which of them count: what does not is loaded from somewhere else.
struct Image {
    value: vec4<X>,
    inside: vec4<bool>,
}

// Four filters of a window: what comes back to it, as it is loaded, and its maxima's places.
struct Returned {
    gradient: vec4<DY>,
    place: u32,
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_m = (KH * KW * CHANNELS + TILE_M) / TILE_M;
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let slice = tile / (tiles_m * tiles_n);
    if slice >= SLICES {
        return;
    }
    let row0 = tile / tiles_n % tiles_m * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let part = lane / SIDE;
    let block = lane % SIDE;
    let block_row = block / (TILE_N / BLOCK_N) * 4u;
    let block_column = block % (TILE_N / BLOCK_N) * 4u;

    let pixels = call.batch * PH * PW;
    let run = (pixels + SLICES - 1u) / SLICES;
    let begin = min(slice * run, pixels);
    let end = min(begin + run, pixels);

    // The block's quarters, or what it has of them: s01 is half a tile right of s00, and s10 below. A matrix's column is a row.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    // An invocation stays at one row, so at one tap and channel; its neighbours are at the neighbouring channels.
    let row = row0 + lane % TILE_M;
    let first = lane / TILE_M;
    let left = part * SHARES * PITCH + block_row / 4u;
    let right = LEFT + part * SHARES * TILE_N + block_column / 4u;
    // A slice without a pixel stages nothing: there may be no image at all.
    var x_ahead = Image();
    var x_next = Image();
    var g_ahead = Returned();
    if begin < end {
        x_ahead = load_x(begin, end, row, first, 0u);
        x_next = load_x(begin, end, row, first, 1u);
        g_ahead = load_g(begin, end, column0, lane, 0u);
    }
    for (var window0 = begin; window0 < end; window0 += WINDOWS) {
        stage_x(window0, end, row, lane, 0u, x_ahead);
        stage_x(window0, end, row, lane, 1u, x_next);
        for (var turn = 2u; turn * APART < WINDOWS; turn += 1u) {
            stage_x(window0, end, row, lane, turn, load_x(window0, end, row, first, turn));
        }
        stage_g(window0, end, lane, 0u, g_ahead);
        for (var turn = 1u; turn * LANES < TILE_N / 4u * WINDOWS; turn += 1u) {
            stage_g(window0, end, lane, turn, load_g(window0, end, column0, lane, turn));
        }
        workgroupBarrier();
        x_ahead = load_x(window0 + WINDOWS, end, row, first, 0u);
        x_next = load_x(window0 + WINDOWS, end, row, first, 1u);
        g_ahead = load_g(window0 + WINDOWS, end, column0, lane, 0u);
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
    let first_row = row0 + block_row;
    let column = column0 + block_column;
    store(0u, part, block, slice, first_row, column, s00);
    if BLOCK_N == 8u {
        store(1u, part, block, slice, first_row, column + TILE_N / 2u, s01);
    }
    if BLOCK_M == 8u {
        store(2u, part, block, slice, first_row + TILE_M / 2u, column, s10);
        if BLOCK_N == 8u {
            store(3u, part, block, slice, first_row + TILE_M / 2u, column + TILE_N / 2u, s11);
        }
    }
}

// A row's pixels of the window that is staged at this turn, of those from `window0` on. Without a branch, in which some compilers would
// wait for what is loaded.
fn load_x(window0: u32, end: u32, row: u32, first: u32, turn: u32) -> Image {
    let step = first + turn * APART;
    if beyond(step, turn) {
        return Image();
    }
    let window = window0 + step;
    let there = (window < end) & (row < KH * KW * CHANNELS);
    let tap = row / CHANNELS;
    let h = i32(window / PW % PH * 2u * STRIDE_H + tap / KW * DILATION_H) - i32(PAD_H);
    let v = i32(window % PW * 2u * STRIDE_W + tap % KW * DILATION_W) - i32(PAD_W);
    let at = ((i32(window / (PH * PW) * H) + h) * i32(W) + v) * i32(CHANNELS) + i32(row % CHANNELS);
    let down = i32(STRIDE_H * W * CHANNELS);
    let right = i32(STRIDE_W * CHANNELS);
    // A negative place is a huge one when unsigned.
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

// The row after the last is of ones.
fn stage_x(window0: u32, end: u32, row: u32, lane: u32, turn: u32, image: Image) {
    let step = lane / TILE_M + turn * APART;
    if !beyond(step, turn) {
        let other = select(0.0, 1.0, (row == KH * KW * CHANNELS) & (window0 + step < end));
        staged[step * PITCH + spot(lane % TILE_M)] = select(vec4(other), vec4<f32>(image.value), image.inside);
    }
}

// Whether a window that is staged at this turn is past the last of the step. Of a whole turn a compiler knows that none is.
fn beyond(step: u32, turn: u32) -> bool {
    return turn * APART >= WINDOWS || (turn * APART + APART > WINDOWS && step >= WINDOWS);
}

// Four filters of the window that is staged at this turn, of those from `window0` on. Past the last window that one again, and past the
// last filter those, of which nothing is stored.
fn load_g(window0: u32, end: u32, column0: u32, lane: u32, turn: u32) -> Returned {
    let i = lane + turn * LANES;
    let window = min(window0 + i / (TILE_N / 4u), end - 1u);
    let column = min(column0 + i % (TILE_N / 4u) * 4u, FILTERS - 4u);
    let at = (window * FILTERS + column) / 4u;
    return Returned(dy[at], place[at]);
}

// Past the last window zeros: what was loaded may be infinite.
fn stage_g(window0: u32, end: u32, lane: u32, turn: u32, back: Returned) {
    let i = lane + turn * LANES;
    if i >= TILE_N / 4u * WINDOWS {
        return;
    }
    let at = LEFT + i / (TILE_N / 4u) * TILE_N + i % (TILE_N / 4u);
    let places = select(NOWHERE, back.place, window0 + i / (TILE_N / 4u) < end);
    for (var here = 0u; here < 4u; here += 1u) {
        let differs = (vec4(places) ^ vec4(here * 0x01010101u)) & vec4(0xffu, 0xff00u, 0xff0000u, 0xff000000u);
        staged[at + here * (TILE_N / 4u)] = select(vec4<f32>(back.gradient), vec4<f32>(), differs != vec4<u32>());
    }
}

// Where a row's four is staged: what the invocations of a subgroup read at a time lies side by side, and what they stage at a time in
// different banks.
fn spot(row: u32) -> u32 {
    return row % 4u * (TILE_M / 4u + 2u) + row / 4u;
}

// Sums the parts' quarters and stores the rows of the result; of each quarter another part does so.
fn store(quarter: u32, part: u32, block: u32, slice: u32, row: u32, column: u32, own: mat4x4<f32>) {
    let owner = (PARTS / 2u + quarter) % PARTS;
    var s = own;
    if PARTS > 1u {
        let upper = meet(part, owner, block, own[0], own[1]);
        let lower = meet(part, owner, block, own[2], own[3]);
        s = mat4x4(upper[0], upper[1], lower[0], lower[1]);
    }
    if part != owner || column >= FILTERS {
        return;
    }
    let rows = KH * KW * CHANNELS;
    for (var i = 0u; i < 4u; i += 1u) {
        if row + i < rows {
            dw[((slice * rows + row + i) * FILTERS + column) / 4u] = s[i];
        } else if row + i == rows {
            db[(slice * FILTERS + column) / 4u] = s[i];
        }
    }
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

// Four terms of four rows, a column for each term.
fn terms_of_rows(i: u32) -> mat4x4<f32> {
    let apart = TILE_M / 4u + 2u;
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
