//! Shapes and element types; which extents are known when a plan is made, and which only when it runs.
//!
//! A shape is either *fixed* or *batched*: then its first axis is the batch `N`, whose extent is given at each run, at most
//! the plan's capacity. Every other extent is a constant of the plan.

use std::fmt;

/// The most axes a tensor has, the batch included.
pub const MAX_RANK: usize = 5;

/// Extents of a row-major tensor. `[N, 32, 32, 3]` is [`Shape::batched`]`(&[32, 32, 3])`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    batched: bool,
    rank: u8, // of `extents`, so without the batch
    extents: [usize; MAX_RANK],
}

impl Shape {
    /// A shape whose extents are all known.
    ///
    /// # Panics
    /// With more than [`MAX_RANK`] axes.
    pub fn fixed(extents: &[usize]) -> Self {
        Self::make(false, extents)
    }

    /// `[N, extents…]`, with the batch `N` known only at run time.
    ///
    /// # Panics
    /// With more than [`MAX_RANK`] axes, the batch counted.
    pub fn batched(extents: &[usize]) -> Self {
        Self::make(true, extents)
    }

    fn make(batched: bool, extents: &[usize]) -> Self {
        let rank = extents.len() + usize::from(batched);
        assert!(rank <= MAX_RANK, "a shape has at most {MAX_RANK} axes, found {rank}");
        let mut all = [1; MAX_RANK];
        all[..extents.len()].copy_from_slice(extents);
        Self { batched, rank: extents.len() as u8, extents: all }
    }

    /// Whether the first axis is the batch.
    pub fn is_batched(&self) -> bool {
        self.batched
    }

    /// The extents known when the plan is made: all, or all but the leading batch.
    pub fn inner(&self) -> &[usize] {
        &self.extents[..self.rank as usize]
    }

    /// Number of axes, the batch counted.
    pub fn rank(&self) -> usize {
        self.rank as usize + usize::from(self.batched)
    }

    /// Elements of one image of a batched tensor, or of a whole fixed one.
    pub fn inner_len(&self) -> usize {
        self.inner().iter().product()
    }

    /// Elements at this batch.
    pub fn len(&self, batch: usize) -> usize {
        self.inner_len() * if self.batched { batch } else { 1 }
    }

    /// Every extent, the batch filled in.
    pub fn extents(&self, batch: usize) -> Vec<usize> {
        self.batched.then_some(batch).into_iter().chain(self.inner().iter().copied()).collect()
    }

    /// The extent of the last axis, or 1 of a scalar.
    pub fn last(&self) -> usize {
        self.inner().last().copied().unwrap_or(1)
    }

    /// The same leading batch, if any, over other extents.
    pub fn with_inner(&self, extents: &[usize]) -> Self {
        Self::make(self.batched, extents)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let batch = self.batched.then(|| "N".to_owned());
        let axes: Vec<_> = batch.into_iter().chain(self.inner().iter().map(usize::to_string)).collect();
        write!(f, "[{}]", axes.join(", "))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an element is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: activations, weights, gradients.
    F32,
    /// 16-bit float (IEEE 754 binary16): activations and their gradients as mixed precision stores them. Nothing is summed in it.
    F16,
    /// Unsigned 32-bit integer: labels, permutations, counters.
    U32,
    /// Bytes, four to a word, the first in the lowest bits: images as they are stored.
    U8,
}

impl DType {
    /// Whether its values are floats.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16)
    }

    /// Bytes an element takes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

/// A shape and an element type: all that an operator needs to know of an operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// The extents.
    pub shape: Shape,
    /// The element type.
    pub dtype: DType,
}

impl TensorType {
    /// 32-bit floats of this shape.
    pub fn f32(shape: Shape) -> Self {
        Self { shape, dtype: DType::F32 }
    }

    /// 16-bit floats of this shape.
    pub fn f16(shape: Shape) -> Self {
        Self { shape, dtype: DType::F16 }
    }

    /// Unsigned 32-bit integers of this shape.
    pub fn u32(shape: Shape) -> Self {
        Self { shape, dtype: DType::U32 }
    }

    /// Bytes of this shape.
    pub fn u8(shape: Shape) -> Self {
        Self { shape, dtype: DType::U8 }
    }

    /// Bytes at this batch, rounded up to whole words of four.
    pub fn bytes(&self, batch: usize) -> usize {
        (self.shape.len(batch) * self.dtype.size()).next_multiple_of(4)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype {
            DType::F32 => write!(f, "{}", self.shape),
            DType::F16 => write!(f, "{} f16", self.shape),
            DType::U32 => write!(f, "{} u32", self.shape),
            DType::U8 => write!(f, "{} u8", self.shape),
        }
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
