//! The plan: a graph's nodes in order, each with its kernel, workgroups and memory, decided once.
//!
//! A plan is data. It can be printed, checked and run by any executor, and running it decides nothing. Dead nodes are left
//! out, so one graph can hold training, evaluation and prediction, and each gets a plan of its own by naming its roots.
//! [`Plan::new`] plans the graph as it stands; [`Plan::fused`] lets kernels do several of its operators in one go.

mod choices;
mod fuse;
mod listing;
mod memory;
mod pack;
mod verify;

use std::ops::Range;

pub use choices::Choices;
pub use listing::Listing;
pub use pack::Pack;

use crate::error::{Error, Result};
use crate::graph::{Graph, Role, TensorId};
use crate::ops::{Launch, Matrices, Op, Style, Variant, packed};
use crate::shape::TensorType;

/// Where a tensor's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory of its own that outlives the run and is shared by every plan of the graph: inputs, parameters, state.
    Leaf(TensorId),
    /// In slot number so and so of the plan, which other tensors use before and after it.
    Slot(usize),
}

/// A tensor as a step uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Which tensor.
    pub tensor: TensorId,
    /// Where it is.
    pub place: Place,
    /// Its type.
    pub ty: TensorType,
}

/// One dispatch.
#[derive(Clone, Debug)]
pub struct Step {
    /// The node it computes.
    pub node: TensorId,
    /// The operator.
    pub op: Op,
    /// The layer it belongs to.
    pub label: String,
    /// The operands, in order.
    pub inputs: Vec<Operand>,
    /// The result; an effect has none.
    pub output: Option<Operand>,
    /// What the operator writes beside it, in order.
    pub extra: Vec<Operand>,
    /// The portable kernel with its constants and workgroups.
    pub launch: Launch,
    /// Other kernels that do the same; an executor picks one of all ([`Step::candidates`]).
    pub variants: Vec<Variant>,
    /// Under what a choice among them is kept; empty where there is none to make. The same for every step whose kernels would take
    /// the same time.
    pub key: String,
    /// What does the same, one after the other, where the operands do not lie as the operator wants them
    /// ([`Rules::packs`](crate::ops::Rules::packs)); empty for one that takes them as they are.
    pub parts: Vec<Self>,
}

/// One of a step's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Unique within the step.
    pub name: &'a str,
    /// What it is good for.
    pub style: Style,
    /// The cooperative matrices that it multiplies by.
    pub matrices: Option<Matrices>,
    /// The dispatch.
    pub launch: &'a Launch,
}

impl Step {
    /// The step of an operator on operands that have a place; of the result there is the type, its place and what is written beside it.
    fn new(
        node: TensorId,
        op: &Op,
        label: &str,
        inputs: Vec<Operand>,
        (ty, output, extra): (TensorType, Option<Operand>, Vec<Operand>),
        capacity: usize,
    ) -> Self {
        let types: Vec<TensorType> = inputs.iter().map(|input| input.ty).collect();
        let launch = op.rules().launch(&types, ty);
        let variants = op.rules().variants(&types, ty);
        let key = choices::key(op, &types, capacity, &launch, &variants);
        let part = |(part, operands): &(Op, Vec<usize>)| {
            let inputs: Vec<Operand> = operands.iter().map(|&operand| inputs[operand]).collect();
            let changed = (inputs[0].ty, None, Vec::new());
            Self::new(node, part, label, inputs, changed, capacity)
        };
        let parts = op.rules().parts().iter().map(part).collect();
        Self { node, op: op.clone(), label: label.to_owned(), inputs, output, extra, launch, variants, key, parts }
    }

    /// Types of the operands.
    pub fn input_types(&self) -> Vec<TensorType> {
        self.inputs.iter().map(|operand| operand.ty).collect()
    }

    /// All that is written: the result and what comes beside it.
    pub fn outputs(&self) -> impl Iterator<Item = Operand> + '_ {
        self.output.into_iter().chain(self.extra.iter().copied())
    }

    /// Operands, by number, of each binding of the kernel: one, or those of a pack. The outputs have bindings of their own.
    pub fn bindings(&self) -> Vec<Range<usize>> {
        let packs = self.op.rules().packs();
        let (mut bindings, mut next) = (Vec::new(), 0);
        while next < self.inputs.len() {
            let binding = packs.iter().find(|pack| pack.start == next && !pack.is_empty()).cloned().unwrap_or(next..next + 1);
            next = binding.end;
            bindings.push(binding);
        }
        bindings
    }

    /// Floating-point operations of a run of this batch, see [`Rules::flops`](crate::ops::Rules::flops).
    pub fn flops(&self, batch: usize) -> u64 {
        self.op.rules().flops(&self.input_types(), batch)
    }

    /// Bytes that a run of this batch has to move, see [`Rules::bytes_moved`](crate::ops::Rules::bytes_moved).
    pub fn bytes_moved(&self, batch: usize) -> u64 {
        self.op.rules().bytes_moved(&self.input_types(), batch)
    }

    /// `label: operator`, for messages.
    pub fn title(&self) -> String {
        let name = self.op.rules().name();
        if self.label.is_empty() { name.to_owned() } else { format!("{}: {name}", self.label) }
    }
}

/// A piece of memory that several tensors use, one after the other.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Bytes at the plan's capacity.
    pub bytes: usize,
    /// The tensors that live in it, in order.
    pub tensors: Vec<TensorId>,
}

/// A tensor with memory of its own.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Which tensor.
    pub tensor: TensorId,
    /// What it is for, and how it starts.
    pub role: Role,
    /// Its type.
    pub ty: TensorType,
    /// `layer/name`.
    pub label: String,
}

/// Everything an executor needs to run part of a graph.
#[derive(Clone, Debug)]
pub struct Plan {
    capacity: usize,
    steps: Vec<Step>,
    slots: Vec<Slot>,
    leaves: Vec<Leaf>,
    packs: Vec<Pack>,
    roots: Vec<TensorId>,
    places: Vec<Option<Operand>>, // by tensor index
}

impl Plan {
    /// Plans what `roots` need: values to be read after a run, and effects to be had. No run may exceed `capacity` images.
    ///
    /// # Errors
    /// A capacity of 0, no roots, or an operator that would read and update one tensor.
    pub fn new(graph: &Graph, roots: &[TensorId], capacity: usize) -> Result<Self> {
        if capacity == 0 || roots.is_empty() {
            return Err(Error::invalid("a plan", format!("capacity {capacity}, {} roots", roots.len()), "at least 1 of each"));
        }
        let needed = needed(graph, roots);
        let packs = pack::find(graph, &needed);
        let placed = memory::place(graph, roots, &needed, &packs, capacity);
        let operand = |tensor: TensorId| placed.operands[tensor.index()].expect("every needed tensor has a place");

        let (mut steps, mut leaves) = (Vec::new(), Vec::new());
        for (id, node) in graph.nodes().filter(|(id, _)| needed[id.index()]) {
            if matches!(node.role, Role::Extra(_)) {
                continue;
            }
            let Some(op) = &node.op else {
                leaves.push(Leaf { tensor: id, role: node.role, ty: node.ty, label: node.label.clone() });
                continue;
            };
            if op.rules().is_view() {
                continue;
            }
            let inputs: Vec<Operand> = node.inputs.iter().map(|&input| operand(input)).collect();
            let output = (node.role != Role::Effect).then(|| operand(id));
            let extra = graph.extra_outputs(id).into_iter().map(operand).collect();
            steps.push(Step::new(id, op, &node.label, inputs, (node.ty, output, extra), capacity));
        }
        let pack = |members: &Vec<TensorId>| {
            let sizes: Vec<usize> = members.iter().map(|&member| graph.ty(member).bytes(capacity)).collect();
            let (offsets, bytes) = packed(&sizes);
            let members = members.iter().map(|&member| operand(member).place).collect();
            Pack { members, offsets, bytes, padding: bytes - sizes.iter().sum::<usize>() }
        };
        let packs = packs.iter().map(pack).collect();
        let plan = Self { capacity, steps, slots: placed.slots, leaves, packs, roots: roots.to_vec(), places: placed.operands };
        plan.verify().map_err(|problem| Error::invalid("a plan", problem, "operators that do not read what they update"))?;
        Ok(plan)
    }

    /// The same, with chains of operators that a kernel can do in one go put together first (see `plan/fuse/`): fewer steps, and
    /// intermediate values that are never stored. The result agrees with that of [`new`](Self::new) within rounding.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn fused(graph: &Graph, roots: &[TensorId], capacity: usize) -> Result<Self> {
        Self::for_style(Style::Portable, graph, roots, capacity)
    }

    /// The plan for executors that prefer kernels of this style: fused, as far as they gain by it. Where registers are all that is
    /// fast, dense layers are left as they are, and so are convolutions with pooling whose images' gradient has channels that do not come
    /// in fours.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_style(style: Style, graph: &Graph, roots: &[TensorId], capacity: usize) -> Result<Self> {
        let mut fused = graph.clone();
        let now = fuse::fuse(&mut fused, roots, style)?;
        let mut plan = Self::new(&fused, &now, capacity)?;
        // Roots are known to the caller by what they were called before.
        for (root, now) in roots.iter().zip(now) {
            plan.places[root.index()] = plan.places[now.index()];
        }
        plan.roots = roots.to_vec();
        Ok(plan)
    }

    /// The same plan of one step with the key of a step that is like it in all but the capacity, so that the same kernel is picked.
    pub(crate) fn posing_as(mut self, step: &Step) -> Self {
        self.steps.iter_mut().for_each(|own| own.key.clone_from(&step.key));
        self
    }

    /// The most images a run may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The dispatches, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Memory shared by values that do not live at the same time.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Tensors with memory of their own.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Tensors that are to lie in one buffer, for executors whose kernels have bindings.
    pub fn packs(&self) -> &[Pack] {
        &self.packs
    }

    /// What the plan is for: the values that can be read after a run, and the effects.
    pub fn roots(&self) -> &[TensorId] {
        &self.roots
    }

    /// Where a tensor is, if the plan has it and (for a value) keeps it to the end of a run.
    pub fn readable(&self, tensor: TensorId) -> Option<Operand> {
        let operand = self.places.get(tensor.index()).copied().flatten()?;
        let kept = matches!(operand.place, Place::Leaf(_)) || self.roots.contains(&tensor);
        kept.then_some(operand)
    }

    /// Bytes of all slots at capacity.
    pub fn slot_bytes(&self) -> usize {
        self.slots.iter().map(|slot| slot.bytes).sum::<usize>() + self.padding(|pack| !pack.is_of_leaves())
    }

    /// Bytes of all leaves at capacity.
    pub fn leaf_bytes(&self) -> usize {
        self.leaves.iter().map(|leaf| leaf.ty.bytes(self.capacity)).sum::<usize>() + self.padding(Pack::is_of_leaves)
    }

    /// Bytes between the tensors of some packs.
    fn padding(&self, which: impl Fn(&Pack) -> bool) -> usize {
        self.packs.iter().filter(|pack| which(pack)).map(|pack| pack.padding).sum()
    }
}

/// Which nodes the roots depend on.
fn needed(graph: &Graph, roots: &[TensorId]) -> Vec<bool> {
    let mut needed = vec![false; graph.nodes().count()];
    for root in roots {
        needed[root.index()] = true;
    }
    for (id, node) in graph.nodes().rev() {
        if needed[id.index()] {
            node.inputs.iter().for_each(|input| needed[input.index()] = true);
            graph.extra_outputs(id).iter().for_each(|extra| needed[extra.index()] = true);
        }
    }
    needed
}
