use super::*;
use crate::ops::checks;

fn fixed(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::fixed(extents))
}

#[test]
fn first_step_moves_by_the_learning_rate_and_the_second_as_computed_by_hand() {
    let adam = Adam::default();
    let ty = fixed(&[2]);
    let types = [ty, Adam::moments(ty), ty, rate_type()];
    // After one step m = 0.1 g and v = 0.001 g², whose corrections cancel the factors: w -= lr · g / (|g| + ε').
    let rate = vec![0.01, 0.1, 0.001, 0.0];
    for result in checks::implementations(adam, &types, 1, &[vec![1.0, 2.0], vec![0.0; 4], vec![0.5, -4.0], rate]) {
        let expected = [&[0.99, 2.01][..], &[0.05, -0.4, 0.00025, 0.016]];
        for (got, want) in result.iter().zip(expected) {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-6 * w.abs()), "{result:?}");
        }
    }
    // t = 2: m = 0.05 + (1 - 0.05)·0.1 = 0.145, v = 0.00025 + (1 - 0.00025)·0.001 = 0.00124975, corrections 0.19 and 0.001999.
    let step = 0.01 * 0.001999f64.sqrt() / 0.19 * 0.145 / (0.00124975f64.sqrt() + 1e-7);
    let types = [fixed(&[1]), fixed(&[2, 1]), fixed(&[1]), rate_type()];
    let operands = [vec![0.99], vec![0.05, 0.00025], vec![1.0], vec![0.01, 0.19, 0.001999, 0.0]];
    for result in checks::implementations(adam, &types, 1, &operands) {
        assert!((result[0][0] - (0.99 - step)).abs() < 1e-7 && (result[1][0] - 0.145).abs() < 2e-8, "{result:?}");
        assert!((result[1][1] - 0.00124975).abs() < 1e-9, "{result:?}");
    }
}

#[test]
fn a_gradient_in_slices_is_their_sum() {
    let (ty, rate) = (fixed(&[2]), vec![0.01, 0.1, 0.001, 0.0]);
    let whole = [vec![1.0, 2.0], vec![0.0; 4], vec![0.75, -4.0], rate.clone()];
    let sliced = [vec![1.0, 2.0], vec![0.0; 4], vec![0.5, -4.0, 1.25, 8.0, -1.0, -8.0], rate];
    let [whole, sliced] = [(ty, whole), (fixed(&[3, 2]), sliced)]
        .map(|(grad, operands)| checks::implementations(Adam::default(), &[ty, Adam::moments(ty), grad, rate_type()], 1, &operands));
    assert_eq!(whole, sliced);
}

#[test]
fn a_group_is_a_step_for_each() {
    let adam = Adam { epsilon: 0.25, ..Adam::default() };
    let (a, b, rate) = (fixed(&[3]), fixed(&[2, 2]), vec![0.5, 0.25, 0.0625, 0.0]);
    let of_a = [vec![1.0, 2.0, 3.0], vec![0.5; 6], vec![-1.0, 0.5, 2.0]];
    let of_b = [vec![4.0, 5.0, 6.0, 7.0], vec![0.25; 8], vec![1.0, 2.0, 3.0, 4.0, 0.5, 0.5, 0.5, 0.5]];
    let alone = |ty: TensorType, grad: TensorType, operands: &[Vec<f64>; 3]| {
        let operands = [&operands[..], std::slice::from_ref(&rate)].concat();
        checks::implementations(adam, &[ty, Adam::moments(ty), grad, rate_type()], 1, &operands)
    };
    let types = [a, b, Adam::moments(a), Adam::moments(b), a, fixed(&[2, 2, 2]), rate_type()];
    let each = (0..3).flat_map(|operand| [of_a[operand].clone(), of_b[operand].clone()]);
    let operands: Vec<Vec<f64>> = each.chain([rate.clone()]).collect();
    let groups = checks::implementations(AdamGroup { adam, count: 2 }, &types, 1, &operands);
    for (group, (a, b)) in groups.iter().zip(alone(a, a, &of_a).iter().zip(alone(b, fixed(&[2, 2, 2]), &of_b))) {
        let apart = [&a[0], &b[0], &a[1], &b[1]];
        assert!(group.iter().zip(apart).all(|(group, apart)| group.iter().zip(apart).all(|(g, a)| (g - a).abs() <= 1e-7 * a.abs())));
    }
}

#[test]
fn nan_gradient_reaches_the_parameter() {
    let ty = fixed(&[2]);
    let operands = [vec![1.0; 2], vec![0.0; 4], vec![f64::NAN, 0.0], vec![0.01, 0.1, 0.001, 0.0]];
    for result in checks::implementations(Adam::default(), &[ty, Adam::moments(ty), ty, rate_type()], 1, &operands) {
        assert!(result.iter().all(|operand| operand.chunks(2).all(|pair| pair[0].is_nan() && !pair[1].is_nan())), "{result:?}");
    }
}

#[test]
fn settings_and_shapes_that_do_not_fit_are_refused() {
    let ty = fixed(&[3, 4]);
    let moments = Adam::moments(ty);
    assert!(Adam::default().infer(&[ty, moments, ty, rate_type()]).is_ok());
    assert!(Adam::default().infer(&[ty, moments, fixed(&[5, 3, 4]), rate_type()]).is_ok());
    for bad in
        [Adam { beta1: 1.0, ..Adam::default() }, Adam { beta2: f64::NAN, ..Adam::default() }, Adam { epsilon: 0.0, ..Adam::default() }]
    {
        assert!(matches!(bad.infer(&[ty, moments, ty, rate_type()]), Err(Error::Invalid { .. })), "{bad:?}");
        let group = [ty, ty, moments, moments, ty, ty, rate_type()];
        assert!(matches!(AdamGroup { adam: bad, count: 2 }.infer(&group), Err(Error::Invalid { .. })), "{bad:?}");
    }
    let error = Adam::default().infer(&[ty, moments, fixed(&[4, 3]), rate_type()]).unwrap_err().to_string();
    assert!(error.starts_with("adam: grad is [4, 3], expected [3, 4]\n  param    [3, 4]"), "{error}");
    let group = |count| AdamGroup { adam: Adam::default(), count };
    let error = group(2).infer(&[ty, ty, moments, ty, ty, ty, rate_type()]).unwrap_err().to_string();
    assert!(error.starts_with("adam_group: moments is [3, 4], expected [2, 12]\n  param    [3, 4]"), "{error}");
    for count in [0, GROUP + 1] {
        assert!(matches!(group(count).infer(&vec![ty; group(count).arity()]), Err(Error::Invalid { .. })), "{count}");
    }
    let batched = TensorType::f32(Shape::batched(&[3]));
    for grad in [fixed(&[0, 3, 4]), fixed(&[2, 4, 3]), TensorType::f32(Shape::batched(&[3, 4])), TensorType::u32(Shape::fixed(&[2, 3, 4]))]
    {
        assert!(Adam::default().infer(&[ty, moments, grad, rate_type()]).is_err(), "{grad}");
    }
    assert!(Adam::default().infer(&[batched, Adam::moments(batched), batched, rate_type()]).is_err());
    assert!(Adam::default().infer(&[ty, moments, ty, fixed(&[3])]).is_err());
}
