// conv2d_relu_pool_grad: dw[s, kh, kw, c, o] = Σ x[n, oh·stride + kh·dilation - pad, …, c] · g[n, oh, ow, o]
//                        db[s, o] = Σ g[n, oh, ow, o]       over the pixels of y of slice s and their places
//                        dx[n, h, v, c] = Σ g[n, oh, ow, o] · w[kh, kw, c, o]
//
//   x      [N, H, W, CHANNELS]           CHANNELS a multiple of 4
//   dy     [N, PH, PW, FILTERS]           FILTERS a multiple of 4
//   y      [N, PH, PW, FILTERS]
//   place  [N, PH, PW, FILTERS] bytes
//   w      [KH, KW, CHANNELS, FILTERS]
//   dw     [SLICES, KH, KW, CHANNELS, FILTERS]   every element written exactly once
//   db     [SLICES, FILTERS]                     likewise
//   dx     [N, H, W, CHANNELS]                   likewise
//
// Products that can run side by side, in one dispatch: the first workgroups are those of conv2d_relu_pool_weight_grad, the others
// those of conv2d_relu_pool_input_grad, which say how. Both have the same invocations, blocks and steps, and tiles of their own; a
// workgroup is one or the other, so both stage in the same memory. All is loaded and stored in fours of neighbouring channels or
// filters. The rows and columns of dw's factors are such, and are staged as they are; of dx's factors it is the terms, so there a four
// is spread over four rows of the staged tile. The first four that an invocation stages of each factor is loaded a step ahead, so that
// it comes while the step before is computed. A tile too small for the invocations of a workgroup, one for each block, has PARTS times as
// many: each part takes its share of every step's terms, and their sums meet at the end, in order.
//
// Dispatch: SLICES · ceil(KH·KW·CHANNELS / TILE_M) · ceil(FILTERS / TILE_N) workgroups, rounded up to a multiple of
// ceil(CHANNELS / TILE_NX), and as many of these as there are tiles of TILE_MX in the N·H·W rows of dx.
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
override BLOCK_M: u32;  // rows of an invocation's block, 4 or 8
override BLOCK_N: u32;  // and its columns, 4 or 8
override PARTS: u32;    // 1, or with blocks of 4×4 more, of which STEP is a multiple
override SIDE: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N); // invocations of a part
override LANES: u32 = SIDE * PARTS;
override LEFT: u32 = max(TILE_M, TILE_MX + 4u) * STEP;  // elements staged of the left factors
override RIGHT: u32 = max(TILE_N, TILE_NX + 4u) * STEP; // and of the right ones

const OUTSIDE = -(1i << 30u); // no output pixel sees a row that lies here

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> place: array<u32>; // four bytes each
@group(0) @binding(4) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dw: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> db: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> dx: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Of dx, neighbouring rows are different invocations' to stage, and one that writes an element of a vector may write all of it.
var<workgroup> left_tile: array<f32, LEFT>;   // [k][row]; of dx with a pitch that spreads a column over the banks
var<workgroup> right_tile: array<f32, RIGHT>; // [k][column], likewise
var<workgroup> row_h: array<i32, TILE_MX>;    // each row's pixel, counted from the corner of the padding
var<workgroup> row_w: array<i32, TILE_MX>;
var<workgroup> row_image: array<u32, TILE_MX>; // first pixel of y of its image

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_m = (KH * KW * CHANNELS + TILE_M - 1u) / TILE_M;
    let tiles_n = (FILTERS + TILE_N - 1u) / TILE_N;
    let tiles_nx = (CHANNELS + TILE_NX - 1u) / TILE_NX;
    let of_weight = (SLICES * tiles_m * tiles_n + tiles_nx - 1u) / tiles_nx * tiles_nx;
    let tile = group.y * groups.x + group.x;
    if tile < of_weight {
        weight_grad(tile, lane);
    } else {
        input_grad(tile - of_weight, lane);
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
    let block_row = block / (TILE_N / BLOCK_N) * BLOCK_M;
    let block_column = block % (TILE_N / BLOCK_N) * BLOCK_N;

    let pixels = call.batch * PH * PW;
    let run = (pixels + SLICES - 1u) / SLICES;
    let first = min(slice * run, pixels) * 4u;
    let end = min(first + run * 4u, pixels * 4u);

    // The block's quarters, or what it has of them: s01 is right of s00 and s10 below. A column of the matrix is a row of the block.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    var bias = vec4<f32>();
    var left_ahead = load_image(first, end, row0, lane);
    var right_ahead = load_gradient(first, end, column0, lane);
    for (var k0 = first; k0 < end; k0 += STEP) {
        if lane < TILE_M / 4u * STEP {
            stage_left(lane, left_ahead);
        }
        for (var i = lane + LANES; i < TILE_M / 4u * STEP; i += LANES) {
            stage_left(i, load_image(k0, end, row0, i));
        }
        if lane < TILE_N / 4u * STEP {
            stage_right(lane, right_ahead);
        }
        for (var i = lane + LANES; i < TILE_N / 4u * STEP; i += LANES) {
            stage_right(i, load_gradient(k0, end, column0, i));
        }
        workgroupBarrier();
        left_ahead = load_image(k0 + STEP, end, row0, lane);
        right_ahead = load_gradient(k0 + STEP, end, column0, lane);
        for (var s = part * (STEP / PARTS); s < (part + 1u) * (STEP / PARTS); s += 1u) {
            let i = s * TILE_M + block_row;
            let j = s * TILE_N + block_column;
            let rows0 = left_quad(i);
            let columns0 = right_quad(j);
            s00 += outer(rows0, columns0);
            var columns1 = vec4<f32>();
            if BLOCK_N == 8u {
                columns1 = right_quad(j + 4u);
                s01 += outer(rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = left_quad(i + 4u);
                s10 += outer(rows1, columns0);
                if BLOCK_N == 8u {
                    s11 += outer(rows1, columns1);
                }
            }
        }
        if row0 == 0u && lane < TILE_N / 4u {
            for (var s = 0u; s < STEP; s += 1u) {
                bias += right_quad(s * TILE_N + 4u * lane);
            }
        }
        workgroupBarrier();
    }
    if row0 == 0u && lane < TILE_N / 4u && column0 + 4u * lane < FILTERS {
        db[(slice * FILTERS + column0) / 4u + lane] = bias;
    }
    if PARTS > 1u {
        s00 = mat4x4(meet(part, block, s00[0]), meet(part, block, s00[1]), meet(part, block, s00[2]), meet(part, block, s00[3]));
        if part != PARTS / 2u {
            return;
        }
    }
    let first_row = row0 + block_row;
    let column = column0 + block_column;
    store_weight(slice, first_row, rows, column, s00);
    if BLOCK_N == 8u {
        store_weight(slice, first_row, rows, column + 4u, s01);
    }
    if BLOCK_M == 8u {
        store_weight(slice, first_row + 4u, rows, column, s10);
        if BLOCK_N == 8u {
            store_weight(slice, first_row + 4u, rows, column + 4u, s11);
        }
    }
}

// Four elements of a staged tile of dw's factors.
fn stage_left(i: u32, value: vec4<f32>) {
    left_tile[4u * i] = value.x;
    left_tile[4u * i + 1u] = value.y;
    left_tile[4u * i + 2u] = value.z;
    left_tile[4u * i + 3u] = value.w;
}

fn stage_right(i: u32, value: vec4<f32>) {
    right_tile[4u * i] = value.x;
    right_tile[4u * i + 1u] = value.y;
    right_tile[4u * i + 2u] = value.z;
    right_tile[4u * i + 3u] = value.w;
}

// The four channels at place `i` of the left factor's tile that begins at `k0` and `row0`, of dw.
fn load_image(k0: u32, end: u32, row0: u32, i: u32) -> vec4<f32> {
    let row = row0 + i % (TILE_M / 4u) * 4u;
    let tap = row / CHANNELS;
    let tap_h = i32(tap / KW * DILATION_H) - i32(PAD_H);
    let tap_w = i32(tap % KW * DILATION_W) - i32(PAD_W);
    let k = k0 + i / (TILE_M / 4u);
    let pixel = k / 4u;
    // A negative place is a huge one when unsigned.
    let h = u32(i32((pixel / PW % PH * 2u + k / 2u % 2u) * STRIDE_H) + tap_h);
    let v = u32(i32((pixel % PW * 2u + k % 2u) * STRIDE_W) + tap_w);
    if k >= end || row >= KH * KW * CHANNELS || h >= H || v >= W {
        return vec4<f32>();
    }
    return x[(((pixel / (PH * PW) * H + h) * W + v) * CHANNELS + row % CHANNELS) / 4u];
}

// The four filters at place `i` of the right factor's tile that begins at `k0` and `column0`, of dw.
fn load_gradient(k0: u32, end: u32, column0: u32, i: u32) -> vec4<f32> {
    let k = k0 + i / (TILE_N / 4u);
    let column = column0 + i % (TILE_N / 4u) * 4u;
    if k >= end || column >= FILTERS {
        return vec4<f32>();
    }
    return gradient((k / 4u * FILTERS + column) / 4u, k % 4u);
}

// One tile of dx.
fn input_grad(tile: u32, lane: u32) {
    let pitch = TILE_MX + 4u;
    let pitch_n = TILE_NX + 4u;
    let rows = call.batch * H * W;
    let depth = KH * KW * FILTERS;
    let tiles_n = (CHANNELS + TILE_NX - 1u) / TILE_NX;
    let row0 = tile / tiles_n * TILE_MX;
    let column0 = tile % tiles_n * TILE_NX;
    let part = lane / SIDE;
    let block = lane % SIDE;
    let block_row = block / (TILE_NX / BLOCK_N) * BLOCK_M;
    let block_column = block % (TILE_NX / BLOCK_N) * BLOCK_N;

    for (var i = lane; i < TILE_MX; i += LANES) {
        let row = row0 + i;
        row_h[i] = select(OUTSIDE, i32(row / W % H + PAD_H), row < rows);
        row_w[i] = i32(row % W + PAD_W);
        row_image[i] = row / (H * W) * (PH * PW);
    }
    workgroupBarrier();

    // The block's quarters, or what it has of them: s01 is right of s00 and s10 below. A column of the matrix is a row of the block.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    // Neighbouring invocations take neighbouring fours of dy and of w; one stays at four terms of every step.
    let step = lane % (STEP / 4u) * 4u;
    let first = lane / (STEP / 4u);
    var left_ahead = load_pixel(step, first);
    var right_ahead = load_w(step, column0, first);
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        stage_pixel(step, first, left_ahead);
        for (var row = first + LANES / (STEP / 4u); row < TILE_MX; row += LANES / (STEP / 4u)) {
            stage_pixel(step, row, load_pixel(k0 + step, row));
        }
        stage_w(step, first, right_ahead);
        for (var column = first + LANES / (STEP / 4u); column < TILE_NX; column += LANES / (STEP / 4u)) {
            stage_w(step, column, load_w(k0 + step, column0, column));
        }
        workgroupBarrier();
        left_ahead = load_pixel(k0 + STEP + step, first);
        right_ahead = load_w(k0 + STEP + step, column0, first);
        for (var s = part * (STEP / PARTS); s < (part + 1u) * (STEP / PARTS); s += 1u) {
            let i = s * pitch + block_row;
            let j = s * pitch_n + block_column;
            let rows0 = left_quad(i);
            let columns0 = right_quad(j);
            s00 += outer(rows0, columns0);
            var columns1 = vec4<f32>();
            if BLOCK_N == 8u {
                columns1 = right_quad(j + 4u);
                s01 += outer(rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = left_quad(i + 4u);
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
    store_input(row, rows, column, s00);
    if BLOCK_N == 8u {
        store_input(row, rows, column + 4u, s01);
    }
    if BLOCK_M == 8u {
        store_input(row + 4u, rows, column, s10);
        if BLOCK_N == 8u {
            store_input(row + 4u, rows, column + 4u, s11);
        }
    }
}

// Four terms of a row of dx's left factor, from `k` on.
fn load_pixel(k: u32, row: u32) -> vec4<f32> {
    if row >= TILE_MX || k >= KH * KW * FILTERS {
        return vec4<f32>();
    }
    // Negative where the tap lies before the first window: then huge when unsigned, and past PH even when divided, unless the stride
    // is huge too; so it is tested.
    let tap = k / FILTERS;
    let h = row_h[row] - i32(tap / KW * DILATION_H);
    let v = row_w[row] - i32(tap % KW * DILATION_W);
    let oh = u32(h) / STRIDE_H;
    let ow = u32(v) / STRIDE_W;
    if h < 0 || v < 0 || oh * STRIDE_H != u32(h) || ow * STRIDE_W != u32(v) || oh / 2u >= PH || ow / 2u >= PW {
        return vec4<f32>();
    }
    return gradient(((row_image[row] + oh / 2u * PW + ow / 2u) * FILTERS + k % FILTERS) / 4u, oh % 2u * 2u + ow % 2u);
}

fn stage_pixel(step: u32, row: u32, value: vec4<f32>) {
    if row >= TILE_MX {
        return;
    }
    let pitch = TILE_MX + 4u;
    let at = step * pitch + row;
    left_tile[at] = value.x;
    left_tile[at + pitch] = value.y;
    left_tile[at + 2u * pitch] = value.z;
    left_tile[at + 3u * pitch] = value.w;
}

// Four terms of a column of dx's right factor, from `k` on.
fn load_w(k: u32, column0: u32, column: u32) -> vec4<f32> {
    if column >= TILE_NX || k >= KH * KW * FILTERS || column0 + column >= CHANNELS {
        return vec4<f32>();
    }
    return w[((k / FILTERS * CHANNELS + column0 + column) * FILTERS + k % FILTERS) / 4u];
}

fn stage_w(step: u32, column: u32, value: vec4<f32>) {
    if column >= TILE_NX {
        return;
    }
    let pitch = TILE_NX + 4u;
    let at = step * pitch + column;
    right_tile[at] = value.x;
    right_tile[at + pitch] = value.y;
    right_tile[at + 2u * pitch] = value.z;
    right_tile[at + 3u * pitch] = value.w;
}

// The sum of the parts' sums at a block, in order, its own last, for the part in the middle.
fn meet(part: u32, block: u32, own: vec4<f32>) -> vec4<f32> {
    if part != PARTS / 2u {
        stage_right(select(part - 1u, part, part < PARTS / 2u) * SIDE + block, own);
    }
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var i = 0u; part == PARTS / 2u && i + 1u < PARTS; i += 1u) {
        sum += right_quad(4u * (i * SIDE + block));
    }
    workgroupBarrier();
    return sum + own;
}

fn store_weight(slice: u32, row: u32, rows: u32, column: u32, s: mat4x4<f32>) {
    store_weight_row(slice, row, rows, column, s[0]);
    store_weight_row(slice, row + 1u, rows, column, s[1]);
    store_weight_row(slice, row + 2u, rows, column, s[2]);
    store_weight_row(slice, row + 3u, rows, column, s[3]);
}

fn store_weight_row(slice: u32, row: u32, rows: u32, column: u32, values: vec4<f32>) {
    if row < rows && column < FILTERS {
        dw[((slice * rows + row) * FILTERS + column) / 4u] = values;
    }
}

fn store_input(row: u32, rows: u32, column: u32, s: mat4x4<f32>) {
    store_input_row(row, rows, column, s[0]);
    store_input_row(row + 1u, rows, column, s[1]);
    store_input_row(row + 2u, rows, column, s[2]);
    store_input_row(row + 3u, rows, column, s[3]);
}

fn store_input_row(row: u32, rows: u32, column: u32, values: vec4<f32>) {
    if row < rows && column < CHANNELS {
        dx[(row * CHANNELS + column) / 4u] = values;
    }
}

// The gradient of the convolution's output at one place of a window, given the four of y.
fn gradient(i: u32, here: u32) -> vec4<f32> {
    let there = vec4(place[i]) >> vec4(0u, 8u, 16u, 24u) & vec4(0xffu);
    return select(dy[i], vec4<f32>(), (there != vec4(here)) | (y[i] <= vec4<f32>()));
}

fn left_quad(i: u32) -> vec4<f32> {
    return vec4(left_tile[i], left_tile[i + 1u], left_tile[i + 2u], left_tile[i + 3u]);
}

fn right_quad(i: u32) -> vec4<f32> {
    return vec4(right_tile[i], right_tile[i + 1u], right_tile[i + 2u], right_tile[i + 3u]);
}

// Each row times each column; a column of the matrix is a row.
fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(columns * rows.x, columns * rows.y, columns * rows.z, columns * rows.w);
}
