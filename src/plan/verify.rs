//! Proof that a plan's memory is sound, by a method other than the one that placed it: replaying it and watching.

use super::{Operand, Place, Plan, Step};
use crate::graph::TensorId;

impl Plan {
    /// Replays the plan and checks that every step reads what was last written to that place, that no step reads and writes
    /// one piece of memory except through what its operator updates, that no view of a leaf is read after an update that it
    /// comes before, that everything fits, that no step reads one tensor of a pack and writes another, and that the roots survive.
    ///
    /// # Errors
    /// The first thing that is wrong, as a sentence.
    pub fn verify(&self) -> Result<(), String> {
        let mut holds: Vec<Option<TensorId>> = vec![None; self.slots.len()];
        let mut updates: Vec<(TensorId, TensorId)> = Vec::new(); // a leaf, and the effect that has changed it
        for step in &self.steps {
            for input in &step.inputs {
                if stale(input, &updates) {
                    return Err(format!("{} reads node {}, a view of what was updated since", step.title(), input.tensor.index()));
                }
                if let Place::Slot(slot) = input.place {
                    let owner = self.owner(input.tensor, slot);
                    if holds[slot].is_none() || holds[slot] != owner {
                        return Err(format!("{} reads slot {slot}, which no longer holds node {}", step.title(), input.tensor.index()));
                    }
                }
            }
            for &updated in step.op.rules().updates() {
                let place = step.inputs[updated].place;
                if step.inputs.iter().enumerate().any(|(i, input)| i != updated && input.place == place) {
                    return Err(format!("{} reads and updates the same memory", step.title()));
                }
                updates.push((step.inputs[updated].tensor, step.node));
            }
            for (i, output) in step.outputs().enumerate() {
                let Place::Slot(slot) = output.place else {
                    return Err(format!("{} writes a leaf", step.title()));
                };
                if step.inputs.iter().any(|input| input.place == output.place) {
                    return Err(format!("{} reads and writes slot {slot}", step.title()));
                }
                if step.outputs().take(i).any(|other| other.place == output.place) {
                    return Err(format!("{} writes slot {slot} twice", step.title()));
                }
                if output.ty.bytes(self.capacity) > self.slots[slot].bytes {
                    return Err(format!("{} does not fit slot {slot}", step.title()));
                }
                holds[slot] = Some(output.tensor);
            }
            self.verify_packs(step)?;
        }
        for root in &self.roots {
            if self.places[root.index()].is_some_and(|operand| stale(&operand, &updates)) {
                return Err(format!("the root node {} is a view of what is updated after it", root.index()));
            }
            if let Some(operand) = self.places[root.index()]
                && let Place::Slot(slot) = operand.place
                && holds[slot] != self.owner(operand.tensor, slot)
            {
                return Err(format!("the root node {} is overwritten", root.index()));
            }
        }
        Ok(())
    }

    /// Checks that a step reads tensors of a pack or writes such, but not both, and that what has a slot in a pack has it alone.
    fn verify_packs(&self, step: &Step) -> Result<(), String> {
        let updates = step.op.rules().updates();
        for pack in &self.packs {
            let is_member = |operand: &Operand| pack.members.contains(&operand.place);
            let mut inputs = step.inputs.iter().enumerate().filter(|(_, input)| is_member(input));
            let reads = inputs.clone().any(|(i, _)| !updates.contains(&i));
            let writes = inputs.any(|(i, _)| updates.contains(&i)) || step.outputs().any(|output| is_member(&output));
            if reads && writes {
                return Err(format!("{} reads and writes tensors of one pack", step.title()));
            }
            let shared = |place: &&Place| matches!(place, Place::Slot(slot) if self.slots[*slot].tensors.len() > 1);
            if let Some(place) = pack.members.iter().find(shared) {
                return Err(format!("{place:?} of a pack is shared"));
            }
        }
        Ok(())
    }

    /// The tensor of `slot` whose memory `tensor` is: itself, or the last one born in the slot before this view.
    fn owner(&self, tensor: TensorId, slot: usize) -> Option<TensorId> {
        self.slots[slot].tensors.iter().rev().find(|&&owner| owner <= tensor).copied()
    }
}

/// Whether an operand is a view of a leaf from before one of these updates, whose content is gone.
fn stale(operand: &Operand, updates: &[(TensorId, TensorId)]) -> bool {
    let Place::Leaf(leaf) = operand.place else { return false };
    operand.tensor != leaf && updates.iter().any(|&(updated, effect)| updated == leaf && operand.tensor < effect)
}

#[cfg(test)]
mod tests {
    use crate::graph::Graph;
    use crate::plan::{Place, Plan};
    use crate::shape::{Shape, TensorType};

    fn chain() -> Plan {
        let mut graph = Graph::new();
        let mut x = graph.input("x", TensorType::f32(Shape::batched(&[4])));
        for _ in 0..4 {
            x = graph.relu(x).unwrap();
        }
        Plan::new(&graph, &[x], 2).unwrap()
    }

    #[test]
    fn a_chain_needs_two_slots() {
        assert_eq!(chain().slots().len(), 2);
    }

    #[test]
    fn verify_refuses_a_step_that_reads_and_writes_one_slot() {
        let mut plan = chain();
        let input = plan.steps[2].inputs[0].place;
        plan.steps[2].output.as_mut().unwrap().place = input;
        assert!(plan.verify().unwrap_err().contains("reads and writes"));
    }

    #[test]
    fn verify_refuses_a_read_of_what_was_overwritten() {
        let mut plan = chain();
        let first = plan.steps[0].output.unwrap();
        plan.steps[3].inputs[0] = first;
        plan.steps[3].output.as_mut().unwrap().place = Place::Slot(1 - slot(first.place));
        assert!(plan.verify().is_err());
    }

    #[test]
    fn verify_refuses_a_slot_that_is_too_small() {
        let mut plan = chain();
        plan.slots[0].bytes = 4;
        assert!(plan.verify().unwrap_err().contains("does not fit"));
    }

    fn slot(place: Place) -> usize {
        match place {
            Place::Slot(slot) => slot,
            Place::Leaf(_) => panic!("a value lives in a slot"),
        }
    }
}
