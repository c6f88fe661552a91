// avg_pool2d_grad: dx[p] = Σ dy[o] / (taps of o inside the image) over the windows o that hold p
//
//   dy  [batch, OH, OW, C]
//   dx  [batch, H, W, C]
//
// One invocation computes one element of dx; the order of its sum is fixed. Dispatch: ceil(elements of dx / 256) workgroups.
// CPU twin: `AvgPool2dGrad::reference` in src/ops/pool.rs.

override H: u32;
override W: u32;
override C: u32;
override OH: u32;
override OW: u32;
override KH: u32;
override KW: u32;
override SY: u32; // stride
override SX: u32;
override DY: u32; // dilation
override DX: u32;
override PY: u32; // padding before the image
override PX: u32;

const LANES = 256u;

@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read_write> dx: array<f32>;
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
    if i >= call.batch * H * W * C {
        return;
    }
    let channel = i % C;
    let ix = i / C % W;
    let iy = i / (C * W) % H;
    let n = i / (C * W * H);

    var sum = 0.0;
    for (var ky = 0u; ky < KH; ky += 1u) {
        let top = iy + PY - ky * DY; // of the window, in pixels of the padded image; wraps to a huge number above it
        let oy = top / SY;
        if top > iy + PY || top % SY != 0u || oy >= OH {
            continue;
        }
        let rows = inside(oy * SY - PY, KH, DY, H);
        for (var kx = 0u; kx < KW; kx += 1u) {
            let left = ix + PX - kx * DX;
            let ox = left / SX;
            if left > ix + PX || left % SX != 0u || ox >= OW {
                continue;
            }
            let columns = inside(ox * SX - PX, KW, DX, W);
            sum += dy[((n * OH + oy) * OW + ox) * C + channel] / f32(rows * columns);
        }
    }
    dx[i] = sum;
}

// How many of an axis's taps lie inside it.
fn inside(first: u32, taps: u32, dilation: u32, extent: u32) -> u32 {
    var count = 0u;
    for (var k = 0u; k < taps; k += 1u) {
        count += u32(first + k * dilation < extent);
    }
    return count;
}
