//! The start-up self-test: sound devices pass, and whatever a device or a kernel can get wrong is named.

mod common;

use std::sync::Arc;

use common::gpu;
use shadernet::autodiff::gradients;
use shadernet::error::{Error, Result};
use shadernet::exec::Executor;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{Checks, GpuExecutor};
use shadernet::exec::selftest::{MAX_ELEMENTS, Verdict, compare, is_moderate, selftest};
use shadernet::graph::{Graph, Init, TensorId};
use shadernet::ops::activation::Function;
use shadernet::ops::window::{Padding, Window};
use shadernet::ops::*;
use shadernet::plan::Plan;
use shadernet::shape::{DType, Shape, TensorType};

fn on_cpu(plans: &[&Plan]) -> Vec<Verdict> {
    selftest(&mut || Ok(Box::new(CpuExecutor::new(Some(2))?)), plans, 3).unwrap()
}

/// `None` where the tests run without a GPU.
fn on_gpu(plans: &[&Plan], checks: Checks) -> Option<Vec<Verdict>> {
    let gpu = gpu(checks)?;
    Some(selftest(&mut || Ok(Box::new(GpuExecutor::new(gpu.clone()))), plans, 3).unwrap())
}

/// A dense network of every activation, its loss a plain sum, with its gradients.
fn network() -> Plan {
    let mut graph = Graph::new();
    let mut x = graph.input("x", TensorType::f32(Shape::batched(&[6])));
    let functions = [Function::Relu, Function::LeakyRelu { slope: 0.3 }, Function::Sigmoid, Function::Tanh, Function::Gelu];
    for (i, function) in functions.into_iter().enumerate() {
        graph.scope(format!("dense_{i}"));
        let w = graph.param("kernel", Shape::fixed(&[6, 6]), Init::GlorotUniform { fan_in: 6, fan_out: 6 });
        let b = graph.param("bias", Shape::fixed(&[6]), Init::Fill(0.0));
        x = graph.apply(Matmul::default(), &[x, w]).unwrap();
        x = graph.bias_add(x, b).unwrap();
        x = graph.apply(Activation { function }, &[x]).unwrap();
    }
    graph.scope("loss");
    let loss = graph.sum(x, &[0, 1]).unwrap();
    let params = graph.params();
    let mut roots = gradients(&mut graph, loss, &params).unwrap();
    roots.push(loss);
    Plan::new(&graph, &roots, 64).unwrap()
}

#[test]
fn sound_kernels_pass_on_cpu_and_gpu() {
    let plan = network();
    let all = [Some(on_cpu(&[&plan])), on_gpu(&[&plan], Checks::Off), on_gpu(&[&plan], Checks::On)];
    for verdict in all.iter().flatten().flatten() {
        assert_eq!(verdict.problem, None);
        assert!(verdict.worst <= 1.0, "{verdict:?}");
    }
    assert!(on_cpu(&[&plan]).iter().any(|verdict| verdict.kernel == "matmul" && verdict.step == "dense_0: matmul"));
}

/// A training step with everything that is not a float or not an output: bytes, labels, counters, Adam in place.
fn training_step() -> Plan {
    let mut graph = Graph::new();
    let shard = graph.input("shard", TensorType::u8(Shape::fixed(&[12, 6 * 6 * 3])));
    let labels = graph.input("labels", TensorType::u32(Shape::fixed(&[12])));
    let order = graph.input("order", TensorType::u32(Shape::fixed(&[12])));
    let clock = graph.state("clock", TensorType::u32(Shape::fixed(&[2])), 0.0);
    let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[4])), 0.0);
    let log = graph.state("log", TensorType::f32(Shape::fixed(&[5, 2])), 0.0);
    let [images, labels] = graph.gather_batch(&[shard], [6, 6, 3], 1.0 / 255.0, labels, order, clock).unwrap();
    let window = Window { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], padding: Padding::Valid };
    let pooled = graph.max_pool2d(images, window).unwrap();
    let flat = graph.reshape(pooled, &[27]).unwrap();
    let w = graph.param("kernel", Shape::fixed(&[27, 10]), Init::GlorotUniform { fan_in: 27, fan_out: 10 });
    let logits = graph.matmul(flat, w).unwrap();
    let loss = graph.softmax_cross_entropy(logits, labels).unwrap();
    let correct = graph.correct(logits, labels).unwrap();
    let grad = gradients(&mut graph, loss, &[w]).unwrap()[0];
    let moments = graph.state("moments", Adam::moments(graph.ty(w)), 0.0);
    let adam = Adam::default();
    let roots = [graph.adam(adam, w, moments, grad, rate).unwrap(), graph.tick(adam.tick(), [loss, correct], clock, log, rate).unwrap()];
    Plan::new(&graph, &roots, 4).unwrap()
}

#[test]
fn a_whole_training_step_passes_bytes_counters_and_updates_included() {
    let plan = training_step();
    let cases = on_cpu(&[&plan]);
    for verdict in cases.iter().chain(&on_gpu(&[&plan], Checks::Off).unwrap_or_default()) {
        assert_eq!(verdict.problem, None);
    }
    for kernel in ["gather_batch", "adam", "tick"] {
        assert!(cases.iter().any(|verdict| verdict.kernel == kernel), "{kernel} is in {cases:?}");
    }
}

#[test]
fn each_distinct_step_runs_once_over_all_plans() {
    let plan = network();
    let once = on_cpu(&[&plan]).len();
    assert_eq!(on_cpu(&[&plan, &plan]).len(), once);
    assert!(once < plan.steps().len(), "five equal matmuls are one case");
}

/// `y = 2x` of floats, integers or bytes, or `x *= 2` in place; correct or broken by its text.
#[derive(Clone, Debug)]
struct Double {
    source: &'static str,
    in_place: bool,
}

impl Rules for Double {
    fn name(&self) -> &'static str {
        "double"
    }

    fn arity(&self) -> usize {
        1
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        Ok(inputs[0])
    }

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, _: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![None])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        match args.updated.first_mut() {
            Some(x) => x.iter_mut().for_each(|x| *x *= 2.0),
            None => args.output.iter_mut().zip(args.inputs[0].data).for_each(|(y, x)| *y = 2.0 * x),
        }
    }

    fn launch(&self, inputs: &[TensorType], _: TensorType) -> Launch {
        let constants = vec![("LEN", inputs[0].shape.inner_len() as f64)];
        let workgroups = Workgroups::over(inputs[0], 64);
        Launch { kernel: Kernel { name: "double_by_hand", source: self.source }, constants, workgroups }
    }

    fn updates(&self) -> &[usize] {
        if self.in_place { &[0] } else { &[] }
    }

    fn domain(&self, _: usize, inputs: &[TensorType]) -> (f64, f64) {
        if inputs[0].dtype == DType::F32 { (0.5, 1.0) } else { (1.0, 100.0) }
    }
}

/// A kernel over the elements of a batched tensor, whose body is `$body`.
macro_rules! kernel_text {
    ($scalar:literal, $body:literal) => {
        concat!(
            "override LEN: u32;\n",
            "@group(0) @binding(0) var<storage, read> x: array<",
            $scalar,
            ">;\n@group(0) @binding(1) var<storage, read_write> y: array<",
            $scalar,
            ">;\nstruct Call { batch: u32 }\nvar<immediate> call: Call;\n",
            "@compute @workgroup_size(64)\nfn main(@builtin(global_invocation_id) id: vec3<u32>) {\n",
            "    let i = id.x;\n    let n = LEN * call.batch;\n    ",
            $body,
            "\n}\n"
        )
    };
}

/// The problem that the GPU finds with a kernel; `None` where the tests run without one.
fn problem(source: &'static str, ty: TensorType, in_place: bool) -> Option<Option<String>> {
    let mut graph = Graph::new();
    let x = if in_place { graph.state("x", ty, 0.0) } else { graph.input("x", ty) };
    graph.scope("mine");
    let custom: Arc<dyn Rules> = Arc::new(Double { source, in_place });
    let y = graph.apply(custom, &[x]).unwrap();
    let plan = Plan::new(&graph, &[y], 4).unwrap();
    let verdict = on_gpu(&[&plan], Checks::On)?.remove(0);
    assert_eq!(verdict.kernel, "double_by_hand");
    assert_eq!(verdict.worst > 1.0 || verdict.problem.as_ref().is_some_and(|p| p.contains("beyond")), verdict.problem.is_some());
    Some(verdict.problem)
}

fn floats() -> TensorType {
    TensorType::f32(Shape::batched(&[50]))
}

#[test]
fn every_kind_of_broken_kernel_is_named() {
    let right = kernel_text!("f32", "if i < n { y[i] = 2.0 * x[i]; }");
    let Some(sound) = problem(right, floats(), false) else { return };
    assert_eq!(sound, None);
    for (fault, source, words) in [
        ("writes nothing", kernel_text!("f32", "if i < n { y[i] = y[i] + 0.0 * x[i]; }"), "element 0 is NaN"),
        ("wrong scale", kernel_text!("f32", "if i < n { y[i] = 2.0001 * x[i]; }"), "expected"),
        ("last element wrong", kernel_text!("f32", "if i < n { y[i] = select(2.0, 3.0, i + 1u == n) * x[i]; }"), "element 149 is"),
        ("last element left out", kernel_text!("f32", "if i + 1u < n { y[i] = 2.0 * x[i]; }"), "element 149 is NaN"),
        ("a neighbour's operand", kernel_text!("f32", "if i < n { y[i] = 2.0 * x[i ^ 1u]; }"), "element"),
        ("past the batch", kernel_text!("f32", "if i < n + 1u { y[i] = 2.0 * x[i]; }"), "beyond the batch"),
        ("does not compile", kernel_text!("f32", "if i < n { y[i] = 2u * x[i]; }"), "refused"),
        ("other bindings", "@compute @workgroup_size(64) fn main() {}", "refused"),
    ] {
        let found = problem(source, floats(), false).unwrap().unwrap_or_else(|| panic!("{fault}: not found"));
        for part in ["mine: double", "kernel double_by_hand", "[N, 50]", words] {
            assert!(found.contains(part), "{fault}: {part:?} is not in {found:?}");
        }
    }
}

#[test]
fn integers_bytes_and_updates_are_judged_too() {
    let ints = TensorType::u32(Shape::batched(&[50]));
    let right = kernel_text!("u32", "if i < n { y[i] = 2u * x[i]; }");
    let Some(sound) = problem(right, ints, false) else { return };
    assert_eq!(sound, None);
    assert!(problem(kernel_text!("u32", "if i > n { y[i] = x[i]; }"), ints, false).unwrap().is_some());
    assert!(problem(kernel_text!("u32", "if i < n { y[i] = 2u * x[i] + u32(i == 7u); }"), ints, false).unwrap().is_some());

    let bytes = TensorType::u8(Shape::batched(&[48]));
    assert_eq!(problem(kernel_text!("u32", "if 4u * i < n { y[i] = 2u * x[i]; }"), bytes, false).unwrap(), None);
    let nothing = problem(kernel_text!("u32", "if i > n { y[i] = x[i]; }"), bytes, false).unwrap().unwrap();
    assert!(nothing.contains(" is 255, expected"), "{nothing}");

    let in_place = "override LEN: u32;\n@group(0) @binding(0) var<storage, read_write> x: array<f32>;\nstruct Call { batch: u32 }\nvar<immediate> call: Call;\n\
        @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) \
        { if id.x < LEN * call.batch { x[id.x] = 2.0 * x[id.x]; } }";
    assert_eq!(problem(in_place, floats(), true).unwrap(), None);
    let idle = "override LEN: u32;\n@group(0) @binding(0) var<storage, read_write> x: array<f32>;\nstruct Call { batch: u32 }\nvar<immediate> call: Call;\n\
        @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) \
        { if id.x > LEN * call.batch { x[id.x] = 0.0; } }";
    assert!(problem(idle, floats(), true).unwrap().unwrap().contains("operand 0: element"));
}

#[test]
fn a_step_too_large_to_judge_is_refused_with_its_size() {
    let mut graph = Graph::new();
    let x = graph.input("images", TensorType::f32(Shape::fixed(&[MAX_ELEMENTS])));
    let y = graph.relu(x).unwrap();
    let plan = Plan::new(&graph, &[y], 1).unwrap();
    let mut make = || -> Result<Box<dyn Executor>> { Ok(Box::new(CpuExecutor::new(Some(1))?)) };
    let error = selftest(&mut make, &[&plan], 1).unwrap_err();
    assert!(matches!(&error, Error::Invalid { found, .. } if *found == (2 * MAX_ELEMENTS).to_string()), "{error}");
    assert!(selftest(&mut make, &[&plan], 0).is_err());
    assert!(!is_moderate(&[&plan], 1));
}

#[test]
fn a_self_test_is_moderate_while_references_take_seconds() {
    let plan = |width| {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorType::f32(Shape::batched(&[width])));
        let w = graph.input("w", TensorType::f32(Shape::fixed(&[width, width])));
        let y = graph.matmul(x, w).unwrap();
        Plan::new(&graph, &[y], 1).unwrap()
    };
    // 2 · 3,000² operations an image: 1.2 billion of 67, 2.1 of 117.
    let [small, large] = [plan(100), plan(3000)];
    assert!(is_moderate(&[&small, &large], 67));
    assert!(!is_moderate(&[&small, &large], 117));
    assert!(is_moderate(&[&small], 117));
}

#[test]
fn the_comparison_fails_on_nan_lengths_and_distance() {
    assert!(compare(&[1.0, 2.0], &[1.0, 2.0], 1e-6).is_ok_and(|worst| worst == 0.0));
    assert!(compare(&[1.0], &[1.0 + 5e-7], 1e-6).is_ok_and(|worst| (0.4..0.6).contains(&worst)));
    assert!(compare(&[f64::NAN], &[0.0], 1e-6).is_err());
    assert!(compare(&[0.0], &[f64::NAN], 1e-6).is_err());
    assert!(compare(&[f64::NAN], &[f64::NAN], 1e-6).is_err());
    assert!(compare(&[f64::INFINITY], &[0.0], 1e-6).is_err());
    assert!(compare(&[1.0], &[1.0, 1.0], 1e-6).is_err());
    assert!(compare(&[1.0, 1.0, 1.00001], &[1.0; 3], 1e-6).unwrap_err().contains("element 2"));
}
