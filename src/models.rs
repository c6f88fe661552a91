//! Networks that come with the crate.

use crate::nn::{Layer, Model};
use crate::ops::activation::Function;

/// The CIFAR-10 convolutional network, 160,202 parameters with ten classes of 32×32 colour images.
pub fn cifar10_cnn(classes: &[String]) -> Model {
    Model {
        name: "cifar10_cnn".to_owned(),
        input: [32, 32, 3],
        layers: vec![
            Layer::conv2d(32, 3),
            Layer::max_pool2d(2),
            Layer::conv2d(64, 3),
            Layer::max_pool2d(2),
            Layer::conv2d(128, 3),
            Layer::max_pool2d(2),
            Layer::Flatten,
            Layer::dense(128, Some(Function::Relu)),
            Layer::dense(classes.len(), None),
        ],
        classes: classes.to_vec(),
    }
}
