// dense: y[n, u] = relu(Σ x[n, k] · w[k, u] + b[u])       without relu if not RELU
//
//   x  [batch, FEATURES]
//   w  [FEATURES, UNITS]
//   b  [UNITS]
//   y  [batch, UNITS]     every element written exactly once
//
// A small product with a long sum, as dense layers have: one workgroup computes a 32×32 tile of y, so that there are many. Per
// step of 32 along K it stages 32×32 of x and of w, K first; each quarter of the workgroup takes 8 of the 32 k, an invocation of it
// a 4×4 block. At the end the quarters' sums meet in a fixed tree. What lies past an edge is staged as zero.
//
// Dispatch: ceil(batch / 32) · ceil(UNITS / 32) workgroups, the tiles of a row of tiles side by side.
// CPU twin: `Dense::reference` in src/ops/dense.rs.

// What is stored as f16 where src/ops/stored.rs writes so; sums are f32 in any case.
alias X = f32;
alias Y = f32;

override FEATURES: u32;
override UNITS: u32;
override RELU: bool;

const TILE = 32u;  // edge of a tile of y
const STEP = 32u;  // elements of K staged at a time
const BLOCK = 4u;  // edge of an invocation's block of y
const PARTS = 4u;  // of a workgroup, each with some k of every step
const LANES = 256u;
const PITCH = TILE + 1u;      // of a staged row: neighbouring k lie in different banks
const PLANE = PITCH * STEP;
const SIDE = LANES / PARTS;   // invocations of a part

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<Y>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> tiles: array<f32, 2u * PLANE>; // x [k][row], then w [k][column]; at the end sums

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_n = (UNITS + TILE - 1u) / TILE;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE;
    let column0 = tile % tiles_n * TILE;
    let part = lane / SIDE;
    let block_row = lane % SIDE / (TILE / BLOCK) * BLOCK;
    let block_column = lane % (TILE / BLOCK) * BLOCK;

    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    for (var k0 = 0u; k0 < FEATURES; k0 += STEP) {
        for (var i = lane; i < TILE * STEP; i += LANES) {
            tiles[i % STEP * PITCH + i / STEP] = load_x(row0 + i / STEP, k0 + i % STEP);
            tiles[PLANE + i / TILE * PITCH + i % TILE] = load_w(k0 + i / TILE, column0 + i % TILE);
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
        workgroupBarrier();
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
        store(row0 + block_row, column0 + block_column, sum0);
        store(row0 + block_row + 1u, column0 + block_column, sum1);
        store(row0 + block_row + 2u, column0 + block_column, sum2);
        store(row0 + block_row + 3u, column0 + block_column, sum3);
    }
}

fn load_x(row: u32, k: u32) -> f32 {
    if row >= call.batch || k >= FEATURES {
        return 0.0;
    }
    return f32(x[row * FEATURES + k]);
}

fn load_w(k: u32, column: u32) -> f32 {
    if column >= UNITS || k >= FEATURES {
        return 0.0;
    }
    return w[k * UNITS + column];
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

fn store(row: u32, column: u32, sums: vec4<f32>) {
    if row >= call.batch {
        return;
    }
    for (var i = 0u; i < BLOCK && column + i < UNITS; i += 1u) {
        let z = sums[i] + b[column + i];
        y[row * UNITS + column + i] = Y(select(z, 0.0, RELU && z < 0.0));
    }
}
