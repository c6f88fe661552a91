// adam: m += (g - m)(1 - β1), v += (g² - v)(1 - β2), w -= lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + ε)
//
//   w, m, v  [LEN], changed in place
//   g        [LEN]
//   rate     [4]: lr, 1 - β1ᵗ, 1 - β2ᵗ and what is left of its rounding, of the step that is being taken
//
// One invocation changes one element. Dispatch: ceil(LEN / 256) workgroups.
// CPU twin: `Adam::reference` in src/ops/adam.rs.

override LEN: u32;
override STEP1: f32; // 1 - β1
override STEP2: f32; // 1 - β2
override EPSILON: f32;

const LANES = 256u;

@group(0) @binding(0) var<storage, read_write> w: array<f32>;
@group(0) @binding(1) var<storage, read_write> m: array<f32>;
@group(0) @binding(2) var<storage, read_write> v: array<f32>;
@group(0) @binding(3) var<storage, read> g: array<f32>;
@group(0) @binding(4) var<storage, read> rate: array<f32>;
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
    if i >= LEN {
        return;
    }
    let gradient = g[i];
    let first = m[i] + (gradient - m[i]) * STEP1;
    let second = v[i] + (gradient * gradient - v[i]) * STEP2;
    let scale = rate[0] * sqrt(rate[2]) / rate[1];
    m[i] = first;
    v[i] = second;
    w[i] -= scale * first / (sqrt(second) + EPSILON);
}
