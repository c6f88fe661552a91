//! Trains the CIFAR-10 convolutional network with the library's public interface.
//!
//!     cargo run --release --example train_cifar10
//!
//! It takes the best hardware GPU, else the CPU, and the official images if it can have them: from `--data`, from the user's
//! cache folder, or by download; with no network, a small sample that comes with the crate.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Parser;
use shadernet::data::{self, Origin, SAMPLE_ACCURACY};
use shadernet::exec::{self, gpu::DeviceChoice};
use shadernet::models::cifar10_cnn;
use shadernet::train::{Event, TrainConfig, Trainer};

/// Train the CIFAR-10 CNN and watch it learn.
#[derive(Parser)]
struct Args {
    /// A folder with data_batch_{1..5}.bin and test_batch.bin, a cifar-10-binary.tar.gz, or a folder of class folders.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Times to go over the training images.
    #[arg(long, default_value_t = 10)]
    epochs: usize,
    /// auto, cpu, gpu, or an adapter's index or part of its name.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Determines the initial weights and the order of the images.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the curves as JSON, as Keras names them.
    #[arg(long)]
    history: Option<PathBuf>,
}

fn main() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    if let Err(error) = train(Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn train(args: Args) -> shadernet::Result<()> {
    let images = data::find(args.data.as_deref(), &mut |done, total| {
        eprint!("\rdownloading CIFAR-10: {} of {} MB", done >> 20, total.unwrap_or(0) >> 20);
    })?;
    println!("data    {}: {} training and {} test images", images.origin, images.train.len(), images.test.len());
    if images.origin == Origin::Sample {
        println!("        A sample is little to learn from: expect {SAMPLE_ACCURACY} after 10 epochs, against about 70 % with all images.");
    }
    let (device, why) = exec::open(&args.device)?;
    println!("device  {} ({why})", device.device());

    let model = cifar10_cnn(&images.train.classes);
    let config = TrainConfig { epochs: args.epochs, seed: args.seed, ..TrainConfig::default() };
    let mut trainer = Trainer::new(device, model, &images.train, &images.test, config)?;

    trainer.fit(&mut |event| {
        if let Event::Epoch { epoch, train, test, seconds, .. } = event {
            println!(
                "epoch {epoch:>2}  loss {:.4}  accuracy {:5.2} %  |  validation loss {:.4}  accuracy {:5.2} %  |  {seconds:.2} s, {:.0} images/s",
                train.loss,
                100.0 * train.accuracy,
                test.loss,
                100.0 * test.accuracy,
                train.images as f64 / seconds,
            );
        }
        ControlFlow::Continue(())
    })?;

    match args.history {
        Some(path) => trainer.history().save(&path),
        None => Ok(()),
    }
}
