// softmax_cross_entropy_grad: dlogits[n, c] = (softmax(logits[n])[c] - [c = labels[n]]) · dloss / batch
//
//   logits   [batch, COLUMNS]
//   labels   [batch], u32
//   dloss    one number
//   dlogits  [batch, COLUMNS]; a row whose label is COLUMNS or more is NaN
//
// SHARERS invocations take one row, its columns in turn; their maxima and sums meet in a fixed tree.
// Dispatch: ceil(batch / (256 / SHARERS)) workgroups. CPU twin: `SoftmaxCrossEntropyGrad::reference` in src/ops/loss.rs.

override COLUMNS: u32;
override SHARERS: u32; // a power of two, at most 256

const LANES = 256u;
const LOWEST = -3.4028234e38;
const NAN = 0x7fc00000u; // its bits

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read> dloss: array<f32>;
@group(0) @binding(3) var<storage, read_write> dlogits: array<f32>;
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
    let row = (group.y * groups.x + group.x) * (LANES / SHARERS) + lane / SHARERS;
    let end = select(0u, COLUMNS, row < call.batch);

    var most = LOWEST;
    for (var c = lane % SHARERS; c < end; c += SHARERS) {
        most = max(most, logits[row * COLUMNS + c]);
    }
    most = row_max(lane, most);
    var sum = 0.0;
    for (var c = lane % SHARERS; c < end; c += SHARERS) {
        sum += exp_or_nan(logits[row * COLUMNS + c] - most);
    }
    sum = row_sum(lane, sum);
    if row >= call.batch {
        return;
    }
    let label = labels[row];
    let scale = dloss[0] / f32(call.batch);
    for (var c = lane % SHARERS; c < end; c += SHARERS) {
        let probability = exp_or_nan(logits[row * COLUMNS + c] - most) / sum;
        let value = (probability - f32(c == label)) * scale;
        dlogits[row * COLUMNS + c] = bitcast<f32>(select(bitcast<u32>(value), NAN, label >= COLUMNS));
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
