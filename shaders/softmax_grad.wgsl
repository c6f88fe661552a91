// softmax_grad: dx[r, c] = y[r, c] · (dy[r, c] - Σ y[r, j] · dy[r, j]) over the columns j of row r
//
//   y   [ROWS, COLUMNS], ROWS · batch if BATCHED: what softmax gave
//   dy  of the same shape
//   dx  of the same shape
//
// SHARERS invocations take one row, its columns in turn; their sums meet in a fixed tree.
// Dispatch: ceil(rows / (256 / SHARERS)) workgroups. CPU twin: `SoftmaxGrad::reference` in src/ops/softmax.rs.

override ROWS: u32;
override COLUMNS: u32;
override BATCHED: bool;
override SHARERS: u32; // a power of two, at most 256

const LANES = 256u;

@group(0) @binding(0) var<storage, read> y: array<f32>;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> shared_values: array<f32, LANES>; // [row][sharer]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let rows = select(ROWS, ROWS * call.batch, BATCHED);
    let row = (group.y * groups.x + group.x) * (LANES / SHARERS) + lane / SHARERS;
    let end = select(0u, COLUMNS, row < rows);

    var product = 0.0;
    for (var c = lane % SHARERS; c < end; c += SHARERS) {
        product += y[row * COLUMNS + c] * dy[row * COLUMNS + c];
    }
    product = row_sum(lane, product);
    for (var c = lane % SHARERS; c < end; c += SHARERS) {
        dx[row * COLUMNS + c] = y[row * COLUMNS + c] * (dy[row * COLUMNS + c] - product);
    }
}

// The sum of the values of a row's sharers, told to all of them.
fn row_sum(lane: u32, value: f32) -> f32 {
    shared_values[lane] = value;
    for (var half = SHARERS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % SHARERS < half {
            shared_values[lane] += shared_values[lane + half];
        }
    }
    workgroupBarrier();
    let sum = shared_values[lane - lane % SHARERS];
    workgroupBarrier();
    return sum;
}
