//! The vocabulary: what an operator is, and the list of those there are.
//!
//! An operator is one type that implements [`Rules`]: its shape rule, its gradient, the plain reference that judges it, its
//! CPU kernel (`src/kernels/`) and the launch of its WGSL kernel (`shaders/`). The graph, autodiff, the planner and the
//! executors know operators through this trait alone, so a new one is a file here, a kernel, and a word in the list below.
//! A user's own operator implements the same trait and enters a graph as [`Op::Custom`].

pub mod activation;
pub mod adam;
pub mod arithmetic;
pub mod bias;
pub mod bytes;
pub mod cast;
#[cfg(test)]
mod checks;
pub mod conv2d;
mod cooperative;
pub mod dense;
pub mod fma;
pub mod gather;
pub mod loss;
pub mod matmul;
pub mod mlp_head;
mod operators;
pub mod pool;
pub mod reduce;
pub mod reshape;
pub mod scale;
pub mod softmax;
pub mod step;
mod stored;
mod tiles;
mod views;
pub mod window;

use std::fmt;
use std::ops::Range;

pub use cooperative::Matrices;
pub(crate) use cooperative::{MatrixTiles, WORKGROUP_BYTES as MATRIX_BYTES};
pub use operators::*;
use serde::Serialize;
pub(crate) use tiles::Tiles;
pub use views::{Cpu, CpuView, Reference, View};

use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::shape::{DType, TensorType};

/// Workgroups a kernel is dispatched with, as a function of the batch: `ceil((fixed + per_image · batch) / tile) · times`.
///
/// The count is one number; where it passes the 65,535 that a dispatch allows in one direction, the executor folds it into a
/// second one. A kernel finds its place with `workgroup_id.x + workgroup_id.y * num_workgroups.x` and must ignore the few
/// workgroups past the count that folding can add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workgroups {
    /// Items there are at any batch.
    pub fixed: usize,
    /// Items each image adds.
    pub per_image: usize,
    /// Items one workgroup takes.
    pub tile: usize,
    /// Workgroups for each such tile (tiles of the other axes, slices).
    pub times: usize,
}

impl Workgroups {
    /// One workgroup for every `tile` elements of a tensor.
    pub fn over(ty: TensorType, tile: usize) -> Self {
        let len = ty.shape.inner_len();
        let (fixed, per_image) = if ty.shape.is_batched() { (0, len) } else { (len, 0) };
        Self { fixed, per_image, tile, times: 1 }
    }

    /// The same number whatever the batch.
    pub fn fixed(count: usize) -> Self {
        Self { fixed: count, per_image: 0, tile: 1, times: 1 }
    }

    /// The count at this batch.
    pub fn count(&self, batch: usize) -> usize {
        (self.fixed + self.per_image * batch).div_ceil(self.tile) * self.times
    }
}

/// A WGSL program: valid WGSL as it stands, entry point `main`, `struct Call { batch: u32 }` and `var<immediate> call: Call`
/// (naga writes HLSL, for DX12, only of immediates that are structures).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The file's stem; names the pipeline in profiles and errors.
    pub name: &'static str,
    /// The text.
    pub source: &'static str,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}

/// The kernel `shaders/NAME.wgsl` of this crate.
macro_rules! kernel {
    ($name:literal) => {
        $crate::ops::Kernel { name: $name, source: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")) }
    };
}
pub(crate) use kernel;

/// One dispatch to be. Bindings follow the operands: inputs from 0, the output and the extra ones last, all in group 0; an operand
/// named by [`Rules::updates`] is bound `read_write`, every other input `read`. A pack of operands ([`Rules::packs`]) is one binding.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program.
    pub kernel: Kernel,
    /// Values of its `override` constants. A name the program does not have is an error when the pipeline is made.
    pub constants: Vec<(&'static str, f64)>,
    /// How many workgroups.
    pub workgroups: Workgroups,
}

/// The constant of kernels whose invocations hand each other what they load: how many of a subgroup share the loads. The value in a
/// launch is the most that the kernel can use, a power of two and no more than its workgroup has; an executor gives it no more than its
/// subgroups have. A kernel of this kind reads from the first so many invocations of its subgroup, so these have to be there: software
/// adapters fill subgroups in order, which no rule grants, and no other adapter is given such a kernel. `selftest` shows it.
pub const SPREAD: &str = "SPREAD";

/// How many share the loads of this crate's own kernels of registers, where a subgroup has so many.
pub(crate) const SHARERS: f64 = 8.0;

/// The least value of [`SPREAD`] that kernels are written for.
pub const LEAST_SPREAD: u32 = 4;

impl Launch {
    /// How many invocations of a subgroup can share the kernel's loads, if it is of this kind: then it needs
    /// [`LEAST_SPREAD`] at least.
    pub fn spread(&self) -> Option<u32> {
        self.constants.iter().find(|(name, _)| *name == SPREAD).map(|&(_, value)| value as u32)
    }
}

/// What a kernel's speed rests on, by which an executor picks among those of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// Whatever a GPU is good at, workgroup memory and barriers among it. Every operator has a kernel of this style.
    #[default]
    Portable,
    /// Registers alone: much work and wide loads for one invocation, no workgroup memory and no barriers; what several invocations
    /// need they hand each other ([`SPREAD`]). For software adapters, which are slow at each load and at every barrier.
    Registers,
    /// No kernel of WGSL: the processor itself, by the operators' own kernels. It has few threads, and memory to save.
    Cpu,
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Registers => "registers",
            Self::Cpu => "cpu",
        })
    }
}

/// Another way to compute what [`Rules::launch`] does: same operands, same result within the same tolerance.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Tells it from the operator's other kernels: the name of its own, and where several launch that one, what tells them apart.
    pub name: String,
    /// What it is good for.
    pub style: Style,
    /// The cooperative matrices that it multiplies by, which an adapter has or has not; then it rounds factors that are f32 to f16.
    pub matrices: Option<Matrices>,
    /// The dispatch.
    pub launch: Launch,
}

impl Variant {
    /// A launch of registers alone, for an operator that has none other.
    pub(crate) fn registers(launch: Launch) -> Vec<Self> {
        vec![Self { name: launch.kernel.name.to_owned(), style: Style::Registers, matrices: None, launch }]
    }

    /// A kernel that takes four neighbouring elements where that of `one` takes one, if `len` elements come in fours.
    pub(crate) fn in_fours(kernel: Kernel, one: Launch, len: usize) -> Vec<Self> {
        if !len.is_multiple_of(4) {
            return Vec::new();
        }
        let workgroups = Workgroups { tile: 4 * one.workgroups.tile, ..one.workgroups };
        Self::registers(Launch { kernel, workgroups, ..one })
    }
}

/// `LEN` and `BATCHED` of a kernel that goes over the elements of one tensor: `len = select(LEN, LEN * batch, BATCHED)`.
pub(crate) fn len_constants(ty: TensorType) -> Vec<(&'static str, f64)> {
    vec![("LEN", ty.shape.inner_len() as f64), ("BATCHED", f64::from(ty.shape.is_batched()))]
}

/// Where a binding may begin, on every adapter: a multiple of so many bytes.
pub const PACK_ALIGNMENT: usize = 256;

/// Where tensors of these sizes in bytes begin if they lie in one buffer, one behind the other, and where the last one's room ends.
pub fn packed(sizes: &[usize]) -> (Vec<usize>, usize) {
    let mut end = 0;
    let mut place = |&bytes: &usize| {
        let begin = end;
        end += bytes.max(1).next_multiple_of(PACK_ALIGNMENT);
        begin
    };
    (sizes.iter().map(&mut place).collect(), end)
}

/// Invocations of a workgroup in the kernels that go over elements.
pub(crate) const LANES: usize = 256;

/// All that an operator is.
pub trait Rules: fmt::Debug + Send + Sync {
    /// The operator's name in the field's words.
    fn name(&self) -> &'static str;

    /// Number of operands.
    fn arity(&self) -> usize;

    /// The output's type, or what does not fit. `inputs` has [`arity`](Self::arity) entries. An operator that updates checks its operands and returns the type of the
    /// first it updates.
    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType>;

    /// Types of what the operator writes beside its output, for operands that [`infer`](Self::infer) has accepted. The graph
    /// has a node for each ([`Graph::extra_outputs`]).
    fn extra_outputs(&self, _inputs: &[TensorType]) -> Vec<TensorType> {
        Vec::new()
    }

    /// Appends to `graph` the gradient of the loss for each input, given that for the output; `None` where there is none
    /// (integers) or it is zero everywhere.
    fn backward(&self, graph: &mut Graph, inputs: &[TensorId], output: TensorId, grad: TensorId) -> Result<Vec<Option<TensorId>>>;

    /// The plain loop nest, in f64, that every other implementation is held to. Correct before anything else.
    fn reference(&self, args: &mut Reference<'_>);

    /// The CPU kernel. Returns false if the operator has none: then the CPU executor runs the reference.
    fn cpu(&self, _args: &mut Cpu<'_>) -> bool {
        false
    }

    /// The WGSL kernel with its constants and workgroups, for operands of these types. It runs on every adapter.
    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch;

    /// Other kernels that do the same, as far as these types allow them: executors pick one by the adapter.
    fn variants(&self, _inputs: &[TensorType], _output: TensorType) -> Vec<Variant> {
        Vec::new()
    }

    /// Operands that are changed in place. Such an operator has no output: it is an effect.
    fn updates(&self) -> &[usize] {
        &[]
    }

    /// Runs of operands that the kernel has as one binding each, as it may have no more than eight: each run lies in one buffer,
    /// its tensors one behind the other ([`packed`]), and is all updated or not at all.
    fn packs(&self) -> Vec<Range<usize>> {
        Vec::new()
    }

    /// Operators that together do the same, one after the other, each with the numbers of its operands: what runs where the
    /// operands do not lie as [`packs`](Self::packs) says. An operator with packs has parts.
    fn parts(&self) -> Vec<(Op, Vec<usize>)> {
        Vec::new()
    }

    /// The output is the first input's memory under another shape; nothing runs.
    fn is_view(&self) -> bool {
        false
    }

    /// The least and greatest value that operand `input` takes in the self-test and in generated tests. Integers are drawn
    /// from the same range, both ends included.
    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        match inputs[input].dtype {
            DType::F32 | DType::F16 => (-1.0, 1.0),
            DType::U32 => (0.0, 1.0),
            DType::U8 => (0.0, 255.0),
        }
    }

    /// How many rounded terms one output element sums at this batch: tolerances grow with its square root.
    fn terms(&self, _inputs: &[TensorType], _batch: usize) -> usize {
        1
    }

    /// Floating-point operations of the formula at this batch: a multiply and an add are two, anything else, a comparison or an
    /// `exp`, is one; what padding adds is not counted. For reports: a kernel may do more or fewer. One for each float of the
    /// output unless the operator says otherwise.
    fn flops(&self, inputs: &[TensorType], batch: usize) -> u64 {
        match self.infer(inputs) {
            Ok(output) if output.dtype.is_float() => output.shape.len(batch) as u64,
            _ => 0,
        }
    }

    /// Bytes that have to move at this batch: each operand is read once, each result written once. An operator that reads a
    /// part of an operand says so here.
    fn bytes_moved(&self, inputs: &[TensorType], batch: usize) -> u64 {
        let bytes = |ty: &TensorType| ty.bytes(batch) as u64;
        let written = match self.updates() {
            [] => self.infer(inputs).as_ref().map_or(0, bytes),
            updated => updated.iter().map(|&i| bytes(&inputs[i])).sum(),
        };
        inputs.iter().chain(&self.extra_outputs(inputs)).map(bytes).sum::<u64>() + written
    }
}

/// The backward rule of operators that are themselves gradients.
pub(crate) fn no_second_gradient(op: &'static str) -> Result<Vec<Option<TensorId>>> {
    Err(crate::Error::invalid("the operator to differentiate", op, "one with a gradient (gradients of gradients are not supported)"))
}
