// conv2d_relu_pool_input_grad: dx[n, h, v, c] = Σ g[n, oh, ow, o] · w[kh, kw, c, o]
//                    over o and those kh, kw for which h = oh·stride + kh·dilation - pad and v likewise
//
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   place  [N, PH, PW, FILTERS] bytes    as the forward kernel leaves them
//   w      [KH, KW, CHANNELS, FILTERS]
//   dx     [N, H, W, CHANNELS]            every element written exactly once
//
// g, the gradient of the convolution's output, is not stored: it is dy where the window's maximum was, if ReLU let it through,
// 0 elsewhere, and found so while it is staged. A matrix product that never stores its left factor: rows are the input pixels of all
// images, K runs over KH·KW·FILTERS, columns are the CHANNELS. Each input pixel gathers from the output pixels that saw it, so
// nothing is added to twice.
//
// Rows are in the order [H, W, N], so that a tile is one pixel of many images where the batch allows it. Then a tap through which no
// output pixel saw that pixel, past an edge or between two strides, is none of its terms; and where in dy a row's terms are is worked
// out once for each tap.
//
// A workgroup computes a TILE_M×TILE_N tile. Per step along K it stages STEP terms of all rows and of all columns, in fours of
// neighbouring filters, the first two fours of an invocation loaded a step ahead, so that they come while the step before is computed.
// Four terms are four loads of each factor from shared memory, and 64 products for each quarter of a block, with nothing to count between
// them. A tile with fewer BLOCK_M×BLOCK_N blocks than a workgroup should have invocations has PARTS for each block: each part
// takes its share of every step's fours, and their sums meet at the end, in order.
//
// Dispatch: ceil(N·H·W / TILE_M) · ceil(CHANNELS / TILE_N) workgroups, the tiles of the same rows side by side.
// CPU twin: `Conv2dReluPoolInputGrad::reference` in src/ops/conv2d/relu_pool/grad.rs.

// What is stored as f16 where src/ops/stored.rs writes so; sums are f32 in any case.
alias DY = f32;
alias DX = f32;

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
override PITCH: u32 = TILE_M + 13u;   // from four terms of all rows to the next four, which spreads both over the banks
override PITCH_N: u32 = TILE_N + 13u;
override LEFT: u32 = PITCH * STEP / 4u;  // fours staged of the left factor, before those of the right one
override RIGHT: u32 = PITCH_N * STEP / 4u;
override APART: u32 = LANES / (STEP / 4u); // rows staged at a turn, and columns
override SHARES: u32 = STEP / 4u / PARTS;  // fours of terms that an invocation takes of a step
override LISTED: u32 = min(KH * KW, 128u); // taps that are listed, if no more than these are there

const NOWHERE = 5u; // the place of an output pixel that is not there

@group(0) @binding(0) var<storage, read> dy: array<vec4<DY>>;
@group(0) @binding(1) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<DX>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Fours of terms: [four][row], [four][column], in the order of `spot`. In the end, the parts' sums.
var<workgroup> staged: array<vec4<f32>, LEFT + RIGHT>;
// The taps through which an output pixel saw a pixel of the tile, and as many again as are not there.
var<workgroup> taps: array<u32, LISTED + 1u>;

// What comes back to four filters of a window, as it is loaded, the places of their maxima, and the one that is asked for.
struct Returned {
    gradient: vec4<DY>,
    place: u32,
    here: u32,
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = call.batch * H * W;
    let tiles_n = (CHANNELS + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    if row0 >= rows {
        return;
    }
    let part = lane / SIDE;
    let block = lane % SIDE;
    let block_row = block / (TILE_N / BLOCK_N) * 4u;
    let block_column = block % (TILE_N / BLOCK_N) * 4u;

    let depth = FILTERS * count_taps(row0, min(row0 + TILE_M, rows) - 1u, lane);
    workgroupBarrier();

    // The block's quarters, or what it has of them: s01 is half a tile right of s00, and s10 below. A matrix's column is a row.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    // Neighbouring invocations take neighbouring fours of dy and of w; one stays at one four of every step.
    let four = lane % (STEP / 4u);
    let first = lane / (STEP / 4u);
    let left = part * SHARES * PITCH + block_row / 4u;
    let right = LEFT + part * SHARES * PITCH_N + block_column / 4u;
    var terms = moved(Terms(), FILTERS + 4u * four, row0 + first);
    var left_ahead = load_pixel(terms, 0u);
    var left_next = load_pixel(terms, 1u);
    var right_ahead = load_w(terms, column0 + first, 0u);
    var right_next = load_w(terms, column0 + first, 1u);
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        stage_pixel(four, first, 0u, left_ahead);
        stage_pixel(four, first, 1u, left_next);
        for (var turn = 2u; turn * APART < TILE_M; turn += 1u) {
            stage_pixel(four, first, turn, load_pixel(terms, turn));
        }
        stage_w(terms, four, first, 0u, right_ahead);
        stage_w(terms, four, first, 1u, right_next);
        for (var turn = 2u; turn * APART < TILE_N; turn += 1u) {
            stage_w(terms, four, first, turn, load_w(terms, column0 + first, turn));
        }
        workgroupBarrier();
        terms = moved(terms, STEP, row0 + first);
        left_ahead = load_pixel(terms, 0u);
        left_next = load_pixel(terms, 1u);
        right_ahead = load_w(terms, column0 + first, 0u);
        right_next = load_w(terms, column0 + first, 1u);
        for (var s = 0u; s < SHARES; s += 1u) {
            let i = left + s * PITCH;
            let j = right + s * PITCH_N;
            let rows0 = transpose(fours(i, spot(1u, TILE_M)));
            let columns0 = transpose(fours(j, spot(1u, TILE_N)));
            s00 = added(s00, rows0, columns0);
            var columns1 = mat4x4<f32>();
            if BLOCK_N == 8u {
                columns1 = transpose(fours(j + TILE_N / 8u, spot(1u, TILE_N)));
                s01 = added(s01, rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = transpose(fours(i + TILE_M / 8u, spot(1u, TILE_M)));
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
    store(0u, part, block, row, rows, column, s00);
    if BLOCK_N == 8u {
        store(1u, part, block, row, rows, column + TILE_N / 2u, s01);
    }
    if BLOCK_M == 8u {
        store(2u, part, block, row + TILE_M / 2u, rows, column, s10);
        if BLOCK_N == 8u {
            store(3u, part, block, row + TILE_M / 2u, rows, column + TILE_N / 2u, s11);
        }
    }
}

// Lists the taps through which an output pixel saw a pixel of these rows, and says how many they are: all where the rows are of more than
// two pixels.
fn count_taps(first_row: u32, last_row: u32, lane: u32) -> u32 {
    if KH * KW > LISTED {
        return KH * KW;
    }
    let first = first_row / call.batch;
    let last = last_row / call.batch;
    var count = 0u;
    for (var tap = 0u; tap < KH * KW; tap += 1u) {
        if last > first + 1u || saw(position(first), tap) || saw(position(last), tap) {
            if lane == LANES - 1u {
                taps[count] = tap;
            }
            count += 1u;
        }
    }
    for (var i = count; i <= KH * KW && lane == LANES - 1u; i += 1u) {
        taps[i] = KH * KW;
    }
    return count;
}

// Of an input pixel, counted from the corner of the padding.
fn position(pixel: u32) -> vec2<u32> {
    return vec2(pixel / W + PAD_H, pixel % W + PAD_W);
}

// Whether an output pixel saw it through a tap.
fn saw(position: vec2<u32>, tap: u32) -> bool {
    // What lies before the first window is huge.
    let at = position - vec2(tap / KW * DILATION_H, tap % KW * DILATION_W);
    return all(at < vec2(2u * PH * STRIDE_H, 2u * PW * STRIDE_W)) && all(at % vec2(STRIDE_H, STRIDE_W) == vec2<u32>());
}

// Four terms of the rows that an invocation stages: a tap, and filters from one on.
struct Terms {
    tap: u32,
    filters: u32,
    next: u32,       // of the taps
    at: vec4<u32>,   // of the output pixel that saw each row through the tap: its window, as an index of dy
    here: vec4<u32>, // and its place there, or NOWHERE
}

// Those so many terms further on; `row` is the first that is staged.
fn moved(before: Terms, by: u32, row: u32) -> Terms {
    var terms = before;
    terms.filters += by;
    if terms.filters < FILTERS {
        return terms;
    }
    terms.next += terms.filters / FILTERS;
    terms.filters %= FILTERS;
    // Past the last tap nothing sees anything, and all that is multiplied is zero.
    terms.tap = min(terms.next - 1u, KH * KW);
    if KH * KW <= LISTED {
        terms.tap = taps[terms.tap];
    }
    for (var turn = 0u; turn * APART < TILE_M; turn += 1u) {
        let pixel = (row + turn * APART) / call.batch;
        let image = row + turn * APART - pixel * call.batch;
        let there = position(pixel);
        let seen = pixel < H * W && terms.tap < KH * KW && saw(there, terms.tap);
        let h = (there.x - terms.tap / KW * DILATION_H) / STRIDE_H;
        let v = (there.y - terms.tap % KW * DILATION_W) / STRIDE_W;
        terms.at[turn] = select(0u, ((image * PH + h / 2u) * PW + v / 2u) * (FILTERS / 4u), seen);
        terms.here[turn] = select(NOWHERE, h % 2u * 2u + v % 2u, seen);
    }
    return terms;
}

// Whether the i-th of so many rows or columns, staged at this turn, is past the last. Of a whole turn a compiler knows that none is.
fn beyond(i: u32, turn: u32, extent: u32) -> bool {
    return turn * APART >= extent || (turn * APART + APART > extent && i >= extent);
}

// Those of the row that is staged at this turn.
fn load_pixel(terms: Terms, turn: u32) -> Returned {
    if turn * APART >= TILE_M {
        return Returned();
    }
    return returned(terms.at[turn] + terms.filters / 4u, terms.here[turn]);
}

fn stage_pixel(four: u32, first: u32, turn: u32, back: Returned) {
    let row = first + turn * APART;
    if !beyond(row, turn, TILE_M) {
        staged[four * PITCH + spot(row, TILE_M)] = gradient(back);
    }
}

// Those of the column that is staged at this turn. Past the last channel that one again, of which nothing is stored; past the last tap
// that one again, without a branch, in which some compilers would wait for what is loaded.
fn load_w(terms: Terms, column: u32, turn: u32) -> vec4<f32> {
    if turn * APART >= TILE_N {
        return vec4<f32>();
    }
    let channel = min(column + turn * APART, CHANNELS - 1u);
    return w[(min(terms.tap, KH * KW - 1u) * CHANNELS + channel) * (FILTERS / 4u) + terms.filters / 4u];
}

// Past the last tap zeros: what was loaded may be infinite.
fn stage_w(terms: Terms, four: u32, first: u32, turn: u32, value: vec4<f32>) {
    let column = first + turn * APART;
    if !beyond(column, turn, TILE_N) {
        staged[LEFT + four * PITCH_N + spot(column, TILE_N)] = select(value, vec4<f32>(), terms.tap == KH * KW);
    }
}

// Where a row's or column's four is staged: what the invocations of a subgroup read at a time lies side by side, and what they stage at a
// time in different banks.
fn spot(row: u32, tile: u32) -> u32 {
    return row % 4u * (tile / 4u + 4u) + row / 4u;
}

// Sums the parts' quarters and stores the rows of the result; of each quarter another part does so.
fn store(quarter: u32, part: u32, block: u32, row: u32, rows: u32, column: u32, own: mat4x4<f32>) {
    let s = meet(quarter, part, block, own);
    for (var i = 0u; i < 4u && row + i < rows && part == owner(quarter); i += 1u) {
        let pixel = (row + i) / call.batch;
        let image = row + i - pixel * call.batch;
        let at = (image * (H * W) + pixel) * CHANNELS + column;
        for (var c = 0u; c < 4u && column + c < CHANNELS; c += 1u) {
            dx[at + c] = DX(s[i][c]);
        }
    }
}

fn owner(quarter: u32) -> u32 {
    return (PARTS / 2u + quarter) % PARTS;
}

// The sums of all parts, in order whoever the owner is, for the owner.
fn meet(quarter: u32, part: u32, block: u32, own: mat4x4<f32>) -> mat4x4<f32> {
    if PARTS == 1u {
        return own;
    }
    let upper = meet_two(owner(quarter), part, block, own[0], own[1]);
    let lower = meet_two(owner(quarter), part, block, own[2], own[3]);
    return mat4x4(upper[0], upper[1], lower[0], lower[1]);
}

fn meet_two(owner: u32, part: u32, block: u32, own0: vec4<f32>, own1: vec4<f32>) -> mat2x4<f32> {
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

fn returned(i: u32, here: u32) -> Returned {
    return Returned(dy[i], place[i], here);
}

// The gradient of the convolution's output there. Not before it is staged, so that loading does not wait.
fn gradient(back: Returned) -> vec4<f32> {
    let differs = (vec4(back.place) ^ vec4(back.here * 0x01010101u)) & vec4(0xffu, 0xff00u, 0xff0000u, 0xff000000u);
    return select(vec4<f32>(back.gradient), vec4<f32>(), differs != vec4<u32>());
}

// Four fours.
fn fours(i: u32, apart: u32) -> mat4x4<f32> {
    return mat4x4(staged[i], staged[i + apart], staged[i + 2u * apart], staged[i + 3u * apart]);
}

// `s` and the products of four terms, one after another.
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
