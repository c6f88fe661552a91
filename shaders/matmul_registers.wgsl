// matmul_registers: C = op(A) · op(B)
//
//   a  [M, K], or [K, M] if TRANSPOSE_A   row-major, the last axis a multiple of 4
//   b  [K, N], or [N, K] if TRANSPOSE_B   row-major, the last axis a multiple of 4
//   c  [M, N]                             row-major, N a multiple of 4, every element written exactly once
//
// The product of matmul without workgroup memory and barriers, for adapters on which those are slow. A workgroup computes a
// 32×32 tile of C, an invocation four of its columns, in registers, as 4×4 matrices: along K it takes 32×4 of A and 4×4 of B. All
// invocations need the same of A: of its 32 vectors, a row's four k, or four rows of one k, each loads one in SPREAD, and has the
// others from its neighbours, which costs such adapters far less than a load. Past an edge the last row or column is computed
// again and not stored; past the end of K, which only [K, M] and [K, N] can have inside a load, A counts as zero.
//
// Dispatch: ceil(M / 32) · ceil(N / 32) workgroups, for subgroups of SPREAD invocations or more.
// CPU twin: `Matmul::reference` in src/ops/matmul.rs.

override M: u32; // 0: the batch
override N: u32;
override K: u32; // 0: the batch
override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;

override SPREAD: u32;   // invocations of a subgroup that share the loads of a tile, 4 or 8

const TILE = 32u;  // rows of a tile
const LANES = 8u;  // invocations of a workgroup, with four columns each
const MOST = 8u;   // vectors that an invocation loads for all: TILE / SPREAD of them are used

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> c: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// A vector of A: four k of row i of the tile, or, of [K, M], four rows from i / 4 on at one k.
fn load_a(row: u32, i: u32, k: u32, rows: u32, depth: u32) -> vec4<f32> {
    if TRANSPOSE_A {
        let step = k + i % 4u;
        let at = min(step, depth - 1u) * (rows / 4u) + min(row + i / 4u * 4u, rows - 4u) / 4u;
        return select(vec4<f32>(), a[at], step < depth);
    }
    return a[min(row + i, rows - 1u) * (depth / 4u) + k / 4u];
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

// Four rows of the tile, a column each, at four k.
fn rows_of(own: ptr<function, array<vec4<f32>, MOST>>, first: u32) -> mat4x4<f32> {
    let vectors = four(own, first);
    if TRANSPOSE_A {
        return transpose(vectors);
    }
    return vectors;
}

// Four of the tile's vectors, a column each.
fn four(own: ptr<function, array<vec4<f32>, MOST>>, first: u32) -> mat4x4<f32> {
    return mat4x4(one(own, first), one(own, first + 1u), one(own, first + 2u), one(own, first + 3u));
}

fn one(own: ptr<function, array<vec4<f32>, MOST>>, i: u32) -> vec4<f32> {
    return subgroupShuffle((*own)[i / SPREAD], i % SPREAD);
}

@compute @workgroup_size(8)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) id: u32,
) {
    let rows = select(M, call.batch, M == 0u);
    let depth = select(K, call.batch, K == 0u);
    let tiles_n = (N + 4u * LANES - 1u) / (4u * LANES);
    let tile = group.y * groups.x + group.x;
    let row = tile / tiles_n * TILE;
    let column = (tile % tiles_n * LANES + lane) * 4u;
    if row >= rows {
        return;
    }

    // s1: rows 4 to 7. A column of the matrix is a row of the tile.
    var s0 = mat4x4<f32>();
    var s1 = mat4x4<f32>();
    var s2 = mat4x4<f32>();
    var s3 = mat4x4<f32>();
    var s4 = mat4x4<f32>();
    var s5 = mat4x4<f32>();
    var s6 = mat4x4<f32>();
    var s7 = mat4x4<f32>();
    for (var k = 0u; k < depth; k += 4u) {
        var own: array<vec4<f32>, MOST>;
        for (var i = 0u; i < TILE / SPREAD; i += 1u) {
            own[i] = load_a(row, i * SPREAD + id % SPREAD, k, rows, depth);
        }
        let columns = load_b(k, column, depth);
        s0 += columns * rows_of(&own, 0u);
        s1 += columns * rows_of(&own, 4u);
        s2 += columns * rows_of(&own, 8u);
        s3 += columns * rows_of(&own, 12u);
        s4 += columns * rows_of(&own, 16u);
        s5 += columns * rows_of(&own, 20u);
        s6 += columns * rows_of(&own, 24u);
        s7 += columns * rows_of(&own, 28u);
    }
    if column >= N {
        return;
    }
    // In a loop: a third of the time that a software adapter compiled went into stores.
    for (var m = 0u; m < min(TILE, rows - row + 3u) / 4u; m += 1u) {
        let first = row + 4u * m;
        c[(first * N + column) / 4u] = pick(m, s0[0], s1[0], s2[0], s3[0], s4[0], s5[0], s6[0], s7[0]);
        if first + 1u < rows {
            c[((first + 1u) * N + column) / 4u] = pick(m, s0[1], s1[1], s2[1], s3[1], s4[1], s5[1], s6[1], s7[1]);
        }
        if first + 2u < rows {
            c[((first + 2u) * N + column) / 4u] = pick(m, s0[2], s1[2], s2[2], s3[2], s4[2], s5[2], s6[2], s7[2]);
        }
        if first + 3u < rows {
            c[((first + 3u) * N + column) / 4u] = pick(m, s0[3], s1[3], s2[3], s3[3], s4[3], s5[3], s6[3], s7[3]);
        }
    }
}

// The i-th of eight, without a branch or a place in memory.
fn pick(
    i: u32,
    v0: vec4<f32>,
    v1: vec4<f32>,
    v2: vec4<f32>,
    v3: vec4<f32>,
    v4: vec4<f32>,
    v5: vec4<f32>,
    v6: vec4<f32>,
    v7: vec4<f32>,
) -> vec4<f32> {
    let low = select(select(v0, v1, i == 1u), select(v2, v3, i == 3u), i >= 2u);
    let high = select(select(v4, v5, i == 5u), select(v6, v7, i == 7u), i >= 6u);
    return select(low, high, i >= 4u);
}
