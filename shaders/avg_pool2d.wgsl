// avg_pool2d: y[n, oy, ox, c] = mean x[n, oy·SY + ky·DY - PY, ox·SX + kx·DX - PX, c] over the taps ky, kx inside the image
//
//   x  [batch, H, W, C]
//   y  [batch, OH, OW, C]
//
// Taps outside the image are not counted; every window has one inside.
//
// One invocation computes one element of y, neighbours along the channels. Dispatch: ceil(elements of y / 256) workgroups.
// CPU twin: `AvgPool2d::reference` in src/ops/pool.rs.

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

@group(0) @binding(0) var<storage, read> x: array<f32>;
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
    if i >= call.batch * OH * OW * C {
        return;
    }
    let channel = i % C;
    let ox = i / C % OW;
    let oy = i / (C * OW) % OH;
    let n = i / (C * OW * OH);

    // A row's sum first, then the rows': keeps the error small when the window is a whole image.
    var sum = 0.0;
    var count = 0u;
    for (var ky = 0u; ky < KH; ky += 1u) {
        let iy = oy * SY + ky * DY - PY; // wraps to a huge number above the image
        if iy >= H {
            continue;
        }
        var row = 0.0;
        for (var kx = 0u; kx < KW; kx += 1u) {
            let ix = ox * SX + kx * DX - PX;
            if ix < W {
                row += x[((n * H + iy) * W + ix) * C + channel];
                count += 1u;
            }
        }
        sum += row;
    }
    y[i] = sum / f32(count);
}
