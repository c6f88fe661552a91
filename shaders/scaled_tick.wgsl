// scaled_tick: log[clock[0]] = [loss, correct]; clock moves on to the next training step, rate too unless a gradient overflowed;
//              then loss_scale does
//
//   loss        one number
//   correct     one number
//   clock       [2], u32: steps done in this epoch, images done in this epoch; changed in place
//   log         [STEPS, 2], one row changed in place; a step past its end writes nothing
//   rate        [8]: lr, u1 = 1 - β1ᵗ, u2 = 1 - β2ᵗ, what is left of u2's rounding, 1 / loss_scale, whether a gradient overflowed,
//               steps without since the scale was changed, nothing; changed in place
//   loss_scale  one number, changed in place: halved if a gradient overflowed, doubled after GROWTH_INTERVAL steps without
//
// A step that overflowed has changed no parameter, so it is none for the bias corrections. How those advance is said in tick.wgsl.
// The scale is a power of two from 1 / MOST to MOST, so it and its inverse are changed without rounding.
//
// One invocation does it all. Dispatch: 1 workgroup. CPU twin: `ScaledTick::reference` in src/ops/scale.rs.

override STEPS: u32;
override STEP1: f32; // 1 - β1
override STEP2: f32; // 1 - β2
override GROWTH_INTERVAL: f32;
override MOST: f32;

@group(0) @binding(0) var<storage, read> loss: array<f32>;
@group(0) @binding(1) var<storage, read> correct: array<f32>;
@group(0) @binding(2) var<storage, read_write> clock: array<u32>;
@group(0) @binding(3) var<storage, read_write> log_rows: array<f32>;
@group(0) @binding(4) var<storage, read_write> rate: array<f32>;
@group(0) @binding(5) var<storage, read_write> loss_scale: array<f32>;
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

    var good = 0.0;
    if rate[5] >= 1.0 {
        if loss_scale[0] * MOST > 1.0 {
            loss_scale[0] *= 0.5;
            rate[4] *= 2.0;
        }
    } else {
        next_rate();
        good = rate[6] + 1.0;
        if good >= GROWTH_INTERVAL {
            good = 0.0;
            if loss_scale[0] < MOST {
                loss_scale[0] *= 2.0;
                rate[4] *= 0.5;
            }
        }
    }
    rate[5] = 0.0;
    rate[6] = good;
}

fn next_rate() {
    let excess = rate[3]; // by which rate[2] is too large
    rate[1] += STEP1 * (1.0 - rate[1]);
    let before = rate[2];
    let step = STEP2 * (1.0 - before + excess) - excess;
    let after = before + step;
    rate[2] = after;
    rate[3] = (after - before) - step;
}
