// bias_add_quads: y[…, c] = x[…, c] + bias[c]
//
//   x     [LEN], or [batch, LEN] if BATCHED; LEN is a multiple of CHANNELS, and that of 4
//   bias  [CHANNELS]
//   y     of the shape of x
//
// One invocation computes four elements: one load and one store do for all, which counts on software adapters.
//
// Dispatch: ceil(elements / 4 / 256) workgroups.
// CPU twin: `BiasAdd::reference` in src/ops/bias.rs.

override LEN: u32;
override BATCHED: bool;
override CHANNELS: u32;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
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
    if i < select(LEN, LEN * call.batch, BATCHED) / 4u {
        y[i] = x[i] + bias[i % (CHANNELS / 4u)];
    }
}
