use super::*;
use crate::ops::{Adam, checks};

fn types([features, units, classes]: [usize; 3]) -> Vec<TensorType> {
    let fixed = |extents: &[usize]| TensorType::f32(Shape::fixed(extents));
    vec![
        TensorType::f32(Shape::batched(&[features])),
        fixed(&[features, units]),
        fixed(&[units]),
        fixed(&[units, classes]),
        fixed(&[classes]),
        TensorType::u32(Shape::batched(&[])),
        scalar(),
    ]
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 1e-6 || (g.is_nan() && w.is_nan()), "{got:?}, expected {want:?}");
    }
}

#[test]
fn a_head_computed_by_hand() {
    // One feature, two of the four hidden units alive, two classes that tie for the first image.
    let operands = [
        vec![1.0, 2.0],
        vec![1.0, -1.0, 2.0, 0.0],
        vec![0.0, 0.0, 0.0, 0.0],
        vec![1.0, 3.0, 5.0, 7.0, 1.0, 0.0, 1.0, 1.0],
        vec![0.0, 0.0],
        vec![0.0, 1.0],
        vec![4.0],
    ];
    // hidden is 1, 0, 2, 0 and twice as much; the logits 3, 3 and 6, 6.
    let half = std::f64::consts::LN_2;
    let rows =
        [[1.0, 0.0, 2.0, 0.0, 2.0, 0.0, -1.0, 0.0, -1.0, 1.0, half, 1.0], [2.0, 0.0, 4.0, 0.0, -2.0, 0.0, 1.0, 0.0, 1.0, -1.0, half, 0.0]];
    for result in checks::implementations(MlpHead, &types([1, 4, 2]), 2, &operands) {
        close(&result[0], rows.as_flattened());
    }
    let grad_types = [types([1, 4, 2])[0], TensorType::f32(Shape::batched(&[12])), types([1, 4, 2])[1]];
    let grad_operands = [operands[0].clone(), rows.as_flattened().to_vec(), operands[1].clone()];
    for result in checks::implementations(MlpHeadGrad { dx: DType::F32 }, &grad_types, 2, &grad_operands) {
        close(&result[0], &[-2.0, 0.0, 1.0, 0.0]);
        close(&result[1], &[0.0, 0.0, 0.0, 0.0]);
        close(&result[2], &[0.0, 0.0]);
        close(&result[3], &[1.0, -1.0, 0.0, 0.0, 2.0, -2.0, 0.0, 0.0]);
        close(&result[4], &[0.0, 0.0]);
    }
    for result in checks::implementations(MlpHeadLoss, &grad_types[1..2], 2, &grad_operands[1..2]) {
        close(&result.concat(), &[half, 1.0]);
    }
}

#[test]
fn a_nan_and_a_label_without_a_class_stay_in_their_rows() {
    let operands = |x: Vec<f64>, labels: Vec<f64>| {
        let w2: Vec<f64> = (0..12).map(|i| f64::from(i) / 10.0).collect();
        [x, vec![0.5, -0.25, 0.25, 1.0], vec![0.1; 4], w2, vec![0.0; 3], labels, vec![1.0]]
    };
    let clean = checks::implementations(MlpHead, &types([1, 4, 3]), 3, &operands(vec![1.0, 2.0, -1.0], vec![0.0, 1.0, 2.0]));
    let spoilt = checks::implementations(MlpHead, &types([1, 4, 3]), 3, &operands(vec![1.0, f64::NAN, -1.0], vec![0.0, 1.0, 3.0]));
    for (clean, spoilt) in clean.iter().zip(&spoilt) {
        let (clean, spoilt) = (&clean[0], &spoilt[0]);
        close(&spoilt[..13], &clean[..13]);
        // Everything of the NaN's row is NaN but its answer, which is wrong.
        assert!(spoilt[13..25].iter().all(|v| v.is_nan()) && spoilt[25] == 0.0, "{spoilt:?}");
        // The layers before the label's are as they were; the loss and its gradient are not.
        close(&spoilt[26..30], &clean[26..30]);
        assert!(spoilt[34..38].iter().all(|v| v.is_nan()) && spoilt[38] == 0.0, "{spoilt:?}");
        assert!((0..4).all(|u| if clean[26 + u] > 0.0 { spoilt[30 + u].is_nan() } else { spoilt[30 + u] == 0.0 }), "{spoilt:?}");
    }
}

#[test]
fn an_empty_batch_has_no_loss_and_gradients_of_zero() {
    let rows = TensorType::f32(Shape::batched(&[13]));
    for result in checks::implementations(MlpHeadLoss, &[rows], 0, &[vec![]]) {
        assert_eq!(result, [vec![0.0], vec![0.0]]);
    }
    let types = [TensorType::f32(Shape::batched(&[3])), rows, TensorType::f32(Shape::fixed(&[3, 4]))];
    for result in checks::implementations(MlpHeadGrad { dx: DType::F32 }, &types, 0, &[vec![], vec![], vec![1.0; 12]]) {
        assert_eq!(result, [vec![0.0; 12], vec![0.0; 4], vec![], vec![0.0; 12], vec![0.0; 3]]);
    }
}

#[test]
fn operands_that_do_not_fit_are_shown_as_a_table() {
    type Change = fn(&mut Vec<TensorType>);
    let problem = |extents: [usize; 3], change: Change| {
        let mut types = types(extents);
        change(&mut types);
        MlpHead.infer(&types).map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
    };
    assert_eq!(problem([3, 4, 5], |_| ()), Ok(TensorType::f32(Shape::batched(&[15]))));
    for (extents, expected) in [
        ([3, 6, 5], "mlp_head: 6 hidden units, expected a multiple of 4, at most 1024"),
        ([3, 1028, 5], "mlp_head: 1028 hidden units, expected a multiple of 4, at most 1024"),
        ([2048, 128, 5], "mlp_head: the first layer has 2048 · 128 weights, expected at most 131072"),
        ([2800, 8, 10], "mlp_head: 2800 features, 8 hidden units and 10 classes are too many for a workgroup's memory"),
        ([3, 4, 257], "mlp_head: 3 features, 4 hidden units and 257 classes are too many for a workgroup's memory"),
    ] {
        assert_eq!(problem(extents, |_| ()), Err(expected.to_owned()));
    }
    let wrong: [(Change, &str); 5] = [
        (|types| types[1] = types[3], "mlp_head: x has 3 features, w1 4 rows and 5 columns, w2 4 rows"),
        (|types| types[2] = types[4], "mlp_head: the biases are [5] and [5], expected [4] and [5]"),
        (|types| types[5] = types[0], "mlp_head: expected one integer label for each image, got [N, 3]"),
        (|types| types[6] = types[4], "mlp_head: expected one number as the loss's gradient, got [5]"),
        (|types| types[0] = types[1], "mlp_head: expected a batch of rows and two matrices of floats, got [3, 4], [3, 4] and [4, 5]"),
    ];
    for (change, expected) in wrong {
        assert_eq!(problem([3, 4, 5], change), Err(expected.to_owned()));
    }
    let [x, w1] = [types([3, 4, 5])[0], types([3, 4, 5])[1]];
    let row = |width: usize| TensorType::f32(Shape::batched(&[width]));
    let grad = MlpHeadGrad { dx: DType::F32 };
    assert!(grad.infer(&[x, row(15), w1]).is_ok() && MlpHeadLoss.infer(&[row(15)]).is_ok());
    let error = grad.infer(&[x, row(10), w1]).unwrap_err().to_string();
    assert!(error.starts_with("mlp_head_grad: a row has 10 elements, expected 2 · 4 hidden units, 1 class or more, and 2\n"), "{error}");
    assert!(grad.infer(&[row(4), row(15), w1]).is_err() && grad.infer(&[x, w1, w1]).is_err() && MlpHeadLoss.infer(&[row(1)]).is_err());
    assert!([DType::F16, DType::U32].iter().all(|&dtype| grad.infer(&[x, row(15), TensorType { dtype, ..w1 }]).is_err()));
    assert!(MlpHeadGrad { dx: DType::U32 }.infer(&[x, row(15), w1]).is_err());
    let tick = MlpHeadTick { tick: Adam::default().tick() };
    let [clock, log, rate] =
        [TensorType::u32(Shape::fixed(&[2])), TensorType::f32(Shape::fixed(&[7, 2])), TensorType::f32(Shape::fixed(&[4]))];
    assert_eq!(tick.infer(&[row(15), clock, log, rate]).unwrap(), clock);
    for (operands, words) in [
        ([row(1), clock, log, rate], "mlp_head_tick: expected a row of two numbers or more for each image, got [N, 1]"),
        ([row(15), rate, log, rate], "mlp_head_tick: clock is [4], expected [2] u32"),
        ([row(15), clock, log, log], "mlp_head_tick: rate is [7, 2], expected [4]"),
    ] {
        let error = tick.infer(&operands).unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
}

#[test]
fn every_number_of_images_of_a_workgroup_keeps_to_the_limits_that_every_adapter_has() {
    for [features, units, classes] in [[512, 128, 10], [1, 4, 1], [128, 1024, 10], [1000, 128, 100], [33, 36, 128]] {
        let inputs = types([features, units, classes]);
        let all: Vec<usize> = MlpHead::all_rows(&inputs).collect();
        assert!(!all.is_empty() && MlpHead.variants(&inputs, inputs[0]).len() + 1 == all.len());
        let of = Extents { features, units, classes };
        for rows in all {
            let sharers = of.sharers(rows);
            assert!(sharers.is_power_of_two() && rows * classes * sharers <= LANES, "{of:?}, {rows} images: {sharers}");
            // images, hidden, logits, quads and terms of the kernel
            let bytes = 4 * (rows * features + rows * units + rows * classes + 4 * LANES + LANES);
            assert!(bytes <= 16 * 1024, "{of:?}, {rows} images: {bytes} bytes");
        }
    }
}
