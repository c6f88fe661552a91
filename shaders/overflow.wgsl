// overflow: rate[5] = 1 if an element of grad0 … grad3 is NaN, infinite, or the largest number that f16 has
//
//   grad0 … grad3  [batch, LEN0 … LEN3], f16, two to a word; one with a length of 0 is not looked at
//   rate           [8], of which one element is changed
//
// What is too large for f16 becomes an infinity or, where a driver cuts, the largest number. Every invocation that finds one writes
// the same, so their order does not matter. Words are read as integers: no adapter needs to have f16 for that. The last word
// of an odd number of elements has only one.
//
// The invocations of all workgroups go over each gradient together. Dispatch: ceil(elements of the largest / 4096) workgroups.
// CPU twin: `Overflow::reference` in src/ops/scale.rs.

override LEN0: u32; // elements of one image
override LEN1: u32;
override LEN2: u32;
override LEN3: u32;

const LANES = 256u;
const LARGEST = 0x7bffu; // bits of the largest number without their sign; above are infinity and NaN
const ONE = 0x3f800000u; // bits of 1

@group(0) @binding(0) var<storage, read> grad0: array<u32>;
@group(0) @binding(1) var<storage, read> grad1: array<u32>;
@group(0) @binding(2) var<storage, read> grad2: array<u32>;
@group(0) @binding(3) var<storage, read> grad3: array<u32>;
@group(0) @binding(4) var<storage, read_write> rate: array<atomic<u32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (group.y * groups.x + group.x) * LANES + lane;
    let all = groups.x * groups.y * LANES;
    var found = false;
    for (var i = first; 2u * i < LEN0 * call.batch; i += all) {
        found = found || overflows(grad0[i], 2u * i + 1u < LEN0 * call.batch);
    }
    for (var i = first; 2u * i < LEN1 * call.batch; i += all) {
        found = found || overflows(grad1[i], 2u * i + 1u < LEN1 * call.batch);
    }
    for (var i = first; 2u * i < LEN2 * call.batch; i += all) {
        found = found || overflows(grad2[i], 2u * i + 1u < LEN2 * call.batch);
    }
    for (var i = first; 2u * i < LEN3 * call.batch; i += all) {
        found = found || overflows(grad3[i], 2u * i + 1u < LEN3 * call.batch);
    }
    if found {
        atomicStore(&rate[5], ONE);
    }
}

// Whether one of a word's elements does, the second being one only if there are two.
fn overflows(word: u32, two: bool) -> bool {
    return (word & 0x7fffu) >= LARGEST || (two && (word >> 16u & 0x7fffu) >= LARGEST);
}
