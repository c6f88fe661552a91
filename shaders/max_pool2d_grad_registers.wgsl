// max_pool2d_grad_registers: dx[p] = dy[o] if x[p] is the first maximum in row-major order of its window o, else 0
//
//   x   [batch, H, W, C]     C a multiple of 4
//   dy  [batch, OH, OW, C]
//   dx  [batch, H, W, C]     every element written exactly once
//
// The gradient of max_pool2d_grad where windows do not overlap and have no holes, so that each pixel is in one at most: then a
// window can be looked at once, not once for each of its pixels. The padded image falls into cells of SY×SX pixels, a window in
// the corner of each; one invocation takes four channels of a cell, finds the first maxima, and writes all pixels of the cell.
//
// Dispatch: ceil(batch · CELLS_H · CELLS_W · C / 4 / LANES) workgroups.
// CPU twin: `MaxPool2dGrad::reference` in src/ops/pool.rs.

override H: u32;
override W: u32;
override C: u32;
override OH: u32;
override OW: u32;
override KH: u32; // at most SY
override KW: u32; // at most SX
override SY: u32; // stride
override SX: u32;
override PY: u32; // padding before the image
override PX: u32;
override CELLS_H: u32; // that cover the image and the padding before it
override CELLS_W: u32;

const LANES = 64u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
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
    let quads = C / 4u;
    let i = (group.y * groups.x + group.x) * LANES + lane;
    if i >= call.batch * CELLS_H * CELLS_W * quads {
        return;
    }
    let quad = i % quads;
    let ox = i / quads % CELLS_W;
    let oy = i / (quads * CELLS_W) % CELLS_H;
    let n = i / (quads * CELLS_W * CELLS_H);

    // Which tap is the first maximum of each channel.
    var best = vec4<f32>();
    var winner = vec4(KH * KW);
    for (var ky = 0u; ky < KH; ky += 1u) {
        let iy = oy * SY + ky - PY; // wraps to a huge number above the image
        for (var kx = 0u; kx < KW; kx += 1u) {
            let ix = ox * SX + kx - PX;
            if iy < H && ix < W {
                let v = x[((n * H + iy) * W + ix) * quads + quad];
                let wins = (winner == vec4(KH * KW)) | beats(v, best);
                best = select(best, v, wins);
                winner = select(winner, vec4(ky * KW + kx), wins);
            }
        }
    }
    var grad = vec4<f32>();
    if oy < OH && ox < OW {
        grad = dy[((n * OH + oy) * OW + ox) * quads + quad];
    }
    for (var ky = 0u; ky < SY; ky += 1u) {
        let iy = oy * SY + ky - PY;
        for (var kx = 0u; kx < SX; kx += 1u) {
            let ix = ox * SX + kx - PX;
            if iy < H && ix < W {
                let here = vec4(select(KH * KW + 1u, ky * KW + kx, ky < KH && kx < KW));
                dx[((n * H + iy) * W + ix) * quads + quad] = select(vec4<f32>(), grad, winner == here);
            }
        }
    }
}

// Whether v is larger than best, a NaN being larger than any number. By bits, since compilers may assume that no NaN exists.
fn beats(v: vec4<f32>, best: vec4<f32>) -> vec4<bool> {
    return !is_nan(best) & (is_nan(v) | (v > best));
}

fn is_nan(v: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(v) & vec4(0x7fffffffu)) > vec4(0x7f800000u);
}
