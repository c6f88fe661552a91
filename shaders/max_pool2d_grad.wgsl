// max_pool2d_grad: dx[p] = Σ dy[o] over the windows o in which x[p] is the first maximum in row-major order
//
//   x   [batch, H, W, C]
//   dy  [batch, OH, OW, C]
//   dx  [batch, H, W, C]
//
// Gathered, not scattered: an element asks each window that holds it, tap by tap, whether it won there; the order of the sum
// is fixed. It won if it beats every tap before it and no tap after beats it; a NaN beats any number.
//
// One invocation computes one element of dx. Dispatch: ceil(elements of dx / 256) workgroups.
// CPU twin: `MaxPool2dGrad::reference` in src/ops/pool.rs.

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
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;
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
    let own = x[i];

    var sum = 0.0;
    for (var ky = 0u; ky < KH; ky += 1u) {
        let top = iy + PY - ky * DY; // of the window, in pixels of the padded image; wraps to a huge number above it
        let oy = top / SY;
        if top > iy + PY || top % SY != 0u || oy >= OH {
            continue;
        }
        for (var kx = 0u; kx < KW; kx += 1u) {
            let left = ix + PX - kx * DX;
            let ox = left / SX;
            if left > ix + PX || left % SX != 0u || ox >= OW {
                continue;
            }
            if wins(own, ky * KW + kx, n, oy, ox, channel) {
                sum += dy[((n * OH + oy) * OW + ox) * C + channel];
            }
        }
    }
    dx[i] = sum;
}

// Whether `own`, at this tap of the window, is its first maximum.
fn wins(own: f32, tap: u32, n: u32, oy: u32, ox: u32, channel: u32) -> bool {
    for (var ky = 0u; ky < KH; ky += 1u) {
        let iy = oy * SY + ky * DY - PY;
        if iy >= H {
            continue;
        }
        for (var kx = 0u; kx < KW; kx += 1u) {
            let ix = ox * SX + kx * DX - PX;
            let other = ky * KW + kx;
            if ix >= W || other == tap {
                continue;
            }
            let v = x[((n * H + iy) * W + ix) * C + channel];
            if select(beats(v, own), !beats(own, v), other < tap) {
                return false;
            }
        }
    }
    return true;
}

// Whether v is larger than best, a NaN being larger than any number. By bits, since compilers may assume that no NaN exists.
fn beats(v: f32, best: f32) -> bool {
    return !is_nan(best) && (is_nan(v) || v > best);
}

fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}
