//! shadernet trains and runs convolutional networks with hand-written WGSL kernels on any GPU that wgpu reaches (Vulkan,
//! Metal, DX12), and on the CPU where there is none.
//!
//! ```
//! use shadernet::{data, exec, models, train};
//!
//! # fn main() -> shadernet::Result<()> {
//! let mut images = data::sample(); // 1,000 + 500 images of CIFAR-10; `data::find` gets all of them
//! # images.train.truncate(32);
//! # images.test.truncate(16);
//! let (device, _why) = exec::open(&"cpu".parse().unwrap())?; // "auto" takes the best GPU, else the CPU
//! let model = models::cifar10_cnn(&images.train.classes);
//! let config = train::TrainConfig { epochs: 1, ..Default::default() };
//! let mut trainer = train::Trainer::new(device, model, &images.train, &images.test, config)?;
//! trainer.fit(&mut |_event| std::ops::ControlFlow::Continue(()))?;
//! println!("validation accuracy {:?}", trainer.history().val_accuracy);
//! # Ok(())
//! # }
//! ```
//!
//! # Three promises
//!
//! 1. **Nothing is decided while running.** A graph becomes a plan once: kernels chosen, pipelines made, memory placed, bytes
//!    known. A training step replays the plan: no allocation, no compilation, no upload, no read-back.
//! 2. **Same seed, same bits.** On one device and driver, with one plan and the same kernels picked for it, two runs end in identical weights, and so do an interrupted
//!    and resumed run and an uninterrupted one. No float atomics, one fixed order for every sum, random numbers by counter.
//! 3. **Every kernel has a twin that can be believed.** Beside its WGSL and its CPU kernel each operator carries a plain
//!    reference in f64, and the references are held by finite differences and by numbers computed elsewhere.
//!
//! # One direction
//!
//! ```text
//! nn, models ──► graph ──► autodiff ──► plan ──► exec ──► { gpu: WGSL | cpu: gemm + rayon }    (judged by ops' references)
//!   (layers)    (shapes)   (gradients)  (fuse,   (replay)
//!                                     place)
//! ```
//!
//! A module uses what stands to its left, never what stands to its right; [`ops`] is the vocabulary all share; [`data`],
//! [`files`], [`mod@train`], [`predict`], [`mod@bench`] and `serve` stand on top and use the public interface.
//!
//! | module | decides |
//! |---|---|
//! | [`shape`] | extents and element types; the batch is the one extent known only at run time |
//! | [`graph`] | what is to be computed; append-only, so insertion order is execution order |
//! | [`ops`] | what an operator is ([`ops::Rules`]): shape rule, gradient, reference, CPU kernel, launch |
//! | `kernels`, `shaders/` | the kernels themselves, on the CPU and in WGSL |
//! | [`autodiff`] | gradients, as nodes appended to the graph |
//! | [`mod@plan`] | order, kernels, memory: data that can be printed, checked and run |
//! | [`exec`] | running a plan: on the GPU, on the CPU, by the references; the self-test; the tuner; profiles |
//! | [`nn`], [`models`] | layers and their initial values; networks that come with the crate |
//! | [`data`], [`mod@train`], [`predict`], [`files`] | images, the training loop, prediction, what is on disk |
//! | [`mod@bench`] | what is measured of all that |
//! | `serve` | models behind HTTP and gRPC: protocols, batching, admission (with the feature `serve`) |
//!
//! # Invariants
//!
//! - [`graph`] and [`ops`] do not mention wgpu; only `exec::gpu` does.
//! - A [`graph::Graph`] is valid once built: every shape is known, every mistake in a model has been reported.
//! - No pass and no executor matches on an operator: they know it by [`ops::Rules`]. A new operator is a file in `ops`, its
//!   kernels, and a word in the list of operators. The one exception is `plan/fuse/`, which puts chains of operators together.
//! - A fused plan gives the plain plan's numbers: to the last bits of f64 by the references, within the kernels' tolerances elsewhere.
//! - Tensors that one kernel takes by the dozen lie in one buffer, a pack ([`ops::Rules::packs`], [`plan::Pack`]); it is a matter of the plan
//!   and of executors with bindings alone, and where tensors cannot lie so the operator's parts run, with the same bits.
//! - Two live tensors never share a slot, and no step reads and writes one slot except through [`ops::Rules::updates`]
//!   ([`plan::Plan::verify`]).
//! - A planned reference run equals an unplanned one bit for bit; CPU and GPU agree with it within stated tolerances.
//! - Every step has a portable kernel; it may have variants, for adapters of another nature ([`ops::Style`]), of other tiles, that hand
//!   loads from invocation to invocation ([`ops::SPREAD`]), which only adapters with subgroups run, or that
//!   multiply by cooperative matrices ([`ops::Matrices`]), which are for tensors of f16 alone and run only once proved. One place
//!   in an executor picks ([`exec::Executor::pick`]), by a table that [`exec::tune`] may have filled; it picks when a plan is loaded, for
//!   good. The self-test judges what is picked, a checkpoint holds it, and the tests run all of them everywhere.
//! - Caches are no inputs: what they hold is checked, and what they lack or spoil is found out again. Without being asked for none is
//!   written. They use [`files`]' atomic writes, the one thing in which `exec` looks to the right.
//! - Every file in `shaders/` is valid WGSL as it stands, and naga translates it to SPIR-V, MSL and HLSL. A kernel that loads or stores
//!   f16 is such a file with `f16` in its aliases (`ops/stored.rs`); it sums in f32 all the same.
//! - Bindings follow the operands: inputs from 0, the outputs last, group 0 only, at most 8; no struct is mirrored between Rust
//!   and WGSL. What the plan fixes is an `override`; the batch is the one `var<immediate>`.
//! - A user's mistake, a bad file and a failing machine are an [`Error`] with the numbers that disagree; a panic is a broken
//!   invariant of this crate.
//!
//! # Features
//!
//! `cli` (default) is what the `shadernet` program and the example trainer need, and brings `data` (download, archives, PNG and
//! JPEG) and `plot`. `serve` (default) is the server, as a command of the program and as the module `serve`; it alone brings an asynchronous
//! runtime; `otel` adds its traces. An embedder takes the crate with `default-features = false`.

pub mod autodiff;
pub mod bench;
pub mod data;
pub mod error;
pub mod exec;
pub mod files;
pub mod graph;
mod kernels;
pub mod models;
pub mod nn;
pub mod ops;
pub mod plan;
#[cfg(feature = "plot")]
pub mod plot;
pub mod predict;
pub mod rng;
#[cfg(feature = "serve")]
pub mod serve;
pub mod shape;
pub mod train;

pub use error::{Error, Result};
