//! Prediction: a trained model and an executor, from images to probabilities.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::exec::ceiling::Ceiling;
use crate::exec::profile::RunTimes;
use crate::exec::{Executor, PlanId, read_f32, write_f32};
use crate::files::NamedTensor;
use crate::graph::{Graph, TensorId};
use crate::nn::Model;
use crate::ops::Style;
use crate::plan::{Choices, Plan};

/// A model ready to classify images.
pub struct Predictor {
    exec: Box<dyn Executor>,
    model: Model,
    plan: Arc<Plan>,
    id: PlanId,
    nodes: Nodes,
    staged: Vec<f32>,
}

/// Images to classify, `[images, H, W, C]`.
#[derive(Clone, Copy, Debug)]
pub enum Images<'a> {
    /// Bytes; each is divided by 255.
    Bytes(&'a [u8]),
    /// Numbers as the network takes them, so bytes that were divided by 255.
    Floats(&'a [f32]),
}

/// What one batch came to.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// `[images, classes]`, the images in the order in which they were given.
    pub probabilities: Vec<f32>,
    /// Time to put the images together and to upload them.
    pub upload: Duration,
    /// Time to compute, or to hand the work to a device that computes on its own.
    pub compute: Duration,
    /// Time until the probabilities are read back, what the device had left to do included.
    pub download: Duration,
}

/// The tensors of prediction.
struct Nodes {
    input: TensorId,
    logits: TensorId,
    probabilities: TensorId,
    params: Vec<TensorId>,
}

impl Predictor {
    /// Plans the model for at most `capacity` images at a time and uploads its weights, which are in the order of the model's
    /// parameters, as [`load_model`](crate::files::load_model) gives them.
    ///
    /// # Errors
    /// Weights that are not the model's, or a lack of memory.
    pub fn new(mut exec: Box<dyn Executor>, model: Model, weights: &[NamedTensor], capacity: usize) -> Result<Self> {
        let (graph, nodes) = Self::graph(&model)?;
        let plan = Arc::new(Plan::for_style(exec.style(), &graph, &[nodes.logits, nodes.probabilities], capacity)?);
        let id = exec.load(plan.clone())?;
        if weights.len() != nodes.params.len() {
            return Err(Error::invalid("weights of the model", weights.len(), format!("{} tensors", nodes.params.len())));
        }
        for (&param, tensor) in nodes.params.iter().zip(weights) {
            write_f32(exec.as_mut(), param, &tensor.data)?;
        }
        Ok(Self { exec, model, plan, id, nodes, staged: Vec::new() })
    }

    /// The graph of prediction.
    fn graph(model: &Model) -> Result<(Graph, Nodes)> {
        let mut graph = Graph::new();
        let network = model.build(&mut graph)?;
        let input = graph.input("images", model.input_type());
        let logits = network.apply(&mut graph, input)?;
        graph.scope("softmax");
        let probabilities = graph.softmax(logits)?;
        Ok((graph, Nodes { input, logits, probabilities, params: network.params() }))
    }

    /// The plan of prediction for executors that prefer this style, without a device.
    pub fn plan_of(model: &Model, capacity: usize, style: Style) -> Result<Plan> {
        let (graph, nodes) = Self::graph(model)?;
        Plan::for_style(style, &graph, &[nodes.logits, nodes.probabilities], capacity)
    }

    /// The device's name.
    pub fn device(&self) -> String {
        self.exec.device()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The plan it runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The kernels picked for it, see [`Executor::chosen`].
    pub fn chosen(&self) -> Choices {
        self.exec.chosen(&self.plan)
    }

    /// Probabilities `[images, classes]` of images given as bytes `[images, H, W, C]`; each byte is divided by 255.
    ///
    /// # Errors
    /// If the bytes are no whole number of images.
    pub fn predict(&mut self, images: &[u8]) -> Result<Vec<f32>> {
        self.run(images, self.nodes.probabilities)
    }

    /// Logits `[images, classes]` of the same images: what softmax turns into probabilities. A loss computed from them does not
    /// overflow where the probability of the right class rounds to 0.
    ///
    /// # Errors
    /// If the bytes are no whole number of images.
    pub fn logits(&mut self, images: &[u8]) -> Result<Vec<f32>> {
        self.run(images, self.nodes.logits)
    }

    /// Probabilities of images that came in parts, computed as one batch: one upload, one run, one read-back.
    ///
    /// # Errors
    /// If a part is no whole number of images, or all are more than the plan's capacity.
    pub fn predict_batch(&mut self, parts: &[Images<'_>]) -> Result<Batch> {
        let began = Instant::now();
        let one: usize = self.model.input.iter().product();
        self.staged.clear();
        for part in parts {
            let len = match part {
                Images::Bytes(bytes) => bytes.len(),
                Images::Floats(values) => values.len(),
            };
            if !len.is_multiple_of(one) || self.staged.len() + len > one * self.plan.capacity() {
                let expected = format!("images of {one}, {} at most in a batch", self.plan.capacity());
                return Err(Error::invalid("images to classify", format!("{len} values after {}", self.staged.len()), expected));
            }
            match part {
                Images::Bytes(bytes) => self.staged.extend(bytes.iter().map(|&byte| f32::from(byte) / 255.0)),
                Images::Floats(values) => self.staged.extend_from_slice(values),
            }
        }
        let batch = self.staged.len() / one;
        write_f32(self.exec.as_mut(), self.nodes.input, &self.staged)?;
        let uploaded = Instant::now();
        self.exec.run(self.id, &[batch])?;
        let computed = Instant::now();
        let probabilities = read_f32(self.exec.as_mut(), self.id, self.nodes.probabilities, batch)?;
        Ok(Batch { probabilities, upload: uploaded - began, compute: computed - uploaded, download: computed.elapsed() })
    }

    /// Runs the plan so many times over one batch of images, timed step by step.
    ///
    /// # Errors
    /// As [`predict`](Self::predict) and [`Executor::profile`]; more images than the plan's capacity.
    pub fn profile(&mut self, images: &[u8], runs: usize) -> Result<Vec<RunTimes>> {
        self.predict(images)?; // the images are on the device after it
        let batch = images.len() / self.model.input.iter().product::<usize>();
        self.exec.profile(self.id, &vec![batch; runs])
    }

    /// What the device can do at most, see [`Executor::ceiling`].
    ///
    /// # Errors
    /// As [`Executor::ceiling`].
    pub fn ceiling(&self) -> Result<Ceiling> {
        self.exec.ceiling()
    }

    /// Bytes that weights and values hold on the device.
    pub fn allocated_bytes(&self) -> u64 {
        self.exec.allocated_bytes()
    }

    /// Runs the plan over the images, in batches, and reads one of its roots.
    fn run(&mut self, images: &[u8], root: TensorId) -> Result<Vec<f32>> {
        let one: usize = self.model.input.iter().product();
        if !images.len().is_multiple_of(one) {
            return Err(Error::invalid("images to classify", format!("{} bytes", images.len()), format!("images of {one} bytes")));
        }
        let mut values = Vec::with_capacity(images.len() / one * self.model.classes.len());
        for chunk in images.chunks(one * self.plan.capacity()) {
            let x: Vec<f32> = chunk.iter().map(|&byte| f32::from(byte) / 255.0).collect();
            let batch = chunk.len() / one;
            write_f32(self.exec.as_mut(), self.nodes.input, &x)?;
            self.exec.run(self.id, &[batch])?;
            values.extend(read_f32(self.exec.as_mut(), self.id, root, batch)?);
        }
        Ok(values)
    }
}
