// fma_chains: nothing but multiply-adds in registers, to measure what the device can do at most
//
//   ab  [2]       a and b
//   y   [N, 256]  y[n, i] = Σ of twelve chains j, each z = a·z + b STEPS times over from z = (i + j) / 256
//
// One invocation keeps its twelve chains in three vectors, side by side, so that no multiply-add waits for the one before it.
// The loop's body is written out eight times: what counts the loop costs little beside it.
//
// Dispatch: one workgroup an image, folded into two dimensions past 65,535.
// CPU twin: `FmaChains::reference` in src/ops/fma.rs.

override STEPS: u32; // a multiple of 8

const LANES = 256u;

@group(0) @binding(0) var<storage, read> ab: array<f32>;
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
    let n = group.y * groups.x + group.x;
    if n >= call.batch {
        return;
    }
    let a = vec4(ab[0]);
    let b = vec4(ab[1]);
    let first = vec4(f32(lane)) + vec4(0.0, 1.0, 2.0, 3.0);
    var z0 = first / 256.0;
    var z1 = (first + 4.0) / 256.0;
    var z2 = (first + 8.0) / 256.0;
    for (var step = 0u; step < STEPS; step += 8u) {
        z0 = fma(z0, a, b);
        z1 = fma(z1, a, b);
        z2 = fma(z2, a, b);
        z0 = fma(z0, a, b);
        z1 = fma(z1, a, b);
        z2 = fma(z2, a, b);
        z0 = fma(z0, a, b);
        z1 = fma(z1, a, b);
        z2 = fma(z2, a, b);
        z0 = fma(z0, a, b);
        z1 = fma(z1, a, b);
        z2 = fma(z2, a, b);
        z0 = fma(z0, a, b);
        z1 = fma(z1, a, b);
        z2 = fma(z2, a, b);
        z0 = fma(z0, a, b);
        z1 = fma(z1, a, b);
        z2 = fma(z2, a, b);
        z0 = fma(z0, a, b);
        z1 = fma(z1, a, b);
        z2 = fma(z2, a, b);
        z0 = fma(z0, a, b);
        z1 = fma(z1, a, b);
        z2 = fma(z2, a, b);
    }
    let sum = z0 + z1 + z2;
    y[n * LANES + lane] = sum.x + sum.y + sum.z + sum.w;
}
