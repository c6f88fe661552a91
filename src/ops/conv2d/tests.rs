use super::super::{CpuView, View};
use super::*;
use crate::exec::reference;
use crate::graph::Init;

/// A convolution with its images, the extents and filters of its weight.
#[derive(Clone, Copy, Debug)]
struct Case {
    conv: Conv2d,
    image: [usize; 3],
    kernel: [usize; 2],
    filters: usize,
}

impl Case {
    fn weight(&self) -> [usize; 4] {
        [self.kernel[0], self.kernel[1], self.image[2] / self.conv.groups, self.filters]
    }

    fn types(&self) -> [TensorType; 2] {
        [TensorType::f32(Shape::batched(&self.image)), TensorType::f32(Shape::fixed(&self.weight()))]
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(&self.conv, self.image, self.weight()).unwrap()
    }
}

/// Strides, paddings, dilations and groups in all combinations that fit, over odd sizes.
fn cases() -> Vec<Case> {
    let explicit = Padding::Explicit { top: 2, bottom: 0, left: 1, right: 3 };
    let mut all = Vec::new();
    for stride in [[1, 1], [2, 1], [2, 2], [3, 2], [3, 3]] {
        for padding in [Padding::Valid, Padding::Same, explicit] {
            for dilation in [[1, 1], [1, 2], [2, 1]] {
                for (groups, channels, filters) in [(1, 3, 5), (2, 4, 6), (3, 3, 3), (3, 3, 6)] {
                    for kernel in [[1, 1], [3, 3], [2, 3]] {
                        let conv = Conv2d { stride, padding, dilation, groups };
                        all.push(Case { conv, image: [7, 6, channels], kernel, filters });
                    }
                }
            }
        }
    }
    all
}

fn noise(seed: usize, i: usize) -> f64 {
    let z = ((seed + 1) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (i as u64 + 1).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB);
    f64::from((z >> 40) as u32) / f64::from(1u32 << 23) - 1.0 // 24 bits, so that f32 holds it exactly
}

fn drawn(ty: TensorType, batch: usize, seed: usize) -> Vec<f64> {
    (0..ty.shape.len(batch)).map(|i| noise(seed, i)).collect()
}

/// The operator's output by its reference and by its CPU kernel, which starts from poison.
fn both(op: &dyn Rules, types: &[TensorType], batch: usize) -> (Vec<f64>, Vec<f32>) {
    let output = op.infer(types).unwrap();
    let values: Vec<Vec<f64>> = types.iter().enumerate().map(|(i, ty)| drawn(*ty, batch, i)).collect();
    let mut judged = vec![f64::NAN; output.shape.len(batch)];
    let inputs = types.iter().zip(&values).map(|(ty, data)| View { extents: ty.shape.extents(batch), data }).collect();
    op.reference(&mut Reference { batch, inputs, updated: Vec::new(), output: &mut judged, extra: Vec::new() });

    let words: Vec<Vec<f32>> = values.iter().map(|v| v.iter().map(|&v| v as f32).collect()).collect();
    let mut got = vec![f32::NAN; output.shape.len(batch)];
    let inputs = types.iter().zip(&words).map(|(ty, words)| CpuView::new(*ty, batch, words)).collect();
    assert!(op.cpu(&mut Cpu { batch, inputs, updated: Vec::new(), output: &mut got, extra: Vec::new(), scratch: &mut Vec::new() }));
    (judged, got)
}

/// The convolution and its two gradients with their operands' types.
fn operators(case: Case, slices: usize) -> Vec<(Box<dyn Rules>, Vec<TensorType>)> {
    let [x, w] = case.types();
    let y = case.conv.infer(&[x, w]).unwrap();
    let input_grad = Conv2dInputGrad { conv: case.conv, input: [case.image[0], case.image[1]] };
    let weight_grad = Conv2dWeightGrad { conv: case.conv, kernel: case.kernel, slices };
    vec![(Box::new(case.conv), vec![x, w]), (Box::new(input_grad), vec![y, w]), (Box::new(weight_grad), vec![x, y])]
}

/// The largest error of the CPU kernels of a case, in units of 1e-6·√terms; NaN fails.
fn worst(case: Case, slices: usize, batch: usize) -> f64 {
    let mut worst = 0.0f64;
    for (op, types) in operators(case, slices) {
        let (want, got) = both(op.as_ref(), &types, batch);
        let tolerance = 1e-6 * (op.terms(&types, batch) as f64).sqrt();
        for (i, (&want, &got)) in want.iter().zip(&got).enumerate() {
            let error = (f64::from(got) - want).abs() / tolerance;
            assert!(error <= 1.0, "{} of {case:?}, batch {batch}: element {i} is {got}, expected {want}", op.name());
            worst = worst.max(error);
        }
    }
    worst
}

#[test]
fn cpu_kernels_agree_with_references_for_every_option() {
    let mut most = 0.0f64;
    for case in cases() {
        for (batch, slices) in [(0, 2), (1, 1), (3, 5), (2, 17)] {
            most = most.max(worst(case, slices, batch));
        }
    }
    println!("worst error: {most:.3} of the tolerance");
}

#[test]
fn cpu_kernels_agree_with_references_on_sizes_around_their_blocks() {
    // Several blocks of rows, several images to a task, slices that end inside an image, more slices than pixels.
    let conv = Conv2d::default();
    let same = Conv2d { padding: Padding::Same, ..conv };
    for (conv, image, kernel, filters, batch) in [
        (conv, [32, 32, 3], [3, 3], 32, 2),
        (conv, [15, 15, 32], [3, 3], 17, 3),
        (conv, [4, 4, 64], [3, 3], 33, 40),
        (same, [9, 31, 130], [3, 3], 8, 2),
        (conv, [25, 25, 16], [1, 1], 65, 1),
        (Conv2d { groups: 4, ..conv }, [25, 25, 16], [1, 1], 8, 1),
        (Conv2d { groups: 48, ..same }, [19, 17, 48], [3, 3], 48, 2),
        (conv, [3, 3, 7], [3, 3], 9, 3),
    ] {
        let case = Case { conv, image, kernel, filters };
        println!("{case:?}: {:.3} of the tolerance", worst(case, slices_of(case), batch));
        worst(case, 40, batch);
    }
}

fn slices_of(case: Case) -> usize {
    grad::slices(&case.geometry())
}

#[test]
fn same_bits_on_any_number_of_threads() {
    let case = Case { conv: Conv2d::default(), image: [15, 15, 32], kernel: [3, 3], filters: 64 };
    for (op, types) in operators(case, slices_of(case)) {
        let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| both(op.as_ref(), &types, 5).1);
        let one = on(1);
        for threads in [2, 3] {
            assert!(on(threads).iter().zip(&one).all(|(a, b)| a.to_bits() == b.to_bits()), "{} on {threads} threads", op.name());
        }
    }
}

/// L = Σ dy · y is linear in x and in w, so its slope by differences is exact but for rounding.
#[test]
fn gradients_are_the_slopes_of_the_reference() {
    let mut checked = 0;
    for case in cases().into_iter().step_by(5) {
        let [x_type, w_type] = case.types();
        let mut graph = Graph::new();
        let x = graph.input("x", x_type);
        let w = graph.param("w", w_type.shape, Init::Fill(0.0));
        let y = graph.conv2d(x, w, case.conv).unwrap();
        let dy = graph.input("dy", graph.ty(y));
        let grads = case.conv.backward(&mut graph, &[x, w], y, dy).unwrap();

        let batch = 2;
        let start = [x, w, dy].map(|id| (id, drawn(graph.ty(id), batch, id.index())));
        let values: reference::Leaves = start.into_iter().collect();
        let loss = |values: &reference::Leaves| -> f64 {
            let all = reference::evaluate(&graph, &mut values.clone(), batch).unwrap();
            all[y.index()].iter().zip(&all[dy.index()]).map(|(y, dy)| y * dy).sum()
        };
        let all = reference::evaluate(&graph, &mut values.clone(), batch).unwrap();
        for (leaf, grad) in [x, w].into_iter().zip(grads) {
            let grad = grad.unwrap();
            assert_eq!(graph.ty(grad), graph.ty(leaf));
            let analytic = &all[grad.index()];
            for i in (0..analytic.len()).step_by(1 + analytic.len() / 40) {
                let at = |offset: f64| {
                    let mut moved = values.clone();
                    moved.get_mut(&leaf).unwrap()[i] += offset;
                    loss(&moved)
                };
                let slope = (at(0.5) - at(-0.5)) / 1.0;
                assert!((analytic[i] - slope).abs() < 1e-10, "{case:?}: element {i} is {}, the slope {slope}", analytic[i]);
                checked += 1;
            }
        }
    }
    assert!(checked > 1000);
}

#[test]
fn small_convolution_by_hand() {
    // One channel, ones as weights: every output is the sum of the pixels under its window.
    let x: Vec<f64> = (1..=9).map(f64::from).collect();
    let run = |conv: Conv2d, kernel: usize| {
        let w = vec![1.0; kernel * kernel];
        let types = [TensorType::f32(Shape::batched(&[3, 3, 1])), TensorType::f32(Shape::fixed(&[kernel, kernel, 1, 1]))];
        let mut y = vec![f64::NAN; conv.infer(&types).unwrap().shape.len(1)];
        let inputs = vec![View { extents: vec![1, 3, 3, 1], data: &x }, View { extents: vec![kernel, kernel, 1, 1], data: &w }];
        conv.reference(&mut Reference { batch: 1, inputs, updated: Vec::new(), output: &mut y, extra: Vec::new() });
        y
    };
    let conv = Conv2d::default();
    assert_eq!(run(conv, 2), [12.0, 16.0, 24.0, 28.0]);
    assert_eq!(run(Conv2d { padding: Padding::Same, ..conv }, 2), [12.0, 16.0, 9.0, 24.0, 28.0, 15.0, 15.0, 17.0, 9.0]);
    assert_eq!(run(Conv2d { dilation: [2, 2], ..conv }, 2), [20.0]);
    assert_eq!(run(Conv2d { padding: Padding::Same, stride: [2, 2], ..conv }, 3), [12.0, 16.0, 24.0, 28.0]);
}

#[test]
fn misfits_are_told_with_their_numbers() {
    let told = |conv: Conv2d, x: TensorType, w: TensorType| conv.infer(&[x, w]).unwrap_err().to_string();
    let x = TensorType::f32(Shape::batched(&[32, 32, 4]));
    let w = |extents: [usize; 4]| TensorType::f32(Shape::fixed(&extents));
    let conv = Conv2d::default();
    let grouped = |groups| Conv2d { groups, ..conv };
    let message = told(conv, x, w([3, 3, 3, 8]));
    assert_eq!(
        message.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
        ["conv2d: x has 4 channels but w takes 3", "x [N, 32, 32, 4] (N, H, W, I)", "w [3, 3, 3, 8] (KH, KW, I / groups, O)"]
    );
    let cases = [
        (grouped(2), x, w([3, 3, 4, 8]), "x has 2 channels in each of 2 groups but w takes 4"),
        (grouped(3), x, w([3, 3, 1, 9]), "the 4 channels of x do not divide into 3 groups"),
        (grouped(4), x, w([3, 3, 1, 9]), "the 9 filters of w do not divide into 4 groups"),
        (grouped(0), x, w([3, 3, 4, 8]), "the 4 channels of x do not divide into 0 groups"),
        (Conv2d { stride: [1, 0], ..conv }, x, w([3, 3, 4, 8]), "stride width is 0"),
        (Conv2d { dilation: [0, 1], ..conv }, x, w([3, 3, 4, 8]), "dilation height is 0"),
        (conv, x, w([3, 35, 4, 8]), "the window's width spans 35 pixels but the padded input has 32"),
        (conv, x, w([0, 3, 4, 8]), "w has an extent of 0"),
        (conv, TensorType::f32(Shape::fixed(&[1, 32, 32, 4])), w([3, 3, 4, 8]), "x has no batch as its first axis"),
        (conv, TensorType::u8(x.shape), w([3, 3, 4, 8]), "x is not of floats"),
        (conv, TensorType::f32(Shape::batched(&[32, 4])), w([3, 3, 4, 8]), "x has 3 axes, expected 4"),
        (conv, x, TensorType::f32(Shape::batched(&[3, 4, 8])), "the first axis of w is the batch"),
    ];
    for (conv, x, w, wanted) in cases {
        let message = told(conv, x, w);
        assert!(message.starts_with(&format!("conv2d: {wanted}")), "{message}");
    }
    let input_grad = Conv2dInputGrad { conv, input: [32, 32] };
    let message = input_grad.infer(&[x, w([3, 3, 4, 8])]).unwrap_err().to_string();
    assert!(message.starts_with("conv2d_input_grad: dy has extents [32, 32, 4] but y has [30, 30, 8]"), "{message}");
    let weight_grad = Conv2dWeightGrad { conv, kernel: [3, 3], slices: 0 };
    let message = weight_grad.infer(&[x, TensorType::f32(Shape::batched(&[30, 30, 8]))]).unwrap_err().to_string();
    assert!(message.starts_with("conv2d_weight_grad: 0 slices"), "{message}");
}

#[test]
fn absurd_numbers_are_refused_without_overflow() {
    let numbers = [0, 1, 3, 1 << 20, 1 << 31, usize::MAX / 3, usize::MAX];
    for a in numbers {
        for b in numbers {
            let padding = Padding::Explicit { top: a, bottom: b, left: b, right: 1 };
            for conv in [
                Conv2d { padding, ..Conv2d::default() },
                Conv2d { stride: [a, b], ..Conv2d::default() },
                Conv2d { dilation: [a, b], padding: Padding::Same, ..Conv2d::default() },
                Conv2d { groups: a, ..Conv2d::default() },
            ] {
                for (x, w) in [([a, b, 4], [3, 3, 4, 8]), ([8, 8, a], [3, 3, b, a]), ([8, 8, 4], [a, 3, 4, b]), ([8, 8, 4], [3, 3, 4, 8])] {
                    let (x, w) = (TensorType::f32(Shape::batched(&x)), TensorType::f32(Shape::fixed(&w)));
                    if let Ok(y) = conv.infer(&[x, w]) {
                        assert!(y.shape.inner_len() > 0);
                        conv.launch(&[x, w], y);
                        let geometry = conv.known(&[x, w]);
                        let _ = Conv2dInputGrad { conv, input: geometry.input }.infer(&[y, w]).unwrap();
                        let slices = grad::slices(&geometry);
                        Conv2dWeightGrad { conv, kernel: geometry.kernel, slices }.infer(&[x, y]).unwrap();
                    }
                    let _ = Conv2dInputGrad { conv, input: [a, b] }.infer(&[x, w]);
                    let _ = Conv2dWeightGrad { conv, kernel: [a, b], slices: a }.infer(&[x, x]);
                }
            }
        }
    }
}

#[test]
fn slices_keep_a_gpu_busy_and_memory_modest() {
    let of = |image, kernel, filters| slices_of(Case { conv: Conv2d::default(), image, kernel: [kernel; 2], filters });
    assert_eq!([of([32, 32, 3], 3, 32), of([15, 15, 32], 3, 64), of([6, 6, 64], 3, 128)], [192, 39, 8]);
    assert_eq!(of([14, 14, 512], 3, 512), 1); // 2.4 million weights, tiles enough
    assert_eq!(of([1, 1, 8], 1, 8), 1); // one pixel an image: nothing to cut
}

#[test]
fn kernels_are_valid_wgsl_and_know_every_constant_they_are_given() {
    let case = Case { conv: Conv2d::default(), image: [8, 8, 4], kernel: [3, 3], filters: 8 };
    for (op, types) in operators(case, 3) {
        let launch = op.launch(&types, op.infer(&types).unwrap());
        let module = wgpu::naga::front::wgsl::parse_str(launch.kernel.source).expect("parses");
        let mut validator =
            wgpu::naga::valid::Validator::new(wgpu::naga::valid::ValidationFlags::all(), wgpu::naga::valid::Capabilities::all());
        validator.validate(&module).unwrap_or_else(|e| panic!("{}: {e:?}", launch.kernel.name));
        let mut known: Vec<&str> =
            module.overrides.iter().filter(|(_, o)| o.init.is_none()).filter_map(|(_, o)| o.name.as_deref()).collect();
        let mut given: Vec<&str> = launch.constants.iter().map(|(name, _)| *name).collect();
        known.sort_unstable();
        given.sort_unstable();
        assert_eq!(known, given, "{}", launch.kernel.name);
    }
}
