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
    // Of the second product's weights those that the invocation needs first, so that they come while the first is computed.
    let index = lane / SHARERS;
    let class_ = index % CLASSES;
    let kept = mat4x4(four_w2(class_, lane, 0u), four_w2(class_, lane, 4u), four_w2(class_, lane, 8u), four_w2(class_, lane, 12u));
    workgroupBarrier();
    hide(lane);

    if index < ROWS * CLASSES {
        let image = index / CLASSES * UNITS;
        var sum = dot(four_hidden(image, lane, 0u), kept[0]);
        sum += dot(four_hidden(image, lane, 4u), kept[1]);
        sum += dot(four_hidden(image, lane, 8u), kept[2]);
        sum += dot(four_hidden(image, lane, 12u), kept[3]);
        for (var u = lane % SHARERS + 16u * SHARERS; u < UNITS; u += SHARERS) {
            sum += hidden[image + u] * w2[u * CLASSES + class_];
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

// The weights of a class for four of the units that an invocation takes, from its i-th on, and those units; zeros for none.
fn four_w2(class_: u32, lane: u32, i: u32) -> vec4<f32> {
    let u = units_of(lane, i);
    let there = u < vec4(UNITS);
    let at = select(vec4<u32>(), u, there) * CLASSES + class_;
    return select(vec4<f32>(), vec4(w2[at.x], w2[at.y], w2[at.z], w2[at.w]), there);
}

fn four_hidden(image: u32, lane: u32, i: u32) -> vec4<f32> {
    let u = units_of(lane, i);
    let there = u < vec4(UNITS);
    let at = select(vec4<u32>(), image + u, there);
    return select(vec4<f32>(), vec4(hidden[at.x], hidden[at.y], hidden[at.z], hidden[at.w]), there);
}

fn units_of(lane: u32, i: u32) -> vec4<u32> {
    return vec4(lane % SHARERS) + (vec4(i) + vec4(0u, 1u, 2u, 3u)) * SHARERS;
}

// An image's feature by its place behind the first feature of the first image.
fn load_x(image0: u32, i: u32) -> f32 {
    if image0 + i / FEATURES >= call.batch {
        return 0.0;
    }
    return f32(x[image0 * FEATURES + i]);
}

// The hidden layer. The parts take the features in turn, sixteen of their own at a time while there are as many, then four.
fn hide(lane: u32) {
    let across = UNITS / 4u;
    let parts = LANES / across;
    let quad = lane % across;
    let first = 4u * quad;
    let bias = vec4(b1[first], b1[first + 1u], b1[first + 2u], b1[first + 3u]);
    var sums = mat4x4<f32>(); // an image each
    if lane < parts * across {
        var k = lane / across;
        var ahead: Weights;
        if k + 15u * parts < FEATURES {
            ahead = sixteen_weights(k, parts, quad);
        }
        for (; k + 15u * parts < FEATURES; k += 16u * parts) {
            // The next are asked for while these are multiplied: compilers move loads to where they are needed, but not out of a loop.
            let now = ahead;
            ahead = sixteen_weights(select(k, k + 16u * parts, k + 31u * parts < FEATURES), parts, quad);
            sums = added(sums, k, parts, now.w_0);
            sums = added(sums, k + 4u * parts, parts, now.w_4);
            sums = added(sums, k + 8u * parts, parts, now.w_8);
            sums = added(sums, k + 12u * parts, parts, now.w_12);
        }
        for (; k + 3u * parts < FEATURES; k += 4u * parts) {
            sums = added(sums, k, parts, four_weights(k, parts, quad));
        }
        for (; k < FEATURES; k += parts) {
            let here = w1[k * across + quad];
            for (var image = 0u; image < ROWS; image += 1u) {
                sums[image] += images[image * FEATURES + k] * here;
            }
        }
    }
    meet(lane, 0u, sums[0], bias);
    if ROWS > 1u {
        meet(lane, 1u, sums[1], bias);
    }
    if ROWS > 2u {
        meet(lane, 2u, sums[2], bias);
        meet(lane, 3u, sums[3], bias);
    }
}

// Sixteen features' weights for four units, of the first four features, the next, and so on.
struct Weights {
    w_0: mat4x4<f32>,
    w_4: mat4x4<f32>,
    w_8: mat4x4<f32>,
    w_12: mat4x4<f32>,
}

fn sixteen_weights(k: u32, parts: u32, quad: u32) -> Weights {
    return Weights(
        four_weights(k, parts, quad),
        four_weights(k + 4u * parts, parts, quad),
        four_weights(k + 8u * parts, parts, quad),
        four_weights(k + 12u * parts, parts, quad),
    );
}

// Four features' weights for four units, the first feature being `k`.
fn four_weights(k: u32, parts: u32, quad: u32) -> mat4x4<f32> {
    let at = k * (UNITS / 4u) + quad;
    let apart = parts * (UNITS / 4u);
    return mat4x4(w1[at], w1[at + apart], w1[at + 2u * apart], w1[at + 3u * apart]);
}

// The sums of all images and their products with these weights, one after another.
fn added(sums: mat4x4<f32>, k: u32, parts: u32, weights: mat4x4<f32>) -> mat4x4<f32> {
    var next = sums;
    for (var image = 0u; image < ROWS; image += 1u) {
        let at = image * FEATURES + k;
        next[image] += images[at] * weights[0];
        next[image] += images[at + parts] * weights[1];
        next[image] += images[at + 2u * parts] * weights[2];
        next[image] += images[at + 3u * parts] * weights[3];
    }
    return next;
}

// The parts' sums of one image, added in order by the first part, with the bias of the invocation's units, and ReLU.
fn meet(lane: u32, image: u32, sum: vec4<f32>, bias: vec4<f32>) {
    let across = UNITS / 4u; // at most LANES
    quads[lane] = sum;
    workgroupBarrier();
    if lane < across {
        var z = bias;
        for (var part = 0u; part < LANES / across; part += 1u) {
            z += quads[part * across + lane];
        }
        for (var i = 0u; i < 4u; i += 1u) {
            hidden[image * UNITS + 4u * lane + i] = select(z[i], 0.0, z[i] < 0.0);
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
