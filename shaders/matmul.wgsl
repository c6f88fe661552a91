// matmul: C = op(A) · op(B)
//
//   a  [M, K], or [K, M] if TRANSPOSE_A   row-major
//   b  [K, N], or [N, K] if TRANSPOSE_B   row-major
//   c  [M, N]                             row-major, every element written exactly once
//
// One workgroup computes a TILE_M×TILE_N tile of C, one invocation a BLOCK_M×BLOCK_N block of it. Per step along K the
// workgroup stages STEP×TILE_M of A and STEP×TILE_N of B in shared memory, K first. What lies past an edge is staged as zero,
// so the inner loop needs no bounds test; only the final store does.
//
// Dispatch: ceil(M / TILE_M) · ceil(N / TILE_N) workgroups, the tiles of a row of tiles side by side.
// CPU twin: `Matmul::reference` in src/ops/matmul.rs.

override M: u32; // 0: the batch
override N: u32;
override K: u32; // 0: the batch
override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;
override TILE_M: u32;   // rows of a workgroup's tile
override TILE_N: u32;   // and its columns
override STEP: u32;     // elements of K staged at a time
override BLOCK_M: u32;  // rows of an invocation's block, 4 or 8
override BLOCK_N: u32;  // and its columns, 4 or 8
override LANES: u32 = TILE_M / BLOCK_M * (TILE_N / BLOCK_N);

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> a_tile: array<f32, TILE_M * STEP>; // [k][row]
var<workgroup> b_tile: array<f32, TILE_N * STEP>; // [k][column]

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

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = select(M, call.batch, M == 0u);
    let depth = select(K, call.batch, K == 0u);
    let tiles_n = (N + TILE_N - 1u) / TILE_N;
    let tile = group.y * groups.x + group.x;
    let row0 = tile / tiles_n * TILE_M;
    let column0 = tile % tiles_n * TILE_N;
    let block_row = lane / (TILE_N / BLOCK_N) * BLOCK_M;
    let block_column = lane % (TILE_N / BLOCK_N) * BLOCK_N;

    // The block's quarters, or what it has of them: s01 is right of s00 and s10 below. A column of the matrix is a row of the block.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    for (var k0 = 0u; k0 < depth; k0 += STEP) {
        // Neighbouring invocations take neighbouring addresses of the operand, whichever way it is stored.
        for (var i = lane; i < TILE_M * STEP; i += LANES) {
            let at = select(vec2(i % STEP, i / STEP), vec2(i / TILE_M, i % TILE_M), TRANSPOSE_A); // k, row
            a_tile[at.x * TILE_M + at.y] = load_a(row0 + at.y, k0 + at.x, rows, depth);
        }
        for (var i = lane; i < TILE_N * STEP; i += LANES) {
            let at = select(vec2(i / TILE_N, i % TILE_N), vec2(i % STEP, i / STEP), TRANSPOSE_B); // k, column
            b_tile[at.x * TILE_N + at.y] = load_b(k0 + at.x, column0 + at.y, depth);
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k += 1u) {
            let i = k * TILE_M + block_row;
            let j = k * TILE_N + block_column;
            let rows0 = a_quad(i);
            let columns0 = b_quad(j);
            s00 += outer(rows0, columns0);
            var columns1 = vec4<f32>();
            if BLOCK_N == 8u {
                columns1 = b_quad(j + 4u);
                s01 += outer(rows0, columns1);
            }
            if BLOCK_M == 8u {
                let rows1 = a_quad(i + 4u);
                s10 += outer(rows1, columns0);
                if BLOCK_N == 8u {
                    s11 += outer(rows1, columns1);
                }
            }
        }
        workgroupBarrier();
    }
    let row = row0 + block_row;
    let column = column0 + block_column;
    store(row, column, rows, s00);
    if BLOCK_N == 8u {
        store(row, column + 4u, rows, s01);
    }
    if BLOCK_M == 8u {
        store(row + 4u, column, rows, s10);
        if BLOCK_N == 8u {
            store(row + 4u, column + 4u, rows, s11);
        }
    }
}

fn store(row: u32, column: u32, rows: u32, s: mat4x4<f32>) {
    store_row(row, column, rows, s[0]);
    store_row(row + 1u, column, rows, s[1]);
    store_row(row + 2u, column, rows, s[2]);
    store_row(row + 3u, column, rows, s[3]);
}

fn store_row(row: u32, column: u32, rows: u32, values: vec4<f32>) {
    if row >= rows {
        return;
    }
    for (var i = 0u; i < 4u && column + i < N; i += 1u) {
        c[row * N + column + i] = values[i];
    }
}

fn a_quad(i: u32) -> vec4<f32> {
    return vec4(a_tile[i], a_tile[i + 1u], a_tile[i + 2u], a_tile[i + 3u]);
}

fn b_quad(i: u32) -> vec4<f32> {
    return vec4(b_tile[i], b_tile[i + 1u], b_tile[i + 2u], b_tile[i + 3u]);
}

// Each row times each column; a column of the matrix is a row.
fn outer(rows: vec4<f32>, columns: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(columns * rows.x, columns * rows.y, columns * rows.z, columns * rows.w);
}
