// arithmetic: c = a + b, or a · b if PRODUCT, element by element
//
//   a, b  [LEN], or [batch, LEN] if BATCHED
//   c     of the same shape
//
// One invocation computes one element. Dispatch: ceil(elements / 256) workgroups.
// CPU twins: `Add::reference` and `Mul::reference` in src/ops/arithmetic.rs.

override LEN: u32;
override BATCHED: bool;
override PRODUCT: bool;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
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
        c[i] = select(a[i] + b[i], a[i] * b[i], PRODUCT);
    }
}
