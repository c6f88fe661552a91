// adam_group: m += (g - m)(1 - β1), v += (g² - v)(1 - β2), w -= lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + ε)
//             for each of up to 16 parameters
//
//   w        the parameters [LENi] one behind the other, each at a multiple of 64; changed in place
//   moments  likewise [2, LENi]: all of m, then all of v; changed in place
//   g        likewise [SLICESi, LENi], partial sums of the gradients
//   rate     [4]: lr, 1 - β1ᵗ, 1 - β2ᵗ and what is left of its rounding, of the step that is being taken; if SCALED [8]: then what
//            gradients are to be multiplied by, whether one has overflowed, so that nothing is to change, and two others
//
// Workgroups are those of adam for the first parameter, then for the second, and so on; each finds its own by counting through
// the list, in which parameters that are not there have no elements. For the rest it is adam.
//
// Dispatch: Σ ceil(LENi / (256 / SHARERSi)) workgroups. CPU twin: `AdamGroup::reference` in src/ops/adam/group.rs.

override LEN0: u32; override SLICES0: u32; override SHARERS0: u32; // sharers are a power of two
override LEN1: u32 = 0u; override SLICES1: u32 = 1u; override SHARERS1: u32 = 1u;
override LEN2: u32 = 0u; override SLICES2: u32 = 1u; override SHARERS2: u32 = 1u;
override LEN3: u32 = 0u; override SLICES3: u32 = 1u; override SHARERS3: u32 = 1u;
override LEN4: u32 = 0u; override SLICES4: u32 = 1u; override SHARERS4: u32 = 1u;
override LEN5: u32 = 0u; override SLICES5: u32 = 1u; override SHARERS5: u32 = 1u;
override LEN6: u32 = 0u; override SLICES6: u32 = 1u; override SHARERS6: u32 = 1u;
override LEN7: u32 = 0u; override SLICES7: u32 = 1u; override SHARERS7: u32 = 1u;
override LEN8: u32 = 0u; override SLICES8: u32 = 1u; override SHARERS8: u32 = 1u;
override LEN9: u32 = 0u; override SLICES9: u32 = 1u; override SHARERS9: u32 = 1u;
override LEN10: u32 = 0u; override SLICES10: u32 = 1u; override SHARERS10: u32 = 1u;
override LEN11: u32 = 0u; override SLICES11: u32 = 1u; override SHARERS11: u32 = 1u;
override LEN12: u32 = 0u; override SLICES12: u32 = 1u; override SHARERS12: u32 = 1u;
override LEN13: u32 = 0u; override SLICES13: u32 = 1u; override SHARERS13: u32 = 1u;
override LEN14: u32 = 0u; override SLICES14: u32 = 1u; override SHARERS14: u32 = 1u;
override LEN15: u32 = 0u; override SLICES15: u32 = 1u; override SHARERS15: u32 = 1u;
override STEP1: f32; // 1 - β1
override STEP2: f32; // 1 - β2
override EPSILON: f32;
override SCALED: bool;

const LANES = 256u;
const RUN = 64u;
const ALIGNMENT = 64u; // elements

@group(0) @binding(0) var<storage, read_write> w: array<f32>;
@group(0) @binding(1) var<storage, read_write> moments: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read> rate: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> sums: array<f32, LANES>; // [sharer][element]

// A parameter, and which of its workgroups this is.
struct Part {
    group: u32,
    len: u32,
    slices: u32,
    sharers: u32,
    w: u32, // where it begins
    moments: u32,
    g: u32,
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let part = find(group.y * groups.x + group.x);
    let elements = LANES / part.sharers;
    let i = part.group * elements + lane % elements;
    var total = 0.0;
    if i < part.len {
        for (var first = lane / elements; first < part.slices; first += part.sharers * RUN) {
            let end = min(first + part.sharers * RUN, part.slices);
            var run = 0.0;
            for (var slice = first; slice < end; slice += part.sharers) {
                run += g[part.g + slice * part.len + i];
            }
            total += run;
        }
    }
    if part.sharers > 1u {
        sums[lane] = total;
        for (var half = LANES / 2u; half >= elements; half /= 2u) {
            workgroupBarrier();
            if lane < half {
                sums[lane] += sums[lane + half];
            }
        }
        total = sums[lane];
    }
    if lane >= elements || i >= part.len || (SCALED && rate[5] >= 1.0) {
        return;
    }
    if SCALED {
        total *= rate[4];
    }
    let at_m = part.moments + i;
    let at_v = at_m + part.len;
    let m = moments[at_m] + (total - moments[at_m]) * STEP1;
    let v = moments[at_v] + (total * total - moments[at_v]) * STEP2;
    let scale = rate[0] * sqrt(rate[2]) / rate[1];
    moments[at_m] = m;
    moments[at_v] = v;
    w[part.w + i] -= scale * m / (sqrt(v) + EPSILON);
}

// The parameter of a workgroup.
fn find(group: u32) -> Part {
    var part = Part(group, LEN0, SLICES0, SHARERS0, 0u, 0u, 0u);
    part = next(part, LEN1, SLICES1, SHARERS1);
    part = next(part, LEN2, SLICES2, SHARERS2);
    part = next(part, LEN3, SLICES3, SHARERS3);
    part = next(part, LEN4, SLICES4, SHARERS4);
    part = next(part, LEN5, SLICES5, SHARERS5);
    part = next(part, LEN6, SLICES6, SHARERS6);
    part = next(part, LEN7, SLICES7, SHARERS7);
    part = next(part, LEN8, SLICES8, SHARERS8);
    part = next(part, LEN9, SLICES9, SHARERS9);
    part = next(part, LEN10, SLICES10, SHARERS10);
    part = next(part, LEN11, SLICES11, SHARERS11);
    part = next(part, LEN12, SLICES12, SHARERS12);
    part = next(part, LEN13, SLICES13, SHARERS13);
    part = next(part, LEN14, SLICES14, SHARERS14);
    part = next(part, LEN15, SLICES15, SHARERS15);
    return part;
}

// This parameter if the workgroup is one of its own, else the one behind it.
fn next(part: Part, len: u32, slices: u32, sharers: u32) -> Part {
    let elements = LANES / part.sharers;
    let groups = (part.len + elements - 1u) / elements;
    if part.group < groups {
        return part;
    }
    let w = part.w + padded(part.len);
    let moments = part.moments + padded(2u * part.len);
    return Part(part.group - groups, len, slices, sharers, w, moments, part.g + padded(part.slices * part.len));
}

// The room of a tensor with so many elements.
fn padded(len: u32) -> u32 {
    return (max(len, 1u) + ALIGNMENT - 1u) / ALIGNMENT * ALIGNMENT;
}
