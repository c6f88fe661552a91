// cast: y[…] = x[…] as another float type
//
//   x  [LEN], or [batch, LEN] if BATCHED
//   y  of the shape of x
//
// One of the two is f16; which, src/ops/stored.rs writes into the aliases. One invocation computes one element.
//
// Dispatch: ceil(elements / 256) workgroups. CPU twin: `Cast::reference` in src/ops/cast.rs.

alias X = f32; // what x is stored as
alias Y = f32; // what y is stored as

override LEN: u32;
override BATCHED: bool;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read_write> y: array<Y>;
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
    let i = (group.y * groups.x + group.x) * LANES + lane;
    if i < select(LEN, LEN * call.batch, BATCHED) {
        y[i] = Y(x[i]);
    }
}
