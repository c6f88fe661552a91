// accuracy: correct = how many rows n have their first largest logit at labels[n]
//
//   logits   [batch, COLUMNS]
//   labels   [batch], u32
//   correct  one number, a count as a float; 0 for a batch of 0
//
// A row is right if no logit before the label's is as large, none after it is larger, and none is NaN. A label of COLUMNS or
// more is wrong. SHARERS invocations look for an objection in one row, its columns in turn, 256 / SHARERS rows at a time.
//
// Dispatch: 1 workgroup. CPU twin: `Accuracy::reference` in src/ops/loss.rs.

override COLUMNS: u32;
override SHARERS: u32; // a power of two, at most 256

const LANES = 256u;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read_write> correct: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> objections: array<u32, LANES>; // [row][sharer]; at the end the lanes' counts

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var count = 0u;
    for (var first = 0u; first < call.batch; first += LANES / SHARERS) {
        let row = first + lane / SHARERS;
        var objection = 1u;
        if row < call.batch && labels[row] < COLUMNS {
            objection = 0u;
            let label = labels[row];
            let claimed = logits[row * COLUMNS + label];
            for (var c = lane % SHARERS; c < COLUMNS; c += SHARERS) {
                let v = logits[row * COLUMNS + c];
                let larger = v > claimed || (c < label && v == claimed);
                objection |= u32(larger || is_nan(v));
            }
        }
        objections[lane] = objection;
        for (var half = SHARERS / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if lane % SHARERS < half {
                objections[lane] |= objections[lane + half];
            }
        }
        count += u32(lane % SHARERS == 0u && objections[lane] == 0u);
        workgroupBarrier(); // the last round of the tree read its neighbour's word, which the next rows overwrite
    }

    objections[lane] = count;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            objections[lane] += objections[lane + half];
        }
    }
    if lane == 0u {
        correct[0] = f32(objections[0]);
    }
}

// By bits, since compilers may assume that no NaN exists.
fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}
