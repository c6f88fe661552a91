use super::*;
use crate::ops::{Adam, checks};

fn fixed(extents: &[usize]) -> TensorType {
    TensorType::f32(Shape::fixed(extents))
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
    let log = graph.state("log", fixed(&[1, 2]), 0.0);
    let row = ["loss", "correct"].map(|name| graph.input(name, fixed(&[])));
    let root = graph.tick(Adam::default().tick(), row, clock, log, rate).unwrap();
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
fn record_fills_its_row_and_nothing_past_the_end_and_counts_the_step_and_its_images() {
    let types = [fixed(&[]), fixed(&[]), clock_type(), fixed(&[2, 2]), rate_type()];
    for (step, expected) in [(0.0, [5.0, 6.0, 0.0, 0.0]), (1.0, [0.0, 0.0, 5.0, 6.0]), (2.0, [0.0; 4]), (4294967294.0, [0.0; 4])] {
        let operands = [vec![5.0], vec![6.0], vec![step, 9.0], vec![0.0; 4], vec![0.5, 0.1, 0.001, 0.0]];
        for result in checks::implementations(Record, &types[..4], 3, &operands[..4]) {
            assert_eq!(result, [&[step + 1.0, 12.0][..], &expected], "step {step}");
        }
        for result in checks::implementations(Adam::default().tick(), &types, 3, &operands) {
            assert_eq!(result[..2], [&[step + 1.0, 12.0][..], &expected], "step {step}");
            let after = [0.5, 0.19, 0.001999];
            assert!(result[2].iter().zip(after).all(|(got, want)| (got - want).abs() < 1e-7), "{result:?}");
        }
    }
}

#[test]
fn shapes_and_decays_that_do_not_fit_are_refused() {
    let types = [fixed(&[]), fixed(&[]), clock_type(), fixed(&[4, 2]), rate_type()];
    assert!(Record.infer(&types[..4]).is_ok() && Adam::default().tick().infer(&types).is_ok());
    let with = |place: usize, ty: TensorType| {
        let mut types = types;
        types[place] = ty;
        types
    };
    for types in [with(0, fixed(&[1])), with(2, TensorType::u32(Shape::fixed(&[3]))), with(3, fixed(&[4]))] {
        assert!(Record.infer(&types[..4]).is_err() && Adam::default().tick().infer(&types).is_err(), "{types:?}");
    }
    assert!(Adam::default().tick().infer(&with(4, fixed(&[3]))).is_err());
    assert!(matches!(Tick { beta1: 1.0, beta2: 0.5 }.infer(&types), Err(Error::Invalid { .. })));
}
