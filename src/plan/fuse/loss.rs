//! Softmax cross-entropy, its gradient for the logits and the count of right answers: [`LossHead`] does them in one.

use super::{Chain, Now, Uses};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::*;

/// The most classes. [`LossHead`] is one workgroup; with more the gradient is better shared out.
const MOST_CLASSES: usize = 128;

struct Head {
    label: String,
    logits: TensorId,
    labels: TensorId,
    dloss: TensorId,
    loss: TensorId,
    correct: TensorId,
    dlogits: TensorId,
}

impl Chain for Head {
    fn label(&self) -> &str {
        &self.label
    }

    fn inside(&self) -> Vec<TensorId> {
        Vec::new()
    }

    fn outside(&self) -> Vec<TensorId> {
        vec![self.loss, self.correct, self.dlogits]
    }

    fn emit(&self, graph: &mut Graph, _: TensorId, now: &mut Now) -> Result<()> {
        let loss = graph.apply(LossHead, &[now[&self.logits], now[&self.labels], now[&self.dloss]])?;
        let extra = graph.extra_outputs(loss);
        now.extend([(self.loss, loss), (self.correct, extra[0]), (self.dlogits, extra[1])]);
        Ok(())
    }
}

/// Every head of the graph. The loss's gradient has to be known before there is a loss: to be a leaf.
pub(super) fn find(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    let grads = uses.all(|op| matches!(op, Op::SoftmaxCrossEntropyGrad(_)).then_some(()));
    grads.filter_map(|(dlogits, ())| Some(Box::new(head(uses, dlogits)?) as Box<dyn Chain>)).collect()
}

fn head(uses: &Uses<'_>, dlogits: TensorId) -> Option<Head> {
    let &[logits, labels, dloss] = uses.inputs(dlogits) else { return None };
    let loss = uses.applied(&[logits, labels], |op| matches!(op, Op::SoftmaxCrossEntropy(_)))?;
    let correct = uses.applied(&[logits, labels], |op| matches!(op, Op::Accuracy(_)))?;
    let fits = uses.graph.shape(logits).last() <= MOST_CLASSES && uses.is_leaf(dloss);
    let label = uses.graph.node(loss).label.clone();
    (fits && uses.undisturbed(&[loss, correct, dlogits])).then_some(Head { label, logits, labels, dloss, loss, correct, dlogits })
}
