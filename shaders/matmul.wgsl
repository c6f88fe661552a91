// matmul: C = op(A) · op(B)
//
//   a  [M, K], or [K, M] if TRANSPOSE_A   row-major
//   b  [K, N], or [N, K] if TRANSPOSE_B   row-major
//   c  [M, N]                             row-major, every element written exactly once
//
// One workgroup computes a 64×64 tile of C, one invocation a 4×4 block of it. Per step of 16 along K the workgroup stages
// 16×64 of A and of B in shared memory (4 KiB each), K first. What lies past an edge is staged as zero, so the inner loop
// needs no bounds test; only the final store does.
//
// Dispatch: ceil(M / 64) · ceil(N / 64) workgroups, the tiles of a row of tiles side by side.
// CPU twin: `Matmul::reference` in src/ops/matmul.rs.

override M: u32; // 0: the batch
override N: u32;
override K: u32; // 0: the batch
override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;

const TILE = 64u;  // edge of a tile of C
const STEP = 16u;  // elements of K staged at a time
const BLOCK = 4u;  // edge of an invocation's block of C
const LANES = 256u;

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> a_tile: array<f32, TILE * STEP>; // [k][row]
var<workgroup> b_tile: array<f32, TILE * STEP>; // [k][column]

fn load_a(row: u32, k: u32, rows: u32, depth: u32) -> f32 {
    if row >= rows || k >= depth {
        return 0.0;
    }
    if TRANSPOSE_A {
        return a[k * rows + row];
    }
    return a[row * depth + k];
}

fn load_b(k: u32, column: u32, depth: u32) -> f32 {
    if column >= N || k >= depth {
        return 0.0;
    }
    if TRANSPOSE_B {
        return b[column * depth + k];
    }
    return b[k * N + column];
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = select(M, call.batch, M == 0u);
    let depth = select(K, call.batch, K == 0u);
    let tiles_n = (N + TILE - 1u) / TILE;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE;
    let column0 = tile % tiles_n * TILE;
    let block_row = lane / 16u * BLOCK;
    let block_column = lane % 16u * BLOCK;

    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        // Neighbouring invocations take neighbouring addresses of the operand, whichever way it is stored.
        for (var i = lane; i < TILE * STEP; i += LANES) {
            let by_row = vec2(i / TILE, i % TILE);
            let by_k = vec2(i % STEP, i / STEP);
            let at_a = select(by_k, by_row, TRANSPOSE_A);
            a_tile[at_a.x * TILE + at_a.y] = load_a(row0 + at_a.y, k0 + at_a.x, rows, depth);
            let at_b = select(by_row, by_k, TRANSPOSE_B);
            b_tile[at_b.x * TILE + at_b.y] = load_b(k0 + at_b.x, column0 + at_b.y, depth);
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k += 1u) {
            let i = k * TILE + block_row;
            let j = k * TILE + block_column;
            let right = vec4(b_tile[j], b_tile[j + 1u], b_tile[j + 2u], b_tile[j + 3u]);
            sum0 += a_tile[i] * right;
            sum1 += a_tile[i + 1u] * right;
            sum2 += a_tile[i + 2u] * right;
            sum3 += a_tile[i + 3u] * right;
        }
        workgroupBarrier();
    }
    store(row0 + block_row, column0 + block_column, rows, sum0);
    store(row0 + block_row + 1u, column0 + block_column, rows, sum1);
    store(row0 + block_row + 2u, column0 + block_column, rows, sum2);
    store(row0 + block_row + 3u, column0 + block_column, rows, sum3);
}

fn store(row: u32, column: u32, rows: u32, values: vec4<f32>) {
    if row >= rows {
        return;
    }
    for (var i = 0u; i < BLOCK && column + i < N; i += 1u) {
        c[row * N + column + i] = values[i];
    }
}
