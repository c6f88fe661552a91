// mlp_head_tick: log[clock[0]] = [1/batch · Σ losses[n], Σ right[n]], then clock and rate move on to the next training step
//
//   rows   [batch, WIDTH], the last two columns losses and right, as mlp_head writes them; both sums are 0 for a batch of 0
//   clock  [2], u32: steps done in this epoch, images done in this epoch; changed in place
//   log    [STEPS, 2], one row changed in place; a step past its end writes nothing
//   rate   [4]: lr, u1 = 1 - β1ᵗ, u2 = 1 - β2ᵗ, what is left of u2's rounding; changed in place
//
// mlp_head_loss and tick in one: each invocation adds some rows, and their sums meet in a fixed tree; then one does what tick does,
// where it says why.
//
// Dispatch: 1 workgroup. CPU twin: `MlpHeadTick::reference` in src/ops/mlp_head/tick.rs.

override WIDTH: u32;
override STEPS: u32;
override STEP1: f32; // 1 - β1
override STEP2: f32; // 1 - β2

const LANES = 256u;

@group(0) @binding(0) var<storage, read> rows: array<f32>;
@group(0) @binding(1) var<storage, read_write> clock: array<u32>;
@group(0) @binding(2) var<storage, read_write> log_rows: array<f32>;
@group(0) @binding(3) var<storage, read_write> rate: array<f32>;
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
    if lane > 0u {
        return;
    }
    let done = clock[0];
    if done < STEPS {
        log_rows[2u * done] = sums[0].x / f32(max(call.batch, 1u));
        log_rows[2u * done + 1u] = sums[0].y;
    }
    clock[0] = done + 1u;
    clock[1] += call.batch;

    let excess = rate[3]; // by which rate[2] is too large
    rate[1] += STEP1 * (1.0 - rate[1]);
    let before = rate[2];
    let step = STEP2 * (1.0 - before + excess) - excess;
    let after = before + step;
    rate[2] = after;
    rate[3] = (after - before) - step;
}
