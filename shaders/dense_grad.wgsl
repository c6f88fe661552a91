// dense_grad: dw[k, u] = Σ x[n, k] · g[n, u]       db[u] = Σ g[n, u]       dx[n, k] = Σ g[n, u] · w[k, u]
//
//   x   [batch, FEATURES]
//   y   [batch, UNITS]
//   dy  [batch, UNITS]
//   w   [FEATURES, UNITS]
//   dw  [FEATURES, UNITS]    every element written exactly once
//   db  [UNITS]              likewise
//   dx  [batch, FEATURES]    likewise
//
// g is dy where ReLU let it through, so where y is above 0; all of dy if not RELU. It is not stored, but found while it is staged. The
// first workgroups compute 32×32 tiles of dw, those of the first features db too, the others tiles of dx: products that could run
// side by side, in one dispatch. For the rest each is the product of dense, in a workgroup's four quarters.
//
// Dispatch: ceil(FEATURES / 32) · (ceil(UNITS / 32) + ceil(batch / 32)) workgroups.
// CPU twin: `DenseGrad::reference` in src/ops/dense/grad.rs.

// What is stored as f16 where src/ops/stored.rs writes so; sums are f32 in any case.
alias X = f32;
alias Y = f32;
alias DY = f32;
alias DX = f32;

override FEATURES: u32;
override UNITS: u32;
override RELU: bool;

const TILE = 32u;  // edge of a tile
const STEP = 32u;  // elements of a sum staged at a time
const BLOCK = 4u;  // edge of an invocation's block
const PARTS = 4u;  // of a workgroup, each with some terms of every step
const LANES = 256u;
const PITCH = TILE + 1u;      // of a staged row: neighbouring terms lie in different banks
const PLANE = PITCH * STEP;
const SIDE = LANES / PARTS;   // invocations of a part

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> y: array<Y>;
@group(0) @binding(2) var<storage, read> dy: array<DY>;
@group(0) @binding(3) var<storage, read> w: array<f32>;
@group(0) @binding(4) var<storage, read_write> dw: array<f32>;
@group(0) @binding(5) var<storage, read_write> db: array<f32>;
@group(0) @binding(6) var<storage, read_write> dx: array<DX>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> tiles: array<f32, 2u * PLANE>; // the left factor [term][row], then the right [term][column]; at the end sums

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_k = (FEATURES + TILE - 1u) / TILE;
    let tiles_u = (UNITS + TILE - 1u) / TILE;
    let tile = group.y * groups.x + group.x;
    let of_x = tile >= tiles_k * tiles_u;
    let place = select(tile, tile - tiles_k * tiles_u, of_x);
    let side = select(tiles_u, tiles_k, of_x);
    let row0 = place / side * TILE;
    let column0 = place % side * TILE;
    let terms = select(call.batch, UNITS, of_x);
    let part = lane / SIDE;
    let block_row = lane % SIDE / (TILE / BLOCK) * BLOCK;
    let block_column = lane % (TILE / BLOCK) * BLOCK;
    let adds_bias = !of_x && row0 == 0u && lane < TILE;

    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    var bias = 0.0;
    for (var t0 = 0u; t0 < terms; t0 += STEP) {
        for (var i = lane; i < TILE * STEP; i += LANES) {
            // Neighbouring invocations take neighbouring addresses of the operand.
            let far = i / TILE;
            let near = i % TILE;
            if of_x {
                tiles[near * PITCH + far] = load_g(row0 + far, t0 + near);
                tiles[PLANE + near * PITCH + far] = load_w(column0 + far, t0 + near);
            } else {
                tiles[far * PITCH + near] = load_x(t0 + far, row0 + near);
                tiles[PLANE + far * PITCH + near] = load_g(t0 + far, column0 + near);
            }
        }
        workgroupBarrier();
        for (var s = 0u; s < STEP / PARTS; s += 1u) {
            let i = (part * (STEP / PARTS) + s) * PITCH + block_row;
            let j = PLANE + (part * (STEP / PARTS) + s) * PITCH + block_column;
            let right = vec4(tiles[j], tiles[j + 1u], tiles[j + 2u], tiles[j + 3u]);
            sum0 += tiles[i] * right;
            sum1 += tiles[i + 1u] * right;
            sum2 += tiles[i + 2u] * right;
            sum3 += tiles[i + 3u] * right;
        }
        if adds_bias {
            var run = 0.0;
            for (var s = 0u; s < STEP; s += 1u) {
                run += tiles[PLANE + s * PITCH + lane];
            }
            bias += run;
        }
        workgroupBarrier();
    }
    if adds_bias && column0 + lane < UNITS {
        db[column0 + lane] = bias;
    }
    for (var half = PARTS / 2u; half > 0u; half /= 2u) {
        let at = part % half * BLOCK * BLOCK * SIDE + lane % SIDE;
        if part / half == 1u {
            put(at, sum0);
            put(at + BLOCK * SIDE, sum1);
            put(at + 2u * BLOCK * SIDE, sum2);
            put(at + 3u * BLOCK * SIDE, sum3);
        }
        workgroupBarrier();
        if part < half {
            sum0 += take(at);
            sum1 += take(at + BLOCK * SIDE);
            sum2 += take(at + 2u * BLOCK * SIDE);
            sum3 += take(at + 3u * BLOCK * SIDE);
        }
        workgroupBarrier();
    }
    if part == 0u {
        store(of_x, row0 + block_row, column0 + block_column, sum0);
        store(of_x, row0 + block_row + 1u, column0 + block_column, sum1);
        store(of_x, row0 + block_row + 2u, column0 + block_column, sum2);
        store(of_x, row0 + block_row + 3u, column0 + block_column, sum3);
    }
}

fn load_x(n: u32, feature: u32) -> f32 {
    if n >= call.batch || feature >= FEATURES {
        return 0.0;
    }
    return f32(x[n * FEATURES + feature]);
}

fn load_w(feature: u32, unit: u32) -> f32 {
    if feature >= FEATURES || unit >= UNITS {
        return 0.0;
    }
    return w[feature * UNITS + unit];
}

// What ReLU let through of dy.
fn load_g(n: u32, unit: u32) -> f32 {
    if n >= call.batch || unit >= UNITS {
        return 0.0;
    }
    let i = n * UNITS + unit;
    if RELU {
        return select(f32(dy[i]), 0.0, y[i] <= 0.0);
    }
    return f32(dy[i]);
}

// A row of a block of sums, its elements as far apart as a part has invocations.
fn put(at: u32, values: vec4<f32>) {
    for (var i = 0u; i < BLOCK; i += 1u) {
        tiles[at + i * SIDE] = values[i];
    }
}

fn take(at: u32) -> vec4<f32> {
    return vec4(tiles[at], tiles[at + SIDE], tiles[at + 2u * SIDE], tiles[at + 3u * SIDE]);
}

fn store(of_x: bool, row: u32, column: u32, values: vec4<f32>) {
    let rows = select(FEATURES, call.batch, of_x);
    let columns = select(UNITS, FEATURES, of_x);
    if row >= rows {
        return;
    }
    for (var i = 0u; i < BLOCK && column + i < columns; i += 1u) {
        let at = row * columns + column + i;
        if of_x {
            dx[at] = DX(values[i]);
        } else {
            dw[at] = values[i];
        }
    }
}
