// sum_slices: y[s, c] = Σ x[row, c] over the rows of slice s
//
//   x  [ROWS, COLUMNS], or [ROWS · batch, COLUMNS] if BATCHED; COLUMNS a multiple of 4
//   y  [SLICES, COLUMNS], every element written exactly once
//
// The rows are cut into SLICES runs of equal length, the last ones shorter or empty. One invocation computes four neighbouring
// elements of y, without workgroup memory and barriers. It adds its rows in runs of 64, then run to run, which keeps the error of
// long sums small.
//
// Dispatch: ceil(SLICES · COLUMNS / 4 / 64) workgroups. CPU twin: `SumSlices::reference` in src/ops/reduce/slices.rs.

override ROWS: u32;
override COLUMNS: u32;
override BATCHED: bool;
override SLICES: u32;

const LANES = 64u;
const RUN = 64u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pitch = COLUMNS / 4u;
    let i = (group.y * groups.x + group.x) * LANES + lane;
    if i >= SLICES * pitch {
        return;
    }
    let column = i % pitch;
    let rows = select(ROWS, ROWS * call.batch, BATCHED);
    let slice = (rows + SLICES - 1u) / SLICES;
    let begin = min(i / pitch * slice, rows);
    let end = min(begin + slice, rows);
    var total = vec4<f32>();
    for (var first = begin; first < end; first += RUN) {
        let last = min(first + RUN, end);
        var run = vec4<f32>();
        for (var row = first; row < last; row += 1u) {
            run += x[row * pitch + column];
        }
        total += run;
    }
    y[i] = total;
}
