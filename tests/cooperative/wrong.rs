//! An operator with a kernel that claims to multiply by cooperative matrices and may be wrong: what is proved, tried and kept of it.

use super::*;

/// `y = 2x`, with a variant that claims to multiply by cooperative matrices and may be wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Double {
    matrices: Matrices,
    wrong: bool,
}

macro_rules! double {
    ($factor:literal) => {
        concat!(
            "@group(0) @binding(0) var<storage, read> x: array<f32>;
             @group(0) @binding(1) var<storage, read_write> y: array<f32>;
             struct Call { batch: u32 }
             var<immediate> call: Call;
             @compute @workgroup_size(64)
             fn main(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
                 let i = g.x * 64u + lane;
                 if i < call.batch * 100u { y[i] = ",
            $factor,
            " * x[i]; }
             }"
        )
    };
}

const PLAIN: Kernel = Kernel { name: "double", source: double!("2.0") };
const RIGHT: Kernel = Kernel { name: "double_right", source: double!("2.0") };
const WRONG: Kernel = Kernel { name: "double_wrong", source: double!("2.001") };

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
        args.output.iter_mut().zip(args.inputs[0].data).for_each(|(y, x)| *y = 2.0 * x);
    }

    fn launch(&self, inputs: &[TensorType], _: TensorType) -> Launch {
        Launch { kernel: PLAIN, constants: Vec::new(), workgroups: Workgroups::over(inputs[0], 64) }
    }

    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        let kernel = if self.wrong { WRONG } else { RIGHT };
        let launch = Launch { kernel, ..self.launch(inputs, output) };
        vec![Variant { name: kernel.name.to_owned(), style: Style::Portable, matrices: Some(self.matrices), launch }]
    }
}

fn doubling(matrices: Matrices, wrong: bool) -> (Arc<Plan>, TensorId, TensorId, Choices) {
    let mut graph = Graph::new();
    let x = graph.input("x", batched(&[100]));
    let y = graph.apply(Op::Custom(Arc::new(Double { matrices, wrong })), &[x]).unwrap();
    let plan = Arc::new(Plan::new(&graph, &[y], 4).unwrap());
    let mut choices = Choices::default();
    choices.set(&plan.steps()[0].key, if wrong { "double_wrong" } else { "double_right" });
    (plan, x, y, choices)
}

#[test]
fn a_kernel_that_is_found_wrong_is_not_run_and_one_that_is_right_is() {
    listen();
    let Some(gpu) = gpu() else { return };
    for (wrong, picked) in [(false, "double_right"), (true, "double")] {
        let (plan, x, y, choices) = doubling(gpu.matrices()[0], wrong);
        let mut exec = executor(&gpu, &choices);
        let id = exec.load(plan.clone()).unwrap();
        assert_eq!(exec.pick(&plan.steps()[0]).name, picked);
        assert_eq!(exec.chosen(&plan).get(&plan.steps()[0].key), Some(picked));
        exec.write(x, &to_bytes(&[3.0; 400], DType::F32)).unwrap();
        exec.run(id, &[4]).unwrap();
        assert_eq!(from_bytes(&exec.read(id, y, 4).unwrap(), DType::F32), [6.0; 400]);
        // The self-test judges what was chosen, not what took its place.
        let verdict = selftest(&mut || Ok(executor(&gpu, &choices)), &[&plan], 3).unwrap().remove(0);
        assert_eq!(verdict.problem.is_some(), wrong, "{verdict:?}");
        // And the tuner leaves it out, though it takes no longer.
        let mut exec = GpuExecutor::new(gpu.clone()).with_tuning(Tuning { tune: Tune::Full, ..Tuning::default() });
        exec.load(plan.clone()).unwrap();
        assert!(!wrong || exec.pick(&plan.steps()[0]).name == "double");
    }
    assert!(warned(&["cooperative matrices are not used for double", "element", "expected"]));
}

#[test]
fn one_for_matrices_that_the_device_has_not_is_never_tried() {
    let Some(gpu) = shared_gpus().first() else { return };
    let matrices = Matrices { edge: 16, subgroup: 5 };
    let (plan, _, _, choices) = doubling(matrices, true);
    let mut exec = GpuExecutor::new(gpu.clone()).with_tuning(Tuning { tune: Tune::Full, ..Tuning::default() });
    exec.choose(&choices);
    exec.load(plan.clone()).unwrap();
    assert_eq!(exec.pick(&plan.steps()[0]).name, "double");
}

#[test]
fn the_tuner_times_them_beside_the_others_and_keeps_what_it_found() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [(op, types), ..] = blocks(Conv2d::default(), [10, 10, 16], true, [3, 3], 32);
    let mut graph = Graph::new();
    let leaves: Vec<TensorId> = types.iter().map(|ty| graph.input("operand", *ty)).collect();
    let root = graph.apply(op, &leaves).unwrap();
    let plan = Plan::new(&graph, &[root], 4).unwrap();
    let time = Duration::from_secs(100);
    let tuning = Tuning { tune: Tune::Full, folder: Some(folder.path().into()), time, ..Tuning::default() };
    let mut exec = GpuExecutor::new(gpu.clone()).with_tuning(tuning.clone());
    exec.settle(&plan).unwrap();
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&file).unwrap();
    println!("{text}");
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    let step = &plan.steps()[0];
    let timed: Vec<&String> = kept["steps"][format!("{}, cooperative", step.key)]["us"].as_object().unwrap().keys().collect();
    let all: Vec<&str> = step.candidates().filter(|c| exec.runs(c)).map(|candidate| candidate.name).collect();
    assert_eq!(timed.len(), all.len(), "{timed:?} of {all:?}");
    let by_matrices = all.iter().find(|name| name.contains("_cooperative")).unwrap();

    // Where one was found the fastest it is taken, proved anew, and where the device was opened without them it is not.
    let picked = exec.pick(step).name;
    std::fs::write(&file, text.replace(&format!("\"kernel\": \"{picked}\""), &format!("\"kernel\": \"{by_matrices}\""))).unwrap();
    let load = |gpu: &Gpu| {
        let mut exec = GpuExecutor::new(gpu.clone()).with_tuning(Tuning { time: Duration::ZERO, ..tuning.clone() });
        exec.load(Arc::new(plan.clone())).unwrap();
        exec.pick(step).name.to_owned()
    };
    assert_eq!(load(&gpu), *by_matrices);
    assert!(!load(&without().unwrap()).contains("_cooperative"));
    assert_eq!(std::fs::read_to_string(&file).unwrap().matches(", cooperative\"").count(), 1, "what was found with them stays");
}
