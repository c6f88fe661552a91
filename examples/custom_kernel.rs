//! An operator of your own: a kernel in WGSL, its gradient and its reference, without touching the crate.
//!
//! The operator is swish, `x · sigmoid(βx)` (Ramachandran et al. 2017). The program first asks every device it can find
//! whether the kernel does what the reference says, then uses operator and gradient to walk down to the curve's lowest point.
//!
//! `cargo run --example custom_kernel`

use std::sync::Arc;

use shadernet::autodiff::gradients;
use shadernet::error::{Error, Result};
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{Checks, DeviceChoice, Gpu, GpuExecutor, adapters};
use shadernet::exec::selftest::selftest;
use shadernet::exec::{Executor, open, read_f32, write_f32};
use shadernet::graph::{Graph, Init, TensorId};
use shadernet::ops::{Kernel, Launch, Op, Reference, Rules, Workgroups};
use shadernet::plan::Plan;
use shadernet::shape::{DType, Shape, TensorType};

/// `y = x · sigmoid(βx)` of one operand `x`, or the slope of that curve at `x`: the gradient needs it, and it is the same
/// few lines of WGSL.
#[derive(Clone, Copy, Debug)]
struct Swish {
    beta: f32,
    slope: bool,
}

impl From<Swish> for Op {
    fn from(swish: Swish) -> Self {
        Self::Custom(Arc::new(swish))
    }
}

impl Rules for Swish {
    // The name in plans and messages.
    fn name(&self) -> &'static str {
        if self.slope { "swish_slope" } else { "swish" }
    }

    fn arity(&self) -> usize {
        1
    }

    // The type of the result, or what does not fit: a mistake is reported when the graph is built.
    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        if inputs[0].dtype == DType::F32 {
            return Ok(inputs[0]);
        }
        Err(Error::Shape { op: self.name(), problem: "x is not of floats".to_owned(), operands: vec![("x", inputs[0], "(…) f32")] })
    }

    // dx = dy · slope(x): nodes that are added to the graph, of other operators or of one's own.
    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], _: TensorId, dy: TensorId) -> Result<Vec<Option<TensorId>>> {
        if self.slope {
            return Err(Error::invalid("the operator to differentiate", self.name(), "one with a gradient"));
        }
        let slope = graph.apply(Self { slope: true, ..*self }, inputs)?;
        Ok(vec![Some(graph.mul(slope, dy)?)])
    }

    // The plainest loop, in f64: the judge of the kernel. Where there is no GPU, it also does the work; a faster `cpu` is optional.
    fn reference(&self, args: &mut Reference<'_>) {
        let beta = f64::from(self.beta);
        for (y, &x) in args.output.iter_mut().zip(args.inputs[0].data) {
            let gate = 1.0 / (1.0 + (-beta * x).exp());
            *y = if self.slope { gate + beta * x * gate * (1.0 - gate) } else { x * gate };
        }
    }

    // The kernel, the values of its `override` constants, and a workgroup for every 64 elements.
    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        let constants = vec![
            ("LEN", inputs[0].shape.inner_len() as f64),
            ("BATCHED", f64::from(inputs[0].shape.is_batched())),
            ("BETA", f64::from(self.beta)),
            ("SLOPE", f64::from(self.slope)),
        ];
        let kernel = Kernel { name: "custom_kernel", source: include_str!("custom_kernel.wgsl") };
        Launch { kernel, constants, workgroups: Workgroups::over(output, 64) }
    }

    // What the self-test draws operands from.
    fn domain(&self, _: usize, _: &[TensorType]) -> (f64, f64) {
        (-6.0, 6.0)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A graph with the operator in it: the heights of the curve at eight places, and the slopes there.
    let mut graph = Graph::new();
    let x = graph.param("x", Shape::fixed(&[8]), Init::Fill(0.0));
    let height = graph.apply(Swish { beta: 1.0, slope: false }, &[x])?;
    let total = graph.sum(height, &[0])?;
    let slope = gradients(&mut graph, total, &[x])?[0];
    let plan = Plan::new(&graph, &[height, slope], 1)?;

    // Every device there is computes each step of the plan once and is compared with the references.
    let check = |device: &str, make: &mut dyn FnMut() -> Result<Box<dyn Executor>>| -> Result<()> {
        for verdict in selftest(make, &[&plan], 1)? {
            if let Some(problem) = verdict.problem {
                return Err(Error::invalid("the self-test", problem, "agreement with the reference"));
            }
            println!("{device}: {} {}: ok, {:.2} of the tolerance", verdict.step, verdict.shapes, verdict.worst);
        }
        Ok(())
    };
    check("cpu", &mut || Ok(Box::new(CpuExecutor::new(None)?)))?;
    for adapter in adapters().iter().filter(|adapter| adapter.lacks.is_empty()) {
        let gpu = Gpu::open(adapter.index, Checks::On)?;
        check(&adapter.name, &mut || Ok(Box::new(GpuExecutor::new(gpu.clone()))))?;
    }

    // Gradient descent from eight places, on the best device.
    let (mut device, _) = open(&DeviceChoice::Auto)?;
    let plan = device.load(Arc::new(plan))?;
    let mut places = [-2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0f32];
    println!("\n{} walks down the curve:", device.device());
    for step in 0..=60 {
        write_f32(device.as_mut(), x, &places)?;
        device.run(plan, &[1])?;
        if step % 20 == 0 {
            let heights = read_f32(device.as_mut(), plan, height, 1)?;
            println!("after {step:>2} steps  x {places:>6.3?}\n             swish {heights:>6.3?}");
        }
        let slopes = read_f32(device.as_mut(), plan, slope, 1)?;
        places.iter_mut().zip(slopes).for_each(|(place, slope)| *place -= 0.8 * slope);
    }
    println!("the lowest point of swish is -0.278, at -1.278");
    Ok(())
}
