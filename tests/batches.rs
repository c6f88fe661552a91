//! What an image is found to be does not depend on the batch it is in: a server may put any requests together.

mod common;

use common::{executors, noise};
use shadernet::files::NamedTensor;
use shadernet::graph::Graph;
use shadernet::models::cifar10_cnn;
use shadernet::nn::initial_values;
use shadernet::predict::{Images, Predictor};

#[test]
fn answer_of_an_image_does_not_depend_on_its_batch() {
    let model = cifar10_cnn(&["a", "b", "c", "d", "e", "f", "g"].map(str::to_owned));
    let one: usize = model.input.iter().product();
    let classes = model.classes.len();
    let mut graph = Graph::new();
    model.build(&mut graph).unwrap();
    let tensor = |(param, data)| {
        let (name, extents) = (graph.node(param).label.clone(), graph.shape(param).inner().to_vec());
        NamedTensor { name, extents, data }
    };
    let weights: Vec<NamedTensor> = initial_values(&graph, 3).into_iter().map(tensor).collect();
    let all: Vec<u8> = (0..65 * one).map(|i| (256.0 * noise(1, i)) as u8).collect();
    let floats: Vec<f32> = all.iter().map(|&byte| f32::from(byte) / 255.0).collect();

    for exec in executors() {
        let mut predictor = Predictor::new(exec.into_executor(), model.clone(), &weights, 65).unwrap();
        let singly: Vec<f32> = all.chunks(one).flat_map(|image| predictor.predict(image).unwrap()).collect();
        for batch in [2, 3, 5, 8, 16, 17, 32, 33, 64, 65] {
            let together = predictor.predict_batch(&[Images::Bytes(&all[..batch * one])]).unwrap().probabilities;
            assert_eq!(together, singly[..batch * classes], "{}: a batch of {batch}", predictor.device());
        }
        // At another place in a batch of parts, of both kinds.
        let parts = [Images::Floats(&floats[40 * one..47 * one]), Images::Bytes(&all[3 * one..4 * one]), Images::Floats(&[])];
        let want = [&singly[40 * classes..47 * classes], &singly[3 * classes..4 * classes]].concat();
        assert_eq!(predictor.predict_batch(&parts).unwrap().probabilities, want, "{}", predictor.device());
        assert!(predictor.predict_batch(&[Images::Bytes(&all), Images::Bytes(&all[..one])]).is_err(), "more than the capacity");
        assert!(predictor.predict_batch(&[Images::Bytes(&all[1..one])]).is_err(), "no whole number of images");
        assert!(predictor.predict_batch(&[]).unwrap().probabilities.is_empty());
    }
}
