// softmax: y[r, c] = exp(x[r, c] - max) / Σ exp(x[r, j] - max) over the columns j of row r
//
//   x  [ROWS, COLUMNS], ROWS · batch if BATCHED
//   y  of the same shape
//
// The row's maximum is subtracted, so no exponential overflows. A row with a NaN becomes all NaN.
//
// SHARERS invocations take one row, its columns in turn; their maxima and sums meet in a fixed tree.
// Dispatch: ceil(rows / (256 / SHARERS)) workgroups. CPU twin: `Softmax::reference` in src/ops/softmax.rs.

override ROWS: u32;
override COLUMNS: u32;
override BATCHED: bool;
override SHARERS: u32; // a power of two, at most 256

const LANES = 256u;
const LOWEST = -3.4028234e38;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
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

    var most = LOWEST;
    for (var c = lane % SHARERS; c < end; c += SHARERS) {
        most = max(most, x[row * COLUMNS + c]);
    }
    most = row_max(lane, most);
    var sum = 0.0;
    for (var c = lane % SHARERS; c < end; c += SHARERS) {
        sum += exp_or_nan(x[row * COLUMNS + c] - most);
    }
    sum = row_sum(lane, sum);
    for (var c = lane % SHARERS; c < end; c += SHARERS) {
        y[row * COLUMNS + c] = exp_or_nan(x[row * COLUMNS + c] - most) / sum;
    }
}

// The largest value among a row's sharers, told to all of them.
fn row_max(lane: u32, value: f32) -> f32 {
    shared_values[lane] = value;
    for (var half = SHARERS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % SHARERS < half {
            shared_values[lane] = max(shared_values[lane], shared_values[lane + half]);
        }
    }
    workgroupBarrier();
    let most = shared_values[lane - lane % SHARERS];
    workgroupBarrier();
    return most;
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

// A driver may make a number of the exponential of a NaN; a diverged network must show.
fn exp_or_nan(v: f32) -> f32 {
    return select(exp(v), v, is_nan(v));
}

// By its bits: a compiler may take it that v == v.
fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}
