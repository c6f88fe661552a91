//! Memory over many epochs: flat after the first, on the host and on the device.
//!
//! The suite runs a short version; `tests/soak.sh` asks for 20 epochs of 2,000 images (`SHADERNET_SOAK_EPOCHS`,
//! `SHADERNET_SOAK_IMAGES`).

mod common;

use std::ops::ControlFlow;

use shadernet::data::{Dataset, sample};
use shadernet::exec::Executor;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{Checks, GpuExecutor};
use shadernet::models::cifar10_cnn;
use shadernet::train::{Event, TrainConfig, Trainer};

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The sample's training images, repeated until there are enough.
fn images(count: usize) -> Dataset {
    let mut data = sample().train;
    while data.len() < count {
        let (images, labels) = (data.images.clone(), data.labels.clone());
        data.images.extend(images);
        data.labels.extend(labels);
    }
    data.truncate(count);
    data
}

/// Bytes of this process in memory, where the system tells.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096)
}

/// Resident memory is the process's, so while one test watches it the other may do nothing, not even open a GPU.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn soak(exec: Box<dyn Executor>, device_bytes: &dyn Fn() -> Option<u64>) {
    let device = exec.device();
    let data = images(setting("SHADERNET_SOAK_IMAGES", 64));
    let config = TrainConfig { epochs: setting("SHADERNET_SOAK_EPOCHS", 5), batch: 32, ..TrainConfig::default() };
    let mut trainer = Trainer::new(exec, cifar10_cnn(&data.classes), &data, &data, config).unwrap();
    let (mut host, mut gpu) = (Vec::new(), Vec::new());
    trainer
        .fit(&mut |event| {
            if let Event::Epoch { epoch, train, .. } = event {
                host.extend(resident());
                gpu.extend(device_bytes());
                println!("{device}: epoch {epoch}, loss {:.3}, resident {:?}, on the device {:?}", train.loss, host.last(), gpu.last());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(gpu.windows(2).all(|pair| pair[0] == pair[1]), "{device}: bytes on the device {gpu:?}");
    if let (Some(first), Some(last)) = (host.first(), host.last()) {
        // The system's allocator settles within a few MiB; one leaked batch of activations an epoch would be 10.
        assert!(*last <= first + (8 << 20), "{device}: resident bytes {host:?}");
    }
}

#[test]
fn memory_is_flat_after_the_first_epoch_on_the_cpu() {
    let _alone = ALONE.lock();
    soak(Box::new(CpuExecutor::new(Some(2)).unwrap()), &|| None);
}

#[test]
fn memory_is_flat_after_the_first_epoch_on_the_gpu() {
    let _alone = ALONE.lock();
    let Some(gpu) = common::gpu(Checks::Off) else { return };
    let device = gpu.device().clone();
    soak(Box::new(GpuExecutor::new(gpu)), &|| device.generate_allocator_report().map(|report| report.total_allocated_bytes));
}
