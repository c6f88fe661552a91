// matmul_registers_narrow: C = op(A) · op(B)
//
//   a  [M, K], or [K, M] if TRANSPOSE_A   row-major
//   b  [K, N], or [N, K] if TRANSPOSE_B   row-major
//   c  [M, N]                             row-major, every element written exactly once
//
// matmul_registers for extents that do not come in fours, such as the 10 classes of a picture: it loads and stores one by one, a
// row's four k for A, and tiles have 16 rows, since such products are small. Past an edge the last row or column is computed again
// and not stored; what is past the end of K counts as zero.
//
// Dispatch: ceil(M / 16) · ceil(N / 32) workgroups, for subgroups of SPREAD invocations or more.
// CPU twin: `Matmul::reference` in src/ops/matmul.rs.

override M: u32; // 0: the batch
override N: u32;
override K: u32; // 0: the batch
override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;

override SPREAD: u32;   // invocations of a subgroup that share the loads of a tile, 4 or 8

const TILE = 16u;  // rows of a tile
const LANES = 8u;  // invocations of a workgroup, with four columns each
const MOST = 4u;   // vectors that an invocation loads for all: TILE / SPREAD of them are used

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

// A row of A at four k.
fn load_a(wanted: u32, k: u32, rows: u32, depth: u32) -> vec4<f32> {
    let row = min(wanted, rows - 1u);
    let steps = vec4(k, k + 1u, k + 2u, k + 3u);
    let safe = min(steps, vec4(depth - 1u));
    var at = row * depth + safe;
    if TRANSPOSE_A {
        at = safe * rows + row;
    }
    return select(vec4<f32>(), vec4(a[at.x], a[at.y], a[at.z], a[at.w]), steps < vec4(depth));
}

// Four columns of B at one k.
fn load_b(k: u32, column: u32, depth: u32) -> vec4<f32> {
    let columns = min(vec4(column, column + 1u, column + 2u, column + 3u), vec4(N - 1u));
    let safe = min(k, depth - 1u);
    var at = safe * N + columns;
    if TRANSPOSE_B {
        at = columns * depth + safe;
    }
    return select(vec4<f32>(), vec4(b[at.x], b[at.y], b[at.z], b[at.w]), k < depth);
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
    for (var k = 0u; k < depth; k += 4u) {
        var own: array<vec4<f32>, MOST>;
        for (var i = 0u; i < TILE / SPREAD; i += 1u) {
            own[i] = load_a(row + i * SPREAD + id % SPREAD, k, rows, depth);
        }
        let columns =
            mat4x4(load_b(k, column, depth), load_b(k + 1u, column, depth), load_b(k + 2u, column, depth), load_b(k + 3u, column, depth));
        s0 += columns * four(&own, 0u);
        s1 += columns * four(&own, 4u);
        s2 += columns * four(&own, 8u);
        s3 += columns * four(&own, 12u);
    }
    if column >= N {
        return;
    }
    // In a loop: a third of the time that a software adapter compiled went into stores.
    for (var i = 0u; i < min(TILE, rows - row); i += 1u) {
        let m = i / 4u;
        let v0 = pick(m, s0[0], s1[0], s2[0], s3[0]);
        let v1 = pick(m, s0[1], s1[1], s2[1], s3[1]);
        let v2 = pick(m, s0[2], s1[2], s2[2], s3[2]);
        let v3 = pick(m, s0[3], s1[3], s2[3], s3[3]);
        let values = pick(i % 4u, v0, v1, v2, v3);
        let at = (row + i) * N + column;
        c[at] = values.x;
        if column + 1u < N {
            c[at + 1u] = values.y;
        }
        if column + 2u < N {
            c[at + 2u] = values.z;
        }
        if column + 3u < N {
            c[at + 3u] = values.w;
        }
    }
}

// The i-th of four, without a branch or a place in memory.
fn pick(i: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>) -> vec4<f32> {
    return select(select(v0, v1, i == 1u), select(v2, v3, i == 3u), i >= 2u);
}
