// adam_quads: m += (g - m)(1 - β1), v += (g² - v)(1 - β2), w -= lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + ε)
//
//   w        [LEN], changed in place; LEN a multiple of 4
//   moments  [2, LEN]: all of m, then all of v; changed in place
//   g        [SLICES, LEN], partial sums of the gradient
//   rate     [4]: lr, 1 - β1ᵗ, 1 - β2ᵗ and what is left of its rounding, of the step that is being taken; if SCALED [8]: then what
//            the gradient is to be multiplied by, whether one has overflowed, so that nothing is to change, and two others
//
// What adam does, without workgroup memory and barriers, for adapters on which those are slow. One invocation changes four
// neighbouring elements. It adds their slices in runs of 64, then run to run, which keeps the error of long sums small.
//
// Dispatch: ceil(LEN / 4 / 64) workgroups. CPU twin: `Adam::reference` in src/ops/adam.rs.

override LEN: u32;
override SLICES: u32;
override STEP1: f32; // 1 - β1
override STEP2: f32; // 1 - β2
override EPSILON: f32;
override SCALED: bool;

const LANES = 64u;
const RUN = 64u;

@group(0) @binding(0) var<storage, read_write> w: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> moments: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> rate: array<vec4<f32>>;
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
    let quads = LEN / 4u;
    let i = (group.y * groups.x + group.x) * LANES + lane;
    if i >= quads || (SCALED && rate[1].y >= 1.0) {
        return;
    }
    var total = vec4<f32>();
    for (var first = 0u; first < SLICES; first += RUN) {
        let end = min(first + RUN, SLICES);
        var run = vec4<f32>();
        for (var slice = first; slice < end; slice += 1u) {
            run += g[slice * quads + i];
        }
        total += run;
    }
    if SCALED {
        total *= rate[1].x;
    }
    let m_before = moments[i];
    let v_before = moments[quads + i];
    let m = m_before + (total - m_before) * STEP1;
    let v = v_before + (total * total - v_before) * STEP2;
    let rates = rate[0];
    moments[i] = m;
    moments[quads + i] = v;
    w[i] -= rates.x * sqrt(rates.z) / rates.y * m / (sqrt(v) + EPSILON);
}
