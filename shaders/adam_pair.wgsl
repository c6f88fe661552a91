// adam_pair: for two parameters m += (g - m)(1 - β1), v += (g² - v)(1 - β2), w -= lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + ε)
//
//   w0, w1              [LEN0], [LEN1], changed in place
//   moments0, moments1  [2, LEN0], [2, LEN1]: all of m, then all of v; changed in place
//   g0, g1              [SLICES0, LEN0], [SLICES1, LEN1], partial sums of the gradients
//   rate                [4]: lr, 1 - β1ᵗ, 1 - β2ᵗ and what is left of its rounding, of the step that is being taken; if SCALED [8]:
//                       then what gradients are to be multiplied by, whether one has overflowed, so that nothing is to change,
//                       and two others
//
// The first GROUPS0 workgroups take the first parameter, the others the second. For the rest it is adam.
//
// Dispatch: GROUPS0 + ceil(LEN1 / (256 / SHARERS)) workgroups, where GROUPS0 = ceil(LEN0 / (256 / SHARERS)).
// CPU twin: `AdamPair::reference` in src/ops/adam/pair.rs.

override LEN0: u32;
override LEN1: u32;
override SLICES0: u32;
override SLICES1: u32;
override GROUPS0: u32;
override SHARERS: u32; // a power of two
override STEP1: f32; // 1 - β1
override STEP2: f32; // 1 - β2
override EPSILON: f32;
override SCALED: bool;

const LANES = 256u;
const RUN = 64u;

@group(0) @binding(0) var<storage, read_write> w0: array<f32>;
@group(0) @binding(1) var<storage, read_write> moments0: array<f32>;
@group(0) @binding(2) var<storage, read> g0: array<f32>;
@group(0) @binding(3) var<storage, read_write> w1: array<f32>;
@group(0) @binding(4) var<storage, read_write> moments1: array<f32>;
@group(0) @binding(5) var<storage, read> g1: array<f32>;
@group(0) @binding(6) var<storage, read> rate: array<f32>;
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
    let tile = group.y * groups.x + group.x;
    let second = tile >= GROUPS0;
    let i = select(tile, tile - GROUPS0, second) * elements + lane % elements;
    let len = select(LEN0, LEN1, second);
    let slices = select(SLICES0, SLICES1, second);
    var total = 0.0;
    if i < len {
        for (var first = lane / elements; first < slices; first += SHARERS * RUN) {
            let end = min(first + SHARERS * RUN, slices);
            var run = 0.0;
            if second {
                for (var slice = first; slice < end; slice += SHARERS) {
                    run += g1[slice * LEN1 + i];
                }
            } else {
                for (var slice = first; slice < end; slice += SHARERS) {
                    run += g0[slice * LEN0 + i];
                }
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
    if lane >= elements || i >= len || (SCALED && rate[5] >= 1.0) {
        return;
    }
    if SCALED {
        total *= rate[4];
    }
    if second {
        let moved = moments(vec2(moments1[i], moments1[LEN1 + i]), total);
        moments1[i] = moved.x;
        moments1[LEN1 + i] = moved.y;
        w1[i] -= step(moved);
    } else {
        let moved = moments(vec2(moments0[i], moments0[LEN0 + i]), total);
        moments0[i] = moved.x;
        moments0[LEN0 + i] = moved.y;
        w0[i] -= step(moved);
    }
}

// m and v after this gradient.
fn moments(before: vec2<f32>, gradient: f32) -> vec2<f32> {
    return before + (vec2(gradient, gradient * gradient) - before) * vec2(STEP1, STEP2);
}

// What the parameter moves by.
fn step(moments: vec2<f32>) -> f32 {
    return rate[0] * sqrt(rate[2]) / rate[1] * moments.x / (sqrt(moments.y) + EPSILON);
}
