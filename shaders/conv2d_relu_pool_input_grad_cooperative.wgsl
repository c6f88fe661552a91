// conv2d_relu_pool_input_grad_cooperative: dx[n, h, v, c] = Σ g[n, oh, ow, o] · w[kh, kw, c, o]
//                    over o and those kh, kw for which h = oh·stride + kh·dilation - pad and v likewise
//
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   place  [N, PH, PW, FILTERS] bytes    as the forward kernel leaves them
//   w      [KH, KW, CHANNELS, FILTERS]
//   dx     [N, H, W, CHANNELS]            every element written exactly once
//
// conv2d_relu_pool_input_grad by cooperative matrices: g, the gradient of the convolution's output, and w are rounded to f16 as they are
// staged, and products summed in f32. Rows are the H·W·N input pixels, K runs over KH·KW·FILTERS, columns are the CHANNELS. One
// workgroup computes a TILE_M×TILE_N tile, one subgroup a BLOCK×BLOCK block of it, as 2×2 matrices of EDGE×EDGE. Per step along K the
// workgroup stages TILE_M×STEP of g and TILE_N×STEP of w, transposed as it lies in memory; taps that fall between two strides and
// what lies past an edge are zero. The sums go through shared memory, so that only those inside of dx are stored: the upper half
// of each block first, then the lower.
//
// Products of matrices take so few instructions that those of staging are the kernel's time. So all is loaded and staged in fours of
// filters, and what there is to count is counted once for four: where each row's pixel is, once; and at which tap a step is, for all
// invocations alike where all its terms are of one tap. Rows are in the order [H, W, N], so that those of a tile are one pixel, or two, of
// many images where the batch allows it: then a tap through which neither was seen is passed over. The first four fours that an
// invocation stages of each factor are loaded a step ahead, as they are stored, so that they come while the step before is multiplied.
//
// Workgroup memory holds fours too. Matrices are loaded from it by pointers to fours, with strides in fours, which SPIR-V has and Metal's
// language has not: there the text is the one for single elements, as src/ops/cooperative.rs writes it.
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

// What workgroup memory holds of the factors; single elements where src/ops/cooperative.rs writes so.
const WIDTH = 4u;
alias Staged = vec4<f16>;

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
override PITCH: u32 = STEP / 4u + 2u;      // fours from a row or column to the next, odd in pairs, which spreads a term over the banks
override LEFT: u32 = TILE_M * PITCH;       // fours staged of g, before those of w
override RIGHT: u32 = TILE_N * PITCH;      // … and of w
override APART: u32 = LANES / (STEP / 4u); // rows or columns staged at a turn
override ONE_TAP: bool = FILTERS % STEP == 0u; // whether all terms of a step are of one tap

const OUTSIDE = -(1i << 30u); // no output pixel sees a row that lies here
const NOWHERE = 5u; // the place of an output pixel that is not there

@group(0) @binding(0) var<storage, read> dy: array<vec4<DY>>;
@group(0) @binding(1) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<DX>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Of g [row][k], of w [column][k].
var<workgroup> staged: array<Staged, (LEFT + RIGHT) * 4u / WIDTH>;
var<workgroup> sums: array<f32, TILE_M / 2u * TILE_N>; // half the rows of each block: [row][column]
// Each row's pixel, counted from the corner of the padding, the first pixel of y of its image, and where it is itself in dx.
var<workgroup> pixels: array<vec4<i32>, TILE_M>;

// Where an invocation's terms of a step lie.
struct Terms {
    tap: vec2<i32>,
    four: u32, // of filters
    w: u32,    // of the first column, in fours
    inside: bool,
}

// The output pixel that saw an input pixel through a tap.
struct Seen {
    window: u32, // of its image
    here: u32,   // its place in that, or NOWHERE
}

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
    let pitch = PITCH * 4u / WIDTH;
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
        let pixel = row / call.batch;
        let image = row - pixel * call.batch;
        let at = vec2<i32>(image * vec2(PH * PW, H * W) + vec2(0u, pixel));
        pixels[i] = vec4(select(vec2(OUTSIDE), corner_of(pixel), row < rows), at);
    }
    workgroupBarrier();

    // The block's quarters: s01 is right of s00 and s10 below.
    var s00 = Sums();
    var s01 = Sums();
    var s10 = Sums();
    var s11 = Sums();
    // Neighbouring invocations take neighbouring fours of dy and of w; one stays at one four of every step.
    let four = lane % (STEP / 4u);
    let first = lane / (STEP / 4u);
    // The first and the last row's pixel; whether no other is in the tile and each step is at one tap.
    let pixel0 = row0 / call.batch;
    let pixel1 = min(row0 + TILE_M - 1u, rows - 1u) / call.batch;
    let few = ONE_TAP && pixel1 - pixel0 < 2u;
    let corners = vec4(corner_of(pixel0), corner_of(pixel1));
    var k0 = next_step(0u, few, corners);
    let terms0 = terms_of(k0, four);
    var g_ahead = load_four_g(terms0, first);
    var w_ahead = load_four_w(terms0, column0, first);
    while k0 < depth {
        stage_g(four, first, 0u, g_ahead[0]);
        stage_g(four, first, 1u, g_ahead[1]);
        stage_g(four, first, 2u, g_ahead[2]);
        stage_g(four, first, 3u, g_ahead[3]);
        for (var turn = 4u; turn * APART < TILE_M; turn += 1u) {
            stage_g(four, first, turn, load_g(terms_of(k0, four), first, turn));
        }
        stage_w(four, first, 0u, w_ahead[0]);
        stage_w(four, first, 1u, w_ahead[1]);
        stage_w(four, first, 2u, w_ahead[2]);
        stage_w(four, first, 3u, w_ahead[3]);
        for (var turn = 4u; turn * APART < TILE_N; turn += 1u) {
            stage_w(four, first, turn, load_w(terms_of(k0, four), column0, first, turn));
        }
        workgroupBarrier();
        k0 = next_step(k0 + STEP, few, corners);
        let terms = terms_of(k0, four);
        g_ahead = load_four_g(terms, first);
        w_ahead = load_four_w(terms, column0, first);
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
    let at0 = block_row / 2u * pitch_sums + block_column;
    let at1 = at0 + EDGE;
    coopStoreT(s00, &sums[at0], pitch_sums);
    coopStoreT(s01, &sums[at1], pitch_sums);
    workgroupBarrier();
    store(lane, 0u, column0);
    workgroupBarrier();
    coopStoreT(s10, &sums[at0], pitch_sums);
    coopStoreT(s11, &sums[at1], pitch_sums);
    workgroupBarrier();
    store(lane, EDGE, column0);
}

// The first step from `k` on, but for those of taps through which neither of a tile's two pixels was seen, if it has no more than two.
fn next_step(k: u32, few: bool, corners: vec4<i32>) -> u32 {
    var next = k;
    while few && next < KH * KW * FILTERS {
        let tap = tap_of(next / FILTERS);
        if (seen(corners.xy, tap).here != NOWHERE) | (seen(corners.zw, tap).here != NOWHERE) {
            break;
        }
        next += FILTERS;
    }
    return next;
}

fn tap_of(tap: u32) -> vec2<i32> {
    return vec2(i32(tap / KW * DILATION_H), i32(tap % KW * DILATION_W));
}

// Those of the step from `k0` on; past the last, the last.
fn terms_of(k0: u32, four: u32) -> Terms {
    let last = KH * KW * FILTERS - 4u;
    let k = min(k0 + 4u * four, last);
    let tap = select(k, min(k0, last), ONE_TAP) / FILTERS;
    let filters = (k - tap * FILTERS) / 4u;
    return Terms(tap_of(tap), filters, tap * CHANNELS * (FILTERS / 4u) + filters, k == k0 + 4u * four);
}

// Where a pixel is, counted from the corner of the padding.
fn corner_of(pixel: u32) -> vec2<i32> {
    return vec2(i32(pixel / W + PAD_H), i32(pixel % W + PAD_W));
}

fn seen(pixel: vec2<i32>, tap: vec2<i32>) -> Seen {
    // A place before the first window is a huge one when unsigned.
    let h = u32(pixel.x - tap.x);
    let v = u32(pixel.y - tap.y);
    let outside = (h >= 2u * PH * STRIDE_H) | (v >= 2u * PW * STRIDE_W) | (h % STRIDE_H != 0u) | (v % STRIDE_W != 0u);
    let oh = h / STRIDE_H;
    let ow = v / STRIDE_W;
    return Seen(oh / 2u * PW + ow / 2u, select(oh % 2u * 2u + ow % 2u, NOWHERE, outside));
}

// What is staged in the first four turns.
fn load_four_g(terms: Terms, first: u32) -> array<Returned, 4> {
    return array(load_g(terms, first, 0u), load_g(terms, first, 1u), load_g(terms, first, 2u), load_g(terms, first, 3u));
}

fn load_four_w(terms: Terms, column0: u32, first: u32) -> mat4x4<f32> {
    return mat4x4(
        load_w(terms, column0, first, 0u),
        load_w(terms, column0, first, 1u),
        load_w(terms, column0, first, 2u),
        load_w(terms, column0, first, 3u),
    );
}

// Whether the i-th of so many rows or columns, staged at this turn, is past the last. Of a whole turn a compiler knows that none is.
fn beyond(i: u32, turn: u32, extent: u32) -> bool {
    return turn * APART >= extent || (turn * APART + APART > extent && i >= extent);
}

// Of the row that is staged at this turn; where none saw it, something, and at no place. Without a branch, in which some compilers would
// wait for what is loaded.
fn load_g(terms: Terms, first: u32, turn: u32) -> Returned {
    let row = first + turn * APART;
    if beyond(row, turn, TILE_M) {
        return Returned();
    }
    let pixel = pixels[row];
    let saw = seen(pixel.xy, terms.tap);
    let inside = terms.inside & (saw.here != NOWHERE);
    let at = select(0u, (u32(pixel.z) + saw.window) * (FILTERS / 4u) + terms.four, inside);
    return Returned(dy[at], place[at], select(NOWHERE, saw.here, inside));
}

// What of four filters' gradient comes through to a place of the window. Not before it is staged, so that loading does not wait.
fn stage_g(four: u32, first: u32, turn: u32, back: Returned) {
    let row = first + turn * APART;
    if !beyond(row, turn, TILE_M) {
        let places = vec4(back.place) >> vec4(0u, 8u, 16u, 24u) & vec4(0xffu);
        stage(row * PITCH + four, select(vec4<f16>(), vec4<f16>(back.gradient), places == vec4(back.here)));
    }
}

// Of the column that is staged at this turn. Past the last column, of that one, which is not stored; past the last term, of that one, which
// meets zeros of g.
fn load_w(terms: Terms, column0: u32, first: u32, turn: u32) -> vec4<f32> {
    let column = first + turn * APART;
    if beyond(column, turn, TILE_N) {
        return vec4<f32>();
    }
    return w[terms.w + min(column0 + column, CHANNELS - 1u) * (FILTERS / 4u)];
}

fn stage_w(four: u32, first: u32, turn: u32, value: vec4<f32>) {
    let column = first + turn * APART;
    if !beyond(column, turn, TILE_N) {
        stage(LEFT + column * PITCH + four, vec4<f16>(value));
    }
}

fn stage(at: u32, four: vec4<f16>) {
    staged[at] = four;
}

// Stores what `sums` has of dx. The first row of each block there is the tile's row `row0` and BLOCK more for each block above.
fn store(lane: u32, row0: u32, column0: u32) {
    for (var i = lane; i < TILE_M / 2u * TILE_N; i += LANES) {
        let here = i / TILE_N;
        let pixel = pixels[row0 + here / EDGE * BLOCK + here % EDGE];
        let column = column0 + i % TILE_N;
        if pixel.x != OUTSIDE && column < CHANNELS {
            dx[u32(pixel.w) * CHANNELS + column] = DX(sums[i]);
        }
    }
}
