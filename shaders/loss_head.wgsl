// loss_head: loss = 1/batch · Σ (log Σ exp(logits[n, j] - max) + max - logits[n, labels[n]])
//            correct = how many rows n have their first largest logit at labels[n]
//            dlogits[n, c] = (softmax(logits[n])[c] - [c = labels[n]]) · dloss / batch
//
//   logits   [batch, COLUMNS]
//   labels   [batch], u32
//   dloss    one number
//   loss     one number; 0 for a batch of 0, NaN if a logit is NaN or a label is COLUMNS or more
//   correct  one number, a count as a float; 0 for a batch of 0
//   dlogits  [batch, COLUMNS]; a row whose label is COLUMNS or more is NaN
//
// What softmax_cross_entropy, accuracy and softmax_cross_entropy_grad do, in one. A row is right if no logit before the label's is
// as large, none after it is larger, and none is NaN. One workgroup computes it all. SHARERS invocations take one row, its columns
// in turn, 256 / SHARERS rows at a time; the rows' losses and counts meet in a fixed tree.
//
// Dispatch: 1 workgroup. CPU twin: `LossHead::reference` in src/ops/loss/head.rs.

override COLUMNS: u32;
override SHARERS: u32; // a power of two, at most 256

const LANES = 256u;
const LOWEST = -3.4028234e38;
const NAN = 0x7fc00000u; // its bits

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read> dloss: array<f32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read_write> correct: array<f32>;
@group(0) @binding(5) var<storage, read_write> dlogits: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> shared_values: array<vec2<f32>, LANES>; // [row][sharer]

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    let scale = dloss[0] / f32(max(call.batch, 1u));
    var total = vec2<f32>(); // of the losses and of right answers
    for (var first = 0u; first < call.batch; first += LANES / SHARERS) {
        let row = first + lane / SHARERS;
        let end = select(0u, COLUMNS, row < call.batch);
        let label = labels[min(row, call.batch - 1u)];
        let claimed = logits[min(row, call.batch - 1u) * COLUMNS + min(label, COLUMNS - 1u)];
        var most = LOWEST;
        var objection = f32(label >= COLUMNS);
        for (var c = lane % SHARERS; c < end; c += SHARERS) {
            let v = logits[row * COLUMNS + c];
            most = max(most, v);
            let larger = v > claimed || (c < label && v == claimed);
            objection += f32(larger || is_nan(v));
        }
        most = row_max(lane, most);
        var sum = 0.0;
        for (var c = lane % SHARERS; c < end; c += SHARERS) {
            sum += exp_or_nan(logits[row * COLUMNS + c] - most);
        }
        let sums = row_sum(lane, vec2(sum, objection));
        for (var c = lane % SHARERS; c < end; c += SHARERS) {
            let probability = exp_or_nan(logits[row * COLUMNS + c] - most) / sums.x;
            let value = (probability - f32(c == label)) * scale;
            dlogits[row * COLUMNS + c] = bitcast<f32>(select(bitcast<u32>(value), NAN, label >= COLUMNS));
        }
        if row < call.batch && lane % SHARERS == 0u {
            let value = log_or_nan(sums.x) + (most - claimed);
            total += vec2(bitcast<f32>(select(bitcast<u32>(value), NAN, label >= COLUMNS)), f32(sums.y == 0.0));
        }
    }

    shared_values[lane] = total;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            shared_values[lane] += shared_values[lane + half];
        }
    }
    if lane == 0u {
        loss[0] = shared_values[0].x / f32(max(call.batch, 1u));
        correct[0] = shared_values[0].y;
    }
}

// The largest value among a row's sharers, told to all of them.
fn row_max(lane: u32, value: f32) -> f32 {
    shared_values[lane].x = value;
    for (var half = SHARERS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % SHARERS < half {
            shared_values[lane].x = max(shared_values[lane].x, shared_values[lane + half].x);
        }
    }
    workgroupBarrier();
    let most = shared_values[lane - lane % SHARERS].x;
    workgroupBarrier();
    return most;
}

// The sums of the values of a row's sharers, told to all of them.
fn row_sum(lane: u32, values: vec2<f32>) -> vec2<f32> {
    shared_values[lane] = values;
    for (var half = SHARERS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % SHARERS < half {
            shared_values[lane] += shared_values[lane + half];
        }
    }
    workgroupBarrier();
    let sums = shared_values[lane - lane % SHARERS];
    workgroupBarrier();
    return sums;
}

// A driver may make a number of the exponential of a NaN; a diverged network must show.
fn exp_or_nan(v: f32) -> f32 {
    return select(exp(v), v, is_nan(v));
}

// The same for the logarithm.
fn log_or_nan(v: f32) -> f32 {
    return select(log(v), v, is_nan(v));
}

// By its bits: a compiler may take it that v == v.
fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}
