//! Mutations: kernels broken in one place each. The check that every operator passes must turn red for every one of them.

mod common;
#[path = "mutations/cooperative.rs"]
mod cooperative;
#[path = "mutations/dense.rs"]
mod dense;
#[path = "mutations/heads.rs"]
mod heads;
#[path = "mutations/mixed.rs"]
mod mixed;
#[path = "mutations/pools.rs"]
mod pools;
#[path = "mutations/registers.rs"]
mod registers;
#[path = "mutations/tiles.rs"]
mod tiles;
#[path = "mutations/training.rs"]
mod training;

use std::collections::BTreeSet;

use common::examples::{Example, batched, example, fixed, labels, output};
use common::{Altered, Guarded, check_op_on, gpu};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use shadernet::exec::Executor;
use shadernet::exec::gpu::{Checks, Gpu, GpuExecutor, adapters};
use shadernet::ops::activation::Function;
use shadernet::ops::reduce::Axes;
use shadernet::ops::window::{Padding, Window};
use shadernet::ops::*;
use shadernet::shape::{DType, TensorType};

/// A fault: its name, a text that a kernel has once, and what it is replaced by.
type Fault = [&'static str; 3];

/// An application of an operator, and faults of its kernel.
struct Target {
    example: Example,
    faults: Vec<Fault>,
}

fn target(example: Example, faults: &[Fault]) -> Target {
    Target { example, faults: faults.to_vec() }
}

// Ranges that operators do not draw from by themselves, and without which some faults give right results.

/// Values so few that many tie: -1, 0, 1 or 2 steps of what operands are drawn in.
const TIES: (f64, f64) = (-1.0 / 1_048_576.0, 2.0 / 1_048_576.0);

/// Logits whose exponentials overflow if no maximum is subtracted.
const WIDE: (f64, f64) = (-100.0, 100.0);

const LAST_STEP: Fault = ["the last step along K left out", "k0 < depth;", "k0 + STEP <= depth;"];
const ROW_TOO_MANY: Fault = ["stores a row too many", "    if row >= rows {", "    if row > rows {"];

fn elementwise() -> Vec<Target> {
    let x = batched(&[7, 9, 5]);
    let activation = |function| example(Activation { function }, &[x], 3);
    let tied_grad = |function| example(Altered::drawn(ActivationGrad { function }, 0, TIES), &[x, x], 3);
    let leaky = Function::LeakyRelu { slope: 0.3 };
    vec![
        target(activation(Function::Relu), &[["relu of the other sign", "select(v, 0.0, v < 0.0)", "select(v, 0.0, v > 0.0)"]]),
        target(activation(leaky), &[["slope dropped", "SLOPE * v", "v"]]),
        target(activation(Function::Tanh), &[["half the exponent of tanh", "exp(-2.0 * abs(v))", "exp(-abs(v))"]]),
        target(
            tied_grad(Function::Relu),
            &[
                ["gradient of relu of the other sign", "select(1.0, 0.0, v <= 0.0)", "select(1.0, 0.0, v > 0.0)"],
                ["gradient of relu at 0", "select(1.0, 0.0, v <= 0.0)", "select(1.0, 0.0, v < 0.0)"],
            ],
        ),
        target(tied_grad(leaky), &[["gradient of leaky relu at 0", "SLOPE, v <= 0.0", "SLOPE, v < 0.0"]]),
        target(example(Mul, &[x, x], 3), &[["sum and product exchanged", "a[i] + b[i], a[i] * b[i]", "a[i] * b[i], a[i] + b[i]"]]),
        target(example(Add, &[x, x], 3), &[["an element too many", "if i < select", "if i <= select"]]),
        target(
            example(BiasAdd, &[batched(&[5, 3, 33]), fixed(&[33])], 3),
            &[["bias of the next channel", "bias[i % CHANNELS]", "bias[(i + 1u) % CHANNELS]"]],
        ),
        target(example(FmaChains, &[fixed(&[2])], 2), &[["a chain left out", "sum.z + sum.w", "sum.z"]]),
    ]
}

fn reductions() -> Vec<Target> {
    let axes = Axes::new(&[0, 2]);
    let x = batched(&[5, 7, 9]);
    vec![
        target(
            example(Sum { axes }, &[x], 3),
            &[
                ["the last term left out", "if term < terms", "if term + 1u < terms"],
                ["the tree's last round left out", "half >= OUTPUTS", "half > OUTPUTS"],
            ],
        ),
        target(
            example(SumSlices { slices: 7 }, &[batched(&[50, 9, 20])], 3),
            &[
                ["slices overlap", "min(begin + slice, rows)", "rows"],
                ["the last row of a run left out", "row < last;", "row + 1u < last;"],
                ["only the last run", "total += run", "total = run"],
                ["always the first slice", "i / pitch * slice", "0u * slice"],
            ],
        ),
        target(
            example(Sum { axes: Axes::new(&[0, 2, 4]) }, &[fixed(&[3, 4, 5, 6, 7])], 1),
            &[["axes exchanged", "i3) * E4 + i4", "i4) * E4 + i3"]],
        ),
        target(example(Sum { axes: Axes::new(&[0]) }, &[fixed(&[2500, 3])], 1), &[["only the last run", "total += run", "total = run"]]),
        target(
            example(Broadcast { shape: x.shape, axes }, &[output(Sum { axes }, &[x])], 3),
            &[["transposed", "i1 * E3 + i3", "i3 * E1 + i1"], ["an element too many", "if i >= len", "if i > len"]],
        ),
    ]
}

fn products() -> Vec<Target> {
    let transposed = Matmul { transpose_a: true, transpose_b: true };
    let conv = Conv2d { stride: [2, 1], padding: Padding::Explicit { top: 1, bottom: 0, left: 2, right: 1 }, dilation: [1, 2], groups: 3 };
    let (x, w) = (batched(&[9, 7, 12]), fixed(&[3, 2, 4, 9]));
    let y = output(conv, &[x, w]);
    vec![
        target(
            example(transposed, &[fixed(&[33, 70]), fixed(&[67, 33])], 1),
            &[
                ["a as if not transposed", "a[k * rows + row]", "a[row * depth + k]"],
                ["b as if not transposed", "b[column * depth + k]", "b[k * N + column]"],
                ["only the last step along K", "s00 += outer", "s00 = outer"],
            ],
        ),
        target(example(Matmul::default(), &[batched(&[33]), fixed(&[33, 10])], 67), &[LAST_STEP, ROW_TOO_MANY]),
        target(
            example(conv, &[x, w], 3),
            &[
                LAST_STEP,
                ["padding of the other sign", "- i32(PAD_W)", "+ i32(PAD_W)"],
                ["dilation ignored", "tap % KW * DILATION_W", "tap % KW"],
                ["stride of the other axis", "OH * STRIDE_H", "OH * STRIDE_W"],
                ["always the first group of x", " + i32(part * CHANNELS)", ""],
                ["padding wraps to the next row", " && u32(row_w[row] + tap_w) < W", ""],
            ],
        ),
        target(
            example(Conv2dInputGrad { conv, input: [9, 7] }, &[y, w], 3),
            &[
                ROW_TOO_MANY,
                ["taps between two strides counted", "oh * STRIDE_H == u32(h) && ", ""],
                ["window not turned round", "row_w[row] - tap_w", "row_w[row] + tap_w"],
                ["always the first group of w", "part * FILTERS + k % FILTERS", "k % FILTERS"],
            ],
        ),
        target(
            example(Conv2dWeightGrad { conv, kernel: [3, 2], slices: 4 }, &[x, y], 3),
            &[
                ["slices overlap", "min(first + run, pixels)", "pixels"],
                ["rows and columns of the window exchanged", "tap / KW * DILATION_H", "tap % KW * DILATION_H"],
                ["image forgotten", "k / (OH * OW) * H + h", "h"],
                ["last pixel of a slice left out", "if k < end && column", "if k + 1u < end && column"],
            ],
        ),
    ]
}

fn rows() -> Vec<Target> {
    let x = batched(&[300]);
    let logits = batched(&[10]);
    let past = Altered::drawn(Accuracy, 1, (0.0, 10.0));
    vec![
        target(
            example(Altered::drawn(Softmax, 0, WIDE), &[x], 5),
            &[
                ["no maximum", "most = row_max(lane, most);", "most = 0.0;"],
                ["only the last column", "sum += exp_or_nan", "sum = exp_or_nan"],
            ],
        ),
        target(
            example(SoftmaxGrad, &[x, x], 5),
            &[["sum of the other sign", "c] - product", "c] + product"], ["the tree's last round left out", "half > 0u", "half > 1u"]],
        ),
        target(
            example(Altered::drawn(SoftmaxCrossEntropy, 0, WIDE), &[logits, labels()], 300),
            &[
                ["no maximum", "most = row_max(lane, most);", "most = 0.0;"],
                ["maximum not added back", "(most - logits", "(-logits"],
                ["not divided by the batch", " / f32(max(call.batch, 1u))", ""],
                ["only the last round of rows", "total += bitcast", "total = bitcast"],
            ],
        ),
        target(
            example(Altered::drawn(SoftmaxCrossEntropyGrad, 0, WIDE), &[logits, labels(), fixed(&[])], 5),
            &[
                ["no maximum", "most = row_max(lane, most);", "most = 0.0;"],
                ["not divided by the batch", " / f32(call.batch)", ""],
                ["label off by one", "c == label", "c == label + 1u"],
            ],
        ),
        target(
            example(Altered::drawn(Accuracy, 0, TIES), &[logits, labels()], 300),
            &[
                ["the last of equals counts", "c < label && v == claimed", "c > label && v == claimed"],
                ["any of equals counts", " || (c < label && v == claimed)", ""],
                ["only the last round of rows", "count += u32", "count = u32"],
            ],
        ),
        target(example(past, &[logits, labels()], 1000), &[["a label past the last class", " && labels[row] < COLUMNS", ""]]),
        target(
            example(Altered::drawn(LossHead, 0, WIDE), &[logits, labels(), fixed(&[])], 300),
            &[
                ["no maximum", "most = row_max(lane, most);", "most = 0.0;"],
                ["maximum not added back", "(most - claimed)", "(-claimed)"],
                ["loss not divided by the batch", "].x / f32(max(call.batch, 1u))", "].x"],
                ["gradient not divided by the batch", "dloss[0] / f32(max(call.batch, 1u))", "dloss[0]"],
                ["only the last round of rows", "total += vec2", "total = vec2"],
                ["label off by one", "f32(c == label)) * scale", "f32(c == label + 1u)) * scale"],
            ],
        ),
        target(
            example(Altered::drawn(LossHead, 0, TIES), &[logits, labels(), fixed(&[])], 300),
            &[
                ["the last of equals counts", "c < label && v == claimed", "c > label && v == claimed"],
                ["any of equals counts", " || (c < label && v == claimed)", ""],
                ["one of the sharers objects in vain", "vec2(sum, objection)", "vec2(sum, select(0.0, objection, lane % SHARERS == 0u))"],
            ],
        ),
    ]
}

/// Kernels without one of their barriers. 300 columns are shared by 64 invocations, more than a subgroup has.
fn races() -> Vec<Target> {
    let conv = Conv2d::default();
    let (image, filters) = (batched(&[9, 7, 3]), fixed(&[3, 2, 3, 70]));
    let x = batched(&[300]);
    let matmul = [
        ["no barrier after staging", "workgroupBarrier();\n        for (var k", "for (var k"],
        ["no barrier before the next staging", "workgroupBarrier();\n    }\n    let", "}\n    let"],
    ];
    let products = [
        ["no barrier after staging", "workgroupBarrier();\n        for (var s", "for (var s"],
        ["no barrier before the next staging", "workgroupBarrier();\n    }\n    let", "}\n    let"],
    ];
    let sized = ["no barrier after the rows' windows", "workgroupBarrier();\n\n    // The block", "// The block"];
    let tree = "workgroupBarrier();\n        if lane";
    let told =
        ["no barrier after the maximum is told", "SHARERS];\n    workgroupBarrier();\n    return most", "SHARERS];\n    return most"];
    let mut all = vec![
        target(example(Matmul::default(), &[fixed(&[70, 33]), fixed(&[33, 67])], 1), &matmul),
        target(example(conv, &[image, filters], 3), &[products[0], products[1], sized]),
        target(
            example(Conv2dInputGrad { conv, input: [9, 7] }, &[output(conv, &[image, filters]), filters], 3),
            &[products[0], products[1], sized],
        ),
        target(example(Conv2dWeightGrad { conv, kernel: [3, 2], slices: 1 }, &[image, output(conv, &[image, filters])], 3), &products),
        target(example(Sum { axes: Axes::new(&[0, 2]) }, &[batched(&[5, 70, 9])], 3), &[["no barrier in the tree", tree, "if lane"]]),
        target(example(Softmax, &[x], 5), &[told]),
        target(example(SoftmaxCrossEntropy, &[x, labels()], 5), &[told]),
        target(example(SoftmaxGrad, &[x, x], 5), &[["no barrier in the tree", tree, "if lane"]]),
        target(
            example(LossHead, &[x, labels(), fixed(&[])], 5),
            &[["no barrier after the maximum is told", "].x;\n    workgroupBarrier();\n    return most", "].x;\n    return most"]],
        ),
    ];
    all.extend(dense::races());
    all.extend(heads::races());
    all.extend(pools::races());
    all.extend(training::races());
    all
}

fn mutations() -> Vec<Target> {
    [
        elementwise(),
        reductions(),
        products(),
        dense::targets(),
        heads::targets(),
        mixed::targets(),
        pools::relu_pools(),
        pools::pools(),
        rows(),
        training::targets(),
        registers::targets(),
        tiles::targets(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl Target {
    fn launch(&self) -> Launch {
        self.example.op.rules().launch(&self.example.types, output(self.example.op.clone(), &self.example.types))
    }

    fn kernel(&self) -> Kernel {
        self.launch().kernel
    }

    /// Whether an operand or the output is f16, which not every adapter has.
    fn is_f16(&self) -> bool {
        let output = output(self.example.op.clone(), &self.example.types);
        self.example.types.iter().chain([&output]).any(|ty| ty.dtype == DType::F16)
    }

    /// The kernel's text with a fault.
    fn broken(&self, [fault, find, replacement]: Fault) -> String {
        let Kernel { name, source } = self.kernel();
        assert_eq!(source.matches(find).count(), 1, "{name}, {fault}: how often the kernel has {find:?}");
        source.replacen(find, replacement, 1)
    }

    /// What the check says, on an executor of its own.
    fn check(&self, op: Op, gpu: &Gpu) -> Result<f64, String> {
        // What is broken has its kernel for the portable one.
        let gpu = gpu.clone().with_style(Style::Portable);
        let mut exec: [Box<dyn Guarded>; 1] = [Box::new(GpuExecutor::with_guards(gpu))];
        check_op_on(&mut exec, op, &self.example.types, self.example.batch)
    }
}

/// Checks every kernel as it is, which must pass, and with each of its faults. Returns how many faults there were, and those
/// that the check did not see.
fn survivors<'a>(targets: impl IntoIterator<Item = &'a Target>, gpu: &Gpu) -> (usize, Vec<String>) {
    let (mut count, mut survivors) = (0, Vec::new());
    let shares = GpuExecutor::new(gpu.clone()).shares();
    let runs = |target: &&Target| (gpu.has_f16() || !target.is_f16()) && (shares || target.launch().spread().is_none());
    for target in targets.into_iter().filter(runs) {
        let (op, name) = (&target.example.op, target.kernel().name);
        target.check(op.clone(), gpu).unwrap_or_else(|e| panic!("{name} as it is: {e}"));
        for &fault in &target.faults {
            let what = format!("{name}: {}", fault[0]);
            match target.check(Altered::kernel(op.clone(), target.broken(fault)), gpu) {
                Ok(error) => survivors.push(format!("{what} ({error:.3} of the tolerance)")),
                Err(problem) => {
                    println!("{what}: {problem}");
                    // A wrong number, or one where none belongs; not a kernel that the driver refuses.
                    let wrong = problem.starts_with(&format!("{} on ", op.rules().name()))
                        && (problem.contains("expected") || problem.contains("beyond the batch"));
                    assert!(wrong || problem.contains("the guard band was overwritten"), "{what}: {problem}");
                }
            }
            count += 1;
        }
    }
    (count, survivors)
}

/// The adapter under test, with checks on: then a kernel that indexes past an end, or would never end, does no harm.
fn checked() -> Option<Gpu> {
    gpu(Checks::On)
}

/// [`survivors`] by as many threads as there are processors, each with a device of its own: software adapters compile on one thread of a device.
fn survivors_side_by_side(targets: &[Target], open: impl Fn() -> Gpu + Sync) -> (usize, Vec<String>) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let run = |thread| {
        let own: Vec<&Target> = targets.iter().skip(thread).step_by(threads).collect();
        survivors(own, &open())
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        let found = all.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        found.fold((0, Vec::new()), |(count, all), (more, found)| (count + more, [all, found].concat()))
    })
}

#[test]
fn every_mutation_of_a_kernel_is_noticed() {
    if checked().is_none() {
        return;
    }
    let (count, survivors) = survivors_side_by_side(&mutations(), || checked().expect("it opened before"));
    println!("{count} mutations");
    assert!(survivors.is_empty(), "{} of {count} mutations survive: {survivors:#?}", survivors.len());
}

/// Races among them: the adapter for whose matrices they are cut is a software one.
#[test]
fn every_mutation_of_a_cooperative_kernel_is_noticed() {
    let Some(gpu) = checked().filter(|gpu| gpu.matrices().contains(&cooperative::MATRICES)) else {
        println!("no adapter with {:?}: left out", cooperative::MATRICES);
        return;
    };
    let all: Vec<Target> = cooperative::targets().into_iter().chain(cooperative::races()).collect();
    let (count, survivors) = survivors(&all, &gpu);
    println!("{count} mutations");
    assert!(survivors.is_empty(), "{} of {count} mutations survive: {survivors:#?}", survivors.len());
}

/// A missing barrier is a race, and whether it is lost is the driver's affair. The software adapters run the subgroups of a
/// workgroup in turn, from barrier to barrier, so there each of these is a wrong result every time: seen on Mesa's with
/// subgroups of 4, 8 and 16, and on SwiftShader but for one. On hardware nothing is promised, and what survives is only printed.
#[test]
fn every_missing_barrier_is_noticed_where_subgroups_run_in_turn() {
    let Some(gpu) = checked() else { return };
    let (count, mut survivors) = survivors(&races(), &gpu);
    let device = GpuExecutor::new(gpu).device();
    if device.contains("SwiftShader") {
        // A kernel of two branches, either with barriers. It seems that here all invocations pass those of the branch not taken, too: neither
        // other tiles, nor the branches exchanged, nor the rows set from the last one on show this one.
        survivors.retain(|race| !race.starts_with("conv2d_relu_pool_grad: no barrier after the list of taps"));
    }
    let software = adapters().iter().any(|adapter| adapter.kind == "software" && device.contains(&adapter.name));
    println!("{} of {count} races survive on {device}, software: {software}: {survivors:#?}", survivors.len());
    assert!(survivors.is_empty() || !software);
}

#[test]
fn every_kernel_has_a_mutation_and_every_mutation_is_valid_wgsl() {
    let [mut mutations, mut races] = [mutations(), races()];
    mutations.extend(cooperative::targets());
    races.extend(cooperative::races());
    let count = |targets: &[Target]| targets.iter().map(|target| target.faults.len()).sum::<usize>();
    println!("{} mutations, {} races", count(&mutations), count(&races));
    let capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP;
    for target in mutations.iter().chain(&races) {
        for &fault in &target.faults {
            let source = target.broken(fault);
            let what = format!("{} ({})", target.kernel().name, fault[0]);
            let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(&source)));
            let checked = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
            checked.unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(&source)));
        }
    }
    // Kernels for f16 have the text of the file but for their aliases.
    let stem = |target: &Target| target.kernel().name.split("_f16_").next().unwrap_or_default().to_owned();
    let broken: BTreeSet<String> = mutations.iter().map(stem).collect();
    let folder = std::fs::read_dir(common::in_repository("shaders")).unwrap();
    let files: BTreeSet<String> = folder.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(broken, files);
}
