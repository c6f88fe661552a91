// activation_grad_quads: dx = f'(x) · dy, element by element
//
//   x   [LEN], or [batch, LEN] if BATCHED; LEN is a multiple of 4
//   dy  of the same shape
//   dx  of the same shape
//
// One invocation computes four elements: one load and one store do for all, which counts on software adapters.
//
// Dispatch: ceil(elements / 4 / 256) workgroups.
// CPU twin: `ActivationGrad::reference` in src/ops/activation.rs.

override LEN: u32;
override BATCHED: bool;
override FUNCTION: u32; // 0 relu, 1 leaky relu, 2 sigmoid, 3 tanh, 4 gelu
override SLOPE: f32 = 0.0; // of leaky relu below 0

const LANES = 256u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
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
        dx[i] = derivative(x[i]) * dy[i];
    }
}

fn derivative(v: vec4<f32>) -> vec4<f32> {
    switch FUNCTION {
        case 0u: {
            return select(vec4(1.0), vec4<f32>(), v <= vec4<f32>());
        }
        case 1u: {
            return select(vec4(1.0), vec4(SLOPE), v <= vec4<f32>());
        }
        case 2u: {
            let e = exp(-abs(v)); // the derivative is even, and this cannot overflow
            return e / ((1.0 + e) * (1.0 + e));
        }
        case 3u: {
            let e = exp(-2.0 * abs(v));
            return 4.0 * e / ((1.0 + e) * (1.0 + e));
        }
        default: {
            return 0.5 * erfc(-v * 0.70710678) + v * 0.39894228 * exp(-0.5 * v * v);
        }
    }
}

// The complementary error function by Abramowitz & Stegun 7.1.26; absolute error below 1.5e-7.
fn erfc(v: vec4<f32>) -> vec4<f32> {
    let a = abs(v);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))) * exp(-a * a);
    return select(tail, 2.0 - tail, v < vec4<f32>());
}
