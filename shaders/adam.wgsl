// adam: m += (g - m)(1 - β1), v += (g² - v)(1 - β2), w -= lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + ε)
//
//   w        [LEN], changed in place
//   moments  [2, LEN]: all of m, then all of v; changed in place
//   g        [SLICES, LEN], partial sums of the gradient
//   rate     [4]: lr, 1 - β1ᵗ, 1 - β2ᵗ and what is left of its rounding, of the step that is being taken; if SCALED [8]: then what
//            the gradient is to be multiplied by, whether one has overflowed, so that nothing is to change, and two others
//
// One workgroup changes 256 / SHARERS neighbouring elements; SHARERS invocations share the sum of each one's slices. An invocation
// adds its slices in runs of 64, then run to run, which keeps the error of long sums small; the invocations' sums meet in a
// fixed tree. With one sharer there is neither tree nor barrier.
//
// Dispatch: ceil(LEN / (256 / SHARERS)) workgroups. CPU twin: `Adam::reference` in src/ops/adam.rs.

override LEN: u32;
override SLICES: u32;
override SHARERS: u32; // a power of two
override STEP1: f32; // 1 - β1
override STEP2: f32; // 1 - β2
override EPSILON: f32;
override SCALED: bool;

const LANES = 256u;
const RUN = 64u;

@group(0) @binding(0) var<storage, read_write> w: array<f32>;
@group(0) @binding(1) var<storage, read_write> moments: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read> rate: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> sums: array<f32, LANES>; // [sharer][element]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let elements = LANES / SHARERS;
    let i = (group.y * groups.x + group.x) * elements + lane % elements;
    var total = 0.0;
    if i < LEN {
        for (var first = lane / elements; first < SLICES; first += SHARERS * RUN) {
            let end = min(first + SHARERS * RUN, SLICES);
            var run = 0.0;
            for (var slice = first; slice < end; slice += SHARERS) {
                run += g[slice * LEN + i];
            }
            total += run;
        }
    }
    if SHARERS > 1u {
        sums[lane] = total;
        for (var half = LANES / 2u; half >= elements; half /= 2u) {
            workgroupBarrier();
            if lane < half {
                sums[lane] += sums[lane + half];
            }
        }
        total = sums[lane];
    }
    if lane >= elements || i >= LEN || (SCALED && rate[5] >= 1.0) {
        return;
    }
    if SCALED {
        total *= rate[4];
    }
    let m = moments[i] + (total - moments[i]) * STEP1;
    let v = moments[LEN + i] + (total * total - moments[LEN + i]) * STEP2;
    let scale = rate[0] * sqrt(rate[2]) / rate[1];
    moments[i] = m;
    moments[LEN + i] = v;
    w[i] -= scale * m / (sqrt(v) + EPSILON);
}
