use super::*;
use crate::ops::checks;

fn shard(images: usize, bytes: usize) -> TensorType {
    TensorType::u8(Shape::fixed(&[images, bytes]))
}

fn list(len: usize) -> TensorType {
    TensorType::u32(Shape::fixed(&[len]))
}

#[test]
fn scaled_bytes_are_the_nearest_floats_to_byte_over_255() {
    let scale = Scale::new(1.0 / 255.0).unwrap();
    for byte in 0..=255u8 {
        let golden = (f64::from(byte) / 255.0) as f32;
        assert_eq!(scale.apply(byte).to_bits(), golden.to_bits(), "{byte}");
        // The two ways in which a compiler may fuse the sum.
        let high = (u32::from(byte) * scale.high) as f32;
        assert_eq!(high.mul_add(scale.unit, f32::from(byte) * scale.low).to_bits(), golden.to_bits(), "{byte}");
        assert_eq!(f32::from(byte).mul_add(scale.low, high * scale.unit).to_bits(), golden.to_bits(), "{byte}");
    }
}

#[test]
fn every_byte_is_scaled_to_the_same_bits_on_every_executor() {
    let op = GatherBatch { height: 1, width: 256, channels: 1, images_per_shard: 1, images: 1, scale: 1.0 / 255.0 };
    let bytes: Vec<f64> = (0..256).map(f64::from).collect();
    let types = [shard(1, 256), shard(1, 256), shard(1, 256), list(1), list(1), list(2)];
    let operands = [bytes.clone(), bytes.clone(), bytes, vec![0.0], vec![0.0], vec![0.0; 2]];
    for result in &checks::implementations(op, &types, 1, &operands)[1..] {
        for (byte, got) in result[0].iter().enumerate() {
            assert_eq!(*got, f64::from((byte as f64 / 255.0) as f32), "{byte}");
        }
    }
}

#[test]
fn scales_are_split_without_loss() {
    for scale in [1.0, 1.0 / 127.5, 1.0 / 256.0, 0.3, 3e7, 1e-20, 1e20] {
        let split = Scale::new(scale).unwrap();
        assert!((1 << 15..1 << 16).contains(&split.high), "{scale}: {split:?}");
        for byte in [0, 1, 127, 255] {
            let exact = (f64::from(byte) * scale) as f32;
            assert!((split.apply(byte) - exact).abs() <= exact.abs() * f32::EPSILON, "{scale} times {byte}");
        }
    }
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300] {
        assert_eq!(Scale::new(scale), None, "{scale}");
    }
}

#[test]
fn images_and_labels_come_in_order_from_every_shard_and_past_the_end_as_zeros() {
    // Images of 3 bytes, so that words are shared by images; two in a shard, one in the last. No label for the last image.
    let op = GatherBatch { height: 3, width: 1, channels: 1, images_per_shard: 2, images: 5, scale: 1.0 };
    let types = [shard(2, 3), shard(2, 3), shard(1, 3), list(4), list(7), list(2)];
    let bytes = |first: usize, images: usize| (0..3 * images).map(|i| (10 * (first + i / 3) + i % 3 + 1) as f64).collect::<Vec<f64>>();
    let order = vec![4.0, 0.0, 3.0, 5.0, 2.0, 4294967295.0, 1.0];
    for start in [0.0, 2.0, 5.0, 6.0, 7.0, 4294967295.0] {
        let operands = [bytes(0, 2), bytes(2, 2), bytes(4, 1), vec![6.0, 7.0, 8.0, 9.0], order.clone(), vec![3.0, start]];
        let named = |n: usize| order.get(start as usize + n).copied();
        let pixel = |n: usize, i: u32| named(n).filter(|&image| image < 5.0).map_or(0.0, |image| 10.0 * image + f64::from(i) + 1.0);
        let images: Vec<f64> = (0..4).flat_map(|n| (0..3).map(move |i| (n, i))).map(|(n, i)| pixel(n, i)).collect();
        let labels: Vec<f64> = (0..4).map(|n| named(n).filter(|&image| image < 4.0).map_or(0.0, |image| 6.0 + image)).collect();
        for result in checks::implementations(op, &types, 4, &operands) {
            assert_eq!(result, [images.clone(), labels.clone()], "from {start}");
        }
    }
}

#[test]
fn repeated_shards_hold_no_further_images() {
    let mut graph = Graph::new();
    let only = graph.input("images", shard(2, 2));
    let [labels, order] = ["labels", "order"].map(|name| graph.input(name, list(3)));
    let clock = graph.state("clock", list(2), 0.0);
    let [y, t] = graph.gather_batch(&[only], [1, 1, 2], 1.0, labels, order, clock).unwrap();
    let mut leaves = [(only, vec![1.0, 2.0, 3.0, 4.0]), (labels, vec![7.0, 8.0, 9.0]), (order, vec![1.0, 2.0, 3.0])].into();
    let values = crate::exec::reference::evaluate(&graph, &mut leaves, 3).unwrap();
    assert_eq!(values[y.index()], [3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(values[t.index()], [8.0, 9.0, 0.0]);
}

#[test]
fn shards_that_do_not_fit_are_refused_with_their_numbers() {
    let mut graph = Graph::new();
    let [a, b, c] = [shard(4, 12), shard(3, 12), shard(4, 10)].map(|ty| graph.input("images", ty));
    let [labels, order] = ["labels", "order"].map(|name| graph.input(name, list(3)));
    let clock = graph.state("clock", list(2), 0.0);
    let mut gather = |shards: &[TensorId]| graph.gather_batch(shards, [2, 2, 3], 1.0, labels, order, clock).map_err(|e| e.to_string());
    assert!(gather(&[a, a, b]).is_ok());
    assert_eq!(gather(&[]).unwrap_err(), "shards of gather_batch: found 0, expected 1 to 3");
    assert_eq!(gather(&[a, b, a]).unwrap_err(), "images of shard 1: found 3, expected 4 as in shard 0");
    let error = gather(&[a, c]).unwrap_err();
    assert!(error.starts_with("gather_batch: shard 1 has images of 10 bytes, [2, 2, 3] are 12\n  shard 0  [4, 12] u8"), "{error}");
    let op = GatherBatch { height: 1, width: 2, channels: 1, images_per_shard: 1, images: 1, scale: 1.0 };
    let types = [shard(1, 2), shard(1, 2), shard(1, 2), list(1), list(1), list(2)];
    assert!(op.infer(&types).is_ok());
    for (place, ty) in [(3, TensorType::f32(Shape::fixed(&[1]))), (4, TensorType::u32(Shape::fixed(&[1, 1]))), (5, list(3))] {
        let mut types = types;
        types[place] = ty;
        assert!(op.infer(&types).is_err(), "operand {place}");
    }
    assert!(GatherBatch { height: usize::MAX, ..op }.infer(&types).is_err());
}
