use super::*;
use crate::ops::checks;

fn types(features: usize, units: usize) -> [TensorType; 4] {
    let rows = TensorType::f32(Shape::batched(&[units]));
    [
        TensorType::f32(Shape::batched(&[features])),
        TensorType::f32(Shape::fixed(&[features, units])),
        TensorType::f32(Shape::fixed(&[units])),
        rows,
    ]
}

#[test]
fn a_layer_computed_by_hand_and_its_gradients() {
    let [x, w, b, y] = types(2, 3);
    let [inputs, weights] = [vec![1.0, 2.0, -1.0, 0.5], vec![1.0, -1.0, 0.5, 2.0, 1.0, -0.5]];
    for (relu, expected) in [(true, [5.5, 1.0, 0.0, 0.5, 1.5, 0.0]), (false, [5.5, 1.0, -0.75, 0.5, 1.5, -1.0])] {
        for result in checks::implementations(
            Dense { relu, output: DType::F32 },
            &[x, w, b],
            2,
            &[inputs.clone(), weights.clone(), vec![0.5, 0.0, -0.25]],
        ) {
            assert_eq!(result[0], expected);
        }
    }
    // ReLU stops the third unit of the first image, where y is 0.
    let (dy, y_now) = (vec![1.0, 2.0, 4.0, 8.0, 1.0, 2.0], vec![5.5, 1.0, 0.0, 0.5, 1.5, 1.0]);
    for result in checks::implementations(
        DenseGrad { relu: true, dx: DType::F32 },
        &[x, y, y, w],
        2,
        &[inputs.clone(), y_now, dy.clone(), weights.clone()],
    ) {
        assert_eq!(result[0], [-7.0, 1.0, -2.0, 6.0, 4.5, 1.0]);
        assert_eq!(result[1], [9.0, 3.0, 2.0]);
        assert_eq!(result[2], [-1.0, 4.0, 8.0, 16.0]);
    }
    for result in checks::implementations(
        DenseGrad { relu: false, dx: DType::F32 },
        &[x, y, y, w],
        2,
        &[inputs.clone(), vec![0.0; 6], dy.clone(), weights],
    ) {
        assert_eq!(result[1], [9.0, 3.0, 6.0]);
        assert_eq!(result[0][2], 2.0);
        assert_eq!(result[2][..2], [1.0, 2.0]);
    }
}

#[test]
fn nan_passes_relu_and_its_gradient() {
    let [x, w, b, y] = types(1, 2);
    let nan = f64::NAN;
    for result in
        checks::implementations(Dense { relu: true, output: DType::F32 }, &[x, w, b], 1, &[vec![nan], vec![1.0, 1.0], vec![0.0; 2]])
    {
        assert!(result[0].iter().all(|v| v.is_nan()), "{result:?}");
    }
    let operands = [vec![1.0], vec![nan, 0.0], vec![3.0, 4.0], vec![1.0, 1.0]];
    for result in checks::implementations(DenseGrad { relu: true, dx: DType::F32 }, &[x, y, y, w], 1, &operands) {
        assert_eq!(result, [vec![3.0, 0.0], vec![3.0, 0.0], vec![3.0]]);
    }
}

#[test]
fn an_empty_batch_has_gradients_of_zero() {
    let [x, w, _, y] = types(3, 2);
    for result in
        checks::implementations(DenseGrad { relu: true, dx: DType::F32 }, &[x, y, y, w], 0, &[vec![], vec![], vec![], vec![1.0; 6]])
    {
        assert_eq!(result, [vec![0.0; 6], vec![0.0; 2], vec![]]);
    }
}

#[test]
fn operands_that_do_not_fit_are_shown_as_a_table() {
    let [x, w, b, y] = types(4, 3);
    assert!(
        Dense { relu: true, output: DType::F32 }.infer(&[x, w, b]).is_ok()
            && DenseGrad { relu: true, dx: DType::F32 }.infer(&[x, y, y, w]).is_ok()
    );
    let error = Dense { relu: true, output: DType::F32 }.infer(&[y, w, b]).unwrap_err().to_string();
    assert!(error.starts_with("dense: x has 3 features but w has 4 rows\n  x        [N, 3]"), "{error}");
    for bad in [[x, w, w], [x, x, b], [w, w, b], [x, TensorType::u32(w.shape), b]] {
        assert!(Dense { relu: false, output: DType::F32 }.infer(&bad).is_err(), "{bad:?}");
    }
    assert!(
        DenseGrad { relu: false, dx: DType::F32 }.infer(&[x, y, x, w]).is_err()
            && DenseGrad { relu: false, dx: DType::F32 }.infer(&[x, x, y, w]).is_err()
    );
}
