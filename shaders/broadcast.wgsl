// broadcast: y[…] = x[kept]
//
//   x  the kept axes of y, in order
//   y  [E0, E1, E2, E3, E4], axes of one kind taken together, so repeated and kept ones alternate; E0 · batch if BATCHED
//
// One invocation computes one element of y. Dispatch: ceil(elements of y / 256) workgroups.
// CPU twin: `Broadcast::reference` in src/ops/reduce.rs.

override E0: u32;
override E1: u32;
override E2: u32;
override E3: u32;
override E4: u32;
override FIRST_REPEATED: bool; // x lacks E0, E2, E4, else E1, E3
override BATCHED: bool;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
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
    let len = select(1u, call.batch, BATCHED) * E0 * E1 * E2 * E3 * E4;
    let i = (group.y * groups.x + group.x) * LANES + lane;
    if i >= len {
        return;
    }
    let i4 = i % E4;
    let i3 = i / E4 % E3;
    let i2 = i / (E4 * E3) % E2;
    let i1 = i / (E4 * E3 * E2) % E1;
    let i0 = i / (E4 * E3 * E2 * E1);
    y[i] = x[select((i0 * E2 + i2) * E4 + i4, i1 * E3 + i3, FIRST_REPEATED)];
}
