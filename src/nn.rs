//! Networks: layers with their parameters and initialisers, and what a model is as data.
//!
//! A [`Model`] is a list of layers that can be written to a file. [`Model::build`] makes its parameters in a graph, once;
//! the [`Network`] that results is then applied to as many inputs as there are uses: training, evaluation, prediction.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::graph::{Graph, Init, Role, TensorId};
use crate::ops::activation::Function;
use crate::ops::conv2d::Conv2d;
use crate::ops::window::{Padding, Window};
use crate::rng::{self, Stream};
use crate::shape::{DType, Shape, TensorType};

/// A layer, as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Layer {
    /// 2-D convolution with bias: `[N, H, W, I]` to `[N, OH, OW, filters]`. Parameters `kernel` `[KH, KW, I/groups, filters]`
    /// and `bias` `[filters]`.
    Conv2d {
        /// Output channels.
        filters: usize,
        /// Height and width of the kernel.
        kernel: [usize; 2],
        /// Pixels from one output to the next.
        stride: [usize; 2],
        /// What surrounds the image.
        padding: Padding,
        /// Pixels from one tap to the next.
        dilation: [usize; 2],
        /// Channel groups that do not see each other.
        groups: usize,
        /// Applied to the result.
        activation: Option<Function>,
    },
    /// The greatest of each window.
    MaxPooling2d {
        /// The window.
        window: Window,
    },
    /// The mean of each window, padding not counted.
    AveragePooling2d {
        /// The window.
        window: Window,
    },
    /// The mean of the whole image: `[N, H, W, C]` to `[N, C]`.
    GlobalAveragePooling2d,
    /// `[N, H, W, C]` to `[N, H·W·C]`.
    Flatten,
    /// `[N, I]` to `[N, units]`. Parameters `kernel` `[I, units]` and `bias` `[units]`.
    Dense {
        /// Outputs.
        units: usize,
        /// Applied to the result.
        activation: Option<Function>,
    },
    /// A function of each element.
    Activation {
        /// Which.
        function: Function,
    },
}

impl Layer {
    /// A convolution of stride 1 without padding, followed by relu.
    pub fn conv2d(filters: usize, kernel: usize) -> Self {
        let plain = Conv2d::default();
        Self::Conv2d {
            filters,
            kernel: [kernel; 2],
            stride: plain.stride,
            padding: plain.padding,
            dilation: plain.dilation,
            groups: plain.groups,
            activation: Some(Function::Relu),
        }
    }

    /// Max-pooling over windows of `size`² that do not overlap.
    pub fn max_pool2d(size: usize) -> Self {
        Self::MaxPooling2d { window: Window { kernel: [size; 2], stride: [size; 2], dilation: [1; 2], padding: Padding::Valid } }
    }

    /// A dense layer.
    pub fn dense(units: usize, activation: Option<Function>) -> Self {
        Self::Dense { units, activation }
    }

    /// Keras's name for the kind of layer, in lower case.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Conv2d { .. } => "conv2d",
            Self::MaxPooling2d { .. } => "max_pooling2d",
            Self::AveragePooling2d { .. } => "average_pooling2d",
            Self::GlobalAveragePooling2d => "global_average_pooling2d",
            Self::Flatten => "flatten",
            Self::Dense { .. } => "dense",
            Self::Activation { .. } => "activation",
        }
    }
}

/// A classifier of images, as data: everything but the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Height, width and channels of the images; bytes are divided by 255.
    pub input: [usize; 3],
    /// The layers, in order. The last gives the logits, one for each class.
    pub layers: Vec<Layer>,
    /// Names of the classes, in the order of the logits.
    pub classes: Vec<String>,
}

/// The most elements a parameter or an activation of one image may have: bounds what a model file can ask for.
const MOST_ELEMENTS: usize = 1 << 30;

impl Model {
    /// Keras's names of the layers: the kind, from the second of a kind on with a number.
    pub fn layer_names(&self) -> Vec<String> {
        let name = |(i, layer): (usize, &Layer)| {
            let earlier = self.layers[..i].iter().filter(|other| other.kind() == layer.kind()).count();
            if earlier == 0 { layer.kind().to_owned() } else { format!("{}_{earlier}", layer.kind()) }
        };
        self.layers.iter().enumerate().map(name).collect()
    }

    /// Type of a batch of inputs.
    pub fn input_type(&self) -> TensorType {
        TensorType::f32(Shape::batched(&self.input))
    }

    /// Makes the parameters in `graph`, checking on the way that every layer fits the one before.
    ///
    /// # Errors
    /// [`Error::Shape`] at the first layer that does not fit; [`Error::Invalid`] if the last does not give one number a class.
    pub fn build(&self, graph: &mut Graph) -> Result<Network> {
        if self.input.iter().any(|&extent| extent == 0 || extent > 1 << 16) || self.classes.is_empty() {
            let found = format!("{:?} with {} classes", self.input, self.classes.len());
            return Err(Error::invalid("a model's input", found, "extents from 1 to 65536, and a class at least"));
        }
        // Shapes are found out on a graph of its own, so that `graph` gets parameters only.
        let mut scratch = Graph::new();
        let mut x = scratch.input("x", self.input_type());
        let mut layers = Vec::new();
        for (name, layer) in self.layer_names().into_iter().zip(&self.layers) {
            let input = scratch.shape(x);
            let extents = layer.parameters(&name, input.inner())?;
            let make = |graph: &mut Graph| {
                graph.scope(&name);
                extents.iter().map(|(what, shape, init)| graph.param(what, *shape, *init)).collect::<Vec<_>>()
            };
            let in_scratch = make(&mut scratch);
            let built = Built { name: name.clone(), layer: layer.clone(), params: make(graph) };
            x = Built { params: in_scratch, ..built.clone() }.apply(&mut scratch, x)?;
            limit(&name, scratch.shape(x).inner())?;
            layers.push(built);
        }
        graph.scope("");
        let logits = scratch.shape(x);
        if logits != Shape::batched(&[self.classes.len()]) {
            let expected = format!("[N, {}], a number for each class", self.classes.len());
            return Err(Error::invalid(format!("the output of model {}", self.name), logits, expected));
        }
        Ok(Network { input: self.input_type(), layers })
    }
}

/// An error if a tensor would be absurdly large.
fn limit(name: &str, extents: &[usize]) -> Result<()> {
    let elements = extents.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    if elements.is_some_and(|elements| (1..=MOST_ELEMENTS).contains(&elements)) {
        return Ok(());
    }
    Err(Error::invalid(format!("a tensor of layer {name}"), format!("{extents:?}"), format!("1 to {MOST_ELEMENTS} elements")))
}

impl Layer {
    /// Name, shape and initial values of each parameter, given the extents of the input without the batch.
    fn parameters(&self, name: &str, input: &[usize]) -> Result<Vec<(&'static str, Shape, Init)>> {
        let channels = input.last().copied().unwrap_or(1);
        let (extents, fan_in, fan_out) = match *self {
            Self::Conv2d { filters, kernel: [height, width], groups, .. } => {
                let inner = channels / groups.max(1);
                limit(name, &[height, width, inner.max(1), filters])?;
                (vec![height, width, inner, filters], height * width * inner, height * width * filters)
            }
            Self::Dense { units, .. } => {
                limit(name, &[channels, units])?;
                (vec![channels, units], channels, units)
            }
            _ => return Ok(Vec::new()),
        };
        let outputs = extents[extents.len() - 1];
        Ok(vec![
            ("kernel", Shape::fixed(&extents), Init::GlorotUniform { fan_in, fan_out }),
            ("bias", Shape::fixed(&[outputs]), Init::Fill(0.0)),
        ])
    }
}

/// A layer whose parameters are in a graph.
#[derive(Clone, Debug)]
struct Built {
    name: String,
    layer: Layer,
    params: Vec<TensorId>,
}

impl Built {
    fn apply(&self, graph: &mut Graph, x: TensorId) -> Result<TensorId> {
        graph.scope(&self.name);
        let activate = |graph: &mut Graph, y, function: &Option<Function>| match function {
            Some(function) => graph.activation(y, *function),
            None => Ok(y),
        };
        match &self.layer {
            Layer::Conv2d { stride, padding, dilation, groups, activation, .. } => {
                let conv2d = Conv2d { stride: *stride, padding: *padding, dilation: *dilation, groups: *groups };
                let y = graph.conv2d(x, self.params[0], conv2d)?;
                let y = graph.bias_add(y, self.params[1])?;
                activate(graph, y, activation)
            }
            Layer::Dense { activation, .. } => {
                let y = graph.matmul(x, self.params[0])?;
                let y = graph.bias_add(y, self.params[1])?;
                activate(graph, y, activation)
            }
            Layer::MaxPooling2d { window } => graph.max_pool2d(x, *window),
            Layer::AveragePooling2d { window } => graph.avg_pool2d(x, *window),
            Layer::GlobalAveragePooling2d => graph.global_avg_pool2d(x),
            Layer::Flatten => graph.flatten(x),
            Layer::Activation { function } => graph.activation(x, *function),
        }
    }
}

/// A model whose parameters are in a graph.
#[derive(Clone, Debug)]
pub struct Network {
    input: TensorType,
    layers: Vec<Built>,
}

impl Network {
    /// Type of a batch of inputs, `[N, H, W, C]`.
    pub fn input_type(&self) -> TensorType {
        self.input
    }

    /// The parameters, layer by layer, kernel before bias.
    pub fn params(&self) -> Vec<TensorId> {
        self.layers.iter().flat_map(|layer| layer.params.iter().copied()).collect()
    }

    /// Number of parameters of each layer, in its order.
    pub fn params_by_layer(&self) -> impl Iterator<Item = &[TensorId]> {
        self.layers.iter().map(|layer| layer.params.as_slice())
    }

    /// Adds the network's computation on `x` `[N, H, W, C]` to the graph; the result is the logits `[N, classes]`.
    pub fn apply(&self, graph: &mut Graph, x: TensorId) -> Result<TensorId> {
        let outputs = self.apply_layers(graph, x)?;
        Ok(outputs.last().copied().unwrap_or(x))
    }

    /// The same in mixed precision: what goes into a convolution or a dense layer is stored as f16, but for the input, and for what goes from
    /// one dense layer to that of the logits: it is little, and a head that is one kernel does not store it. Returns the logits
    /// and the tensors that are stored so, whose gradients are too.
    pub fn apply_mixed(&self, graph: &mut Graph, x: TensorId) -> Result<(TensorId, Vec<TensorId>)> {
        let learning: Vec<&Built> = self.layers.iter().filter(|layer| !layer.params.is_empty()).collect();
        let is_head = learning.iter().rev().take(2).filter(|layer| matches!(layer.layer, Layer::Dense { .. })).count() == 2;
        let (mut y, mut stored, mut learned) = (x, Vec::new(), 0);
        for layer in &self.layers {
            let (learns, flattens) = (!layer.params.is_empty(), matches!(layer.layer, Layer::Flatten));
            let in_head = is_head && learned + 1 == learning.len();
            if learned > 0 && (learns || flattens) && !in_head && graph.ty(y).dtype == DType::F32 {
                y = graph.cast(y, DType::F16)?;
                stored.push(y);
            }
            // Another shape over the same memory asks for no other type.
            if !flattens && graph.ty(y).dtype == DType::F16 {
                y = graph.cast(y, DType::F32)?;
            }
            y = layer.apply(graph, y)?;
            learned += usize::from(learns);
        }
        if graph.ty(y).dtype == DType::F16 {
            y = graph.cast(y, DType::F32)?;
        }
        graph.scope("");
        Ok((y, stored))
    }

    /// The same, with the output of every layer.
    pub fn apply_layers(&self, graph: &mut Graph, x: TensorId) -> Result<Vec<TensorId>> {
        let mut outputs = Vec::new();
        for layer in &self.layers {
            let input = outputs.last().copied().unwrap_or(x);
            outputs.push(layer.apply(graph, input)?);
        }
        graph.scope("");
        Ok(outputs)
    }
}

/// The initial value of every parameter of `graph`, in its order, from a seed.
pub fn initial_values(graph: &Graph, seed: u64) -> Vec<(TensorId, Vec<f32>)> {
    let value = |(place, id): (usize, TensorId)| {
        let Role::Param(init) = graph.node(id).role else { unreachable!("params() lists parameters") };
        let len = graph.shape(id).inner_len();
        let values = match init {
            Init::Fill(fill) => vec![fill; len],
            Init::GlorotUniform { fan_in, fan_out } => {
                let limit = (6.0 / (fan_in + fan_out) as f64).sqrt() as f32;
                (0..len as u64).map(|i| (2.0 * rng::uniform(seed, Stream::Param(place), i) - 1.0) * limit).collect()
            }
        };
        (id, values)
    };
    graph.params().into_iter().enumerate().map(value).collect()
}
