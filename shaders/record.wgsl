// record: log[clock[0]] = [loss, correct], then the clock moves on to the next step
//
//   loss     one number
//   correct  one number
//   clock    [2], u32: steps done in this pass over the data, images done in it; changed in place
//   log      [STEPS, 2], one row changed in place; a step past its end writes nothing
//
// One invocation does it all. Dispatch: 1 workgroup. CPU twin: `Record::reference` in src/ops/step.rs.

override STEPS: u32;

@group(0) @binding(0) var<storage, read> loss: array<f32>;
@group(0) @binding(1) var<storage, read> correct: array<f32>;
@group(0) @binding(2) var<storage, read_write> clock: array<u32>;
@group(0) @binding(3) var<storage, read_write> log_rows: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

@compute @workgroup_size(1)
fn main() {
    let step = clock[0];
    if step < STEPS {
        log_rows[2u * step] = loss[0];
        log_rows[2u * step + 1u] = correct[0];
    }
    clock[0] = step + 1u;
    clock[1] += call.batch;
}
