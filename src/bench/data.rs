//! Images and weights to measure with, where only their number and size count.

use crate::data::Dataset;
use crate::error::Result;
use crate::files::NamedTensor;
use crate::graph::Graph;
use crate::nn::{self, Model};
use crate::rng::{Stream, bits};

/// So many images of the model's size, each byte drawn, with the model's classes in turn.
pub fn noise_images(model: &Model, count: usize) -> Dataset {
    let [height, width, channels] = model.input;
    let words = (count * height * width * channels).div_ceil(8) as u64;
    let mut images: Vec<u8> = (0..words).flat_map(|i| bits(0, Stream::Epoch(usize::MAX >> 2), i).to_le_bytes()).collect();
    images.truncate(count * height * width * channels);
    let labels = (0..count).map(|i| (i % model.classes.len().max(1)) as u32).collect();
    Dataset { images, labels, height, width, channels, classes: model.classes.clone() }
}

/// A data set again and again, until there are so many images of it.
pub fn repeated(data: &Dataset, count: usize) -> Dataset {
    let images = data.images.iter().copied().cycle().take(count * data.image_len()).collect();
    let labels = data.labels.iter().copied().cycle().take(count).collect();
    let Dataset { height, width, channels, .. } = *data;
    Dataset { images, labels, height, width, channels, classes: data.classes.clone() }
}

/// The weights that the model starts from, as a model file would have them.
///
/// # Errors
/// A model that does not fit together.
pub fn initial_weights(model: &Model, seed: u64) -> Result<Vec<NamedTensor>> {
    let mut graph = Graph::new();
    model.build(&mut graph)?;
    let tensor = |(id, data)| {
        let extents = graph.shape(id).inner().to_vec();
        NamedTensor { name: graph.node(id).label.clone(), extents, data }
    };
    Ok(nn::initial_values(&graph, seed).into_iter().map(tensor).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample;
    use crate::models::cifar10_cnn;

    #[test]
    fn a_repeated_set_goes_round() {
        let mut one = sample().test;
        one.truncate(3);
        let many = repeated(&one, 7);
        assert_eq!((many.len(), many.images.len()), (7, 7 * one.image_len()));
        assert_eq!((many.image(4), many.labels[6]), (one.image(1), one.labels[0]));
        assert_eq!(repeated(&one, 3), one);
    }

    #[test]
    fn noise_has_the_size_and_classes_of_the_model() {
        let model = cifar10_cnn(&["a", "b", "c"].map(str::to_owned));
        let images = noise_images(&model, 5);
        assert_eq!((images.len(), images.images.len()), (5, 5 * 3072));
        assert_eq!(images.labels, [0, 1, 2, 0, 1]);
        assert!(images.image(0) != images.image(1));
        assert_eq!(initial_weights(&model, 0).unwrap().len(), 10);
    }
}
