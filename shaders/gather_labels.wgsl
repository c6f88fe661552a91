// gather_labels: y[n] = labels[order[clock[1] + n]]
//
//   labels  [COUNT], u32
//   order   [ORDER], u32
//   clock   [2], u32: steps done, images done
//   y       [batch], u32
//
// A place past the end of the order, or an index past the last label, gives 0.
//
// One invocation computes one element. Dispatch: ceil(batch / 256) workgroups.
// CPU twin: `GatherLabels::reference` in src/ops/gather.rs.

override COUNT: u32;
override ORDER: u32;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> labels: array<u32>;
@group(0) @binding(1) var<storage, read> order: array<u32>;
@group(0) @binding(2) var<storage, read> clock: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<u32>;
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
    let n = (group.y * groups.x + group.x) * LANES + lane;
    if n >= call.batch {
        return;
    }
    let start = clock[1];
    var label = 0u;
    if start < ORDER && n < ORDER - start { // cannot overflow, as start + n could
        let index = order[start + n];
        if index < COUNT {
            label = labels[index];
        }
    }
    y[n] = label;
}
