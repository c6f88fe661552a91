//! The graph: what is to be computed. Append-only, so the order of insertion is an order of execution.
//!
//! Every shape is inferred, and every mistake in a user's model reported, when a node is added: a graph that exists is valid.

use crate::error::{Error, Result};
use crate::ops::Op;
use crate::shape::{Shape, TensorType};

/// A tensor of a graph. Cheap to copy; means nothing in another graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub(crate) u32);

impl TensorId {
    /// Its place in the order of insertion.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Every element this value.
    Fill(f32),
    /// Uniform in ±√(6 / (fan_in + fan_out)), Keras's default for kernels (Glorot & Bengio 2010, eq. 16).
    GlorotUniform {
        /// Inputs of one output unit.
        fan_in: usize,
        /// Outputs of one input unit.
        fan_out: usize,
    },
}

/// Where a tensor's content comes from, and how long it lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Written by the host between runs.
    Input,
    /// Learned: starts as its [`Init`] says, is changed by an optimiser, is saved in a model.
    Param(Init),
    /// Kept from run to run and changed by the plan itself (moments, counters); starts filled with this value.
    State(f32),
    /// The same value in every element, for ever.
    Constant(f32),
    /// Computed by the node's operator in every run.
    Value,
    /// Computed by the operator of the node before it that is its one input, beside that node's own value: the operator's
    /// extra output of this number.
    Extra(usize),
    /// Not a tensor: an operator that updates its operands.
    Effect,
}

/// One node: an operator applied to tensors, or a leaf.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where the content comes from.
    pub role: Role,
    /// The operator of a value or an effect; an extra output has none of its own.
    pub op: Option<Op>,
    /// Its operands.
    pub inputs: Vec<TensorId>,
    /// Type of the tensor (of the first updated operand, for an effect).
    pub ty: TensorType,
    /// The layer it belongs to, and for a leaf its own name behind a slash: `conv2d/kernel`.
    pub label: String,
}

/// What is to be computed.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    scope: String,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nodes added from here on belong to this layer. Plans, profiles and errors show it.
    pub fn scope(&mut self, layer: impl Into<String>) {
        self.scope = layer.into();
    }

    /// A tensor that the host writes before runs.
    pub fn input(&mut self, name: &str, ty: TensorType) -> TensorId {
        self.leaf(Role::Input, name, ty)
    }

    /// A learned tensor of 32-bit floats.
    pub fn param(&mut self, name: &str, shape: Shape, init: Init) -> TensorId {
        self.leaf(Role::Param(init), name, TensorType::f32(shape))
    }

    /// A tensor that the plan itself changes from run to run.
    pub fn state(&mut self, name: &str, ty: TensorType, fill: f32) -> TensorId {
        self.leaf(Role::State(fill), name, ty)
    }

    /// A tensor of one value.
    pub fn constant(&mut self, ty: TensorType, fill: f32) -> TensorId {
        self.leaf(Role::Constant(fill), "constant", ty)
    }

    fn leaf(&mut self, role: Role, name: &str, ty: TensorType) -> TensorId {
        let label = if self.scope.is_empty() { name.to_owned() } else { format!("{}/{name}", self.scope) };
        self.push(Node { role, op: None, inputs: Vec::new(), ty, label })
    }

    /// Applies an operator. For an operator that updates, the result is an effect: a root for a plan, not an operand.
    pub fn apply(&mut self, op: impl Into<Op>, inputs: &[TensorId]) -> Result<TensorId> {
        self.apply_op(op.into(), inputs)
    }

    /// As [`apply`](Self::apply), compiled once for all operators.
    fn apply_op(&mut self, op: Op, inputs: &[TensorId]) -> Result<TensorId> {
        let rules = op.rules();
        if inputs.len() != rules.arity() {
            return Err(Error::invalid(format!("operands of {}", rules.name()), inputs.len(), rules.arity()));
        }
        for &id in inputs {
            let known = self.nodes.get(id.index()).is_some_and(|node| node.role != Role::Effect);
            if !known {
                let expected = format!("a tensor of this graph of {} nodes", self.nodes.len());
                return Err(Error::invalid(format!("operand of {}", rules.name()), format!("node {}", id.0), expected));
            }
        }
        for &updated in rules.updates() {
            let role = self.node(inputs[updated]).role;
            if !matches!(role, Role::Param(_) | Role::State(_)) {
                return Err(Error::invalid(format!("operand {updated} of {}", rules.name()), format!("{role:?}"), "a parameter or state"));
            }
            if inputs.iter().filter(|&&id| id == inputs[updated]).count() > 1 {
                let found = format!("{} twice", self.node(inputs[updated]).label);
                return Err(Error::invalid(format!("operands of {}", rules.name()), found, "an updated tensor only once"));
            }
        }
        let types: Vec<TensorType> = inputs.iter().map(|&id| self.ty(id)).collect();
        let ty = rules.infer(&types)?;
        let role = if rules.updates().is_empty() { Role::Value } else { Role::Effect };
        let extra = rules.extra_outputs(&types);
        let label = self.scope.clone();
        let node = self.push(Node { role, op: Some(op), inputs: inputs.to_vec(), ty, label: label.clone() });
        for (i, ty) in extra.into_iter().enumerate() {
            self.push(Node { role: Role::Extra(i), op: None, inputs: vec![node], ty, label: label.clone() });
        }
        Ok(node)
    }

    /// The extra outputs of a node's operator, in order. They stand right behind it.
    pub fn extra_outputs(&self, node: TensorId) -> Vec<TensorId> {
        let behind = (node.0 + 1..self.nodes.len() as u32).map(TensorId);
        behind.take_while(|&id| matches!(self.node(id).role, Role::Extra(_)) && self.node(id).inputs == [node]).collect()
    }

    fn push(&mut self, node: Node) -> TensorId {
        self.nodes.push(node);
        TensorId(self.nodes.len() as u32 - 1)
    }

    /// Type of a tensor.
    pub fn ty(&self, id: TensorId) -> TensorType {
        self.node(id).ty
    }

    /// Shape of a tensor.
    pub fn shape(&self, id: TensorId) -> Shape {
        self.ty(id).shape
    }

    /// The node behind a tensor.
    ///
    /// # Panics
    /// If `id` is of another, larger graph.
    pub fn node(&self, id: TensorId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Every node with its id, in order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (TensorId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (TensorId(i as u32), node))
    }

    /// The parameters, in order of insertion.
    pub fn params(&self) -> Vec<TensorId> {
        self.nodes().filter(|(_, node)| matches!(node.role, Role::Param(_))).map(|(id, _)| id).collect()
    }

    /// The layer that nodes are being added to.
    pub(crate) fn current_scope(&self) -> &str {
        &self.scope
    }
}
