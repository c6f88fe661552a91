//! The batch of a step, taken from a data set that lives on the device as bytes.
//!
//! An epoch's `order` says which image comes when, the `clock` how many have been taken: so a step needs nothing from the host.
//! A place past the end of the order, or an image past the last, gives zeros and reads nothing.

use super::{Cpu, LANES, Launch, Reference, Rules, Workgroups, kernel};
use crate::error::{Error, Result};
use crate::graph::{Graph, TensorId};
use crate::kernels;
use crate::shape::{DType, Shape, TensorType};

/// Shards a data set can be cut into, each under what an adapter binds: as many as leave room for the other operands.
pub const SHARDS: usize = 3;

/// `y[n] = scale · image order[clock[1] + n]`, `[N, H, W, C]`, and, extra, `t[n] = labels[order[clock[1] + n]]`, `[N]` u32, of operands
/// `shard0` … `shard2`, `labels`, `order`, `clock`.
///
/// Image `i` is row `i % images_per_shard` of shard `i / images_per_shard`. Where fewer shards are used, the rest of the operands
/// repeat one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatherBatch {
    /// Rows of pixels of an image.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Bytes of a pixel.
    pub channels: usize,
    /// Images in every shard but the last.
    pub images_per_shard: usize,
    /// Images in all shards.
    pub images: usize,
    /// What a byte is multiplied by. For 1/255 each result is the f32 nearest to byte/255, the same on every device.
    pub scale: f64,
}

impl Graph {
    /// The images and labels of the step, `[N, H, W, C]` floats and `[N]` u32: bytes times `scale`, and `labels` `[count]` u32, of the
    /// images that `order` `[count]` u32 names from place `clock[1]` on (`clock` `[2]` u32: steps done, images done). `shards`, one
    /// to three, are u8 `[images, H·W·C]`, all but the last with as many images as the first. Places past the end give zeros. To
    /// divide by 255, `scale` is `1.0 / 255.0`.
    ///
    /// # Errors
    /// If there are no shards or too many, one has another number of images or bytes, or `scale` is not a usual number.
    pub fn gather_batch(
        &mut self,
        shards: &[TensorId],
        [height, width, channels]: [usize; 3],
        scale: f64,
        labels: TensorId,
        order: TensorId,
        clock: TensorId,
    ) -> Result<[TensorId; 2]> {
        let (Some(&first), true) = (shards.first(), shards.len() <= SHARDS) else {
            return Err(Error::invalid("shards of gather_batch", shards.len(), format!("1 to {SHARDS}")));
        };
        let count = |shard: TensorId| self.shape(shard).inner().first().copied().unwrap_or(0);
        let images_per_shard = count(first);
        for (i, &shard) in shards.iter().enumerate() {
            let found = count(shard);
            if found > images_per_shard || (found < images_per_shard && i + 1 < shards.len()) {
                return Err(Error::invalid(format!("images of shard {i}"), found, format!("{images_per_shard} as in shard 0")));
            }
        }
        let images = shards.iter().map(|&shard| count(shard)).sum();
        let operand = |i: usize| shards.get(i).copied().unwrap_or(first);
        let operands = [operand(0), operand(1), operand(2), labels, order, clock];
        let batch = self.apply(GatherBatch { height, width, channels, images_per_shard, images, scale }, &operands)?;
        Ok([batch, self.extra_outputs(batch)[0]])
    }
}

/// A scale as the kernels apply it: `high · unit + low`, `high` of 16 bits and `unit` a power of two, so that a byte times
/// `high` is exact. Why is in `gather_batch.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    high: u32,
    unit: f32,
    low: f32,
}

impl Scale {
    /// Splits a scale, if it is a positive number that leaves room for its parts among normal floats.
    pub(crate) fn new(scale: f64) -> Option<Self> {
        if !(1e-20..=1e20).contains(&scale) {
            return None;
        }
        let unit = 2f64.powi(scale.log2().floor() as i32 - 15);
        let high = (scale / unit).floor();
        Some(Self { high: high as u32, unit: unit as f32, low: (scale - high * unit) as f32 })
    }

    /// Its parts as the constants of a kernel.
    pub(crate) fn constants(self) -> Vec<(&'static str, f64)> {
        vec![("HIGH", f64::from(self.high)), ("UNIT", f64::from(self.unit)), ("LOW", f64::from(self.low))]
    }

    /// The scaled byte. The product of integers is below 2²⁴; signed ones are converted faster.
    #[inline(always)]
    pub(crate) fn apply(self, byte: u8) -> f32 {
        (u32::from(byte) * self.high) as i32 as f32 * self.unit + f32::from(byte) * self.low
    }
}

impl GatherBatch {
    fn bytes(&self) -> usize {
        self.height * self.width * self.channels
    }

    fn problem(&self, inputs: &[TensorType]) -> Option<String> {
        let [labels, order, clock] = [inputs[3], inputs[4], inputs[5]];
        let extents = [self.height, self.width, self.channels];
        let Some(bytes) = extents.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent)).filter(|&bytes| bytes > 0) else {
            return Some(format!("images of {extents:?} have no size"));
        };
        if self.images_per_shard == 0 {
            return Some("a shard has 0 images, expected at least 1".to_owned());
        }
        for (i, shard) in inputs[..SHARDS].iter().enumerate() {
            match *shard.shape.inner() {
                [images, found] if shard.dtype == DType::U8 && !shard.shape.is_batched() => {
                    if found != bytes {
                        return Some(format!("shard {i} has images of {found} bytes, {extents:?} are {bytes}"));
                    }
                    if images.checked_mul(bytes).is_none_or(|all| all > u32::MAX as usize) {
                        return Some(format!("shard {i} has {images} images of {bytes} bytes, expected at most {} bytes", u32::MAX));
                    }
                }
                _ => return Some(format!("shard {i} is {shard}, expected images of bytes")),
            }
        }
        if labels.dtype != DType::U32 || labels.shape.is_batched() || labels.shape.rank() != 1 {
            return Some(format!("labels are {labels}, expected a list of integers"));
        }
        problem_of_place(order, clock)
    }
}

/// What is wrong with the operands that say which images a step takes.
fn problem_of_place(order: TensorType, clock: TensorType) -> Option<String> {
    if order.dtype != DType::U32 || order.shape.is_batched() || order.shape.rank() != 1 {
        return Some(format!("the order is {order}, expected a list of integers"));
    }
    (clock != TensorType::u32(Shape::fixed(&[2]))).then(|| format!("the clock is {clock}, expected [2] u32"))
}

/// Calls `take(n, index)` for each image of the batch that the order holds.
fn places(order: &[f64], clock: &[f64], batch: usize, mut take: impl FnMut(usize, usize)) {
    let start = clock[1] as usize;
    for n in 0..batch {
        if let Some(&index) = order.get(start + n) {
            take(n, index as usize);
        }
    }
}

impl Rules for GatherBatch {
    fn name(&self) -> &'static str {
        "gather_batch"
    }

    fn arity(&self) -> usize {
        SHARDS + 3
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        if let Some(problem) = self.problem(inputs) {
            let names = ["shard 0", "shard 1", "shard 2", "labels", "order", "clock"];
            let axes = ["(images, H·W·C) u8"; SHARDS].into_iter().chain(["(images) u32", "(count) u32", "(2) u32"]);
            let operands = names.into_iter().zip(inputs).zip(axes).map(|((name, &ty), axes)| (name, ty, axes)).collect();
            return Err(Error::Shape { op: self.name(), problem, operands });
        }
        if Scale::new(self.scale).is_none() {
            return Err(Error::invalid("scale of gather_batch", self.scale, "1e-20 to 1e20"));
        }
        Ok(TensorType::f32(Shape::batched(&[self.height, self.width, self.channels])))
    }

    fn extra_outputs(&self, _inputs: &[TensorType]) -> Vec<TensorType> {
        vec![TensorType::u32(Shape::batched(&[]))]
    }

    // Bytes and places are not learned.
    fn backward(&self, _: &mut Graph, inputs: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![None; inputs.len()])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        let bytes = self.bytes();
        args.output.fill(0.0);
        args.extra[0].fill(0.0);
        places(args.inputs[4].data, args.inputs[5].data, args.batch, |n, image| {
            args.extra[0][n] = args.inputs[3].data.get(image).copied().unwrap_or(0.0);
            let Some(shard) = args.inputs[..SHARDS].get(image / self.images_per_shard).filter(|_| image < self.images) else { return };
            let start = image % self.images_per_shard * bytes;
            if let Some(image) = shard.data.get(start..start + bytes) {
                let y = &mut args.output[n * bytes..][..bytes];
                y.iter_mut().zip(image).for_each(|(y, byte)| *y = byte * self.scale);
            }
        });
    }

    fn cpu(&self, args: &mut Cpu<'_>) -> bool {
        let scale = Scale::new(self.scale).expect("the scale was checked when the graph was built");
        let bytes = self.bytes();
        let shards: Vec<&[u8]> = args.inputs[..SHARDS].iter().map(|shard| shard.u8()).collect();
        let find = |image: usize| {
            let start = image % self.images_per_shard * bytes;
            shards.get(image / self.images_per_shard).filter(|_| image < self.images)?.get(start..start + bytes)
        };
        let [labels, order, clock] = [3, 4, 5].map(|i| args.inputs[i].u32());
        kernels::gather::images(find, scale, bytes, order, clock[1] as usize, args.output);
        kernels::gather::labels(labels, order, clock[1] as usize, bytemuck::cast_slice_mut(args.extra[0]));
        true
    }

    fn launch(&self, inputs: &[TensorType], output: TensorType) -> Launch {
        let scale = Scale::new(self.scale).expect("the scale was checked when the graph was built");
        // A kernel counts in 32 bits, and so do the images that an order can name.
        let count = |value: usize| value.min(u32::MAX as usize) as f64;
        let images = |shard: usize| count(inputs[shard].shape.inner()[0]);
        let mut constants = vec![
            ("BYTES", self.bytes() as f64),
            ("IMAGES", count(self.images)),
            ("PER_SHARD", count(self.images_per_shard)),
            ("COUNT0", images(0)),
            ("COUNT1", images(1)),
            ("COUNT2", images(2)),
            ("LABELS", count(inputs[3].shape.last())),
            ("ORDER", count(inputs[4].shape.last())),
        ];
        constants.extend(scale.constants());
        Launch { kernel: kernel!("gather_batch"), constants, workgroups: Workgroups::over(output, LANES) }
    }

    // One past the end of the images and of the order included: it has to give zeros.
    fn domain(&self, input: usize, inputs: &[TensorType]) -> (f64, f64) {
        match input {
            0..SHARDS => (0.0, 255.0),
            SHARDS => (0.0, 9.0),
            4 => (0.0, self.images as f64),
            _ => (0.0, inputs[4].shape.last() as f64),
        }
    }

    // Of the data set no more than the batch: its bytes, its labels, its places in the order, and the clock; and what is written.
    fn bytes_moved(&self, _inputs: &[TensorType], batch: usize) -> u64 {
        (batch * (5 * self.bytes() + 12) + 8) as u64
    }
}

#[cfg(test)]
mod tests;
