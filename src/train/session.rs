//! A training session: one graph that holds the network three times over its parameters, and its plans on an executor.
//!
//! The data set is on the device as bytes. A training step gathers its batch by the epoch's order, goes forward and back,
//! updates the parameters, and moves a clock on; so steps follow each other without a word from the host, which reads no
//! more than a record of loss and accuracy.

use std::sync::Arc;

use super::TrainConfig;
use super::program::{Program, Split};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::exec::ceiling::Ceiling;
use crate::exec::profile::RunTimes;
use crate::exec::selftest::from_bytes;
use crate::exec::{Executor, PlanId, read_f32, read_u32, write_f32, write_u32};
use crate::graph::{Graph, TensorId};
use crate::nn::{self, Model, Network};
use crate::plan::{Choices, Plan};

/// Loss and accuracy over a number of images.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Part of the images whose greatest logit is at their label.
    pub accuracy: f64,
    /// Images seen.
    pub images: usize,
}

/// The numbers that a training step changes: enough to go on from, bit for bit.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    /// The parameters.
    pub params: Vec<Vec<f32>>,
    /// First and second moments of each.
    pub moments: Vec<[Vec<f32>; 2]>,
    /// Learning rate and bias corrections of the coming step; in mixed precision also the scale of the loss and what decides of the next, see
    /// [`scale`](crate::ops::scale).
    pub rate: Vec<f32>,
    /// Step within the epoch, and images seen of it.
    pub clock: Vec<u32>,
    /// Loss and correct count of every step of the epoch so far.
    pub log: Vec<f32>,
}

/// The graph, its plans, and the executor that runs them.
pub struct Session {
    exec: Box<dyn Executor>,
    graph: Graph,
    network: Network,
    moments: Vec<TensorId>,
    rate: TensorId,
    loss_scale: Option<TensorId>,
    train: Split,
    test: Split,
    train_plan: PlanId,
    test_plan: PlanId,
    plans: [Arc<Plan>; 2],
    config: TrainConfig,
}

impl Session {
    /// Builds the graph for these data sets, plans it and uploads them.
    ///
    /// # Errors
    /// A model that does not fit the images, data sets too large for the device, or a lack of memory.
    pub fn new(exec: Box<dyn Executor>, model: &Model, train: &Dataset, test: &Dataset, config: TrainConfig) -> Result<Self> {
        config.check()?;
        config.precision.check(exec.as_ref())?;
        for (what, data) in [("training", train), ("test", test)] {
            let found = [data.height, data.width, data.channels];
            if found != model.input || data.is_empty() {
                let expected = format!("at least one image of {:?}", model.input);
                return Err(Error::invalid(format!("the {what} images"), format!("{} of {found:?}", data.len()), expected));
            }
            if data.classes.len() != model.classes.len() {
                return Err(Error::invalid(format!("classes of the {what} images"), data.classes.len(), model.classes.len()));
            }
        }
        let program = Program::new(model, [train.len(), test.len()], &config, exec.max_tensor_bytes(), exec.style())?;
        let Program { graph, network, moments, rate, loss_scale, splits: [train_split, test_split], plans } = program;
        let [train_plan, test_plan] = plans.map(Arc::new);

        let mut exec = exec;
        let plans = [train_plan.clone(), test_plan.clone()];
        let [train_plan, test_plan] = [exec.load(train_plan)?, exec.load(test_plan)?];
        upload(exec.as_mut(), &train_split, train)?;
        upload(exec.as_mut(), &test_split, test)?;
        let identity: Vec<u32> = (0..test.len() as u32).collect();
        write_u32(exec.as_mut(), test_split.order, &identity)?;
        let (train, test) = (train_split, test_split);
        let mut session = Self { exec, graph, network, moments, rate, loss_scale, train, test, train_plan, test_plan, plans, config };
        for (param, values) in nn::initial_values(&session.graph, session.config.seed) {
            write_f32(session.exec.as_mut(), param, &values)?;
        }
        let (adam, learning_rate) = (session.config.adam, session.config.learning_rate);
        match loss_scale {
            Some(_) => session.write_rate(&adam.first_scaled_rate(learning_rate))?,
            None => session.write_rate(&adam.first_rate(learning_rate))?,
        }
        Ok(session)
    }

    /// The device's name.
    pub fn device(&self) -> String {
        self.exec.device()
    }

    /// The plans of a training step and of an evaluation step.
    pub fn plans(&self) -> [&Plan; 2] {
        [&self.plans[0], &self.plans[1]]
    }

    /// The kernels picked for both, see [`Executor::chosen`].
    pub fn chosen(&self) -> Choices {
        let [mut training, evaluation] = self.plans.each_ref().map(|plan| self.exec.chosen(plan));
        training.extend(evaluation);
        training
    }

    /// Device and driver, see [`Executor::identity`].
    pub fn identity(&self) -> String {
        self.exec.identity()
    }

    /// Bytes the session holds on the device.
    pub fn allocated_bytes(&self) -> u64 {
        self.exec.allocated_bytes()
    }

    /// Training steps of an epoch, the last of which may be smaller.
    pub fn steps(&self) -> usize {
        self.train.batches.len()
    }

    /// Images of the first `steps` steps of an epoch.
    pub fn images(&self, steps: usize) -> usize {
        self.train.batches[..steps].iter().sum()
    }

    /// Sets the order of the coming epoch, counted from 0, and winds the clock back.
    pub fn start_epoch(&mut self, epoch: usize) -> Result<()> {
        let count = self.images(self.steps());
        let order = crate::rng::permutation(self.config.seed, crate::rng::Stream::Epoch(epoch), count);
        write_u32(self.exec.as_mut(), self.train.order, &order)?;
        write_u32(self.exec.as_mut(), self.train.clock, &[0, 0])
    }

    /// Runs the training steps `first..last` of the epoch. May return before the device is done.
    pub fn train(&mut self, first: usize, last: usize) -> Result<()> {
        self.exec.run(self.train_plan, &self.train.batches[first..last])
    }

    /// [`train`](Self::train), timed step by step: the same changes to the bit, and the device is done when this returns.
    ///
    /// # Errors
    /// As [`Executor::profile`].
    pub fn profile_training(&mut self, first: usize, last: usize) -> Result<Vec<RunTimes>> {
        self.exec.profile(self.train_plan, &self.train.batches[first..last])
    }

    /// The first `steps` steps, or all there are, of [`evaluate`](Self::evaluate), timed step by step.
    ///
    /// # Errors
    /// As [`Executor::profile`].
    pub fn profile_evaluation(&mut self, steps: usize) -> Result<Vec<RunTimes>> {
        write_u32(self.exec.as_mut(), self.test.clock, &[0, 0])?;
        let batches = &self.test.batches[..steps.min(self.test.batches.len())];
        self.exec.profile(self.test_plan, batches)
    }

    /// What the device can do at most, see [`Executor::ceiling`].
    ///
    /// # Errors
    /// As [`Executor::ceiling`].
    pub fn ceiling(&self) -> Result<Ceiling> {
        self.exec.ceiling()
    }

    /// Waits for the device.
    pub fn wait(&mut self) -> Result<()> {
        self.exec.wait()
    }

    /// Means over the first `steps` steps of the epoch, each with the weights before its update; or the first step (from 0)
    /// whose loss is no finite number, with that loss.
    pub fn training_metrics(&mut self, steps: usize) -> Result<Result<Metrics, (usize, f32)>> {
        let log = read_f32(self.exec.as_mut(), self.train_plan, self.train.log, 0)?;
        Ok(mean(&log, &self.train.batches[..steps]))
    }

    /// Loss and accuracy over the test images with the present weights; a loss that is not finite stays what it is.
    pub fn evaluate(&mut self) -> Result<Metrics> {
        write_u32(self.exec.as_mut(), self.test.clock, &[0, 0])?;
        self.exec.run(self.test_plan, &self.test.batches)?;
        let log = read_f32(self.exec.as_mut(), self.test_plan, self.test.log, 0)?;
        let images = self.test.batches.iter().sum();
        Ok(mean(&log, &self.test.batches).unwrap_or_else(|(_, loss)| Metrics { loss: f64::from(loss), accuracy: 0.0, images }))
    }

    /// The parameters' names with their extents, in the order of [`Snapshot::params`].
    pub fn param_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let params = self.network.params().into_iter();
        params.map(|id| (self.graph.node(id).label.clone(), self.graph.shape(id).inner().to_vec())).collect()
    }

    /// Copies the numbers that a step changes to the host.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        let (plan, exec) = (self.train_plan, self.exec.as_mut());
        let params = self.network.params().into_iter().map(|id| read_f32(exec, plan, id, 0)).collect::<Result<_>>()?;
        let mut moments = Vec::new();
        for &both in &self.moments {
            let mut m = read_f32(exec, plan, both, 0)?;
            let v = m.split_off(m.len() / 2);
            moments.push([m, v]);
        }
        let rate = read_f32(exec, plan, self.rate, 0)?;
        let clock = read_u32(exec, plan, self.train.clock, 0)?;
        let mut log = read_f32(exec, plan, self.train.log, 0)?;
        log.truncate(2 * clock[0] as usize);
        Ok(Snapshot { params, moments, rate, clock, log })
    }

    /// Goes on from a snapshot. The order of its epoch is set too.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is of another network, or of an epoch of other batches.
    pub fn restore(&mut self, snapshot: &Snapshot, epoch: usize) -> Result<()> {
        let (steps, seen) = (snapshot.clock.first().copied().unwrap_or(0) as usize, snapshot.clock.get(1).copied().unwrap_or(0) as usize);
        let consistent = snapshot.clock.len() == 2 && steps <= self.steps() && seen == self.images(steps.min(self.steps()));
        if !consistent || snapshot.log.len() != 2 * steps || snapshot.rate.len() != self.graph.shape(self.rate).inner_len() {
            let found = format!("clock {:?}, {} records", snapshot.clock, snapshot.log.len() / 2);
            return Err(Error::invalid("the position in the epoch", found, format!("a step of {} with its images", self.steps())));
        }
        let params = self.network.params();
        if snapshot.params.len() != params.len() || snapshot.moments.len() != params.len() {
            return Err(Error::invalid("parameters to restore", snapshot.params.len(), params.len()));
        }
        self.start_epoch(epoch)?;
        for ((id, &both), (values, saved)) in params.into_iter().zip(&self.moments).zip(snapshot.params.iter().zip(&snapshot.moments)) {
            if saved[0].len() != saved[1].len() {
                return Err(Error::invalid("second moments to restore", saved[1].len(), format!("{} as first ones", saved[0].len())));
            }
            write_f32(self.exec.as_mut(), id, values)?;
            write_f32(self.exec.as_mut(), both, &saved.concat())?;
        }
        self.write_rate(&snapshot.rate)?;
        write_u32(self.exec.as_mut(), self.train.clock, &snapshot.clock)?;
        let mut log = snapshot.log.clone();
        log.resize(2 * self.steps(), 0.0);
        write_f32(self.exec.as_mut(), self.train.log, &log)
    }

    /// Sets the rate and the scale of the loss, which is in it.
    fn write_rate(&mut self, rate: &[f32]) -> Result<()> {
        write_f32(self.exec.as_mut(), self.rate, rate)?;
        match self.loss_scale {
            Some(scale) => write_f32(self.exec.as_mut(), scale, &[rate[4].recip()]), // exact: a power of two
            None => Ok(()),
        }
    }

    /// The first parameter with a NaN or an infinity.
    pub(super) fn first_not_finite_param(&mut self) -> Result<Option<String>> {
        for param in self.network.params() {
            if !finite(&read_f32(self.exec.as_mut(), self.train_plan, param, 0)?) {
                return Ok(Some(self.graph.node(param).label.clone()));
            }
        }
        Ok(None)
    }

    /// Runs step `step` of the epoch from `before` with every value kept, and names the first that is not finite, in order of
    /// execution. Slow; for an error message.
    pub(super) fn first_not_finite(&mut self, before: &Snapshot, epoch: usize, step: usize) -> Result<String> {
        self.restore(before, epoch)?;
        self.train(before.clock[0] as usize, step)?;
        // The plan that trains is fused, and has no place for what happens inside its steps.
        let plain = Plan::new(&self.graph, self.plans[0].roots(), self.config.batch)?;
        let values: Vec<TensorId> = plain.steps().iter().filter(|step| step.output.is_some()).map(|step| step.node).collect();
        let plan = Arc::new(Plan::new(&self.graph, &values, self.config.batch)?);
        let id = self.exec.load(plan.clone())?;
        if let Some(param) = self.first_not_finite_param()? {
            return Ok(format!("{param}, updated in the step before"));
        }
        let batch = self.train.batches[step];
        self.exec.run(id, &[batch])?;
        for step in plan.steps() {
            let dtype = self.graph.ty(step.node).dtype;
            let values = from_bytes(&self.exec.read(id, step.node, batch)?, dtype);
            if dtype.is_float() && !values.iter().all(|value| value.is_finite()) {
                return Ok(step.title());
            }
        }
        Ok("none of this step's tensors".to_owned())
    }
}

fn finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

fn upload(exec: &mut dyn Executor, split: &Split, data: &Dataset) -> Result<()> {
    for (&shard, bytes) in split.shards.iter().zip(data.images.chunks(split.shard_bytes)) {
        exec.write(shard, bytes)?;
    }
    write_u32(exec, split.labels, &data.labels)
}

/// Means of a log of `[loss, correct]` over steps of these batches, or the first step whose loss is not finite.
fn mean(log: &[f32], batches: &[usize]) -> Result<Metrics, (usize, f32)> {
    let (mut loss, mut correct, mut images) = (0.0, 0.0, 0);
    for (step, (&batch, record)) in batches.iter().zip(log.chunks_exact(2)).enumerate() {
        if !record[0].is_finite() {
            return Err((step, record[0]));
        }
        loss += f64::from(record[0]) * batch as f64;
        correct += f64::from(record[1]);
        images += batch;
    }
    let count = images.max(1) as f64;
    Ok(Metrics { loss: loss / count, accuracy: correct / count, images })
}
