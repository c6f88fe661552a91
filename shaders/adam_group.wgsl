// adam_group: m += (g - m)(1 - β1), v += (g² - v)(1 - β2), w -= lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + ε)
//             for each of up to 16 parameters
//
//   w        the parameters [LENi] one behind the other, each at a multiple of 64; changed in place
//   moments  likewise [2, LENi]: all of m, then all of v; changed in place
//   g        likewise [SLICESi, LENi], partial sums of the gradients
//   rate     [4]: lr, 1 - β1ᵗ, 1 - β2ᵗ and what is left of its rounding, of the step that is being taken; if SCALED [8]: then what
//            gradients are to be multiplied by, whether one has overflowed, so that nothing is to change, and two others
//
// Workgroups are those of adam for the first parameter, then for the second, and so on; parameters that are not there have no elements.
// Where each begins is a constant, so a workgroup only compares. For the rest it is adam: what is to change is loaded before the sums of
// slices, and eight slices at a time, so that no load waits for another.
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

// For a workgroup of each: elements; the first workgroup behind it; and where it begins in w, moments and g.
override ELEMENTS0: u32 = 256u / SHARERS0; override END0: u32 = (LEN0 + ELEMENTS0 - 1u) / ELEMENTS0;
override ELEMENTS1: u32 = 256u / SHARERS1; override END1: u32 = END0 + (LEN1 + ELEMENTS1 - 1u) / ELEMENTS1;
override ELEMENTS2: u32 = 256u / SHARERS2; override END2: u32 = END1 + (LEN2 + ELEMENTS2 - 1u) / ELEMENTS2;
override ELEMENTS3: u32 = 256u / SHARERS3; override END3: u32 = END2 + (LEN3 + ELEMENTS3 - 1u) / ELEMENTS3;
override ELEMENTS4: u32 = 256u / SHARERS4; override END4: u32 = END3 + (LEN4 + ELEMENTS4 - 1u) / ELEMENTS4;
override ELEMENTS5: u32 = 256u / SHARERS5; override END5: u32 = END4 + (LEN5 + ELEMENTS5 - 1u) / ELEMENTS5;
override ELEMENTS6: u32 = 256u / SHARERS6; override END6: u32 = END5 + (LEN6 + ELEMENTS6 - 1u) / ELEMENTS6;
override ELEMENTS7: u32 = 256u / SHARERS7; override END7: u32 = END6 + (LEN7 + ELEMENTS7 - 1u) / ELEMENTS7;
override ELEMENTS8: u32 = 256u / SHARERS8; override END8: u32 = END7 + (LEN8 + ELEMENTS8 - 1u) / ELEMENTS8;
override ELEMENTS9: u32 = 256u / SHARERS9; override END9: u32 = END8 + (LEN9 + ELEMENTS9 - 1u) / ELEMENTS9;
override ELEMENTS10: u32 = 256u / SHARERS10; override END10: u32 = END9 + (LEN10 + ELEMENTS10 - 1u) / ELEMENTS10;
override ELEMENTS11: u32 = 256u / SHARERS11; override END11: u32 = END10 + (LEN11 + ELEMENTS11 - 1u) / ELEMENTS11;
override ELEMENTS12: u32 = 256u / SHARERS12; override END12: u32 = END11 + (LEN12 + ELEMENTS12 - 1u) / ELEMENTS12;
override ELEMENTS13: u32 = 256u / SHARERS13; override END13: u32 = END12 + (LEN13 + ELEMENTS13 - 1u) / ELEMENTS13;
override ELEMENTS14: u32 = 256u / SHARERS14; override END14: u32 = END13 + (LEN14 + ELEMENTS14 - 1u) / ELEMENTS14;
override ELEMENTS15: u32 = 256u / SHARERS15; override END15: u32 = END14 + (LEN15 + ELEMENTS15 - 1u) / ELEMENTS15;
override W1: u32 = (LEN0 + 63u) / 64u * 64u; override M1: u32 = (2u * LEN0 + 63u) / 64u * 64u;
override G1: u32 = (SLICES0 * LEN0 + 63u) / 64u * 64u;
override W2: u32 = W1 + (LEN1 + 63u) / 64u * 64u; override M2: u32 = M1 + (2u * LEN1 + 63u) / 64u * 64u;
override G2: u32 = G1 + (SLICES1 * LEN1 + 63u) / 64u * 64u;
override W3: u32 = W2 + (LEN2 + 63u) / 64u * 64u; override M3: u32 = M2 + (2u * LEN2 + 63u) / 64u * 64u;
override G3: u32 = G2 + (SLICES2 * LEN2 + 63u) / 64u * 64u;
override W4: u32 = W3 + (LEN3 + 63u) / 64u * 64u; override M4: u32 = M3 + (2u * LEN3 + 63u) / 64u * 64u;
override G4: u32 = G3 + (SLICES3 * LEN3 + 63u) / 64u * 64u;
override W5: u32 = W4 + (LEN4 + 63u) / 64u * 64u; override M5: u32 = M4 + (2u * LEN4 + 63u) / 64u * 64u;
override G5: u32 = G4 + (SLICES4 * LEN4 + 63u) / 64u * 64u;
override W6: u32 = W5 + (LEN5 + 63u) / 64u * 64u; override M6: u32 = M5 + (2u * LEN5 + 63u) / 64u * 64u;
override G6: u32 = G5 + (SLICES5 * LEN5 + 63u) / 64u * 64u;
override W7: u32 = W6 + (LEN6 + 63u) / 64u * 64u; override M7: u32 = M6 + (2u * LEN6 + 63u) / 64u * 64u;
override G7: u32 = G6 + (SLICES6 * LEN6 + 63u) / 64u * 64u;
override W8: u32 = W7 + (LEN7 + 63u) / 64u * 64u; override M8: u32 = M7 + (2u * LEN7 + 63u) / 64u * 64u;
override G8: u32 = G7 + (SLICES7 * LEN7 + 63u) / 64u * 64u;
override W9: u32 = W8 + (LEN8 + 63u) / 64u * 64u; override M9: u32 = M8 + (2u * LEN8 + 63u) / 64u * 64u;
override G9: u32 = G8 + (SLICES8 * LEN8 + 63u) / 64u * 64u;
override W10: u32 = W9 + (LEN9 + 63u) / 64u * 64u; override M10: u32 = M9 + (2u * LEN9 + 63u) / 64u * 64u;
override G10: u32 = G9 + (SLICES9 * LEN9 + 63u) / 64u * 64u;
override W11: u32 = W10 + (LEN10 + 63u) / 64u * 64u; override M11: u32 = M10 + (2u * LEN10 + 63u) / 64u * 64u;
override G11: u32 = G10 + (SLICES10 * LEN10 + 63u) / 64u * 64u;
override W12: u32 = W11 + (LEN11 + 63u) / 64u * 64u; override M12: u32 = M11 + (2u * LEN11 + 63u) / 64u * 64u;
override G12: u32 = G11 + (SLICES11 * LEN11 + 63u) / 64u * 64u;
override W13: u32 = W12 + (LEN12 + 63u) / 64u * 64u; override M13: u32 = M12 + (2u * LEN12 + 63u) / 64u * 64u;
override G13: u32 = G12 + (SLICES12 * LEN12 + 63u) / 64u * 64u;
override W14: u32 = W13 + (LEN13 + 63u) / 64u * 64u; override M14: u32 = M13 + (2u * LEN13 + 63u) / 64u * 64u;
override G14: u32 = G13 + (SLICES13 * LEN13 + 63u) / 64u * 64u;
override W15: u32 = W14 + (LEN14 + 63u) / 64u * 64u; override M15: u32 = M14 + (2u * LEN14 + 63u) / 64u * 64u;
override G15: u32 = G14 + (SLICES14 * LEN14 + 63u) / 64u * 64u;

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

// A parameter, and which of its workgroups this is.
struct Part {
    group: u32,
    len: u32,
    slices: u32,
    elements: u32, // of a workgroup, a power of two
    w: u32,        // where it begins
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
    let i = part.group * part.elements + lane % part.elements;
    let sharers = LANES / part.elements;
    let at_w = part.w + i;
    let at_m = part.moments + i;
    let at_v = at_m + part.len;
    let changes = lane < part.elements && i < part.len && !(SCALED && rate[5] >= 1.0);
    let scale = rate[0] * sqrt(rate[2]) / rate[1];
    var before = vec3<f32>();
    if changes {
        before = vec3(w[at_w], moments[at_m], moments[at_v]);
    }
    var total = 0.0;
    if i < part.len {
        for (var first = lane / part.elements; first < part.slices; first += sharers * RUN) {
            total += sum(part, i, first, min(first + sharers * RUN, part.slices), sharers);
        }
    }
    if sharers > 1u {
        sums[lane] = total;
        for (var half = LANES / 2u; half >= part.elements; half /= 2u) {
            workgroupBarrier();
            if lane < half {
                sums[lane] += sums[lane + half];
            }
        }
        total = sums[lane];
    }
    if !changes {
        return;
    }
    if SCALED {
        total *= rate[4];
    }
    let m = before.y + (total - before.y) * STEP1;
    let v = before.z + (total * total - before.z) * STEP2;
    moments[at_m] = m;
    moments[at_v] = v;
    w[at_w] = before.x - scale * m / (sqrt(v) + EPSILON);
}

// Of an element's slices from one on, every so many.
fn sum(part: Part, i: u32, first: u32, end: u32, apart: u32) -> f32 {
    let origin = part.g + i;
    var run = 0.0;
    for (var slice = first; slice < end; slice += 8u * apart) {
        let left = four(origin, part.len, slice, end, apart);
        let right = four(origin, part.len, slice + 4u * apart, end, apart);
        run = run + left.x + left.y + left.z + left.w + right.x + right.y + right.z + right.w;
    }
    return run;
}

// Four of them, zeros from `end` on.
fn four(origin: u32, len: u32, slice: u32, end: u32, apart: u32) -> vec4<f32> {
    let slices = vec4(slice) + vec4(0u, 1u, 2u, 3u) * apart;
    let there = slices < vec4(end);
    let at = select(vec4(origin), origin + slices * len, there);
    return select(vec4<f32>(), vec4(g[at.x], g[at.y], g[at.z], g[at.w]), there);
}

// The parameter of a workgroup.
fn find(group: u32) -> Part {
    if group < END0 {
        return Part(group, LEN0, SLICES0, ELEMENTS0, 0u, 0u, 0u);
    }
    if group < END1 {
        return Part(group - END0, LEN1, SLICES1, ELEMENTS1, W1, M1, G1);
    }
    if group < END2 {
        return Part(group - END1, LEN2, SLICES2, ELEMENTS2, W2, M2, G2);
    }
    if group < END3 {
        return Part(group - END2, LEN3, SLICES3, ELEMENTS3, W3, M3, G3);
    }
    if group < END4 {
        return Part(group - END3, LEN4, SLICES4, ELEMENTS4, W4, M4, G4);
    }
    if group < END5 {
        return Part(group - END4, LEN5, SLICES5, ELEMENTS5, W5, M5, G5);
    }
    if group < END6 {
        return Part(group - END5, LEN6, SLICES6, ELEMENTS6, W6, M6, G6);
    }
    if group < END7 {
        return Part(group - END6, LEN7, SLICES7, ELEMENTS7, W7, M7, G7);
    }
    if group < END8 {
        return Part(group - END7, LEN8, SLICES8, ELEMENTS8, W8, M8, G8);
    }
    if group < END9 {
        return Part(group - END8, LEN9, SLICES9, ELEMENTS9, W9, M9, G9);
    }
    if group < END10 {
        return Part(group - END9, LEN10, SLICES10, ELEMENTS10, W10, M10, G10);
    }
    if group < END11 {
        return Part(group - END10, LEN11, SLICES11, ELEMENTS11, W11, M11, G11);
    }
    if group < END12 {
        return Part(group - END11, LEN12, SLICES12, ELEMENTS12, W12, M12, G12);
    }
    if group < END13 {
        return Part(group - END12, LEN13, SLICES13, ELEMENTS13, W13, M13, G13);
    }
    if group < END14 {
        return Part(group - END13, LEN14, SLICES14, ELEMENTS14, W14, M14, G14);
    }
    return Part(group - END14, LEN15, SLICES15, ELEMENTS15, W15, M15, G15);
}
