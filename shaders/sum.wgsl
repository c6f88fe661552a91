// sum: y[kept] = Σ x[…] over the summed axes
//
//   x  [E0, E1, E2, E3, E4], axes of one kind taken together, so summed and kept ones alternate; E0 · batch if BATCHED
//   y  the kept axes, in order
//
// One workgroup computes OUTPUTS neighbouring elements of y; 256 / OUTPUTS invocations share each. An invocation adds its
// terms in runs of 64, then run to run, which keeps the error of long sums small; the invocations' sums meet in a fixed tree.
//
// Dispatch: ceil(elements of y / OUTPUTS) workgroups.
// CPU twin: `Sum::reference` in src/ops/reduce.rs.

override E0: u32;
override E1: u32;
override E2: u32;
override E3: u32;
override E4: u32;
override FIRST_SUMMED: bool; // E0, E2, E4 are summed, else E1, E3
override BATCHED: bool;
override OUTPUTS: u32; // a power of two

const LANES = 256u;
const RUN = 64u;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> sums: array<f32, LANES>; // [sharer][output]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let e0 = select(E0, E0 * call.batch, BATCHED);
    let outputs = select(e0 * E2 * E4, E1 * E3, FIRST_SUMMED);
    let terms = select(E1 * E3, e0 * E2 * E4, FIRST_SUMMED);
    let output = (group.y * groups.x + group.x) * OUTPUTS + lane % OUTPUTS;
    let sharers = LANES / OUTPUTS;

    var total = 0.0;
    if output < outputs {
        for (var first = lane / OUTPUTS; first < terms; first += sharers * RUN) {
            var run = 0.0;
            for (var i = 0u; i < RUN; i += 1u) {
                let term = first + i * sharers;
                if term < terms {
                    run += x[address(select(output, term, FIRST_SUMMED), select(term, output, FIRST_SUMMED))];
                }
            }
            total += run;
        }
    }
    sums[lane] = total;
    for (var half = LANES / 2u; half >= OUTPUTS; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    if lane < OUTPUTS && output < outputs {
        y[output] = sums[lane];
    }
}

// The flat index of x whose axes 0, 2, 4 are at `even` and 1, 3 at `odd`.
fn address(even: u32, odd: u32) -> u32 {
    let i4 = even % E4;
    let i2 = even / E4 % E2;
    let i0 = even / (E4 * E2);
    let i3 = odd % E3;
    let i1 = odd / E3;
    return (((i0 * E1 + i1) * E2 + i2) * E3 + i3) * E4 + i4;
}
