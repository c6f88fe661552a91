//! A graph in ten lines: `y = relu(x·w + b)`, and how the sum of `y` changes with each weight.
//!
//! `cargo run --example hello_graph`, or with a device: `cargo run --example hello_graph -- cpu` (`gpu`, or part of a name).

use std::sync::Arc;

use shadernet::autodiff::gradients;
use shadernet::exec::gpu::DeviceChoice;
use shadernet::exec::{open, read_f32, write_f32};
use shadernet::graph::{Graph, Init};
use shadernet::plan::Plan;
use shadernet::shape::{Shape, TensorType};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What is to be computed. Shapes are checked here; `batched` puts the number of rows first, and leaves it open until a run.
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[2])));
    let w = graph.param("w", Shape::fixed(&[2, 3]), Init::Fill(0.0));
    let b = graph.param("b", Shape::fixed(&[3]), Init::Fill(1.0));
    let product = graph.matmul(x, w)?;
    let shifted = graph.bias_add(product, b)?;
    let y = graph.relu(shifted)?;
    let total = graph.sum(y, &[0, 1])?;
    let slopes = gradients(&mut graph, total, &[w])?[0];

    // How: kernels and memory are decided once, for at most 16 rows, to get `y` and the slopes.
    let plan = Plan::new(&graph, &[y, slopes], 16)?;

    // Where: the best GPU, or the processor if there is none.
    let choice: DeviceChoice = std::env::args().nth(1).unwrap_or_else(|| "auto".to_owned()).parse()?;
    let (mut device, why) = open(&choice)?;
    println!("on {} ({why})\n\n{plan}\n", device.device());

    let plan = device.load(Arc::new(plan))?;
    write_f32(device.as_mut(), w, &[1.0, -1.0, 0.5, 2.0, 1.0, -3.0])?;
    write_f32(device.as_mut(), x, &[1.0, 2.0, 3.0, -1.0])?; // two rows of two
    device.run(plan, &[2])?;

    println!("relu(x·w + b), a row for each row of x:");
    for row in read_f32(device.as_mut(), plan, y, 2)?.chunks(3) {
        println!("  {row:>5.1?}");
    }
    println!("how the sum of all that changes with each weight:");
    for row in read_f32(device.as_mut(), plan, slopes, 2)?.chunks(3) {
        println!("  {row:>5.1?}");
    }
    Ok(())
}
