//! The end of a classifier: two dense layers, the loss and all gradients become [`MlpHead`], [`MlpHeadGrad`] and [`MlpHeadLoss`]; the last and
//! the end of a training step that takes note of it become [`MlpHeadTick`].

use super::{Chain, Now, Uses};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::*;
use crate::shape::DType;

struct Head {
    label: String,
    /// x, w1, b1, w2, b2, labels and dloss.
    operands: [TensorId; 7],
    hidden: TensorId,
    logits: TensorId,
    loss: TensorId,
    correct: TensorId,
    dlogits: TensorId,
    dhidden: TensorId,
    /// dw1, db1, dx, dw2 and db2.
    grads: [TensorId; 5],
}

impl Chain for Head {
    fn label(&self) -> &str {
        &self.label
    }

    fn inside(&self) -> Vec<TensorId> {
        vec![self.hidden, self.logits, self.dlogits, self.dhidden]
    }

    fn outside(&self) -> Vec<TensorId> {
        [self.loss, self.correct].into_iter().chain(self.grads).collect()
    }

    fn emit(&self, graph: &mut Graph, _: TensorId, now: &mut Now) -> Result<()> {
        let operands = self.operands.map(|operand| now[&operand]);
        let rows = graph.apply(MlpHead, &operands)?;
        let grad = graph.apply(MlpHeadGrad { dx: DType::F32 }, &[operands[0], rows, operands[1]])?;
        let loss = graph.apply(MlpHeadLoss, &[rows])?;
        let [extra, correct] = [grad, loss].map(|op| graph.extra_outputs(op));
        now.extend(self.grads.into_iter().zip([vec![grad], extra].concat()));
        now.extend([(self.loss, loss), (self.correct, correct[0])]);
        Ok(())
    }
}

/// Every head of the graph whose dense layers and loss other patterns have put together.
pub(super) fn find(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    let losses = uses.all(|op| matches!(op, Op::LossHead(_)).then_some(()));
    losses.filter_map(|(loss, ())| Some(Box::new(head(uses, loss)?) as Box<dyn Chain>)).collect()
}

fn head(uses: &Uses<'_>, loss: TensorId) -> Option<Head> {
    let layer = |y: TensorId, relu: bool| {
        let wanted = Dense { relu, output: DType::F32 };
        matches!(uses.op(y), Some(Op::Dense(dense)) if *dense == wanted).then(|| uses.inputs(y))
    };
    let grad = |dy: TensorId, relu: bool| {
        let wanted = DenseGrad { relu, dx: DType::F32 };
        uses.reader(dy, |op| matches!(op, Op::DenseGrad(grad) if *grad == wanted)).filter(|&grad| uses.inputs(grad)[2] == dy)
    };
    let &[logits, labels, dloss] = uses.inputs(loss) else { return None };
    let &[hidden, w2, b2] = layer(logits, false)? else { return None };
    let &[x, w1, b1] = layer(hidden, true)? else { return None };
    let [correct, dlogits] = uses.graph.extra_outputs(loss)[..] else { return None };
    let dw2 = grad(dlogits, false)?;
    let [db2, dhidden] = uses.graph.extra_outputs(dw2)[..] else { return None };
    let dw1 = grad(dhidden, true)?;
    let [db1, dx] = uses.graph.extra_outputs(dw1)[..] else { return None };
    let of_these = uses.inputs(dw2)[0] == hidden && uses.inputs(dw2)[3] == w2 && uses.inputs(dw1) == [x, hidden, dhidden, w1];
    let [features, units, classes] = [x, hidden, logits].map(|tensor| uses.graph.shape(tensor).last());
    let found = Head {
        label: uses.graph.node(loss).label.clone(),
        operands: [x, w1, b1, w2, b2, labels, dloss],
        hidden,
        logits,
        loss,
        correct,
        dlogits,
        dhidden,
        grads: [dw1, db1, dx, dw2, db2],
    };
    let nodes = [found.inside(), found.outside()].concat();
    (of_these && MlpHead::takes(features, units, classes) && uses.undisturbed(&nodes)).then_some(found)
}

/// The loss of a head and the tick that alone reads it.
struct Noted {
    label: String,
    rows: TensorId,
    /// The loss and the count of right answers.
    found: [TensorId; 2],
    effect: TensorId,
    tick: Tick,
    /// The clock, the log and the rate.
    changed: [TensorId; 3],
}

impl Chain for Noted {
    fn label(&self) -> &str {
        &self.label
    }

    fn inside(&self) -> Vec<TensorId> {
        self.found.to_vec()
    }

    fn outside(&self) -> Vec<TensorId> {
        vec![self.effect]
    }

    fn emit(&self, graph: &mut Graph, id: TensorId, now: &mut Now) -> Result<()> {
        let [clock, log, rate] = self.changed.map(|tensor| now[&tensor]);
        let effect = graph.apply(MlpHeadTick { tick: self.tick }, &[now[&self.rows], clock, log, rate])?;
        now.insert(id, effect);
        Ok(())
    }
}

/// Every end of a training step that takes note of a head's loss, which nothing else reads.
pub(super) fn ticks(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    let all = uses.all(|op| if let Op::Tick(tick) = op { Some(*tick) } else { None });
    all.filter_map(|(effect, tick)| Some(Box::new(noted(uses, effect, tick)?) as Box<dyn Chain>)).collect()
}

fn noted(uses: &Uses<'_>, effect: TensorId, tick: Tick) -> Option<Noted> {
    let &[loss, correct, clock, log, rate] = uses.inputs(effect) else { return None };
    let is_head = matches!(uses.op(loss), Some(Op::MlpHeadLoss(_))) && uses.graph.extra_outputs(loss) == [correct];
    let label = uses.graph.node(effect).label.clone();
    let found = Noted { label, rows: *uses.inputs(loss).first()?, found: [loss, correct], effect, tick, changed: [clock, log, rate] };
    is_head.then_some(found)
}
