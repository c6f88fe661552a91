use super::*;
use crate::ops::checks;

fn images(extents: [usize; 3]) -> TensorType {
    TensorType::f32(Shape::batched(&extents))
}

fn window(kernel: usize, stride: usize) -> Window {
    Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1; 2], padding: Padding::Valid }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let asymmetric = Padding::Explicit { top: 1, bottom: 0, left: 0, right: 2 };
    let windows = [
        window(2, 2),
        window(3, 1),
        window(2, 3),
        Window { padding: Padding::Same, ..window(3, 2) },
        Window { padding: asymmetric, ..window(3, 2) },
        Window { kernel: [2, 3], stride: [1, 2], dilation: [2, 1], padding: Padding::Valid },
    ];
    for window in windows {
        checks::gradient(MaxPool2d { window }, &[images([5, 6, 2])], 2);
        checks::gradient(AvgPool2d { window }, &[images([5, 6, 2])], 2);
    }
}

#[test]
fn overlapping_windows_by_hand() {
    // 3 3 1
    // 2 5 4
    // 9 8 9
    let x = vec![3.0, 3.0, 1.0, 2.0, 5.0, 4.0, 9.0, 8.0, 9.0];
    let op = window(2, 1);
    for y in checks::implementations(MaxPool2d { window: op }, &[images([3, 3, 1])], 1, std::slice::from_ref(&x)) {
        assert_eq!(y[0], [5.0, 5.0, 9.0, 9.0]);
    }
    let dy = vec![1.0, 2.0, 4.0, 8.0];
    for dx in checks::implementations(MaxPool2dGrad { window: op }, &[images([3, 3, 1]), images([2, 2, 1])], 1, &[x.clone(), dy.clone()]) {
        assert_eq!(dx[0], [0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0, 0.0, 8.0]);
    }
    for y in checks::implementations(AvgPool2d { window: op }, &[images([3, 3, 1])], 1, &[x]) {
        assert_eq!(y[0], [3.25, 3.25, 6.0, 6.5]);
    }
    for dx in checks::implementations(AvgPool2dGrad { window: op, input: [3, 3] }, &[images([2, 2, 1])], 1, &[dy]) {
        assert_eq!(dx[0], [0.25, 0.75, 0.5, 1.25, 3.75, 2.5, 1.0, 3.0, 2.0]);
    }
}

#[test]
fn first_of_equal_pixels_in_row_major_order_takes_the_gradient() {
    // One image a case, two channels: the first holds the case, the second its maximum in the last pixel.
    let cases: [([f64; 4], usize); 6] = [
        ([7.0, 7.0, 7.0, 7.0], 0),
        ([1.0, 7.0, 7.0, 7.0], 1),
        ([1.0, 2.0, 7.0, 7.0], 2),
        ([0.0, -0.0, 0.0, -0.0], 0),
        ([-0.0, 0.0, -1.0, 0.0], 0),
        ([f64::NEG_INFINITY; 4], 0),
    ];
    for (pixels, winner) in cases {
        let x = pixels.iter().zip([0.0, 0.0, 0.0, 1.0]).flat_map(|(&a, b)| [a, b]).collect();
        let types = [images([2, 2, 2]), images([1, 1, 2])];
        for dx in checks::implementations(MaxPool2dGrad { window: window(2, 2) }, &types, 1, &[x, vec![5.0, 6.0]]) {
            let expected: Vec<f64> = (0..4).flat_map(|i| [if i == winner { 5.0 } else { 0.0 }, if i == 3 { 6.0 } else { 0.0 }]).collect();
            assert_eq!(dx[0], expected, "{pixels:?}");
        }
    }
}

#[test]
fn first_nan_is_the_maximum() {
    let x = vec![1.0, f64::NAN, f64::INFINITY, f64::NAN];
    for y in checks::implementations(MaxPool2d { window: window(2, 2) }, &[images([2, 2, 1])], 1, std::slice::from_ref(&x)) {
        assert!(y[0][0].is_nan());
    }
    let types = [images([2, 2, 1]), images([1, 1, 1])];
    for dx in checks::implementations(MaxPool2dGrad { window: window(2, 2) }, &types, 1, &[x, vec![5.0]]) {
        assert_eq!(dx[0], [0.0, 5.0, 0.0, 0.0]);
    }
    for y in checks::implementations(AvgPool2d { window: window(2, 2) }, &[images([2, 2, 1])], 1, &[vec![1.0, f64::NAN, 2.0, 3.0]]) {
        assert!(y[0][0].is_nan());
    }
}

#[test]
fn padding_neither_wins_nor_counts() {
    let window = Window { padding: Padding::Explicit { top: 1, bottom: 1, left: 1, right: 1 }, ..window(2, 2) };
    let x = vec![-1.0, -2.0, -3.0, -4.0];
    for y in checks::implementations(MaxPool2d { window }, &[images([2, 2, 1])], 1, std::slice::from_ref(&x)) {
        assert_eq!(y[0], x);
    }
    for y in checks::implementations(AvgPool2d { window }, &[images([2, 2, 1])], 1, std::slice::from_ref(&x)) {
        assert_eq!(y[0], x);
    }
}

#[test]
fn global_average_is_the_mean_of_each_channel() {
    let mut graph = Graph::new();
    let x = graph.input("x", images([3, 5, 2]));
    let y = graph.global_avg_pool2d(x).unwrap();
    assert_eq!(graph.shape(y), Shape::batched(&[2]));
    let mut leaves = [(x, (0..60).map(f64::from).collect())].into();
    let values = crate::exec::reference::evaluate(&graph, &mut leaves, 2).unwrap();
    assert_eq!(values[y.index()], [14.0, 15.0, 44.0, 45.0]);
    let flat = graph.input("flat", TensorType::f32(Shape::batched(&[30])));
    let error = graph.global_avg_pool2d(flat).unwrap_err().to_string();
    assert!(error.starts_with("avg_pool2d: expected a batch of images of floats, got 2 axes\n  x        [N, 30]"), "{error}");
}

#[test]
fn windows_that_do_not_fit_are_refused_with_their_numbers() {
    let refuse = |window, extents| match (MaxPool2d { window }).infer(&[images(extents)]) {
        Err(Error::Shape { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    assert_eq!(refuse(window(3, 1), [2, 3, 1]), "the window's height spans 3 pixels but the padded input has 2");
    assert_eq!(refuse(window(2, 0), [2, 3, 1]), "stride height is 0, expected at least 1");
    assert_eq!(refuse(window(2, 2), [2, 3, 0]), "the image has 0 channels, expected at least 1");
    let outside = Window { padding: Padding::Explicit { top: 0, bottom: 2, left: 0, right: 0 }, ..window(2, 2) };
    assert_eq!(refuse(outside, [4, 4, 1]), "the window at row 2 of the output holds nothing but padding");
    let astride = Window { dilation: [1, 5], padding: Padding::Same, ..window(2, 1) };
    assert_eq!(refuse(astride, [2, 2, 1]), "the window at column 0 of the output holds nothing but padding");
}

#[test]
fn gradients_of_another_shape_are_refused() {
    let error = MaxPool2dGrad { window: window(2, 2) }.infer(&[images([4, 4, 3]), images([2, 1, 3])]).unwrap_err().to_string();
    assert!(error.starts_with("max_pool2d_grad: the pooling of x has shape [N, 2, 2, 3], dy has [N, 2, 1, 3]"), "{error}");
    assert!(AvgPool2dGrad { window: window(2, 2), input: [4, 4] }.infer(&[images([2, 1, 3])]).is_err());
}
