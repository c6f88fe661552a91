// gather_batch: y[n] = scale · image order[clock[1] + n], bytes to floats; t[n] = labels[order[clock[1] + n]]
//
//   shard0 … shard2  [COUNT0 … COUNT2, BYTES] bytes, four to a word, the first in the lowest bits; image i is row
//                    i % PER_SHARD of shard i / PER_SHARD
//   labels           [LABELS], u32
//   order            [ORDER], u32
//   clock            [2], u32: steps done, images done
//   y                [batch, BYTES]
//   t                [batch], u32
//
// A place past the end of the order, or an image or label past the last, gives zeros.
//
// scale = HIGH · UNIT + LOW, where HIGH has 16 bits and UNIT is a power of two. A byte times HIGH is exact, so only the small
// product with LOW and the sum are rounded. For a scale of 1/255 all 256 results are the floats nearest to byte/255, with a
// fused multiply-add or without, on every device; a division may be 2.5 units in the last place off on a GPU.
//
// One invocation computes one element of y, and that of t at the same place if there is one. Dispatch: ceil(elements of y / 256)
// workgroups. CPU twin: `GatherBatch::reference` in src/ops/gather.rs.

override BYTES: u32; // of one image
override IMAGES: u32; // in all shards
override PER_SHARD: u32;
override COUNT0: u32;
override COUNT1: u32;
override COUNT2: u32;
override LABELS: u32;
override ORDER: u32;
override HIGH: u32;
override UNIT: f32;
override LOW: f32;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> shard0: array<u32>;
@group(0) @binding(1) var<storage, read> shard1: array<u32>;
@group(0) @binding(2) var<storage, read> shard2: array<u32>;
@group(0) @binding(3) var<storage, read> labels: array<u32>;
@group(0) @binding(4) var<storage, read> order: array<u32>;
@group(0) @binding(5) var<storage, read> clock: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<storage, read_write> t: array<u32>;
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
    if i >= call.batch * BYTES {
        return;
    }
    let n = i / BYTES;
    let image = place(n);
    var byte = 0u;
    if image < IMAGES {
        byte = load(image / PER_SHARD, image % PER_SHARD, i % BYTES);
    }
    y[i] = f32(byte * HIGH) * UNIT + f32(byte) * LOW;

    if i < call.batch {
        let own = place(i);
        var label = 0u;
        if own < LABELS {
            label = labels[own];
        }
        t[i] = label;
    }
}

// The image that comes at this place of the batch, or one past all others.
fn place(n: u32) -> u32 {
    let start = clock[1];
    if start < ORDER && n < ORDER - start { // cannot overflow, as start + n could
        return order[start + n];
    }
    return 0xffffffffu;
}

fn load(shard: u32, row: u32, offset: u32) -> u32 {
    let at = row * BYTES + offset;
    var word = 0u;
    switch shard {
        case 0u: {
            if row < COUNT0 {
                word = shard0[at / 4u];
            }
        }
        case 1u: {
            if row < COUNT1 {
                word = shard1[at / 4u];
            }
        }
        case 2u: {
            if row < COUNT2 {
                word = shard2[at / 4u];
            }
        }
        default: {}
    }
    return extractBits(word, at % 4u * 8u, 8u);
}
