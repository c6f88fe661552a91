//! An operator that is another one in everything but its kernels: how tests see a defect noticed.

use std::sync::Arc;

use shadernet::error::Result;
use shadernet::graph::{Graph, TensorId};
use shadernet::ops::{Cpu, Launch, Op, Reference, Rules, Style, Variant};
use shadernet::shape::TensorType;

/// Which of an operator's variants is its only kernel.
#[derive(Clone, Copy, Debug)]
pub enum Only {
    /// That of registers.
    Registers,
    /// The one whose name ends so.
    Named(&'static str),
}

/// What a test does to a CPU kernel's output after it has run.
pub type Damage = fn(&mut [f32]);

/// Delegates to an operator, except that the text of its WGSL kernel, the result of its CPU kernel or the range that one of its
/// operands is drawn from is another.
#[derive(Debug)]
pub struct Altered {
    pub op: Op,
    /// The kernel's text, if it is not the operator's.
    pub source: Option<&'static str>,
    /// What is done to the output of the CPU kernel, if anything.
    pub damage: Option<Damage>,
    /// What the name of the operator's only kernel ends in, or that it is the one of registers, if not the portable one.
    pub only: Option<Only>,
    /// An operand, and the least and greatest value it takes, if they are not the operator's.
    pub range: Option<(usize, (f64, f64))>,
}

impl Altered {
    /// An operator with this text for its kernel. The text lives to the program's end, as those of kernels do.
    pub fn kernel(op: impl Into<Op>, source: String) -> Op {
        Op::Custom(Arc::new(Self { op: op.into(), source: Some(source.leak()), damage: None, only: None, range: None }))
    }

    /// An operator whose CPU kernel's output is spoilt.
    pub fn cpu_output(op: impl Into<Op>, damage: Damage) -> Op {
        Op::Custom(Arc::new(Self { op: op.into(), source: None, damage: Some(damage), only: None, range: None }))
    }

    /// An operator whose kernel of registers is its only one.
    pub fn registers(op: impl Into<Op>) -> Op {
        Op::Custom(Arc::new(Self { op: op.into(), source: None, damage: None, only: Some(Only::Registers), range: None }))
    }

    /// An operator whose only kernel is the one whose name ends so.
    pub fn named(op: impl Into<Op>, end: &'static str) -> Op {
        let only = Some(Only::Named(end));
        Op::Custom(Arc::new(Self { op: op.into(), source: None, damage: None, only, range: None }))
    }

    /// An operator one of whose operands is drawn from this range.
    pub fn drawn(op: impl Into<Op>, input: usize, range: (f64, f64)) -> Op {
        Op::Custom(Arc::new(Self { op: op.into(), source: None, damage: None, only: None, range: Some((input, range)) }))
    }
}

impl Rules for Altered {
    fn name(&self) -> &'static str {
        self.op.rules().name()
    }

    fn arity(&self) -> usize {
        self.op.rules().arity()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        self.op.rules().infer(inputs)
    }

    fn extra_outputs(&self, inputs: &[TensorType]) -> Vec<TensorType> {
        self.op.rules().extra_outputs(inputs)
    }

    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], output: TensorId, grad: TensorId) -> Result<Vec<Option<TensorId>>> {
        self.op.rules().backward(graph, inputs, output, grad)
    }

    fn reference(&self, args: &mut Reference<'_>) {
        self.op.rules().reference(args);
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let ran = self.op.rules().cpu(args);
        if let Some(damage) = self.damage {
            assert!(ran, "{} has no CPU kernel to damage", self.name());
            damage(args.output);
        }
        ran
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        let is_only = |variant: &Variant| match self.only {
            Some(Only::Registers) => variant.style == Style::Registers,
            Some(Only::Named(end)) => variant.name.ends_with(end),
            None => false,
        };
        let mut launch = match self.op.rules().variants(inputs, output).into_iter().find(is_only) {
            Some(variant) => variant.launch,
            None if self.only.is_some() => panic!("{} has no kernel {:?} for {inputs:?}", self.name(), self.only),
            None => self.op.rules().launch(inputs, output),
        };
        launch.kernel.source = self.source.unwrap_or(launch.kernel.source);
        launch
    }

    // A kernel of another text has no variants: it is to be the one that runs.
    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        if self.source.is_some() || self.only.is_some() { Vec::new() } else { self.op.rules().variants(inputs, output) }
    }

    fn updates(&self) -> &[usize] {
        self.op.rules().updates()
    }

    fn packs(&self) -> Vec<std::ops::Range<usize>> {
        self.op.rules().packs()
    }

    fn parts(&self) -> Vec<(Op, Vec<usize>)> {
        self.op.rules().parts()
    }

    fn is_view(&self) -> bool {
        self.op.rules().is_view()
    }

    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        self.range.filter(|&(drawn, _)| drawn == input).map_or_else(|| self.op.rules().domain(input, inputs), |(_, range)| range)
    }

    fn terms(&self, inputs: &[TensorType], batch: usize) -> usize {
        self.op.rules().terms(inputs, batch)
    }
}
