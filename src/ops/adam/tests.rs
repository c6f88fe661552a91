use super::*;
use crate::ops::checks;

fn fixed(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::fixed(extents))
}

#[test]
fn first_step_moves_by_the_learning_rate_and_the_second_as_computed_by_hand() {
    let adam = Adam::default();
    let ty = fixed(&[2]);
    let types = [ty, ty, ty, ty, rate_type()];
    // After one step m = 0.1 g and v = 0.001 g², whose corrections cancel the factors: w -= lr · g / (|g| + ε').
    let rate = vec![0.01, 0.1, 0.001, 0.0];
    for result in checks::implementations(adam, &types, 1, &[vec![1.0, 2.0], vec![0.0; 2], vec![0.0; 2], vec![0.5, -4.0], rate]) {
        let expected = [[0.99, 2.01], [0.05, -0.4], [0.00025, 0.016]];
        for (got, want) in result.iter().zip(expected) {
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-6 * w.abs()), "{result:?}");
        }
    }
    // t = 2: m = 0.05 + (1 - 0.05)·0.1 = 0.145, v = 0.00025 + (1 - 0.00025)·0.001 = 0.00124975, corrections 0.19 and 0.001999.
    let step = 0.01 * 0.001999f64.sqrt() / 0.19 * 0.145 / (0.00124975f64.sqrt() + 1e-7);
    let types = [fixed(&[1]), fixed(&[1]), fixed(&[1]), fixed(&[1]), rate_type()];
    let operands = [vec![0.99], vec![0.05], vec![0.00025], vec![1.0], vec![0.01, 0.19, 0.001999, 0.0]];
    for result in checks::implementations(adam, &types, 1, &operands) {
        assert!((result[0][0] - (0.99 - step)).abs() < 1e-7 && (result[1][0] - 0.145).abs() < 2e-8, "{result:?}");
        assert!((result[2][0] - 0.00124975).abs() < 1e-9, "{result:?}");
    }
}

#[test]
fn nan_gradient_reaches_the_parameter() {
    let ty = fixed(&[2]);
    let operands = [vec![1.0; 2], vec![0.0; 2], vec![0.0; 2], vec![f64::NAN, 0.0], vec![0.01, 0.1, 0.001, 0.0]];
    for result in checks::implementations(Adam::default(), &[ty, ty, ty, ty, rate_type()], 1, &operands) {
        assert!(result.iter().all(|operand| operand[0].is_nan() && !operand[1].is_nan()), "{result:?}");
    }
}

/// The worst relative errors of 1 - β1ᵗ and 1 - β2ᵗ over 10,000 ticks.
fn worst_errors(keep_remainder: bool) -> [f64; 2] {
    let mut rate = Adam::default().first_rate(0.01);
    let mut worst = [0.0f64; 2];
    for t in 1..=10_000 {
        let exact = [1.0 - 0.9f64.powi(t), 1.0 - 0.999f64.powi(t)];
        for i in 0..2 {
            worst[i] = worst[i].max((f64::from(rate[1 + i]) / exact[i] - 1.0).abs());
        }
        kernels::adam::next_rate(&mut rate, [0.1, 0.001]);
        if !keep_remainder {
            rate[3] = 0.0;
        }
    }
    assert_eq!(rate[0], 0.01);
    println!("worst relative errors, remainder kept: {keep_remainder}: {worst:?}");
    worst
}

// Observed: 2.4e-7 for β1 = 0.9 and 1.1e-7 for β2 = 0.999.
#[test]
fn ten_thousand_ticks_keep_the_corrections_exact() {
    let worst = worst_errors(true);
    assert!(worst[0] < 5e-7 && worst[1] < 2e-7, "{worst:?}");
}

#[test]
fn without_the_remainder_the_second_correction_would_drift() {
    assert!(worst_errors(false)[1] > 2e-6); // observed: 4.5e-6
}

#[test]
fn ticks_on_every_executor_follow_the_powers_and_count_images() {
    use crate::exec::{Executor, cpu::CpuExecutor, gpu::GpuExecutor, read_f32, read_u32, write_f32};
    let mut graph = Graph::new();
    let rate = graph.state("rate", rate_type(), 0.0);
    let clock = graph.state("clock", clock_type(), 0.0);
    let root = graph.tick(Adam::default().tick(), rate, clock).unwrap();
    let plan = std::sync::Arc::new(crate::plan::Plan::new(&graph, &[root], 64).unwrap());
    let mut executors: Vec<Box<dyn Executor>> = vec![Box::new(CpuExecutor::new(Some(1)).unwrap())];
    executors.extend(checks::gpu().map(|gpu| Box::new(GpuExecutor::new(gpu)) as Box<dyn Executor>));
    for exec in &mut executors {
        let id = exec.load(plan.clone()).unwrap();
        write_f32(exec.as_mut(), rate, &Adam::default().first_rate(0.5)).unwrap();
        exec.run(id, &[64; 999]).unwrap();
        exec.run(id, &[16]).unwrap();
        let got = read_f32(exec.as_mut(), id, rate, 0).unwrap();
        let exact = [0.5, 1.0 - 0.9f64.powi(1001), 1.0 - 0.999f64.powi(1001)];
        for (got, exact) in got.iter().zip(exact) {
            assert!((f64::from(*got) / exact - 1.0).abs() < 5e-7, "{}: {got} instead of {exact}", exec.device());
        }
        assert_eq!(read_u32(exec.as_mut(), id, clock, 0).unwrap(), [1000, 999 * 64 + 16], "{}", exec.device());
    }
}

#[test]
fn record_fills_its_row_and_nothing_past_the_end() {
    let scalar = fixed(&[]);
    let types = [scalar, scalar, clock_type(), fixed(&[2, 2])];
    for (step, expected) in [(0.0, [5.0, 6.0, 0.0, 0.0]), (1.0, [0.0, 0.0, 5.0, 6.0]), (2.0, [0.0; 4]), (4294967295.0, [0.0; 4])] {
        for result in checks::implementations(Record, &types, 3, &[vec![5.0], vec![6.0], vec![step, 9.0], vec![0.0; 4]]) {
            assert_eq!(result[0], expected, "step {step}");
        }
    }
}

#[test]
fn clock_counts_a_step_and_its_images() {
    for result in checks::implementations(Advance, &[clock_type()], 16, &[vec![7.0, 448.0]]) {
        assert_eq!(result[0], [8.0, 464.0]);
    }
}

#[test]
fn settings_and_shapes_that_do_not_fit_are_refused() {
    let ty = fixed(&[3, 4]);
    let types = [ty, ty, ty, ty, rate_type()];
    assert!(Adam::default().infer(&types).is_ok());
    for bad in
        [Adam { beta1: 1.0, ..Adam::default() }, Adam { beta2: f64::NAN, ..Adam::default() }, Adam { epsilon: 0.0, ..Adam::default() }]
    {
        assert!(matches!(bad.infer(&types), Err(Error::Invalid { .. })), "{bad:?}");
    }
    let error = Adam::default().infer(&[ty, ty, ty, fixed(&[4, 3]), rate_type()]).unwrap_err().to_string();
    assert!(error.starts_with("adam: grad is [4, 3], expected [3, 4]\n  param    [3, 4]"), "{error}");
    let batched = TensorType::f32(Shape::batched(&[3]));
    assert!(Adam::default().infer(&[batched, batched, batched, batched, rate_type()]).is_err());
    assert!(Adam::default().tick().infer(&[fixed(&[3]), clock_type()]).is_err());
    assert!(Advance.infer(&[TensorType::u32(Shape::fixed(&[3]))]).is_err());
    assert!(Record.infer(&[fixed(&[]), fixed(&[]), clock_type(), fixed(&[4])]).is_err());
}
