//! Networks that come with the crate.

use crate::nn::{Layer, Model};
use crate::ops::activation::Function;

/// The CIFAR-10 convolutional network, 160,202 parameters with ten classes of 32×32 colour images.
pub fn cifar10_cnn(classes: &[String]) -> Model {
    cifar10_cnn_wide(classes, 1)
}

/// The same network with `width` times as many filters and units: about `width²` times the parameters and the work.
/// With a `width` of 0 it has no filters, which is an error when it is built.
pub fn cifar10_cnn_wide(classes: &[String], width: usize) -> Model {
    Model {
        name: if width == 1 { "cifar10_cnn".to_owned() } else { format!("cifar10_cnn_x{width}") },
        input: [32, 32, 3],
        layers: vec![
            Layer::conv2d(32 * width, 3),
            Layer::max_pool2d(2),
            Layer::conv2d(64 * width, 3),
            Layer::max_pool2d(2),
            Layer::conv2d(128 * width, 3),
            Layer::max_pool2d(2),
            Layer::Flatten,
            Layer::dense(128 * width, Some(Function::Relu)),
            Layer::dense(classes.len(), None),
        ],
        classes: classes.to_vec(),
    }
}
