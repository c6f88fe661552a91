// mlp_head: hidden = relu(x · w1 + b1)       logits = hidden · w2 + b2       and what softmax cross-entropy makes of them, for each image
//
//   x       [batch, FEATURES]
//   w1      [FEATURES, UNITS], UNITS a multiple of 4
//   b1      [UNITS]
//   w2      [UNITS, CLASSES]
//   b2      [CLASSES]
//   labels  [batch], u32
//   dloss   one number
//   rows    [batch, 2·UNITS + CLASSES + 2]: hidden, its gradient before ReLU, the logits' gradient, loss, and 1 if the answer is right
//
// One workgroup takes ROWS images from x to the gradient of the hidden layer; all but x and w1 is small. For the first product each
// invocation has four units and some of the features, so that neighbours load neighbouring weights, once for all images; the
// sums meet in shared memory. A logit is shared by SHARERS invocations, then softmax by one for each logit, each of which goes
// over its image's row. A row is right if no logit before the label's is as large, none after it is larger, and none is NaN.
//
// Dispatch: ceil(batch / ROWS) workgroups. CPU twin: `MlpHead::reference` in src/ops/mlp_head.rs.

// What is stored as f16 where src/ops/stored.rs writes so; sums are f32 in any case.
alias X = f32;

override FEATURES: u32;
override UNITS: u32;
override CLASSES: u32;
override ROWS: u32;    // 1, 2 or 4
override SHARERS: u32; // a power of two, ROWS · CLASSES · SHARERS at most 256

const LANES = 256u;
const LOWEST = -3.4028234e38;
const NAN = 0x7fc00000u; // its bits

@group(0) @binding(0) var<storage, read> x: array<X>;
@group(0) @binding(1) var<storage, read> w1: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b1: array<f32>;
@group(0) @binding(3) var<storage, read> w2: array<f32>;
@group(0) @binding(4) var<storage, read> b2: array<f32>;
@group(0) @binding(5) var<storage, read> labels: array<u32>;
@group(0) @binding(6) var<storage, read> dloss: array<f32>;
@group(0) @binding(7) var<storage, read_write> rows: array<f32>;
struct Call {
    batch: u32,
}
var<immediate> call: Call;

var<workgroup> images: array<f32, ROWS * FEATURES>; // [image][feature]
var<workgroup> hidden: array<f32, ROWS * UNITS>;    // [image][unit]
var<workgroup> logits: array<f32, ROWS * CLASSES>;  // [image][class]; at last their gradients
var<workgroup> quads: array<vec4<f32>, LANES>;      // [part of the features][four units]
var<workgroup> terms: array<f32, LANES>;            // [image][class][sharer], then exponentials as logits are

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let image0 = (group.y * groups.x + group.x) * ROWS;
    for (var i = lane; i < ROWS * FEATURES; i += LANES) {
        images[i] = load_x(image0, i);
    }
    workgroupBarrier();
    hide(lane);

    let index = lane / SHARERS;
    if index < ROWS * CLASSES {
        let class_ = index % CLASSES;
        var sum = 0.0;
        for (var u = lane % SHARERS; u < UNITS; u += SHARERS) {
            sum += hidden[index / CLASSES * UNITS + u] * w2[u * CLASSES + class_];
        }
        terms[lane] = sum;
    }
    for (var half = SHARERS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % SHARERS < half {
            terms[lane] += terms[lane + half];
        }
    }
    if index < ROWS * CLASSES && lane % SHARERS == 0u {
        logits[index] = terms[lane] + b2[index % CLASSES];
    }
    workgroupBarrier();
    judge(image0, lane);
    workgroupBarrier();

    for (var i = lane; i < ROWS * UNITS; i += LANES) {
        let n = image0 + i / UNITS;
        let unit = i % UNITS;
        var sum = 0.0;
        for (var c = 0u; c < CLASSES; c += 1u) {
            sum += logits[i / UNITS * CLASSES + c] * w2[unit * CLASSES + c];
        }
        if n < call.batch {
            let row = n * (2u * UNITS + CLASSES + 2u);
            rows[row + unit] = hidden[i];
            rows[row + UNITS + unit] = select(sum, 0.0, hidden[i] <= 0.0);
        }
    }
}

// An image's feature by its place behind the first feature of the first image.
fn load_x(image0: u32, i: u32) -> f32 {
    if image0 + i / FEATURES >= call.batch {
        return 0.0;
    }
    return f32(x[image0 * FEATURES + i]);
}

// The hidden layer. The parts take the features in turn, eight of their own at a time while there are as many.
fn hide(lane: u32) {
    let across = UNITS / 4u;
    let parts = LANES / across;
    let quad = lane % across;
    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    if lane < parts * across {
        var k = lane / across;
        for (; k + 7u * parts < FEATURES; k += 8u * parts) {
            // All eight are asked for before the first is needed.
            let w_0 = w1[k * across + quad];
            let w_1 = w1[(k + parts) * across + quad];
            let w_2 = w1[(k + 2u * parts) * across + quad];
            let w_3 = w1[(k + 3u * parts) * across + quad];
            let w_4 = w1[(k + 4u * parts) * across + quad];
            let w_5 = w1[(k + 5u * parts) * across + quad];
            let w_6 = w1[(k + 6u * parts) * across + quad];
            let w_7 = w1[(k + 7u * parts) * across + quad];
            let later = k + 4u * parts;
            sum0 = four(sum0, k, parts, w_0, w_1, w_2, w_3);
            sum0 = four(sum0, later, parts, w_4, w_5, w_6, w_7);
            if ROWS > 1u {
                sum1 = four(sum1, FEATURES + k, parts, w_0, w_1, w_2, w_3);
                sum1 = four(sum1, FEATURES + later, parts, w_4, w_5, w_6, w_7);
            }
            if ROWS > 2u {
                sum2 = four(sum2, 2u * FEATURES + k, parts, w_0, w_1, w_2, w_3);
                sum2 = four(sum2, 2u * FEATURES + later, parts, w_4, w_5, w_6, w_7);
                sum3 = four(sum3, 3u * FEATURES + k, parts, w_0, w_1, w_2, w_3);
                sum3 = four(sum3, 3u * FEATURES + later, parts, w_4, w_5, w_6, w_7);
            }
        }
        for (; k < FEATURES; k += parts) {
            let here = w1[k * across + quad];
            sum0 += images[k] * here;
            if ROWS > 1u {
                sum1 += images[FEATURES + k] * here;
            }
            if ROWS > 2u {
                sum2 += images[2u * FEATURES + k] * here;
                sum3 += images[3u * FEATURES + k] * here;
            }
        }
    }
    meet(lane, 0u, sum0);
    if ROWS > 1u {
        meet(lane, 1u, sum1);
    }
    if ROWS > 2u {
        meet(lane, 2u, sum2);
        meet(lane, 3u, sum3);
    }
}

// `sum` and an image's products with four features' weights, the first of which is the feature at `k`, one after another.
fn four(sum: vec4<f32>, k: u32, parts: u32, w_0: vec4<f32>, w_1: vec4<f32>, w_2: vec4<f32>, w_3: vec4<f32>) -> vec4<f32> {
    var next = sum + images[k] * w_0;
    next += images[k + parts] * w_1;
    next += images[k + 2u * parts] * w_2;
    return next + images[k + 3u * parts] * w_3;
}

// The parts' sums of one image, added in order, with bias and ReLU.
fn meet(lane: u32, image: u32, sum: vec4<f32>) {
    let across = UNITS / 4u;
    quads[lane] = sum;
    workgroupBarrier();
    for (var quad = lane; quad < across; quad += LANES) {
        var z = vec4(b1[4u * quad], b1[4u * quad + 1u], b1[4u * quad + 2u], b1[4u * quad + 3u]);
        for (var part = 0u; part < LANES / across; part += 1u) {
            z += quads[part * across + quad];
        }
        for (var i = 0u; i < 4u; i += 1u) {
            hidden[image * UNITS + 4u * quad + i] = select(z[i], 0.0, z[i] < 0.0);
        }
    }
    workgroupBarrier();
}

// Loss, answer and the logits' gradients, which take the logits' place.
fn judge(image0: u32, lane: u32) {
    let image = image0 + lane / CLASSES;
    let taken = lane < ROWS * CLASSES && image < call.batch;
    let label = labels[min(image, call.batch - 1u)];
    let first = lane / CLASSES * CLASSES;
    var claimed = 0.0;
    var most = LOWEST;
    var objections = f32(label >= CLASSES);
    if taken {
        claimed = logits[first + min(label, CLASSES - 1u)];
        for (var c = 0u; c < CLASSES; c += 1u) {
            let v = logits[first + c];
            most = max(most, v);
            objections += f32(v > claimed || (c < label && v == claimed) || is_nan(v));
        }
        terms[lane] = exp_or_nan(logits[lane] - most);
    }
    workgroupBarrier();
    if !taken {
        return;
    }
    var sum = 0.0;
    for (var c = 0u; c < CLASSES; c += 1u) {
        sum += terms[first + c];
    }
    let hit = lane % CLASSES == label;
    let value = (terms[lane] / sum - f32(hit)) * (dloss[0] / f32(call.batch));
    logits[lane] = or_nan(value, label >= CLASSES);
    let at = image * (2u * UNITS + CLASSES + 2u) + 2u * UNITS;
    rows[at + lane % CLASSES] = logits[lane];
    if lane % CLASSES == 0u {
        rows[at + CLASSES] = or_nan(log_or_nan(sum) + (most - claimed), label >= CLASSES);
        rows[at + CLASSES + 1u] = f32(objections == 0.0);
    }
}

fn or_nan(value: f32, not: bool) -> f32 {
    return bitcast<f32>(select(bitcast<u32>(value), NAN, not));
}

// A driver may make a number of the exponential of a NaN; a diverged network must show.
fn exp_or_nan(v: f32) -> f32 {
    return select(exp(v), v, is_nan(v));
}

// The same for the logarithm.
fn log_or_nan(v: f32) -> f32 {
    return select(log(v), v, is_nan(v));
}

// By its bits: a compiler may take it that v == v.
fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}
