//! Prediction: a trained model and an executor, from images to probabilities.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::exec::ceiling::Ceiling;
use crate::exec::profile::RunTimes;
use crate::exec::{Executor, PlanId, read_f32, write_f32};
use crate::files::{Baseline, NamedTensor, Tally};
use crate::graph::{Graph, TensorId};
use crate::nn::Model;
use crate::ops::Style;
use crate::plan::{Choices, Plan};
use crate::shape::TensorType;

/// A model ready to classify images.
pub struct Predictor {
    exec: Box<dyn Executor>,
    model: Model,
    graph: Graph,
    nodes: Nodes,
    plan: Arc<Plan>,
    /// The plan from bytes.
    id: PlanId,
    /// The plan from floats, once there were any.
    of_floats: Option<PlanId>,
    staged_bytes: Vec<u8>,
    staged_floats: Vec<f32>,
}

/// Images to classify, `[images, H, W, C]`.
#[derive(Clone, Copy, Debug)]
pub enum Images<'a> {
    /// Bytes; each is divided by 255, on the device.
    Bytes(&'a [u8]),
    /// Numbers as the network takes them, so bytes that were divided by 255.
    Floats(&'a [f32]),
}

impl Images<'_> {
    /// Values of all images.
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Floats(values) => values.len(),
        }
    }
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

/// The tensors of prediction: the network is in the graph twice, behind bytes and behind floats, with the same parameters.
struct Nodes {
    bytes: TensorId,
    floats: TensorId,
    /// Of the bytes.
    logits: TensorId,
    /// Of the bytes.
    probabilities: TensorId,
    probabilities_of_floats: TensorId,
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
        Ok(Self { exec, model, graph, nodes, plan, id, of_floats: None, staged_bytes: Vec::new(), staged_floats: Vec::new() })
    }

    /// The graph of prediction.
    fn graph(model: &Model) -> Result<(Graph, Nodes)> {
        let mut graph = Graph::new();
        let network = model.build(&mut graph)?;
        let ty = model.input_type();
        let bytes = graph.input("images", TensorType::u8(ty.shape));
        let images = graph.scale_bytes(bytes, 1.0 / 255.0)?;
        let floats = graph.input("images as floats", ty);
        let mut classify = |images| -> Result<(TensorId, TensorId)> {
            let logits = network.apply(&mut graph, images)?;
            graph.scope("softmax");
            Ok((logits, graph.softmax(logits)?))
        };
        let (logits, probabilities) = classify(images)?;
        let (_, probabilities_of_floats) = classify(floats)?;
        Ok((graph, Nodes { bytes, floats, logits, probabilities, probabilities_of_floats, params: network.params() }))
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

    /// What the model sees in a data set and answers to it, to be kept with it: a server compares what it serves with that.
    ///
    /// # Errors
    /// As [`predict`](Self::predict); no image in the data set.
    pub fn baseline(&mut self, images: &Dataset) -> Result<Baseline> {
        let classes = self.model.classes.len();
        let mut tally = Tally::new(self.model.input[2], classes);
        tally.add_bytes(&images.images);
        for row in self.predict(&images.images)?.chunks_exact(classes) {
            tally.add_answer(row);
        }
        tally.baseline().ok_or_else(|| Error::invalid("images for a baseline", 0, "at least 1"))
    }

    /// Probabilities of images that came in parts, computed as one batch: one upload, one run, one read-back.
    ///
    /// # Errors
    /// If a part is no whole number of images, or all are more than the plan's capacity.
    pub fn predict_batch(&mut self, parts: &[Images<'_>]) -> Result<Batch> {
        let began = Instant::now();
        let one: usize = self.model.input.iter().product();
        let mut all = 0;
        for len in parts.iter().map(Images::len) {
            if !len.is_multiple_of(one) || all + len > one * self.plan.capacity() {
                let expected = format!("images of {one}, {} at most in a batch", self.plan.capacity());
                return Err(Error::invalid("images to classify", format!("{len} values after {all}"), expected));
            }
            all += len;
        }
        let batch = all / one;
        let (id, root) = match parts.iter().any(|part| matches!(part, Images::Floats(_))) {
            false => (self.id, self.nodes.probabilities),
            true => (self.plan_of_floats()?, self.nodes.probabilities_of_floats),
        };
        if id == self.id {
            self.upload_bytes(parts)?;
        } else {
            self.upload_floats(parts)?;
        }
        let uploaded = Instant::now();
        self.exec.run(id, &[batch])?;
        let computed = Instant::now();
        let probabilities = read_f32(self.exec.as_mut(), id, root, batch)?;
        Ok(Batch { probabilities, upload: uploaded - began, compute: computed - uploaded, download: computed.elapsed() })
    }

    /// The plan from floats; loaded when it is first asked for, since most users have bytes only.
    fn plan_of_floats(&mut self) -> Result<PlanId> {
        if let Some(id) = self.of_floats {
            return Ok(id);
        }
        let plan = Plan::for_style(self.exec.style(), &self.graph, &[self.nodes.probabilities_of_floats], self.plan.capacity())?;
        let id = self.exec.load(Arc::new(plan))?;
        self.of_floats = Some(id);
        Ok(id)
    }

    fn upload_bytes(&mut self, parts: &[Images<'_>]) -> Result<()> {
        if let [Images::Bytes(bytes)] = parts {
            return self.exec.write(self.nodes.bytes, bytes);
        }
        self.staged_bytes.clear();
        for part in parts {
            if let Images::Bytes(bytes) = part {
                self.staged_bytes.extend_from_slice(bytes);
            }
        }
        self.exec.write(self.nodes.bytes, &self.staged_bytes)
    }

    /// Bytes among floats are divided here: the same floats as on the device.
    fn upload_floats(&mut self, parts: &[Images<'_>]) -> Result<()> {
        self.staged_floats.clear();
        for part in parts {
            match part {
                Images::Bytes(bytes) => self.staged_floats.extend(bytes.iter().map(|&byte| f32::from(byte) / 255.0)),
                Images::Floats(values) => self.staged_floats.extend_from_slice(values),
            }
        }
        write_f32(self.exec.as_mut(), self.nodes.floats, &self.staged_floats)
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
            let batch = chunk.len() / one;
            self.exec.write(self.nodes.bytes, chunk)?;
            self.exec.run(self.id, &[batch])?;
            values.extend(read_f32(self.exec.as_mut(), self.id, root, batch)?);
        }
        Ok(values)
    }
}
