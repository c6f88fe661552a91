// tick: log[clock[0]] = [loss, correct], then clock and rate move on to the next training step
//
//   loss     one number
//   correct  one number
//   clock    [2], u32: steps done in this epoch, images done in this epoch; changed in place
//   log      [STEPS, 2], one row changed in place; a step past its end writes nothing
//   rate     [4]: lr, u1 = 1 - β1ᵗ, u2 = 1 - β2ᵗ, what is left of u2's rounding; changed in place
//
// With u = 1 - βᵗ the next is 1 - β · (1 - u) = u + (1 - β)(1 - u): no power, and a relative error that stays at the rounding
// of one step where u is small, which 1 - pow(β, t) would lose to cancellation. For β near 1 the steps shrink below
// the last bit of u long before u is 1, so what rounding cut off u2 is carried along (Kahan's compensated sum).
//
// One invocation does it all. Dispatch: 1 workgroup. CPU twin: `Tick::reference` in src/ops/step.rs.

override STEPS: u32;
override STEP1: f32; // 1 - β1
override STEP2: f32; // 1 - β2

@group(0) @binding(0) var<storage, read> loss: array<f32>;
@group(0) @binding(1) var<storage, read> correct: array<f32>;
@group(0) @binding(2) var<storage, read_write> clock: array<u32>;
@group(0) @binding(3) var<storage, read_write> log_rows: array<f32>;
@group(0) @binding(4) var<storage, read_write> rate: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

@compute @workgroup_size(1)
fn main() {
    let done = clock[0];
    if done < STEPS {
        log_rows[2u * done] = loss[0];
        log_rows[2u * done + 1u] = correct[0];
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
