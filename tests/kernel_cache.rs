//! The file in which compiled kernels are kept: written only where asked for, and never trusted.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::gpu;
use shadernet::exec::gpu::{Checks, GpuExecutor};
use shadernet::exec::{Executor, read_f32, write_f32};
use shadernet::graph::Graph;
use shadernet::plan::Plan;
use shadernet::shape::{Shape, TensorType};

/// Computes something on a freshly opened device that keeps its kernels in `folder`; `None` without a GPU.
fn run(folder: Option<&Path>) -> Option<Vec<f32>> {
    let gpu = gpu(Checks::Off)?;
    let gpu = match folder {
        Some(folder) => gpu.with_cache(folder),
        None => gpu,
    };
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[300])));
    let y = graph.softmax(x).unwrap();
    let plan = Arc::new(Plan::new(&graph, &[y], 2).unwrap());
    let mut exec = GpuExecutor::new(gpu);
    let id = exec.load(plan).unwrap();
    let values: Vec<f32> = (0..600).map(|i| (i % 17) as f32).collect();
    write_f32(&mut exec, x, &values).unwrap();
    exec.run(id, &[2]).unwrap();
    Some(read_f32(&mut exec, id, y, 2).unwrap())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map_or(Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
}

#[test]
fn kernels_are_kept_where_asked_for_and_a_damaged_file_is_replaced() {
    let Some(want) = run(None) else { return };
    let folder = tempfile::tempdir().unwrap();
    let kernels = folder.path().join("not/there/yet");
    assert_eq!(run(Some(&kernels)).as_ref(), Some(&want));
    let kept = files(&kernels);
    if !gpu(Checks::Off).unwrap().device().features().contains(wgpu::Features::PIPELINE_CACHE) {
        assert!(kept.is_empty(), "a driver without such caches leaves nothing: {kept:?}");
        return;
    }
    let [file] = &kept[..] else { panic!("one file: {kept:?}") };
    let whole = fs::read(file).unwrap();
    assert_eq!(run(Some(&kernels)).as_ref(), Some(&want));
    assert_eq!(files(&kernels), kept);
    // SwiftShader puts another header of 32 bytes before what it was given; other drivers give back what they got.
    let grown = fs::read(file).unwrap().len() - whole.len();
    assert!(grown == 0 || (grown == 32 && gpu(Checks::Off).unwrap().name().contains("SwiftShader")), "{grown} bytes more of the same");

    let flipped: Vec<u8> = whole.iter().enumerate().map(|(i, &byte)| if i == whole.len() / 2 { !byte } else { byte }).collect();
    let damaged =
        [Vec::new(), whole[..whole.len() / 2].to_vec(), whole[..whole.len() - 1].to_vec(), flipped, b"another program's".to_vec()];
    for bytes in damaged {
        fs::write(file, &bytes).unwrap();
        assert_eq!(run(Some(&kernels)).as_ref(), Some(&want));
        let now = fs::read(file).unwrap();
        assert!(now != bytes && now.len() == whole.len(), "{} bytes are left after a file of {}", now.len(), bytes.len());
    }
}

#[test]
fn a_folder_that_cannot_be_written_costs_no_more_than_a_warning() {
    let Some(want) = run(None) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    assert_eq!(run(Some(&file)), Some(want.clone()));
    assert_eq!(run(Some(&file.join("below"))), Some(want));
    assert_eq!(fs::read(&file).unwrap(), b"in the way");
    assert_eq!(files(folder.path()), [file]);
}
