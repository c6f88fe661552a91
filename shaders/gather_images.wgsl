// gather_images: y[n] = scale · image order[clock[1] + n], bytes to floats
//
//   shard0 … shard3  [COUNT0 … COUNT3, BYTES] bytes, four to a word, the first in the lowest bits; image i is row
//                    i % PER_SHARD of shard i / PER_SHARD
//   order            [ORDER], u32
//   clock            [2], u32: steps done, images done
//   y                [batch, BYTES]
//
// A place past the end of the order, or an image past the last, gives zeros.
//
// scale = HIGH · UNIT + LOW, where HIGH has 16 bits and UNIT is a power of two. A byte times HIGH is exact, so only the small
// product with LOW and the sum are rounded. For a scale of 1/255 all 256 results are the floats nearest to byte/255, with a
// fused multiply-add or without, on every device; a division may be 2.5 units in the last place off on a GPU.
//
// One invocation computes one element. Dispatch: ceil(elements of y / 256) workgroups.
// CPU twin: `GatherImages::reference` in src/ops/gather.rs.

override BYTES: u32; // of one image
override IMAGES: u32; // in all shards
override PER_SHARD: u32;
override COUNT0: u32;
override COUNT1: u32;
override COUNT2: u32;
override COUNT3: u32;
override ORDER: u32;
override HIGH: u32;
override UNIT: f32;
override LOW: f32;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> shard0: array<u32>;
@group(0) @binding(1) var<storage, read> shard1: array<u32>;
@group(0) @binding(2) var<storage, read> shard2: array<u32>;
@group(0) @binding(3) var<storage, read> shard3: array<u32>;
@group(0) @binding(4) var<storage, read> order: array<u32>;
@group(0) @binding(5) var<storage, read> clock: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
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
    let start = clock[1];
    var byte = 0u;
    if start < ORDER && n < ORDER - start { // cannot overflow, as start + n could
        let image = order[start + n];
        if image < IMAGES {
            byte = load(image / PER_SHARD, image % PER_SHARD, i % BYTES);
        }
    }
    y[i] = f32(byte * HIGH) * UNIT + f32(byte) * LOW;
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
        case 3u: {
            if row < COUNT3 {
                word = shard3[at / 4u];
            }
        }
        default: {}
    }
    return extractBits(word, at % 4u * 8u, 8u);
}
