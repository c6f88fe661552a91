//! What the integration tests share: devices, noise, comparators that can fail, and the check of one operator.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses a part of it")]

pub mod altered;
pub mod examples;

use std::sync::{Arc, OnceLock};

pub use altered::Altered;
use shadernet::error::{Error, Result};
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{Checks, Cooperative, Gpu, GpuExecutor, GpuOptions, adapters};
use shadernet::exec::selftest::MATRICES_TOLERANCE;
pub use shadernet::exec::selftest::{TOLERANCE, compare, from_bytes, noise, rounding, sample, to_bytes, tolerance};
use shadernet::exec::{Executor, reference};
use shadernet::graph::{Graph, Init, TensorId};
use shadernet::ops::{Op, Style};
use shadernet::plan::{Candidate, Choices, Plan};
use shadernet::shape::{DType, TensorType};

/// A file or folder of the repository: of the one cargo or `CARGO_MANIFEST_DIR` names when the test runs, else of the working
/// directory, so that a test program carried to another machine finds it there.
pub fn in_repository(path: &str) -> std::path::PathBuf {
    std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into())).join(path)
}

/// The adapter under test: the one `SHADERNET_TEST_ADAPTER` names by a part of its name, else the first that can be used.
/// No adapter is a failure, unless `SHADERNET_TESTS=cpu` is set; then the test says so and `None` comes back.
pub fn gpu(checks: Checks) -> Option<Gpu> {
    if std::env::var("SHADERNET_TESTS").is_ok_and(|v| v == "cpu") {
        println!("SHADERNET_TESTS=cpu: the GPU half of this test is left out");
        return None;
    }
    let wanted = std::env::var("SHADERNET_TEST_ADAPTER").unwrap_or_default().to_lowercase();
    let all = adapters();
    let found = all.iter().find(|adapter| adapter.lacks.is_empty() && adapter.name.to_lowercase().contains(&wanted));
    let found = found.unwrap_or_else(|| panic!("no usable adapter matches {wanted:?} (set SHADERNET_TESTS=cpu to test without): {all:?}"));
    let gpu = Gpu::open_with(found.index, GpuOptions { checks, cooperative: cooperative() }).expect("the adapter opens");
    let required = std::env::var("SHADERNET_TEST_COOPERATIVE").is_ok_and(|v| v == "required");
    assert!(!required || !gpu.matrices().is_empty(), "{} has no cooperative matrices", gpu.name());
    Some(gpu)
}

/// Cooperative matrices are tested wherever they are, unless `SHADERNET_TEST_COOPERATIVE=off`. `required` makes it a failure to have none.
fn cooperative() -> Cooperative {
    let off = std::env::var("SHADERNET_TEST_COOPERATIVE").is_ok_and(|v| v == "off");
    if off { Cooperative::Off } else { Cooperative::Auto }
}

/// Whether case number `n` of a large grid is to be run. `SHADERNET_TEST_THIN=4` keeps every fourth: passes over further drivers, of
/// which some take a second to compile a kernel, need not repeat all of it.
pub fn keeps(n: usize) -> bool {
    let thin = std::env::var("SHADERNET_TEST_THIN").ok().and_then(|thin| thin.parse().ok()).unwrap_or(1);
    n.is_multiple_of(std::cmp::max(thin, 1))
}

/// The adapter under test, opened once for a test program with checks off and once with checks on. Tests that may break a
/// device open their own.
pub fn shared_gpus() -> &'static [Gpu] {
    static GPUS: OnceLock<Vec<Gpu>> = OnceLock::new();
    GPUS.get_or_init(|| [Checks::Off, Checks::On].into_iter().filter_map(gpu).collect())
}

/// Both kinds of executor: the CPU's, and the GPU's with guard bands, unchecked with the kernels that suit the adapter, and
/// checked with the portable ones.
pub fn executors() -> Vec<Box<dyn Guarded>> {
    let mut all: Vec<Box<dyn Guarded>> = vec![Box::new(CpuExecutor::new(Some(2)).unwrap())];
    for (gpu, checks) in shared_gpus().iter().zip([Checks::Off, Checks::On]) {
        let style = if checks == Checks::On { Style::Portable } else { gpu.style() };
        all.push(Box::new(GpuExecutor::with_guards(gpu.clone().with_style(style))));
    }
    all
}

/// The CPU's executor, and the GPU's with guard bands for each style of kernels, checked and unchecked: what runs every
/// kernel that an operator has.
pub fn executors_of_every_style() -> Vec<Box<dyn Guarded>> {
    let mut all: Vec<Box<dyn Guarded>> = vec![Box::new(CpuExecutor::new(Some(2)).unwrap())];
    for gpu in shared_gpus() {
        for style in [Style::Portable, Style::Registers] {
            all.push(Box::new(GpuExecutor::with_guards(gpu.clone().with_style(style))));
        }
    }
    all
}

/// An executor whose guard bands can be checked.
pub trait Guarded: Executor {
    fn guards(&mut self) -> Result<()>;
    fn into_executor(self: Box<Self>) -> Box<dyn Executor>;
    fn as_mut_executor(&mut self) -> &mut dyn Executor;
}

impl Guarded for CpuExecutor {
    fn guards(&mut self) -> Result<()> {
        Ok(()) // its kernels work on slices, which end where the tensor does
    }

    fn into_executor(self: Box<Self>) -> Box<dyn Executor> {
        self
    }

    fn as_mut_executor(&mut self) -> &mut dyn Executor {
        self
    }
}

impl Guarded for GpuExecutor {
    fn guards(&mut self) -> Result<()> {
        self.check_guards()
    }

    fn into_executor(self: Box<Self>) -> Box<dyn Executor> {
        self
    }

    fn as_mut_executor(&mut self) -> &mut dyn Executor {
        self
    }
}

/// What was written, its type, what was computed, what was expected, and whether the rest is untouched.
type Written = (String, DType, Vec<f64>, Vec<f64>, bool);

/// Runs one operator, by every kernel it has, on every executor at a batch below the plan's capacity, on drawn operands, and compares with the
/// reference; checks too that nothing beyond the batch and in the guard bands was written. Returns the worst error in units
/// of the tolerance.
pub fn check_op(op: impl Into<Op>, types: &[TensorType], batch: usize) -> Result<f64, String> {
    check_op_on(&mut executors_of_every_style(), op, types, batch)
}

/// Checks the kernels of an operator that are wanted, whatever a style would pick: each as [`check_op`] does, without bounds checks.
/// Returns their names.
pub fn check_kernels(
    op: impl Into<Op>,
    types: &[TensorType],
    batch: usize,
    wanted: impl Fn(&Candidate<'_>) -> bool,
) -> Result<Vec<String>, String> {
    let op = op.into();
    let (mut graph, rules) = (Graph::new(), op.rules());
    if rules.variants(types, rules.infer(types).map_err(|e| e.to_string())?).is_empty() {
        return check_op(op.clone(), types, batch).map(|_| vec![rules.name().to_owned()]);
    }
    let leaves: Vec<TensorId> = types.iter().map(|ty| graph.input("operand", *ty)).collect();
    let root = graph.apply(op.clone(), &leaves).map_err(|e| e.to_string())?;
    let plan = Plan::new(&graph, &[root], batch + ROOM).map_err(|e| e.to_string())?;
    let step = &plan.steps()[0];
    let has = |candidate: &Candidate<'_>| GpuExecutor::new(shared_gpus()[0].clone()).runs(candidate);
    let names: Vec<String> = step.candidates().filter(|c| has(c) && wanted(c)).map(|candidate| candidate.name.to_owned()).collect();
    for (name, gpu) in names.iter().zip(std::iter::repeat(&shared_gpus()[0])) {
        let mut exec = GpuExecutor::with_guards(gpu.clone().with_style(Style::Portable));
        let mut choices = Choices::default();
        choices.set(&step.key, name);
        exec.choose(&choices);
        assert_eq!(exec.pick(step).name, name);
        let mut executors: [Box<dyn Guarded>; 1] = [Box::new(exec)];
        check_op_on(&mut executors, op.clone(), types, batch).map_err(|e| format!("{name}: {e}"))?;
        assert_eq!(executors[0].pick(step).name, name, "it was found wrong when it was loaded");
    }
    Ok(names)
}

/// Images that a checked plan has room for beyond the batch.
const ROOM: usize = 2;

/// [`check_op`] on executors of the caller's, less those whose style of kernel the operator does not have.
pub fn check_op_on(executors: &mut [Box<dyn Guarded>], op: impl Into<Op>, types: &[TensorType], batch: usize) -> Result<f64, String> {
    let op = op.into();
    let rules = op.rules();
    let capacity = batch + ROOM;
    let mut graph = Graph::new();
    let leaf = |(i, ty): (usize, &TensorType)| match rules.updates().contains(&i) {
        true if ty.dtype == DType::F32 => graph.param(&format!("operand {i}"), ty.shape, Init::Fill(0.0)),
        true => graph.state(&format!("operand {i}"), *ty, 0.0),
        false => graph.input(&format!("operand {i}"), *ty),
    };
    let leaves: Vec<TensorId> = types.iter().enumerate().map(leaf).collect();
    let root = graph.apply(op.clone(), &leaves).map_err(|e| e.to_string())?;
    let outputs: Vec<TensorId> = std::iter::once(root).chain(graph.extra_outputs(root)).collect();
    let plan = Arc::new(Plan::new(&graph, &outputs, capacity).map_err(|e| e.to_string())?);

    // Kernels of cooperative matrices round to f16 what they multiply, so all multiply what f16 holds; one whose text was altered is the
    // only kernel of its operator.
    let steps = plan.steps();
    let altered = steps.iter().any(|step| step.launch.kernel.name.contains("_cooperative"));
    let rounds = altered || steps.iter().any(|step| step.candidates().any(|candidate| candidate.matrices.is_some()));
    let drawn = |i: usize| {
        let values = sample(types[i], rules.domain(i, types), batch, 77 + i as u64);
        let exact = rounds && types[i].dtype == DType::F32;
        if exact { values.into_iter().map(|v| f64::from(half::f16::from_f64(v))).collect() } else { values }
    };
    let values: Vec<Vec<f64>> = (0..types.len()).map(drawn).collect();
    let mut judged: reference::Leaves = leaves.iter().copied().zip(values.iter().cloned()).collect();
    let wanted = reference::run(&plan, &mut judged, batch).map_err(|e| e.to_string())?;
    let tolerance = tolerance(&op, types, batch) * if altered { MATRICES_TOLERANCE } else { 1.0 };

    let halves = outputs.iter().map(|&output| graph.ty(output)).chain(types.iter().copied()).any(|ty| ty.dtype == DType::F16);

    let mut worst = 0.0f64;
    let offered = |style| style == Style::Portable || plan.steps().iter().flat_map(|step| &step.variants).any(|v| v.style == style);
    for exec in executors.iter_mut().filter(|exec| offered(exec.style())) {
        let device = format!("{} ({} kernels)", exec.device(), exec.style());
        let by_matrices = plan.steps().iter().any(|step| exec.pick(step).matrices.is_some());
        let slack = if by_matrices { MATRICES_TOLERANCE } else { 1.0 };
        let outcome = || -> Result<Vec<Written>> {
            let id = exec.load(plan.clone())?;
            for (leaf, (value, ty)) in leaves.iter().zip(values.iter().zip(types)) {
                if !value.is_empty() {
                    exec.write(*leaf, &to_bytes(value, ty.dtype))?;
                }
            }
            exec.poison(id)?;
            exec.run(id, &[batch])?;
            exec.guards()?;
            let mut results = Vec::new();
            for &i in rules.updates() {
                let got = from_bytes(&exec.read(id, leaves[i], batch)?, types[i].dtype);
                results.push((format!("operand {i}"), types[i].dtype, got, judged[&leaves[i]].clone(), true));
            }
            for (output, want) in outputs.iter().filter_map(|output| Some((*output, wanted.get(output)?))) {
                let ty = graph.ty(output);
                let all = from_bytes(&exec.read(id, output, capacity)?, ty.dtype);
                let (got, beyond) = all.split_at(ty.shape.len(batch));
                let untouched = !ty.dtype.is_float() || beyond.iter().all(|v| v.is_nan());
                results.push((format!("output {}", output.index() - root.index()), ty.dtype, got.to_vec(), want.clone(), untouched));
            }
            Ok(results)
        };
        let mut outcome = outcome;
        let results = match outcome() {
            // What the adapter says it does not have; that it says so is tested in tests/mixed.rs.
            Err(Error::Unsupported { .. }) if halves && !exec.has_f16() => continue,
            results => results.map_err(|e| format!("{device}: {e}"))?,
        };
        for (what, dtype, got, want, untouched) in results {
            let error = compare(&got, &want, tolerance * slack + rounding(dtype))
                .map_err(|e| format!("{} on {device}: {what}: {e}", rules.name()))?;
            if !untouched {
                return Err(format!("{} on {device}: wrote images beyond the batch", rules.name()));
            }
            worst = worst.max(error);
        }
    }
    Ok(worst)
}
