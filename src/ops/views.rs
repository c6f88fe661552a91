//! What an operator's reference and its CPU kernel work on.

use super::Rules;
use crate::shape::{DType, TensorType};

/// An operand as the reference sees it: f64, row-major, whatever the element type.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Every extent, the batch filled in.
    pub extents: Vec<usize>,
    /// The elements. Empty where the operand is among [`Rules::updates`]: then it comes in [`Reference::updated`].
    pub data: &'a [f64],
}

/// What [`Rules::reference`] works on.
#[derive(Debug)]
pub struct Reference<'a> {
    /// Images in this run.
    pub batch: usize,
    /// The operands, in order.
    pub inputs: Vec<View<'a>>,
    /// The operands that [`Rules::updates`] names, in its order.
    pub updated: Vec<&'a mut [f64]>,
    /// The output, poisoned with NaN: every element is to be written. Empty for an operator that updates.
    pub output: &'a mut [f64],
    /// The outputs that [`Rules::extra_outputs`] names, in its order, poisoned likewise.
    pub extra: Vec<&'a mut [f64]>,
}

/// An operand of a CPU kernel: words in memory, read as its element type.
#[derive(Clone, Copy, Debug)]
pub struct CpuView<'a> {
    /// Its type.
    pub ty: TensorType,
    words: &'a [f32],
    len: usize,
}

impl<'a> CpuView<'a> {
    /// The first elements, at this batch, of a piece of memory.
    pub fn new(ty: TensorType, batch: usize, words: &'a [f32]) -> Self {
        Self { ty, words: &words[..ty.bytes(batch) / 4], len: ty.shape.len(batch) }
    }

    /// An operand that is updated, and so comes elsewhere.
    pub(crate) fn empty(ty: TensorType) -> Self {
        Self { ty, words: &[], len: 0 }
    }

    /// As floats.
    pub fn f32(&self) -> &'a [f32] {
        debug_assert_eq!(self.ty.dtype, DType::F32, "operand read as f32");
        self.words
    }

    /// As 16-bit floats.
    pub fn f16(&self) -> &'a [half::f16] {
        debug_assert_eq!(self.ty.dtype, DType::F16, "operand read as f16");
        &bytemuck::cast_slice(self.words)[..self.len]
    }

    /// As unsigned integers.
    pub fn u32(&self) -> &'a [u32] {
        debug_assert_eq!(self.ty.dtype, DType::U32, "operand read as u32");
        bytemuck::cast_slice(self.words)
    }

    /// As bytes.
    pub fn u8(&self) -> &'a [u8] {
        debug_assert_eq!(self.ty.dtype, DType::U8, "operand read as u8");
        &bytemuck::cast_slice(self.words)[..self.len]
    }

    /// As f64, whatever they are.
    pub fn to_f64(&self) -> Vec<f64> {
        match self.ty.dtype {
            DType::F32 => self.f32().iter().map(|&v| f64::from(v)).collect(),
            DType::F16 => self.f16().iter().map(|&v| f64::from(v)).collect(),
            DType::U32 => self.u32().iter().map(|&v| f64::from(v)).collect(),
            DType::U8 => self.u8().iter().map(|&v| f64::from(v)).collect(),
        }
    }
}

/// What a CPU kernel works on. Runs inside the executor's own rayon pool.
#[derive(Debug)]
pub struct Cpu<'a> {
    /// Images in this run.
    pub batch: usize,
    /// The operands, in order; those that are updated are empty here.
    pub inputs: Vec<CpuView<'a>>,
    /// The operands that [`Rules::updates`] names, in its order, as words.
    pub updated: Vec<&'a mut [f32]>,
    /// The output's words (bits of `u32` where that is its type). Empty for an operator that updates.
    pub output: &'a mut [f32],
    /// The words of the outputs that [`Rules::extra_outputs`] names, in its order.
    pub extra: Vec<&'a mut [f32]>,
    /// Scratch memory that keeps its size from step to step.
    pub scratch: &'a mut Vec<f32>,
}

impl Cpu<'_> {
    /// Runs the plain reference where there is no kernel: right, and slow.
    pub(crate) fn by_reference(&mut self, rules: &dyn Rules, types: &[TensorType], output: TensorType) {
        let mut updated: Vec<Vec<f64>> =
            rules.updates().iter().zip(&self.updated).map(|(&i, words)| CpuView::new(types[i], self.batch, words).to_f64()).collect();
        let operands: Vec<Vec<f64>> = self.inputs.iter().map(CpuView::to_f64).collect();
        let inputs = operands.iter().zip(types).map(|(data, ty)| View { extents: ty.shape.extents(self.batch), data }).collect();
        let mut result = vec![f64::NAN; if self.output.is_empty() { 0 } else { output.shape.len(self.batch) }];
        let extra_types = rules.extra_outputs(types);
        let mut extra: Vec<Vec<f64>> = extra_types.iter().map(|ty| vec![f64::NAN; ty.shape.len(self.batch)]).collect();
        rules.reference(&mut Reference {
            batch: self.batch,
            inputs,
            updated: updated.iter_mut().map(Vec::as_mut_slice).collect(),
            output: &mut result,
            extra: extra.iter_mut().map(Vec::as_mut_slice).collect(),
        });
        for ((&i, words), values) in rules.updates().iter().zip(&mut self.updated).zip(&updated) {
            store(words, values, types[i].dtype);
        }
        store(self.output, &result, output.dtype);
        for ((words, values), ty) in self.extra.iter_mut().zip(&extra).zip(extra_types) {
            store(words, values, ty.dtype);
        }
    }
}

/// Rounds reference values into memory of the given element type.
fn store(words: &mut [f32], values: &[f64], dtype: DType) {
    match dtype {
        DType::F32 => words.iter_mut().zip(values).for_each(|(w, &v)| *w = v as f32),
        DType::F16 => bytemuck::cast_slice_mut(words).iter_mut().zip(values).for_each(|(w, &v)| *w = half::f16::from_f64(v)),
        DType::U32 => bytemuck::cast_slice_mut(words).iter_mut().zip(values).for_each(|(w, &v)| *w = v as u32),
        DType::U8 => bytemuck::cast_slice_mut(words).iter_mut().zip(values).for_each(|(w, &v)| *w = v as u8),
    }
}
