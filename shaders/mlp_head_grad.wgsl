// mlp_head_grad: dw1 = xᵀ · dhidden       db1 = Σ dhidden[n]       dx = dhidden · w1ᵀ
//                dw2 = hiddenᵀ · dlogits  db2 = Σ dlogits[n]
//
//   x     [batch, FEATURES]
//   rows  [batch, 2·UNITS + CLASSES + 2], of which mlp_head writes hidden, dhidden and dlogits, in this order
//   w1    [FEATURES, UNITS]
//   dw1   [FEATURES, UNITS]    every element written exactly once
//   db1   [UNITS]              likewise
//   dx    [batch, FEATURES]    likewise
//   dw2   [UNITS, CLASSES]     likewise
//   db2   [CLASSES]            likewise
//
// Three products side by side, in one dispatch: the first workgroups compute 32×32 tiles of dw1, the next tiles of dw2, the others,
// after a few that have nothing to do, tiles of dx. Those of a weight gradient's first rows add up its bias's too. Each product is
// as in dense_grad, but what is staged next is loaded while what is staged is multiplied.
//
// Dispatch: ceil(FEATURES / 32) · (tiles of UNITS + ceil(tiles of UNITS · tiles of CLASSES / tiles of FEATURES) + ceil(batch / 32))
// workgroups. CPU twin: `MlpHeadGrad::reference` in src/ops/mlp_head/grad.rs.

// What is stored as f16 where src/ops/stored.rs writes so; sums are f32 in any case.
alias X = f32;
alias DX = f32;

override FEATURES: u32;
override UNITS: u32;
override CLASSES: u32;

const TILE = 32u;  // edge of a tile
const STEP = 32u;  // elements of a sum staged at a time
const BLOCK = 4u;  // edge of an invocation's block
const PARTS = 4u;  // of a workgroup, each with some terms of every step
const LANES = 256u;
const PITCH = TILE + 1u;      // of a staged row: neighbouring terms lie in different banks
const PLANE = PITCH * STEP;
const SIDE = LANES / PARTS;   // invocations of a part

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> rows: array<f32>;
@group(0) @binding(2) var<storage, read> w1: array<f32>;
@group(0) @binding(3) var<storage, read_write> dw1: array<f32>;
@group(0) @binding(4) var<storage, read_write> db1: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<DX>;
@group(0) @binding(6) var<storage, read_write> dw2: array<f32>;
@group(0) @binding(7) var<storage, read_write> db2: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> tiles: array<f32, 2u * PLANE>; // the left factor [term][row], then the right [term][column]; at the end sums

// A product, and which of its tiles this is.
struct Product {
    of_x: bool,     // dx, else a weight gradient
    second: bool,   // dw2, else dw1
    rows: u32,
    columns: u32,
    terms: u32,
    row0: u32,
    column0: u32,
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let p = find(group.y * groups.x + group.x);
    if p.row0 >= p.rows {
        return; // the whole workgroup
    }
    let part = lane / SIDE;
    let block_row = lane % SIDE / (TILE / BLOCK) * BLOCK;
    let block_column = lane % (TILE / BLOCK) * BLOCK;
    let adds_bias = !p.of_x && p.row0 == 0u && lane < TILE;

    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    var bias = 0.0;
    var ahead: Factors;
    if p.terms > 0u {
        ahead = load(p, 0u, lane);
    }
    for (var t0 = 0u; t0 < p.terms; t0 += STEP) {
        stage(p, lane, ahead);
        workgroupBarrier();
        ahead = load(p, t0 + STEP, lane);
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
    if adds_bias && p.column0 + lane < p.columns {
        if p.second {
            db2[p.column0 + lane] = bias;
        } else {
            db1[p.column0 + lane] = bias;
        }
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
        store(p, block_row, block_column, sum0);
        store(p, block_row + 1u, block_column, sum1);
        store(p, block_row + 2u, block_column, sum2);
        store(p, block_row + 3u, block_column, sum3);
    }
}

// The product of a workgroup. One that is between dw2's and dx's has no rows.
fn find(group: u32) -> Product {
    let tiles_k = (FEATURES + TILE - 1u) / TILE;
    let tiles_u = (UNITS + TILE - 1u) / TILE;
    let tiles_c = (CLASSES + TILE - 1u) / TILE;
    let before_x = tiles_k * (tiles_u + (tiles_u * tiles_c + tiles_k - 1u) / tiles_k);
    if group >= before_x {
        let place = group - before_x;
        return Product(true, false, call.batch, FEATURES, UNITS, place / tiles_k * TILE, place % tiles_k * TILE);
    }
    if group >= tiles_k * tiles_u {
        let place = group - tiles_k * tiles_u;
        return Product(false, true, UNITS, CLASSES, call.batch, place / tiles_c * TILE, place % tiles_c * TILE);
    }
    return Product(false, false, FEATURES, UNITS, call.batch, group / tiles_u * TILE, group % tiles_u * TILE);
}

// What an invocation stages of a step: of four rows of a factor as it lies in memory, eight apart, the element at the same place.
struct Factors {
    left: vec4<f32>,
    right: vec4<f32>,
}

// Neighbouring invocations take neighbouring addresses of the operand.
fn load(p: Product, t0: u32, lane: u32) -> Factors {
    let far = vec4(lane / TILE) + vec4(0u, 1u, 2u, 3u) * (LANES / TILE);
    let near = lane % TILE;
    if p.of_x {
        return Factors(load_rows(p.row0 + far, UNITS, UNITS, t0 + near), load_w(p.column0 + far, t0 + near));
    }
    if p.second {
        return Factors(load_rows(t0 + far, 0u, UNITS, p.row0 + near), load_rows(t0 + far, 2u * UNITS, CLASSES, p.column0 + near));
    }
    return Factors(load_x(t0 + far, p.row0 + near), load_rows(t0 + far, UNITS, UNITS, p.column0 + near));
}

fn stage(p: Product, lane: u32, factors: Factors) {
    let far = lane / TILE;
    let near = lane % TILE;
    let at = select(far * PITCH + near, near * PITCH + far, p.of_x);
    let apart = LANES / TILE * select(PITCH, 1u, p.of_x);
    for (var i = 0u; i < 4u; i += 1u) {
        tiles[at + i * apart] = factors.left[i];
        tiles[PLANE + at + i * apart] = factors.right[i];
    }
}

// A feature of four images. What is not there is loaded from elsewhere and zero, without a branch in which some compilers would wait.
fn load_x(n: vec4<u32>, feature: u32) -> vec4<f32> {
    let there = (n < vec4(call.batch)) & vec4(feature < FEATURES);
    let at = select(vec4<u32>(), n * FEATURES + feature, there);
    return select(vec4<f32>(), vec4(f32(x[at.x]), f32(x[at.y]), f32(x[at.z]), f32(x[at.w])), there);
}

fn load_w(feature: vec4<u32>, unit: u32) -> vec4<f32> {
    let there = (feature < vec4(FEATURES)) & vec4(unit < UNITS);
    let at = select(vec4<u32>(), feature * UNITS + unit, there);
    return select(vec4<f32>(), vec4(w1[at.x], w1[at.y], w1[at.z], w1[at.w]), there);
}

// Of the part of four images' rows that begins at `first` and has `count` elements, the ones at `i`.
fn load_rows(n: vec4<u32>, first: u32, count: u32, i: u32) -> vec4<f32> {
    let there = (n < vec4(call.batch)) & vec4(i < count);
    let at = select(vec4<u32>(), n * (2u * UNITS + CLASSES + 2u) + first + i, there);
    return select(vec4<f32>(), vec4(rows[at.x], rows[at.y], rows[at.z], rows[at.w]), there);
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

fn store(p: Product, block_row: u32, block_column: u32, values: vec4<f32>) {
    let row = p.row0 + block_row;
    if row >= p.rows {
        return;
    }
    for (var i = 0u; i < BLOCK && p.column0 + block_column + i < p.columns; i += 1u) {
        let at = row * p.columns + p.column0 + block_column + i;
        if p.of_x {
            dx[at] = DX(values[i]);
        } else if p.second {
            dw2[at] = values[i];
        } else {
            dw1[at] = values[i];
        }
    }
}
