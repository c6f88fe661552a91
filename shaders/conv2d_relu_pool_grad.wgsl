// conv2d_relu_pool_grad: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · g[n, oh, ow, o]
//                        db[s, o] = Σ g[n, oh, ow, o]       over the pixels of y of slice s and their places
//                        dx[n, h, v, c] = Σ g[n, oh, ow, o] · w[kh, kw, c, o]
//
//   x      [N, H, W, CHANNELS]           CHANNELS a multiple of 4
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   place  [N, PH, PW, FILTERS] bytes    as the forward kernel leaves them
//   w      [KH, KW, CHANNELS, FILTERS]
//   dw     [SLICES, KH, KW, CHANNELS, FILTERS]   every element written exactly once
//   db     [SLICES, FILTERS]                     likewise
//   dx     [N, H, W, CHANNELS]                   likewise
//
// Products that can run side by side, in one dispatch: the first workgroups are those of conv2d_relu_pool_input_grad, the others
// those of conv2d_relu_pool_weight_grad, which say what is a row, a column and a term. Both have the same invocations, blocks and
// steps, and tiles of their own; a workgroup is one or the other, so both stage in the same memory. All is loaded and stored in fours
// of neighbouring channels or filters. The rows and columns of dw's factors are such; of dx's factors it is the terms. Either way four
// terms are four loads of each factor from shared memory, and 64 products for each quarter of a block, with nothing to count between
// them.
//
// Of dw's factors an invocation stages a four of all places of a window, of dx's a four of one pixel. What it stages first, of dx's the
// first two, is loaded a step ahead, so that it comes while the step before is computed. A tile with fewer blocks than a workgroup
// should have invocations has PARTS for each block: each part takes its share of every step's fours, and their sums meet at the end,
// in order. The workgroups of a slice's first rows add up db too.
//
// The rows of dx's tiles are in the order [H, W, N], so that a tile is one pixel of many images where the batch allows it. Then a tap
// through which no output pixel saw that pixel, past an edge or between two strides, is none of its terms; and where in dy a row's terms
// are is worked out once for each tap.
//
// Dispatch: ceil(N·H·W / TILE_MX) · ceil(CHANNELS / TILE_NX) and SLICES · ceil(KH·KW·CHANNELS / TILE_M) · ceil(FILTERS / TILE_N)
// workgroups, the latter rounded up to a multiple of ceil(CHANNELS / TILE_NX).
// CPU twin: `Conv2dReluPoolGrad::reference` in src/ops/conv2d/relu_pool/both.rs.

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
override TILE_M: u32;   // rows of a workgroup's tile of dw
override TILE_N: u32;   // and its columns
override TILE_MX: u32;  // rows of a workgroup's tile of dx, which has as many blocks
override TILE_NX: u32;  // and its columns
override STEP: u32;     // elements of K staged at a time
override BLOCK_M: u32;  // rows of an invocation's block, 4 or 8: then they are two fours, half a tile apart
override BLOCK_N: u32;  // and its columns, likewise
override PARTS: u32;    // STEP is a multiple of four times as many
override SIDE: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N); // invocations of a part
override LANES: u32 = SIDE * PARTS;
override PITCH: u32 = TILE_MX + 13u;  // of dx, from four terms of all rows to the next four, which spreads both over the banks
override PITCH_N: u32 = TILE_NX + 13u;
override LEFT: u32 = max(TILE_M * STEP, PITCH * STEP) / 4u;    // fours staged of the left factors, before those of the right ones
override RIGHT: u32 = max(TILE_N * STEP, PITCH_N * STEP) / 4u;
override APART: u32 = LANES / (STEP / 4u);                     // rows staged at a turn of dx's left factor, and columns of the right
override IMAGES: u32 = TILE_M / 4u * (STEP / 4u);              // fours staged of dw's left factor, each of a window
override TASKS: u32 = IMAGES + TILE_N / 4u * (STEP / 4u);      // … and of the right one, by the next invocations
override SHARES: u32 = STEP / 4u / PARTS;                      // fours of terms that an invocation takes of a step
// Whether no window reaches past an edge of x.
override WHOLE: bool = PAD_H + PAD_W == 0u && 2u * PH * STRIDE_H + (KH - 1u) * DILATION_H < H + STRIDE_H
    && 2u * PW * STRIDE_W + (KW - 1u) * DILATION_W < W + STRIDE_W;
override LISTED: u32 = min(KH * KW, 128u);                     // taps that are listed, if no more than these are there

const NOWHERE = 5u; // the place of an output pixel that is not there

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(3) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dw: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> db: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dx: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Of dw, fours of rows and of columns: [term][row], [term][column]. Of dx, fours of terms: [four][row], [four][column], in the order of
// `spot`. In the end, the parts' sums.
var<workgroup> staged: array<vec4<f32>, LEFT + RIGHT>;
// The taps through which an output pixel saw a pixel of dx's tile, and as many again as are not there.
var<workgroup> taps: array<u32, LISTED + 1u>;

// Four channels at the four places of a window, as they are loaded, and which of them count: what does not is loaded from somewhere else.
struct Image {
    value: mat4x4<f32>,
    inside: vec4<bool>,
}

// What comes back to four filters of a window, as it is loaded, the places of their maxima, and the one that is asked for.
struct Returned {
    gradient: vec4<f32>,
    place: u32,
    here: u32,
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Those of dx take longer, so they begin.
    let of_input = (call.batch * H * W + TILE_MX - 1u) / TILE_MX * ((CHANNELS + TILE_NX - 1u) / TILE_NX);
    let tile = group.y * groups.x + group.x;
    if tile < of_input {
        input_grad(tile, lane);
    } else {
        weight_grad(tile - of_input, lane);
    }
}

// One tile of a slice of dw, and of db.
fn weight_grad(tile: u32, lane: u32) {
    let rows = KH * KW * CHANNELS;
    let tiles_m = (rows + TILE_M - 1u) / TILE_M;
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
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
    var bias = vec4<f32>();
    let left = (part * SHARES * 4u * TILE_M + block_row) / 4u;
    let right = LEFT + (part * SHARES * 4u * TILE_N + block_column) / 4u;
    // An invocation stages fours of x or of g, or neither. A slice without a pixel stages none: there may be no image at all.
    var image = Image();
    var back = Returned();
    if begin < end {
        image = load_image(begin, end, row0, lane, 0u);
        back = load_gradient(begin, end, column0, lane, 0u);
    }
    for (var window0 = begin; window0 < end; window0 += STEP / 4u) {
        stage_image(lane, 0u, image);
        stage_gradient(lane, 0u, back);
        for (var turn = 1u; turn * LANES < TASKS; turn += 1u) {
            stage_image(lane, turn, load_image(window0, end, row0, lane, turn));
            stage_gradient(lane, turn, load_gradient(window0, end, column0, lane, turn));
        }
        workgroupBarrier();
        if row0 == 0u && lane < TILE_N / 4u {
            for (var s = 0u; s < STEP; s += 1u) {
                bias += staged[LEFT + s * (TILE_N / 4u) + lane];
            }
        }
        // After all branches of the step, past which some compilers would move what is loaded here.
        image = load_image(window0 + STEP / 4u, end, row0, lane, 0u);
        back = load_gradient(window0 + STEP / 4u, end, column0, lane, 0u);
        for (var s = 0u; s < SHARES; s += 1u) {
            let i = left + s * TILE_M;
            let j = right + s * TILE_N;
            let rows0 = fours(i, TILE_M / 4u);
            let columns0 = fours(j, TILE_N / 4u);
            s00 = added(s00, rows0, columns0);
            var columns1 = mat4x4<f32>();
            if BLOCK_N == 8u {
                columns1 = fours(j + TILE_N / 8u, TILE_N / 4u);
                s01 = added(s01, rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = fours(i + TILE_M / 8u, TILE_M / 4u);
                s10 = added(s10, rows1, columns0);
                if BLOCK_N == 8u {
                    s11 = added(s11, rows1, columns1);
                }
            }
        }
        workgroupBarrier();
    }
    if row0 == 0u && lane < TILE_N / 4u && column0 + 4u * lane < FILTERS {
        db[(slice * FILTERS + column0) / 4u + lane] = bias;
    }
    let row = row0 + block_row;
    let column = column0 + block_column;
    store_weight(0u, part, block, slice, row, column, s00);
    if BLOCK_N == 8u {
        store_weight(1u, part, block, slice, row, column + TILE_N / 2u, s01);
    }
    if BLOCK_M == 8u {
        store_weight(2u, part, block, slice, row + TILE_M / 2u, column, s10);
        if BLOCK_N == 8u {
            store_weight(3u, part, block, slice, row + TILE_M / 2u, column + TILE_N / 2u, s11);
        }
    }
}

// Four channels of the window that is staged at this turn, of those from `window0` on, at its four places. Whoever stages none loads too:
// in a branch some compilers would wait for what is loaded.
fn load_image(window0: u32, end: u32, row0: u32, lane: u32, turn: u32) -> Image {
    let task = lane + turn * LANES;
    var i = vec4<u32>();
    var inside = vec4<bool>();
    if task < IMAGES {
        let window = window0 + task / (TILE_M / 4u);
        let row = row0 + task % (TILE_M / 4u) * 4u;
        let there = (window < end) & (row < KH * KW * CHANNELS);
        let tap = row / CHANNELS;
        let h = i32(window / PW % PH * 2u * STRIDE_H + tap / KW * DILATION_H) - i32(PAD_H);
        let v = i32(window % PW * 2u * STRIDE_W + tap % KW * DILATION_W) - i32(PAD_W);
        let at = ((i32(window / (PH * PW) * H) + h) * i32(W) + v) * i32(CHANNELS / 4u) + i32(row % CHANNELS / 4u);
        let down = i32(STRIDE_H * W * (CHANNELS / 4u));
        let right = i32(STRIDE_W * (CHANNELS / 4u));
        // A negative place is a huge one when unsigned.
        let upper = there & (WHOLE | (u32(h) < H));
        let lower = there & (WHOLE | (u32(h + i32(STRIDE_H)) < H));
        let west = WHOLE | (u32(v) < W);
        let east = WHOLE | (u32(v + i32(STRIDE_W)) < W);
        inside = vec4(upper & west, upper & east, lower & west, lower & east);
        // Where none can be past an edge, the four of the first window will do.
        let first = select(0, at, there);
        i = select(i, vec4<u32>(vec4(first, first + right, first + down, first + down + right)), inside | vec4(WHOLE));
    }
    return Image(mat4x4(x[i.x], x[i.y], x[i.z], x[i.w]), inside);
}

fn stage_image(lane: u32, turn: u32, image: Image) {
    let task = lane + turn * LANES;
    if task >= IMAGES {
        return;
    }
    let at = task / (TILE_M / 4u) * TILE_M + task % (TILE_M / 4u);
    staged[at] = select(vec4<f32>(), image.value[0], image.inside.x);
    staged[at + TILE_M / 4u] = select(vec4<f32>(), image.value[1], image.inside.y);
    staged[at + 2u * (TILE_M / 4u)] = select(vec4<f32>(), image.value[2], image.inside.z);
    staged[at + 3u * (TILE_M / 4u)] = select(vec4<f32>(), image.value[3], image.inside.w);
}

// Four filters of the window that is staged at this turn, of those from `window0` on, at its first place.
fn load_gradient(window0: u32, end: u32, column0: u32, lane: u32, turn: u32) -> Returned {
    let task = lane + turn * LANES - IMAGES;
    let window = window0 + task / (TILE_N / 4u);
    let column = column0 + task % (TILE_N / 4u) * 4u;
    let inside = (task < TASKS - IMAGES) & (window < end) & (column < FILTERS);
    return returned(select(0u, (window * FILTERS + column) / 4u, inside), select(NOWHERE, 0u, inside));
}

fn stage_gradient(lane: u32, turn: u32, back: Returned) {
    let task = lane + turn * LANES - IMAGES;
    if task >= TASKS - IMAGES {
        return;
    }
    let at = LEFT + task / (TILE_N / 4u) * TILE_N + task % (TILE_N / 4u);
    for (var here = 0u; here < 4u; here += 1u) {
        staged[at + here * (TILE_N / 4u)] = gradient(Returned(back.gradient, back.place, back.here + here));
    }
}

// One tile of dx.
fn input_grad(tile: u32, lane: u32) {
    let rows = call.batch * H * W;
    let tiles_n = (CHANNELS + TILE_NX - 1u) / TILE_NX;
    let row0 = tile / tiles_n * TILE_MX;
    let column0 = tile % tiles_n * TILE_NX;
    let part = lane / SIDE;
    let block = lane % SIDE;
    let block_row = block / (TILE_NX / BLOCK_N) * 4u;
    let block_column = block % (TILE_NX / BLOCK_N) * 4u;

    let depth = FILTERS * count_taps(row0, min(row0 + TILE_MX, rows) - 1u, lane);
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
        for (var turn = 2u; turn * APART < TILE_MX; turn += 1u) {
            stage_pixel(four, first, turn, load_pixel(terms, turn));
        }
        stage_w(terms, four, first, 0u, right_ahead);
        stage_w(terms, four, first, 1u, right_next);
        for (var turn = 2u; turn * APART < TILE_NX; turn += 1u) {
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
            let rows0 = transpose(fours(i, spot(1u, TILE_MX)));
            let columns0 = transpose(fours(j, spot(1u, TILE_NX)));
            s00 = added(s00, rows0, columns0);
            var columns1 = mat4x4<f32>();
            if BLOCK_N == 8u {
                columns1 = transpose(fours(j + TILE_NX / 8u, spot(1u, TILE_NX)));
                s01 = added(s01, rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = transpose(fours(i + TILE_MX / 8u, spot(1u, TILE_MX)));
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
    store_input(0u, part, block, row, rows, column, s00);
    if BLOCK_N == 8u {
        store_input(1u, part, block, row, rows, column + TILE_NX / 2u, s01);
    }
    if BLOCK_M == 8u {
        store_input(2u, part, block, row + TILE_MX / 2u, rows, column, s10);
        if BLOCK_N == 8u {
            store_input(3u, part, block, row + TILE_MX / 2u, rows, column + TILE_NX / 2u, s11);
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
    for (var turn = 0u; turn * APART < TILE_MX; turn += 1u) {
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
    if turn * APART >= TILE_MX {
        return Returned();
    }
    return returned(terms.at[turn] + terms.filters / 4u, terms.here[turn]);
}

fn stage_pixel(four: u32, first: u32, turn: u32, back: Returned) {
    let row = first + turn * APART;
    if !beyond(row, turn, TILE_MX) {
        staged[four * PITCH + spot(row, TILE_MX)] = gradient(back);
    }
}

// Those of the column that is staged at this turn. Past the last channel that one again, of which nothing is stored; past the last tap
// that one again, without a branch, in which some compilers would wait for what is loaded.
fn load_w(terms: Terms, column: u32, turn: u32) -> vec4<f32> {
    if turn * APART >= TILE_NX {
        return vec4<f32>();
    }
    let channel = min(column + turn * APART, CHANNELS - 1u);
    return w[(min(terms.tap, KH * KW - 1u) * CHANNELS + channel) * (FILTERS / 4u) + terms.filters / 4u];
}

// Past the last tap zeros: what was loaded may be infinite.
fn stage_w(terms: Terms, four: u32, first: u32, turn: u32, value: vec4<f32>) {
    let column = first + turn * APART;
    if !beyond(column, turn, TILE_NX) {
        staged[LEFT + four * PITCH_N + spot(column, TILE_NX)] = select(value, vec4<f32>(), terms.tap == KH * KW);
    }
}

// Where a row's or column's four is staged: what the invocations of a subgroup read at a time lies side by side, and what they stage at a
// time in different banks.
fn spot(row: u32, tile: u32) -> u32 {
    return row % 4u * (tile / 4u + 4u) + row / 4u;
}

// Sums the parts' quarters and stores the rows of the result; of each quarter another part does so.
fn store_weight(quarter: u32, part: u32, block: u32, slice: u32, row: u32, column: u32, own: mat4x4<f32>) {
    let s = meet(quarter, part, block, own);
    let rows = KH * KW * CHANNELS;
    for (var i = 0u; i < 4u && row + i < rows && column < FILTERS && part == owner(quarter); i += 1u) {
        dw[((slice * rows + row + i) * FILTERS + column) / 4u] = s[i];
    }
}

fn store_input(quarter: u32, part: u32, block: u32, row: u32, rows: u32, column: u32, own: mat4x4<f32>) {
    let s = meet(quarter, part, block, own);
    for (var i = 0u; i < 4u && row + i < rows && column < CHANNELS && part == owner(quarter); i += 1u) {
        let pixel = (row + i) / call.batch;
        let image = row + i - pixel * call.batch;
        dx[((image * (H * W) + pixel) * CHANNELS + column) / 4u] = s[i];
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
    return select(back.gradient, vec4<f32>(), differs != vec4<u32>());
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
