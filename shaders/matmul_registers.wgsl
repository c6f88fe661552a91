// matmul_registers: C = op(A) · op(B)
//
//   a  [M, K], or [K, M] if TRANSPOSE_A   row-major, the last axis a multiple of 4
//   b  [K, N], or [N, K] if TRANSPOSE_B   row-major, the last axis a multiple of 4
//   c  [M, N]                             row-major, N a multiple of 4, every element written exactly once
//
// The product of matmul without workgroup memory and barriers, for adapters on which those are slow. One invocation computes
// a 16×16 tile of C in registers, as 4×4 matrices: along K it takes 4×16 of A and of B. Past an edge the last row or column is
// computed again and not stored; past the end of K, which only [K, M] and [K, N] can have inside a load, A counts as zero. All
// of A is loaded before B: LLVM then keeps more of it in registers.
//
// Dispatch: ceil(M / (16·LANES)) · ceil(N / 16) workgroups; an invocation's neighbours are at the other columns of its rows.
// CPU twin: `Matmul::reference` in src/ops/matmul.rs.

override M: u32; // 0: the batch
override N: u32;
override K: u32; // 0: the batch
override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;

const TILE = 16u; // edge of an invocation's tile of C
const LANES = 8u;

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> c: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// Four rows, a column each, at four k.
fn load_a(row: u32, k: u32, rows: u32, depth: u32) -> mat4x4<f32> {
    if TRANSPOSE_A {
        let steps = vec4(k, k + 1u, k + 2u, k + 3u);
        let at = min(steps, vec4(depth - 1u)) * (rows / 4u) + min(row, rows - 4u) / 4u;
        let inside = steps < vec4(depth);
        return transpose(mat4x4(
            select(vec4<f32>(), a[at.x], inside.x),
            select(vec4<f32>(), a[at.y], inside.y),
            select(vec4<f32>(), a[at.z], inside.z),
            select(vec4<f32>(), a[at.w], inside.w),
        ));
    }
    let at = min(vec4(row, row + 1u, row + 2u, row + 3u), vec4(rows - 1u)) * (depth / 4u) + k / 4u;
    return mat4x4(a[at.x], a[at.y], a[at.z], a[at.w]);
}

// Four k, a column each, of four columns.
fn load_b(k: u32, column: u32, depth: u32) -> mat4x4<f32> {
    let first = min(column, N - 4u);
    if TRANSPOSE_B {
        let at = vec4(first, first + 1u, first + 2u, first + 3u) * (depth / 4u) + k / 4u;
        return transpose(mat4x4(b[at.x], b[at.y], b[at.z], b[at.w]));
    }
    let at = min(vec4(k, k + 1u, k + 2u, k + 3u), vec4(depth - 1u)) * (N / 4u) + first / 4u;
    return mat4x4(b[at.x], b[at.y], b[at.z], b[at.w]);
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = select(M, call.batch, M == 0u);
    let depth = select(K, call.batch, K == 0u);
    let tiles_n = (N + TILE - 1u) / TILE;
    let tile = (group.y * groups.x + group.x) * LANES + lane;
    let row = tile / tiles_n * TILE;
    let column = tile % tiles_n * TILE;
    if row >= rows {
        return;
    }

    // s12: rows 4 to 7, columns 8 to 11. A column of the matrix is a row of the tile.
    var s00 = mat4x4<f32>();
    var s01 = mat4x4<f32>();
    var s02 = mat4x4<f32>();
    var s03 = mat4x4<f32>();
    var s10 = mat4x4<f32>();
    var s11 = mat4x4<f32>();
    var s12 = mat4x4<f32>();
    var s13 = mat4x4<f32>();
    var s20 = mat4x4<f32>();
    var s21 = mat4x4<f32>();
    var s22 = mat4x4<f32>();
    var s23 = mat4x4<f32>();
    var s30 = mat4x4<f32>();
    var s31 = mat4x4<f32>();
    var s32 = mat4x4<f32>();
    var s33 = mat4x4<f32>();
    for (var k = 0u; k < depth; k += 4u) {
        let a0 = load_a(row, k, rows, depth);
        let a1 = load_a(row + 4u, k, rows, depth);
        let a2 = load_a(row + 8u, k, rows, depth);
        let a3 = load_a(row + 12u, k, rows, depth);
        let b0 = load_b(k, column, depth);
        s00 += b0 * a0;
        s10 += b0 * a1;
        s20 += b0 * a2;
        s30 += b0 * a3;
        let b1 = load_b(k, column + 4u, depth);
        s01 += b1 * a0;
        s11 += b1 * a1;
        s21 += b1 * a2;
        s31 += b1 * a3;
        let b2 = load_b(k, column + 8u, depth);
        s02 += b2 * a0;
        s12 += b2 * a1;
        s22 += b2 * a2;
        s32 += b2 * a3;
        let b3 = load_b(k, column + 12u, depth);
        s03 += b3 * a0;
        s13 += b3 * a1;
        s23 += b3 * a2;
        s33 += b3 * a3;
    }
    store(row, column, rows, s00, s10, s20, s30);
    store(row, column + 4u, rows, s01, s11, s21, s31);
    store(row, column + 8u, rows, s02, s12, s22, s32);
    store(row, column + 12u, rows, s03, s13, s23, s33);
}

// Stores a quad of columns of all rows.
fn store(row: u32, column: u32, rows: u32, s0: mat4x4<f32>, s1: mat4x4<f32>, s2: mat4x4<f32>, s3: mat4x4<f32>) {
    if column < N {
        store_rows(row, column, rows, s0);
        store_rows(row + 4u, column, rows, s1);
        store_rows(row + 8u, column, rows, s2);
        store_rows(row + 12u, column, rows, s3);
    }
}

fn store_rows(row: u32, column: u32, rows: u32, s: mat4x4<f32>) {
    let pitch = N / 4u;
    let at = row * pitch + column / 4u;
    if row < rows {
        c[at] = s[0];
    }
    if row + 1u < rows {
        c[at + pitch] = s[1];
    }
    if row + 2u < rows {
        c[at + 2u * pitch] = s[2];
    }
    if row + 3u < rows {
        c[at + 3u * pitch] = s[3];
    }
}
