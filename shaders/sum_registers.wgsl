// sum_registers: y[c] = Σ x[t, c] over t
//
//   x  [TERMS, COLUMNS], or [TERMS · batch, COLUMNS] if BATCHED; COLUMNS a multiple of 4
//   y  [COLUMNS]
//
// The sums of sum over the leading axes, without workgroup memory and barriers, for adapters on which those are slow. One
// invocation computes four neighbouring elements of y, so it pays where there are many. It adds its terms in runs of 64, then
// run to run, which keeps the error of long sums small.
//
// Dispatch: ceil(COLUMNS / 4 / LANES) workgroups.
// CPU twin: `Sum::reference` in src/ops/reduce.rs.

override TERMS: u32;
override COLUMNS: u32;
override BATCHED: bool;

const LANES = 64u;
const RUN = 64u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pitch = COLUMNS / 4u;
    let column = (group.y * groups.x + group.x) * LANES + lane;
    if column >= pitch {
        return;
    }
    let terms = select(TERMS, TERMS * call.batch, BATCHED);
    var total = vec4<f32>();
    for (var first = 0u; first < terms; first += RUN) {
        let end = min(first + RUN, terms);
        var run = vec4<f32>();
        for (var term = first; term < end; term += 1u) {
            run += x[term * pitch + column];
        }
        total += run;
    }
    y[column] = total;
}
