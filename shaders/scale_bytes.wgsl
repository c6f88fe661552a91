// scale_bytes: y[i] = scale · x[i], bytes to floats
//
//   x  [LEN] bytes, or [batch, LEN] if BATCHED; four to a word, the first in the lowest bits
//   y  f32, of the shape of x
//
// scale = HIGH · UNIT + LOW, where HIGH has 16 bits and UNIT is a power of two: why, and why all devices give the same bits, is in
// gather_batch.wgsl. One invocation computes one element; four neighbours read one word.
//
// Dispatch: ceil(elements / 256) workgroups. CPU twin: `ScaleBytes::reference` in src/ops/bytes.rs.

override LEN: u32;
override BATCHED: bool;
override HIGH: u32;
override UNIT: f32;
override LOW: f32;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> x: array<u32>;
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
    let i = (group.y * groups.x + group.x) * LANES + lane;
    if i < select(LEN, LEN * call.batch, BATCHED) {
        let byte = extractBits(x[i / 4u], i % 4u * 8u, 8u);
        y[i] = f32(byte * HIGH) * UNIT + f32(byte) * LOW;
    }
}
