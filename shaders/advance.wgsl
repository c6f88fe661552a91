// advance: the clock moves on to the next step
//
//   clock  [2], u32: steps done in this pass over the data, images done in it; changed in place
//
// One invocation does it all. Dispatch: 1 workgroup. CPU twin: `Advance::reference` in src/ops/adam.rs.

@group(0) @binding(0) var<storage, read_write> clock: array<u32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

@compute @workgroup_size(1)
fn main() {
    clock[0] += 1u;
    clock[1] += call.batch;
}
