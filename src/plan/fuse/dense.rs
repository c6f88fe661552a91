//! A dense layer: product, bias and ReLU are [`Dense`], all its gradients [`DenseGrad`].

use super::{Chain, Now, Uses};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::activation::Function;
use crate::ops::reduce::Axes;
use crate::ops::*;
use crate::shape::DType;

#[derive(Clone)]
struct Layer {
    label: String,
    x: TensorId,
    w: TensorId,
    b: TensorId,
    product: TensorId,
    biased: TensorId,
    /// ReLU's result, and its gradient if there is one.
    relu: Option<(TensorId, Option<TensorId>)>,
    backward: Option<Backward>,
}

/// The gradients of a layer, and that of its result.
#[derive(Clone)]
struct Backward {
    dy: TensorId,
    dx: TensorId,
    dw: TensorId,
    db: TensorId,
}

impl Layer {
    fn y(&self) -> TensorId {
        self.relu.map_or(self.biased, |(relu, _)| relu)
    }

    /// The gradient of what goes into ReLU.
    fn through(&self) -> Option<TensorId> {
        self.relu.and_then(|(_, through)| through)
    }
}

impl Chain for Layer {
    fn label(&self) -> &str {
        &self.label
    }

    fn inside(&self) -> Vec<TensorId> {
        let biased = self.relu.map(|_| self.biased);
        let through = self.backward.as_ref().and_then(|_| self.through());
        [Some(self.product), biased, through].into_iter().flatten().collect()
    }

    fn outside(&self) -> Vec<TensorId> {
        let grads = match &self.backward {
            Some(Backward { dx, dw, db, .. }) => vec![*dx, *dw, *db],
            None => self.through().into_iter().collect(),
        };
        std::iter::once(self.y()).chain(grads).collect()
    }

    fn emit(&self, graph: &mut Graph, id: TensorId, now: &mut Now) -> Result<()> {
        let relu = self.relu.is_some();
        if id == self.y() {
            let y = graph.apply(Dense { relu, output: DType::F32 }, &[now[&self.x], now[&self.w], now[&self.b]])?;
            now.insert(id, y);
            return Ok(());
        }
        let y = now[&self.y()];
        let Some(Backward { dy, dx, dw, db }) = &self.backward else {
            // The gradient of ReLU alone: what went into it is above 0 where its result is.
            let dy = now[&graph.node(id).inputs[1]];
            let through = graph.apply(ActivationGrad { function: Function::Relu }, &[y, dy])?;
            now.insert(id, through);
            return Ok(());
        };
        let dy = now[dy];
        let grad = graph.apply(DenseGrad { relu, dx: DType::F32 }, &[now[&self.x], if relu { y } else { dy }, dy, now[&self.w]])?;
        let extra = graph.extra_outputs(grad);
        now.extend([(*dw, grad), (*db, extra[0]), (*dx, extra[1])]);
        Ok(())
    }
}

/// Every dense layer of the graph, each as much of it as is there: with ReLU before without, with gradients before without.
pub(super) fn find(uses: &Uses<'_>) -> Vec<Box<dyn Chain>> {
    let products = uses.all(|op| matches!(op, Op::Matmul(matmul) if *matmul == Matmul::default()).then_some(()));
    let layers: Vec<Layer> = products.flat_map(|(product, ())| layers(uses, product)).collect();
    // What takes a layer's place reads its operands at another time than the layer does, so nothing may be updated meanwhile.
    let sound = |layer: &Layer| {
        let nodes: Vec<TensorId> = layer.inside().into_iter().chain(layer.outside()).collect();
        uses.undisturbed(&nodes)
    };
    layers.into_iter().filter(sound).map(|layer| Box::new(layer) as Box<dyn Chain>).collect()
}

/// What a product may be the beginning of, the most first.
fn layers(uses: &Uses<'_>, product: TensorId) -> Vec<Layer> {
    let &[x, w] = uses.inputs(product) else { return Vec::new() };
    if !uses.graph.shape(x).is_batched() {
        return Vec::new();
    }
    let Some(biased) = uses.reader(product, |op| matches!(op, Op::BiasAdd(_))) else { return Vec::new() };
    let (b, label) = (uses.inputs(biased)[1], uses.graph.node(product).label.clone());
    if b == product {
        return Vec::new();
    }
    let plain = Layer { label, x, w, b, product, biased, relu: None, backward: None };
    let relu = uses.reader(biased, |op| matches!(op, Op::Activation(Activation { function: Function::Relu }))).map(|relu| {
        let through = uses.reader(biased, |op| matches!(op, Op::ActivationGrad(ActivationGrad { function: Function::Relu })));
        Layer { relu: Some((relu, through.filter(|&through| uses.inputs(through)[0] == biased))), ..plain.clone() }
    });
    let with_gradients = |layer: &Layer| Some(Layer { backward: Some(backward(uses, layer)?), ..layer.clone() });
    let with_relu = relu.iter().filter_map(with_gradients).chain(relu.clone());
    with_relu.chain(with_gradients(&plain)).chain([plain.clone()]).collect()
}

/// The three gradients of a layer, if a graph has them all.
fn backward(uses: &Uses<'_>, layer: &Layer) -> Option<Backward> {
    let of = |g: TensorId, dy: TensorId| {
        let [transposed_x, transposed_w] =
            [(true, false), (false, true)].map(|(transpose_a, transpose_b)| Matmul { transpose_a, transpose_b });
        let dw = uses.applied(&[layer.x, g], |op| matches!(op, Op::Matmul(matmul) if *matmul == transposed_x))?;
        let dx = uses.applied(&[g, layer.w], |op| matches!(op, Op::Matmul(matmul) if *matmul == transposed_w))?;
        let db = uses.reader(g, |op| matches!(op, Op::Sum(Sum { axes }) if *axes == Axes::new(&[0])))?;
        Some(Backward { dy, dx, dw, db })
    };
    if layer.relu.is_some() {
        let through = layer.through()?;
        return of(through, uses.inputs(through)[1]);
    }
    // Without ReLU the gradient of the result is any tensor that has been multiplied with x, of the result's shape.
    let multiplied = uses.readers(layer.x).iter().filter_map(|&reader| match uses.inputs(reader) {
        &[x, g] if x == layer.x && uses.graph.ty(g) == uses.graph.ty(layer.biased) => Some(g),
        _ => None,
    });
    multiplied.filter_map(|g| of(g, g)).next()
}
