//! Graphs drawn at random: elementwise operators, products, dense layers, convolutions, pooling, views, sums, a loss; tensors used several
//! times, roots anywhere, and for some the gradients and a step of Adam.

use proptest::prelude::*;
use proptest::sample::Index;
use shadernet::autodiff::gradients;
use shadernet::error::Result;
use shadernet::exec::reference::Leaves;
use shadernet::graph::{Graph, Init, Node, Role, TensorId};
use shadernet::ops::reduce::Axes;
use shadernet::ops::window::{Padding, Window};
use shadernet::ops::*;
use shadernet::shape::{DType, Shape, TensorType};

use super::common::examples::FUNCTIONS;
use super::common::sample;
use super::{owner, unplanned};

/// One step of a drawing: the kind of operator, the places of its operands among the tensors so far, and its options.
type Draw = (usize, Index, Index, usize);

/// A graph, what a plan of it is for, and the most images.
#[derive(Debug)]
pub(crate) struct Drawn {
    pub(crate) graph: Graph,
    pub(crate) roots: Vec<TensorId>,
    pub(crate) capacity: usize,
}

/// Draws of steps, of roots, of a tensor to train on if any, and the capacity.
pub(crate) fn drawings() -> impl Strategy<Value = Drawn> {
    let step = (0..13usize, any::<Index>(), any::<Index>(), 0..64usize);
    let roots = prop::collection::vec(any::<Index>(), 1..4);
    let draws = (prop::collection::vec(step, 4..24), roots, prop::option::of(any::<Index>()), 1..5usize);
    draws.prop_map(|(steps, roots, trained, capacity)| draw(&steps, &roots, trained, capacity))
}

fn draw(steps: &[Draw], roots: &[Index], trained: Option<Index>, capacity: usize) -> Drawn {
    let mut graph = Graph::new();
    graph.input("labels", TensorType::u32(Shape::batched(&[])));
    let image = graph.input("image", TensorType::f32(Shape::batched(&[4, 3, 2])));
    let row = graph.input("row", TensorType::f32(Shape::batched(&[6])));
    let matrix = graph.param("matrix", Shape::fixed(&[3, 4]), Init::Fill(0.0));
    let mut usable = vec![image, row, matrix];
    for (i, draw) in steps.iter().enumerate() {
        graph.scope(format!("layer_{i}"));
        let Ok(y) = grow(&mut graph, &usable, draw) else { continue };
        // What has grown large is left unused, so that 32 bits can follow.
        let value = &unplanned(&graph, &mut leaves(&graph, capacity), capacity)[y.index()];
        if value.iter().all(|v| v.abs() < 30.0) {
            usable.push(y);
        }
    }
    let all: Vec<TensorId> = graph.nodes().map(|(id, _)| id).collect();
    let mut roots: Vec<TensorId> = roots.iter().map(|place| all[place.index(all.len())]).chain(usable.last().copied()).collect();
    if let Some(place) = trained {
        let y = late(&usable, place);
        roots.extend(train(&mut graph, y).expect("what has no gradient is told before"));
    }
    Drawn { graph, roots, capacity }
}

/// One of the last six.
fn late(tensors: &[TensorId], place: Index) -> TensorId {
    let tensors = &tensors[tensors.len().saturating_sub(6)..];
    tensors[place.index(tensors.len())]
}

/// Adds an operator, if it takes the operands it is to have.
fn grow(graph: &mut Graph, usable: &[TensorId], &(kind, a, b, option): &Draw) -> Result<TensorId> {
    let fits = |id: &&TensorId| match kind {
        4 => graph.shape(**id).rank() == 2,
        5 | 6 => graph.shape(**id).rank() == 4,
        11 | 12 => graph.shape(**id).rank() == 2 && graph.shape(**id).is_batched(),
        _ => true,
    };
    let a = late(&usable.iter().filter(fits).copied().collect::<Vec<_>>(), a);
    let (ty, bits) = (graph.ty(a), [option & 1 == 1, option & 2 == 2]);
    let alike: Vec<TensorId> = usable.iter().copied().filter(|&id| graph.ty(id) == ty).collect();
    let alike = alike[b.index(alike.len())];
    let pair = |place: usize| [1 + (option >> place & 1), 1 + (option >> (place + 1) & 1)];
    let padding = [Padding::Valid, Padding::Same, Padding::Explicit { top: 1, bottom: 0, left: 0, right: 1 }][option % 3];
    let inner = ty.shape.inner().to_vec();
    let channels = ty.shape.last();
    match kind {
        0 => graph.activation(a, FUNCTIONS[option % 5]),
        1 => graph.add(a, alike),
        2 => graph.mul(a, alike),
        3 => {
            let bias = param(graph, &[channels]);
            graph.bias_add(a, bias)
        }
        4 => {
            let [transpose_a, transpose_b] = bits;
            let depth = if transpose_a { inner.first().copied().unwrap_or(1) } else { channels };
            let columns = 1 + option / 4 % 6;
            let over_batch = ty.shape.is_batched() && transpose_a; // then the other factor has the batch too
            let b = if over_batch { alike } else { param(graph, &if transpose_b { [columns, depth] } else { [depth, columns] }) };
            graph.apply(Matmul { transpose_a, transpose_b: transpose_b && !over_batch }, &[a, b])
        }
        5 => {
            let groups = if option < 32 { 1 } else { channels };
            let kernel = pair(1);
            let w = param(graph, &[kernel[0], kernel[1], channels / groups, 2 * groups]);
            graph.conv2d(a, w, Conv2d { stride: pair(2), padding, dilation: pair(3), groups })
        }
        6 => {
            let window = Window { kernel: pair(1), stride: pair(2), dilation: pair(3), padding };
            if bits[0] { graph.max_pool2d(a, window) } else { graph.avg_pool2d(a, window) }
        }
        7 if bits[0] => graph.reshape(a, &inner.iter().rev().copied().collect::<Vec<_>>()),
        7 if bits[1] => graph.reshape(a, &[1, 1, ty.shape.inner_len()]),
        7 => graph.flatten(a),
        8 | 9 => {
            let axes: Vec<usize> = (0..ty.shape.rank()).filter(|axis| option >> axis & 1 == 1).collect();
            let sum = graph.sum(a, &axes)?;
            if kind == 8 { Ok(sum) } else { graph.apply(Broadcast { shape: ty.shape, axes: Axes::new(&axes) }, &[sum]) }
        }
        10 => graph.softmax(a),
        12 => {
            let units = 1 + option / 4 % 6;
            let (w, bias) = (param(graph, &[channels, units]), param(graph, &[units]));
            let y = graph.matmul(a, w)?;
            let y = graph.bias_add(y, bias)?;
            if bits[0] { graph.relu(y) } else { Ok(y) }
        }
        _ if channels < 2 => graph.tanh(a), // labels go up to 1
        _ => {
            let labels = graph.nodes().find(|(_, node)| node.label == "labels").map(|(id, _)| id).expect("the first leaf");
            if bits[0] {
                graph.correct(a, labels)?;
            }
            graph.softmax_cross_entropy(a, labels)
        }
    }
}

/// A parameter of this shape: the one there is, or a new one.
fn param(graph: &mut Graph, extents: &[usize]) -> TensorId {
    let shape = Shape::fixed(extents);
    let known = graph.params().into_iter().find(|&id| graph.shape(id) == shape);
    known.unwrap_or_else(|| graph.param("param", shape, Init::Fill(0.0)))
}

/// Appends the gradients of the sum of `y`, if it has any, and a step of Adam for each parameter without a view. Returns them all.
fn train(graph: &mut Graph, y: TensorId) -> Result<Vec<TensorId>> {
    let axes: Vec<usize> = (0..graph.shape(y).rank()).collect();
    let loss = if axes.is_empty() { y } else { graph.sum(y, &axes)? };
    let trained = |&param: &TensorId| gradients(&mut graph.clone(), loss, &[param]).is_ok();
    let params: Vec<TensorId> = graph.params().into_iter().filter(trained).collect();
    let grads = gradients(graph, loss, &params)?;
    let mut roots = [&[loss], &grads[..]].concat();
    let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[4])), 0.5);
    let viewed: Vec<TensorId> = graph.nodes().filter(|&(id, _)| owner(graph, id) != id).map(|(id, _)| owner(graph, id)).collect();
    for (param, grad) in params.into_iter().zip(grads).filter(|(param, _)| !viewed.contains(param)) {
        let moments = graph.state("moments", Adam::moments(graph.ty(param)), 0.0);
        roots.push(graph.adam(Adam::default(), param, moments, grad, rate)?);
    }
    Ok(roots)
}

/// Values of the leaves; those of a smaller batch are the first of a larger one.
pub(crate) fn leaves(graph: &Graph, batch: usize) -> Leaves {
    let value = |(id, node): (TensorId, &Node)| match (node.role, node.ty.dtype) {
        (Role::Value | Role::Effect, _) => None,
        (Role::State(fill) | Role::Constant(fill), _) => Some((id, vec![f64::from(fill); node.ty.shape.len(batch)])),
        (_, DType::F32) => Some((id, sample(node.ty, (-1.0, 1.0), batch, id.index() as u64))),
        _ => Some((id, sample(node.ty, (0.0, 1.0), batch, id.index() as u64))),
    };
    graph.nodes().filter_map(value).collect()
}
