//! The CIFAR-10 network in candle on the CPU, for `benches/race.sh`: rates of training and inference as one line of JSON.
//!
//!     candle_cifar DATA [--epochs N] [--limit-train N] [--seconds S]      RAYON_NUM_THREADS sets the threads
//!
//! DATA holds data_batch_{1..5}.bin and test_batch.bin. The same network, batch size, optimiser and images as everyone's. Candle's
//! gradient of max pooling shares a window's gradient among its places, so the network learns, but not what the others learn.
use candle_core::{DType, Device, IndexOp, Module, Result, Tensor};
use candle_nn::{AdamW, Conv2d, Linear, Optimizer, ParamsAdamW, VarBuilder, VarMap, conv2d, linear, loss};
use std::{path::Path, time::Instant};

const BATCH: usize = 64;

struct Net {
    convolutions: [Conv2d; 3],
    dense: [Linear; 2],
}

impl Net {
    fn new(vars: &VarBuilder) -> Result<Net> {
        Ok(Net {
            convolutions: [
                conv2d(3, 32, 3, Default::default(), vars.pp("c1"))?,
                conv2d(32, 64, 3, Default::default(), vars.pp("c2"))?,
                conv2d(64, 128, 3, Default::default(), vars.pp("c3"))?,
            ],
            dense: [linear(512, 128, vars.pp("d1"))?, linear(128, 10, vars.pp("d2"))?],
        })
    }

    /// Images of [N, 3, 32, 32] to logits of [N, 10].
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = images.clone();
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?.relu()?.max_pool2d(2)?;
        }
        self.dense[1].forward(&self.dense[0].forward(&x.flatten_from(1)?)?.relu()?)
    }
}

/// Images as [N, 3, 32, 32] from 0 to 1 and labels as [N].
fn load(folder: &Path, names: &[&str]) -> Result<(Tensor, Tensor)> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for name in names {
        for record in std::fs::read(folder.join(name))?.chunks_exact(3073) {
            labels.push(u32::from(record[0]));
            pixels.extend(record[1..].iter().map(|&p| f32::from(p) / 255.0));
        }
    }
    let n = labels.len();
    Ok((Tensor::from_vec(pixels, (n, 3, 32, 32), &Device::Cpu)?, Tensor::from_vec(labels, n, &Device::Cpu)?))
}

/// A permutation of 0 to n, by xorshift.
fn permutation(n: usize, state: &mut u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        order.swap(i, (*state % (i as u64 + 1)) as usize);
    }
    order
}

/// Milliseconds of each call, in ascending order, over about that many seconds, after ten calls that do not count.
fn times(seconds: f64, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let (mut taken, mut start) = (Vec::new(), Instant::now());
    for i in 0.. {
        let now = Instant::now();
        call()?;
        taken.push(now.elapsed().as_secs_f64() * 1e3);
        if i == 9 {
            (taken, start) = (Vec::new(), Instant::now());
        }
        if i > 15 && start.elapsed().as_secs_f64() > seconds {
            break;
        }
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let folder = arguments.get(1).ok_or("usage: candle_cifar DATA [--epochs N] [--limit-train N] [--seconds S]")?;
    let option = |name: &str, usual: f64| -> std::result::Result<f64, std::num::ParseFloatError> {
        let at = arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
        at.map_or(Ok(usual), |text| text.parse())
    };
    let (epochs, limit, seconds) = (option("--epochs", 1.0)?, option("--limit-train", 50_000.0)? as usize, option("--seconds", 2.0)?);

    let names: Vec<String> = (1..=5).map(|i| format!("data_batch_{i}.bin")).collect();
    let (x, y) = load(Path::new(folder), &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let (xt, yt) = load(Path::new(folder), &["test_batch.bin"])?;
    let n = limit.min(x.dim(0)?);

    let parameters = VarMap::new();
    let net = Net::new(&VarBuilder::from_varmap(&parameters, DType::F32, &Device::Cpu))?;
    let adam = ParamsAdamW { lr: 1e-3, eps: 1e-7, weight_decay: 0.0, ..Default::default() };
    let mut adam = AdamW::new(parameters.all_vars(), adam)?;

    let (mut rates, mut losses, mut state) = (Vec::new(), Vec::new(), 0x9E37_79B9_7F4A_7C15);
    for _ in 0..epochs as usize {
        let (order, start, mut sum) = (permutation(n, &mut state), Instant::now(), 0.0);
        for indices in order.chunks(BATCH) {
            let indices = Tensor::new(indices, &Device::Cpu)?;
            let (images, labels) = (x.index_select(&indices, 0)?, y.index_select(&indices, 0)?);
            let loss = loss::cross_entropy(&net.forward(&images)?, &labels)?;
            adam.backward_step(&loss)?;
            sum += f64::from(loss.to_scalar::<f32>()?) * images.dim(0)? as f64;
        }
        rates.push(n as f64 / start.elapsed().as_secs_f64());
        losses.push(sum / n as f64);
    }
    let mut right = 0;
    for at in (0..xt.dim(0)?).step_by(500) {
        let found = net.forward(&xt.i(at..at + 500)?)?.argmax(1)?.to_vec1::<u32>()?;
        right += found.iter().zip(yt.i(at..at + 500)?.to_vec1::<u32>()?).filter(|(a, b)| **a == *b).count();
    }

    let mut inference = String::new();
    for batch in [1, 64, 256] {
        let images = xt.i(0..batch)?.contiguous()?;
        let ms = times(seconds, || net.forward(&images)?.to_vec2::<f32>().map(drop))?;
        let at = |p: f64| ms[((ms.len() - 1) as f64 * p) as usize];
        let comma = if inference.is_empty() { "" } else { ", " };
        inference += &format!(
            "{comma}\"b{batch}\": {{\"p50_ms\": {:.4}, \"p99_ms\": {:.4}, \"images_per_s\": {:.1}}}",
            at(0.5),
            at(0.99),
            batch as f64 / at(0.5) * 1e3
        );
    }
    println!(
        "{{\"engine\": \"candle\", \"train_images_per_s\": {rates:.1?}, \"train_loss\": {losses:.4?}, \"validation_accuracy\": {:.4}, \"inference\": {{{inference}}}}}",
        right as f64 / yt.dim(0)? as f64
    );
    Ok(())
}
