//! Fusion: chains of operators that one kernel can do, put together. The only pass that tells operators apart.
//!
//! Each pattern is a file: what it looks for, and what takes its place. Patterns are applied one after the other, each to the
//! graph that the one before has left, so a pattern can rest on what another has put together. A chain is left as it is if
//! anything else reads one of its inner values, or if one is a root.
//!
//! At last effects are moved to where they can be earliest (`order.rs`).
//!
//! No pattern makes leaves: those of a fused plan are those of its graph, and are shared with the graph's other plans.

mod adam;
mod cast;
mod conv2d;
mod dense;
mod loss;
mod mlp_head;
mod order;

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::graph::{Graph, Node, Role, TensorId};
use crate::ops::{Op, Style};

/// What each tensor has become. What is inside a chain has become nothing.
type Now = HashMap<TensorId, TensorId>;

/// A chain that was found.
trait Chain {
    /// The layer it belongs to.
    fn label(&self) -> &str;

    /// What nothing but the chain reads.
    fn inside(&self) -> Vec<TensorId>;

    /// What the rest of the graph reads, and effects.
    fn outside(&self) -> Vec<TensorId>;

    /// Appends what takes the place of `id`, one of [`outside`](Self::outside), and notes what has become of it and of all that
    /// comes with it. Called for each that is not noted yet, in the graph's order; an effect may wait for a later call.
    ///
    /// # Errors
    /// None for a graph that is valid.
    fn emit(&self, graph: &mut Graph, id: TensorId, now: &mut Now) -> Result<()>;
}

/// Every chain of one pattern, preferred ones first: of two that overlap the first is taken.
type Find = fn(&Uses<'_>) -> Vec<Box<dyn Chain>>;

/// The patterns for executors of a style. What is left out for kernels of registers needs workgroup memory, or has branches: where
/// lanes are those of a vector, it takes all of them.
fn patterns(style: Style) -> &'static [Find] {
    match style {
        Style::Portable => &[conv2d::find, dense::find, loss::find, mlp_head::find, mlp_head::ticks, adam::sums, adam::groups],
        Style::Cpu => &[conv2d::find_for_threads, dense::find, loss::find, adam::sums],
        Style::Registers => &[conv2d::find_for_registers, loss::find, adam::sums, adam::long_sums],
    }
}

/// Appends to `graph` all that `roots` need once more for each pattern that is found, chains put together on the way, and returns
/// what the roots have become. Leaves stay what they are.
///
/// # Errors
/// None for a graph that is valid.
pub(super) fn fuse(graph: &mut Graph, roots: &[TensorId], style: Style) -> Result<Vec<TensorId>> {
    let mut roots = roots.to_vec();
    for find in patterns(style) {
        let uses = Uses::new(graph, &roots);
        let chains = uses.closed(find(&uses));
        if !chains.is_empty() {
            let nodes = uses.nodes();
            let now = rewrite(graph, &nodes, &chains)?;
            roots.iter_mut().for_each(|root| *root = now[root]);
        }
    }
    // Kernels of registers load and store f32 alone.
    let absorbed = if style == Style::Registers { None } else { cast::absorb(graph, &roots)? };
    if let Some(now) = absorbed {
        roots.iter_mut().for_each(|root| *root = now[root]);
    }
    let nodes = order::early(&Uses::new(graph, &roots));
    if !nodes.is_sorted() {
        let now = rewrite(graph, &nodes, &[])?;
        roots.iter_mut().for_each(|root| *root = now[root]);
    }
    Ok(roots)
}

/// Appends every one of these nodes once more, in this order, or what takes the place of the chain it is of.
fn rewrite(graph: &mut Graph, nodes: &[TensorId], chains: &[Box<dyn Chain>]) -> Result<Now> {
    let inside: HashSet<TensorId> = chains.iter().flat_map(|chain| chain.inside()).collect();
    let mut chain_of: HashMap<TensorId, &dyn Chain> = HashMap::new();
    for chain in chains {
        chain_of.extend(chain.outside().into_iter().map(|id| (id, chain.as_ref())));
    }
    let scope = graph.current_scope().to_owned();
    let is_leaf = |id: &&TensorId| graph.node(**id).op.is_none() && !matches!(graph.node(**id).role, Role::Extra(_));
    let mut now: Now = nodes.iter().filter(is_leaf).map(|&id| (id, id)).collect();
    for &id in nodes {
        let Node { op: Some(op), inputs, label, .. } = graph.node(id).clone() else { continue };
        if inside.contains(&id) || now.contains_key(&id) {
            continue;
        }
        match chain_of.get(&id) {
            Some(chain) => {
                graph.scope(chain.label());
                chain.emit(graph, id, &mut now)?;
            }
            None => {
                graph.scope(label);
                let inputs: Vec<TensorId> = inputs.iter().map(|input| now[input]).collect();
                let copy = graph.apply(op, &inputs)?;
                now.insert(id, copy);
                let extra = graph.extra_outputs(id).into_iter().zip(graph.extra_outputs(copy));
                now.extend(extra.collect::<Vec<_>>());
            }
        }
    }
    graph.scope(scope);
    Ok(now)
}

/// The part of a graph that roots need, and who reads what in it.
struct Uses<'a> {
    graph: &'a Graph,
    roots: &'a [TensorId],
    needed: Vec<bool>,
    readers: HashMap<TensorId, Vec<TensorId>>,
}

impl<'a> Uses<'a> {
    fn new(graph: &'a Graph, roots: &'a [TensorId]) -> Self {
        let needed = super::needed(graph, roots);
        let mut readers: HashMap<TensorId, Vec<TensorId>> = HashMap::new();
        for (id, node) in graph.nodes().filter(|(id, _)| needed[id.index()]) {
            node.inputs.iter().for_each(|&input| readers.entry(input).or_default().push(id));
        }
        Self { graph, roots, needed, readers }
    }

    /// Every needed node.
    fn nodes(&self) -> Vec<TensorId> {
        self.graph.nodes().map(|(id, _)| id).filter(|id| self.needed[id.index()]).collect()
    }

    /// Every needed node whose operator this accepts, with what it makes of it.
    fn all<T: 'a>(&self, accept: impl Fn(&Op) -> Option<T>) -> impl Iterator<Item = (TensorId, T)> {
        let needed = self.graph.nodes().filter(|(id, _)| self.needed[id.index()]);
        needed.filter_map(move |(id, node)| Some((id, accept(node.op.as_ref()?)?)))
    }

    fn op(&self, id: TensorId) -> Option<&Op> {
        self.graph.node(id).op.as_ref()
    }

    fn inputs(&self, id: TensorId) -> &[TensorId] {
        &self.graph.node(id).inputs
    }

    fn readers(&self, id: TensorId) -> &[TensorId] {
        self.readers.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The first reader of `id` whose operator this accepts.
    fn reader(&self, id: TensorId, accept: impl Fn(&Op) -> bool) -> Option<TensorId> {
        self.readers(id).iter().copied().find(|&reader| self.op(reader).is_some_and(&accept))
    }

    /// The first node with these operands whose operator this accepts.
    fn applied(&self, operands: &[TensorId], accept: impl Fn(&Op) -> bool) -> Option<TensorId> {
        self.readers(operands[0]).iter().copied().find(|&id| self.inputs(id) == operands && self.op(id).is_some_and(&accept))
    }

    /// The tensor whose memory `id` is a view of, or itself.
    fn owner(&self, mut id: TensorId) -> TensorId {
        while self.op(id).is_some_and(|op| op.rules().is_view()) {
            id = self.inputs(id)[0];
        }
        id
    }

    /// Whether nothing computes `id`.
    fn is_leaf(&self, id: TensorId) -> bool {
        let node = self.graph.node(id);
        node.op.is_none() && !matches!(node.role, Role::Extra(_))
    }

    /// Whether `id` lies in a leaf's memory, which updates change.
    fn in_leaf(&self, id: TensorId) -> bool {
        self.is_leaf(self.owner(id))
    }

    /// What an effect changes.
    fn updated(&self, id: TensorId) -> impl Iterator<Item = TensorId> {
        let node = self.graph.node(id);
        node.op.iter().flat_map(|op| op.rules().updates()).map(|&i| node.inputs[i])
    }

    /// Whether nothing is updated between these nodes: then what lies there may be computed anywhere in between.
    fn undisturbed(&self, nodes: &[TensorId]) -> bool {
        let (Some(first), Some(last)) = (nodes.iter().min(), nodes.iter().max()) else { return true };
        let effect = |(id, node): (TensorId, &Node)| self.needed[id.index()] && node.role == Role::Effect && (*first..*last).contains(&id);
        !self.graph.nodes().any(effect)
    }

    /// Of these chains those whose inner values nothing else reads, and that share no node with one before them.
    fn closed(&self, chains: Vec<Box<dyn Chain>>) -> Vec<Box<dyn Chain>> {
        let mut taken: HashSet<TensorId> = HashSet::new();
        let is_closed = |chain: &dyn Chain| {
            let known: HashSet<TensorId> = chain.inside().into_iter().chain(chain.outside()).collect();
            let alone = |id: &TensorId| !self.roots.contains(id) && self.readers(*id).iter().all(|reader| known.contains(reader));
            chain.inside().iter().all(alone)
        };
        let mut free = |chain: &dyn Chain| {
            let nodes: Vec<TensorId> = chain.inside().into_iter().chain(chain.outside()).collect();
            let free = !nodes.iter().any(|id| taken.contains(id));
            if free {
                taken.extend(nodes);
            }
            free
        };
        chains.into_iter().filter(|chain| is_closed(chain.as_ref()) && free(chain.as_ref())).collect()
    }
}
