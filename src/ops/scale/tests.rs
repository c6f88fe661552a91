//! Overflow found wherever it is, and the scale that follows of it.

use super::*;
use crate::ops::checks;
use crate::ops::{Adam, AdamGroup};

fn grad(len: usize) -> TensorType {
    TensorType::f16(Shape::batched(&[len]))
}

/// A rate that no part of this file has changed: scale 1024, nothing overflowed, 3 steps without.
const RATE: [f64; 8] = [0.01, 0.1, 0.001, 0.0, 1.0 / 1024.0, 0.0, 3.0, 0.0];

#[test]
fn overflow_is_found_at_every_place_and_in_every_gradient() {
    // An odd number of elements: the last shares its word with the poison behind it.
    let types = [grad(5), grad(3), grad(1), grad(301), scaled_rate_type()];
    let batch = 3;
    let lens = [15, 9, 3, 903];
    let run = |change: Option<(usize, usize, f64)>, count: usize| {
        let mut operands: Vec<Vec<f64>> = lens.iter().map(|&len| vec![65_472.0; len]).collect();
        if let Some((operand, at, value)) = change {
            operands[operand][at] = value;
        }
        operands.push(RATE.to_vec());
        checks::implementations(Overflow { count }, &types, batch, &operands)
    };
    for result in run(None, 4) {
        assert_eq!(result[0][5], 0.0);
    }
    for (operand, at) in [(0, 0), (0, 14), (1, 8), (2, 2), (3, 0), (3, 500), (3, 901), (3, 902)] {
        for value in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 65_504.0, -65_504.0] {
            for result in run(Some((operand, at, value)), 4) {
                let rate = &result[0];
                assert_eq!(rate[5], 1.0, "{value} at {at} of {operand}");
                let others = |rate: &[f64]| rate.iter().enumerate().filter(|(i, _)| *i != 5).map(|(_, v)| *v as f32).collect::<Vec<_>>();
                assert_eq!(others(rate), others(&RATE));
            }
        }
    }
    // Of gradients that are not counted nothing is read.
    for result in run(Some((3, 0, f64::NAN)), 3) {
        assert_eq!(result[0][5], 0.0);
    }
}

#[test]
fn an_empty_batch_overflows_nothing() {
    let types = [grad(5), grad(3), grad(1), grad(7), scaled_rate_type()];
    for result in checks::implementations(Overflow { count: 4 }, &types, 0, &[vec![], vec![], vec![], vec![], RATE.to_vec()]) {
        assert_eq!(result[0][5], 0.0);
    }
}

#[test]
fn the_scale_halves_where_a_step_overflowed_and_doubles_after_enough_that_did_not() {
    let scalar = TensorType::f32(Shape::fixed(&[]));
    let types = [scalar, scalar, TensorType::u32(Shape::fixed(&[2])), TensorType::f32(Shape::fixed(&[4, 2])), scaled_rate_type(), scalar];
    let tick = ScaledTick { growth_interval: 5, ..Adam::default().scaled_tick() };
    let run = |rate: [f64; 8], scale: f64| {
        let operands = [vec![2.5], vec![7.0], vec![1.0, 64.0], vec![0.0; 8], rate.to_vec(), vec![scale]];
        checks::implementations(tick, &types, 16, &operands)
    };
    let close = |got: f64, want: f64| (got - want).abs() <= 1e-6 * want.abs();
    let with = |overflowed: f64, good: f64| [RATE[0], RATE[1], RATE[2], 0.0, RATE[4], overflowed, good, 0.0];
    // Overflowed, good steps before; then the scale, its inverse's change, good steps after, and whether the rate moved.
    for (overflowed, good, scale, inverse, after, moved) in
        [(1.0, 3.0, 512.0, 2.0, 0.0, false), (0.0, 3.0, 1024.0, 1.0, 4.0, true), (0.0, 4.0, 2048.0, 0.5, 0.0, true)]
    {
        for result in run(with(overflowed, good), 1024.0) {
            let (clock, log, rate, loss_scale) = (&result[0], &result[1], &result[2], &result[3]);
            assert_eq!(clock[..], [2.0, 80.0]);
            assert_eq!(log[2..4], [2.5, 7.0]); // the step counts, and its loss is recorded, in either case
            assert_eq!((loss_scale[0], rate[4], rate[5], rate[6]), (scale, RATE[4] * inverse, 0.0, after));
            assert_eq!(close(rate[1], RATE[1]) && close(rate[2], RATE[2]), !moved);
            assert!(!moved || (close(rate[1], 0.19) && close(rate[2], 0.001_999)), "{rate:?}");
        }
    }
    // At its ends the scale stays, and its inverse with it.
    for (overflowed, good, scale) in [(1.0, 0.0, 1.0 / MOST), (0.0, 4.0, MOST)] {
        let mut rate = with(overflowed, good);
        rate[4] = 1.0 / scale;
        for result in run(rate, scale) {
            assert_eq!((result[3][0], result[2][4]), (scale, 1.0 / scale));
        }
    }
}

#[test]
fn adam_takes_the_scale_out_and_changes_nothing_where_a_step_overflowed() {
    let param = TensorType::f32(Shape::fixed(&[300]));
    let moments = Adam::moments(param);
    let sums = TensorType::f32(Shape::fixed(&[20, 300]));
    let draw = |seed: usize, len: usize| (0..len).map(|k| f64::from((checks::noise(seed, k) - 0.5) as f32)).collect::<Vec<_>>();
    let second = |seed: usize| draw(seed, 600).iter().map(|v| v.abs()).collect::<Vec<_>>();
    let small = [RATE[0], RATE[1], RATE[2], 0.0];
    let overflowed = [RATE[0], RATE[1], RATE[2], 0.0, RATE[4], 1.0, 0.0, 0.0];
    for (grad, len) in [(param, 300), (sums, 6000)] {
        let unscaled = draw(3, len);
        let scaled: Vec<f64> = unscaled.iter().map(|g| g * 1024.0).collect();
        let run = |grads: &Vec<f64>, rate: &[f64]| {
            let rate_type = TensorType::f32(Shape::fixed(&[rate.len()]));
            let one = [draw(1, 300), second(2), grads.clone(), rate.to_vec()];
            let both = [draw(1, 300), draw(1, 300), second(2), second(2), grads.clone(), grads.clone(), rate.to_vec()];
            let group = AdamGroup { adam: Adam::default(), count: 2 };
            [
                checks::implementations(Adam::default(), &[param, moments, grad, rate_type], 1, &one),
                checks::implementations(group, &[param, param, moments, moments, grad, grad, rate_type], 1, &both),
            ]
        };
        // What a power of two scales is the same to the bit but for the reference on the CPU, which is f64.
        for (with, without) in run(&scaled, &RATE).iter().flatten().zip(run(&unscaled, &small).iter().flatten()) {
            for (with, without) in with.iter().flatten().zip(without.iter().flatten()) {
                assert!((with - without).abs() < 1e-6, "{with} and {without}");
            }
        }
        for result in run(&vec![f64::INFINITY; len], &overflowed).iter().flatten() {
            for (i, updated) in result.iter().enumerate() {
                let before = if i < result.len() / 2 { draw(1, 300) } else { second(2) };
                assert!(updated.iter().zip(&before).all(|(got, want)| *got as f32 == *want as f32));
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let rate = scaled_rate_type();
    let right = [grad(5), grad(5), grad(5), grad(5), rate];
    assert!(Overflow { count: 2 }.infer(&right).is_ok());
    assert!(Overflow { count: 0 }.infer(&right).is_err() && Overflow { count: 5 }.infer(&right).is_err());
    let floats = TensorType::f32(Shape::batched(&[5]));
    let error = Overflow { count: 2 }.infer(&[grad(5), floats, grad(5), grad(5), rate]).unwrap_err().to_string();
    assert!(error.contains("grad 1 is [N, 5], expected [N, 5] f16"), "{error}");
    assert!(Overflow { count: 2 }.infer(&[grad(5), TensorType::f16(Shape::fixed(&[5])), grad(5), grad(5), rate]).is_err());
    assert!(Overflow { count: 2 }.infer(&[grad(5), grad(5), grad(5), grad(5), TensorType::f32(Shape::fixed(&[4]))]).is_err());
}
