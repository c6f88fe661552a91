use super::*;
use crate::ops::checks;

fn types(columns: usize) -> [TensorType; 3] {
    [TensorType::f32(Shape::batched(&[columns])), TensorType::u32(Shape::batched(&[])), scalar()]
}

#[test]
fn gradient_is_that_of_finite_differences() {
    for (columns, batch) in [(1, 2), (4, 1), (10, 3)] {
        checks::gradient(SoftmaxCrossEntropy, &types(columns)[..2], batch);
    }
}

#[test]
fn uniform_logits_cost_the_logarithm_of_the_classes() {
    let types = types(10);
    for result in checks::implementations(SoftmaxCrossEntropy, &types[..2], 2, &[vec![3.0; 20], vec![0.0, 9.0]]) {
        assert!((result[0][0] - 10f64.ln()).abs() < 1e-6);
    }
    for result in checks::implementations(SoftmaxCrossEntropyGrad, &types, 2, &[vec![3.0; 20], vec![0.0, 9.0], vec![1.0]]) {
        let expected: Vec<f64> = (0..20).map(|i| if i == 0 || i == 19 { -0.45 } else { 0.05 }).collect();
        assert!(result[0].iter().zip(&expected).all(|(d, e)| (d - e).abs() < 1e-7), "{:?}", result[0]);
    }
}

#[test]
fn large_logits_neither_overflow_nor_lose_the_loss() {
    let logits = vec![1000.0, 0.0, 0.0, -1000.0];
    for result in checks::implementations(SoftmaxCrossEntropy, &types(2)[..2], 2, &[logits, vec![1.0, 1.0]]) {
        assert_eq!(result[0][0], 1000.0);
    }
}

#[test]
fn empty_batch_gives_zero() {
    let types = types(3);
    for result in checks::implementations(SoftmaxCrossEntropy, &types[..2], 0, &[vec![], vec![]]) {
        assert_eq!(result[0], [0.0]);
    }
    for result in checks::implementations(Accuracy, &types[..2], 0, &[vec![], vec![]]) {
        assert_eq!(result[0], [0.0]);
    }
}

#[test]
fn label_that_is_no_class_and_nan_logit_show_in_the_loss() {
    let types = types(3);
    for (logits, labels) in
        [(vec![0.0; 6], vec![1.0, 3.0]), (vec![0.0; 6], vec![4294967295.0, 0.0]), (vec![0.0, f64::NAN, 1.0, 0.0, 0.0, 0.0], vec![0.0, 0.0])]
    {
        for result in checks::implementations(SoftmaxCrossEntropy, &types[..2], 2, &[logits.clone(), labels.clone()]) {
            assert!(result[0][0].is_nan(), "{labels:?}");
        }
        let bad = usize::from(labels[0] == 1.0);
        for result in checks::implementations(SoftmaxCrossEntropyGrad, &types, 2, &[logits.clone(), labels.clone(), vec![1.0]]) {
            let rows: Vec<bool> = result[0].chunks(3).map(|row| row.iter().all(|v| v.is_nan())).collect();
            assert_eq!(rows, [bad == 0, bad == 1], "{:?}", result[0]);
        }
    }
}

#[test]
fn ties_go_to_the_first_and_nan_or_no_class_is_wrong() {
    let nan = f64::NAN;
    let cases = [
        ([2.0, 2.0, 1.0], 0.0, true),
        ([1.0, 2.0, 2.0], 1.0, true),
        ([0.0, 1.0, 2.0], 2.0, true),
        ([2.0, 2.0, 1.0], 1.0, false),
        ([0.0, nan, 2.0], 2.0, false),
        ([nan, 0.0, 0.0], 0.0, false),
        ([0.0, 0.0, 0.0], 3.0, false),
    ];
    for (logits, label, right) in cases {
        for result in checks::implementations(Accuracy, &types(3)[..2], 1, &[logits.to_vec(), vec![label]]) {
            assert_eq!(result[0], [f64::from(right)], "{logits:?}, label {label}");
        }
    }
    let logits = cases.iter().flat_map(|(logits, ..)| *logits).collect();
    let labels = cases.iter().map(|&(_, label, _)| label).collect();
    for result in checks::implementations(Accuracy, &types(3)[..2], 7, &[logits, labels]) {
        assert_eq!(result[0], [3.0]);
    }
}

#[test]
fn the_head_gives_what_loss_count_and_gradient_give_apart() {
    let nan = f64::NAN;
    let types = types(3);
    let logits = [[2.0, 2.0, 1.0], [1.0, 2.0, 2.0], [1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0], [0.5, 0.25, -1.0], [0.0, nan, 2.0]];
    for (rows, labels) in [(0, &[][..]), (3, &[0.0, 2.0, 1.0]), (5, &[0.0, 1.0, 0.0, 3.0, 0.0]), (6, &[1.0, 1.0, 0.0, 0.0, 2.0, 2.0])] {
        let operands = [logits[..rows].concat(), labels.to_vec(), vec![2.0]];
        let loss = checks::implementations(SoftmaxCrossEntropy, &types[..2], rows, &operands[..2]);
        let correct = checks::implementations(Accuracy, &types[..2], rows, &operands[..2]);
        let grad = checks::implementations(SoftmaxCrossEntropyGrad, &types, rows, &operands);
        let head = checks::implementations(LossHead, &types, rows, &operands);
        for (head, apart) in head.iter().zip(loss.iter().zip(&correct).zip(&grad)) {
            let apart = [&apart.0.0[0], &apart.0.1[0], &apart.1[0]];
            let close = |a: f64, b: f64| (a.is_nan() && b.is_nan()) || (a - b).abs() <= 2e-7 * b.abs().max(1.0);
            for (head, apart) in head.iter().zip(apart) {
                assert!(head.len() == apart.len() && head.iter().zip(apart).all(|(&a, &b)| close(a, b)), "{head:?}, not {apart:?}");
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_shown_as_a_table() {
    let [logits, labels, _] = types(10);
    let error = SoftmaxCrossEntropy.infer(&[logits, logits]).unwrap_err().to_string();
    let expected = "softmax_cross_entropy: expected one integer label for each image, got [N, 10]\
        \n  logits   [N, 10]                  (N, C) f32\n  labels   [N, 10]                  (N) u32";
    assert_eq!(error, expected);
    assert!(Accuracy.infer(&[TensorType::f32(Shape::batched(&[0])), labels]).is_err());
    assert!(SoftmaxCrossEntropyGrad.infer(&[logits, labels, TensorType::f32(Shape::fixed(&[2]))]).is_err());
    assert!(LossHead.infer(&[logits, labels, TensorType::f32(Shape::fixed(&[2]))]).is_err());
}
