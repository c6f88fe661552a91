// mlp_head_loss: loss = 1/batch · Σ losses[n]       correct = Σ right[n]
//
//   rows     [batch, WIDTH], the last two columns losses and right, as mlp_head writes them
//   loss     one number; 0 for a batch of 0
//   correct  one number, a count as a float; 0 for a batch of 0
//
// Each invocation adds some rows, and their sums meet in a fixed tree.
//
// Dispatch: 1 workgroup. CPU twin: `MlpHeadLoss::reference` in src/ops/mlp_head/loss.rs.

override WIDTH: u32;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> rows: array<f32>;
@group(0) @binding(1) var<storage, read_write> loss: array<f32>;
@group(0) @binding(2) var<storage, read_write> correct: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> sums: array<vec2<f32>, LANES>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var total = vec2<f32>();
    for (var n = lane; n < call.batch; n += LANES) {
        let end = (n + 1u) * WIDTH;
        total += vec2(rows[end - 2u], rows[end - 1u]);
    }
    sums[lane] = total;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane == 0u {
        loss[0] = sums[0].x / f32(max(call.batch, 1u));
        correct[0] = sums[0].y;
    }
}
