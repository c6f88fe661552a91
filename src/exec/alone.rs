//! One step of a plan alone, on drawn operands: what the self-test judges and the tuner times.

use std::sync::Arc;

use super::selftest::{compare, from_bytes, largest, operand, rounding, to_bytes};
use super::{Executor, POISON, PlanId, reference};
use crate::error::Result;
use crate::graph::{Graph, Init, TensorId};
use crate::plan::{Plan, Step};
use crate::shape::{DType, TensorType};

/// A step as a plan of its own.
pub(super) struct Alone {
    pub(super) plan: Arc<Plan>,
    types: Vec<TensorType>,
    updates: Vec<usize>,
    leaves: Vec<TensorId>,
    /// The root and what is written beside it, with their types.
    outputs: Vec<(TensorId, TensorType)>,
}

/// Something a step wrote, beside what it should have written.
pub(super) struct Written {
    pub(super) what: String,
    pub(super) dtype: DType,
    pub(super) got: Vec<f64>,
    pub(super) want: Vec<f64>,
    /// Whether memory after the last image of the batch changed.
    pub(super) spilled: bool,
}

/// Drawn operands of a batch, and what the reference makes of them.
pub(super) struct Drawn {
    batch: usize,
    operands: Vec<Vec<f64>>,
    /// Of the operands that are updated, in their order, then of the outputs; nothing for an output that is an effect.
    wanted: Vec<Option<Vec<f64>>>,
}

impl Alone {
    /// The step for runs of at most so many images. An executor picks the same kernel as for the step itself.
    pub(super) fn new(step: &Step, capacity: usize) -> Result<Self> {
        let (op, types) = (&step.op, step.input_types());
        let updates = op.rules().updates().to_vec();
        let mut graph = Graph::new();
        let leaf = |(i, ty): (usize, &TensorType)| match updates.contains(&i) {
            true if ty.dtype == DType::F32 => graph.param(&format!("operand {i}"), ty.shape, Init::Fill(0.0)),
            true => graph.state(&format!("operand {i}"), *ty, 0.0),
            false => graph.input(&format!("operand {i}"), *ty),
        };
        let leaves: Vec<TensorId> = types.iter().enumerate().map(leaf).collect();
        let root = graph.apply(op.clone(), &leaves)?;
        let outputs: Vec<TensorId> = std::iter::once(root).chain(graph.extra_outputs(root)).collect();
        let plan = Arc::new(Plan::new(&graph, &outputs, capacity)?.posing_as(step));
        let outputs = outputs.into_iter().map(|output| (output, graph.ty(output))).collect();
        Ok(Self { plan, types, updates, leaves, outputs })
    }

    /// Draws operands and asks the reference.
    pub(super) fn draw(&self, batch: usize) -> Result<Drawn> {
        let draw = |i: usize| operand(&self.plan.steps()[0], i, batch);
        let operands: Vec<Vec<f64>> = (0..self.types.len()).map(draw).collect();
        let mut judged: reference::Leaves = self.leaves.iter().copied().zip(operands.iter().cloned()).collect();
        let mut values = reference::run(&self.plan, &mut judged, batch)?;
        let updated = self.updates.iter().map(|&i| judged.remove(&self.leaves[i]));
        let wanted = updated.chain(self.outputs.iter().map(|(output, _)| values.remove(output))).collect();
        Ok(Drawn { batch, operands, wanted })
    }

    /// Writes the operands, repeated to fill a batch of so many images where they are batched.
    pub(super) fn write(&self, exec: &mut dyn Executor, drawn: &Drawn, batch: usize) -> Result<()> {
        for ((&leaf, ty), values) in self.leaves.iter().zip(&self.types).zip(&drawn.operands) {
            let bytes = to_bytes(values, ty.dtype);
            let len = ty.shape.len(batch) * ty.dtype.size();
            if !bytes.is_empty() {
                exec.write(leaf, &bytes.iter().copied().cycle().take(len).collect::<Vec<u8>>())?;
            }
        }
        Ok(())
    }

    /// Runs it once over the drawn batch, and puts what it wrote beside what it should have written.
    pub(super) fn judge(&self, exec: &mut dyn Executor, id: PlanId, drawn: &Drawn) -> Result<Vec<Written>> {
        let batch = drawn.batch;
        self.write(exec, drawn, batch)?;
        exec.poison(id)?;
        exec.run(id, &[batch])?;
        let (updated, outputs) = drawn.wanted.split_at(self.updates.len());
        let mut results = Vec::new();
        for (&i, want) in self.updates.iter().zip(updated) {
            let got = from_bytes(&exec.read(id, self.leaves[i], batch)?, self.types[i].dtype);
            results.push(Written {
                what: format!("operand {i}"),
                dtype: self.types[i].dtype,
                got,
                want: want.clone().unwrap_or_default(),
                spilled: false,
            });
        }
        for (i, ((output, ty), want)) in self.outputs.iter().zip(outputs).enumerate() {
            let Some(want) = want else { continue };
            let bytes = exec.read(id, *output, self.plan.capacity())?;
            let (got, beyond) = bytes.split_at((ty.shape.len(batch) * ty.dtype.size()).min(bytes.len()));
            // Bytes share a word with the batch's last ones, so they are not judged.
            let spilled = ty.dtype != DType::U8 && beyond.chunks_exact(4).any(|word| word != POISON.to_ne_bytes());
            let what = if i == 0 { "output".to_owned() } else { format!("extra output {}", i - 1) };
            results.push(Written { what, dtype: ty.dtype, got: from_bytes(got, ty.dtype), want: want.clone(), spilled });
        }
        Ok(results)
    }
}

/// The largest error in units of the tolerance, that of each result's type, and the first thing that is wrong.
pub(super) fn verdict(results: &[Written], tolerance: f64) -> (f64, Option<String>) {
    let allowed = |result: &Written| tolerance + rounding(result.dtype);
    let worst = results.iter().map(|result| largest(&result.got, &result.want, allowed(result)).0).fold(0.0, f64::max);
    let problem = results.iter().find_map(|result| {
        let wrong = compare(&result.got, &result.want, allowed(result)).err();
        let problem = wrong.or_else(|| result.spilled.then(|| "images beyond the batch were written".to_owned()))?;
        Some(format!("{}: {problem}", result.what))
    });
    (worst, problem)
}
