// swish: y = x / (1 + e^(-BETA·x)), or its slope, element by element
//
//   x  [LEN], or [batch, LEN] if BATCHED
//   y  of the same shape
//
// Bindings follow the operands: inputs from 0, the output last. One invocation computes one element.

override LEN: u32;
override BATCHED: bool;
override BETA: f32;
override SLOPE: bool;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
var<immediate> batch: u32; // images in this run

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Large dispatches are folded into two directions, and the last workgroup may reach past the end.
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if i < select(LEN, LEN * batch, BATCHED) {
        let gate = 1.0 / (1.0 + exp(-BETA * x[i]));
        y[i] = select(x[i] * gate, gate + BETA * x[i] * gate * (1.0 - gate), SLOPE);
    }
}
