//! The tuner: what may win, what is kept of it, and what it must never do.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::shared_gpus;
use shadernet::error::Result;
use shadernet::exec::gpu::{Checks, Gpu, GpuExecutor};
use shadernet::exec::tune::{Tune, Tuning};
use shadernet::exec::{Executor, read_f32, write_f32};
use shadernet::graph::{Graph, TensorId};
use shadernet::ops::*;
use shadernet::plan::{Choices, Plan};
use shadernet::shape::{Shape, TensorType};

/// `y = 2x`, by a portable kernel and by variants: the style's own, a wrong one, one that is refused, and one that is fast.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Double;

/// What one invocation does, `WORK` times over: the more, the slower.
macro_rules! double {
    ($result:literal, $work:literal) => {
        concat!(
            "@group(0) @binding(0) var<storage, read> x: array<f32>;
             @group(0) @binding(1) var<storage, read_write> y: array<f32>;
             struct Call { batch: u32 }
             var<immediate> call: Call;
             @compute @workgroup_size(64)
             fn main(@builtin(workgroup_id) g: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
                 let i = (g.y * n.x + g.x) * 64u + lane;
                 if i >= call.batch * 1000u { return; }
                 var waste = 0.0;
                 for (var k = 0u; k < ",
            $work,
            "; k += 1u) { waste = sin(waste + x[(i + k) % (call.batch * 1000u)]); }
                 y[i] = ",
            $result,
            " + select(0.0, 1.0, waste > 5.0);
             }"
        )
    };
}

const PORTABLE: Kernel = Kernel { name: "double", source: double!("2.0 * x[i]", "300u") };
const OWN: Kernel = Kernel { name: "double_registers", source: double!("2.0 * x[i]", "200u") };
const WRONG: Kernel = Kernel { name: "double_wrong", source: double!("2.001 * x[i]", "0u") };
const REFUSED: Kernel = Kernel { name: "double_refused", source: "fn main( {" };
const FAST: Kernel = Kernel { name: "double_fast", source: double!("x[i] + x[i]", "0u") };

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

    fn backward(&self, _: &mut Graph, _: &[TensorId], _: TensorId, grad: TensorId) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![Some(grad)])
    }

    fn reference(&self, args: &mut Reference<'_>) {
        args.output.iter_mut().zip(args.inputs[0].data).for_each(|(y, x)| *y = 2.0 * x);
    }

    fn launch(&self, _: &[TensorType], output: TensorType) -> Launch {
        Launch { kernel: PORTABLE, constants: Vec::new(), workgroups: Workgroups::over(output, 64) }
    }

    fn variants(&self, inputs: &[TensorType], output: TensorType) -> Vec<Variant> {
        [(OWN, Style::Registers), (WRONG, Style::Portable), (REFUSED, Style::Portable), (FAST, Style::Portable)]
            .map(|(kernel, style)| Variant {
                name: kernel.name.to_owned(),
                style,
                matrices: None,
                launch: Launch { kernel, ..self.launch(inputs, output) },
            })
            .to_vec()
    }
}

const CAPACITY: usize = 64;

fn plan() -> (TensorId, TensorId, Arc<Plan>) {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32(Shape::batched(&[1000])));
    let y = graph.apply(Op::Custom(Arc::new(Double)), &[x]).unwrap();
    (x, y, Arc::new(Plan::new(&graph, &[y], CAPACITY).unwrap()))
}

fn tuning(tune: Tune, folder: Option<&Path>) -> Tuning {
    Tuning { tune, folder: folder.map(Path::to_path_buf), time: Duration::from_secs(60), ..Tuning::default() }
}

/// The name of the kernel that is picked once the plan is loaded, which then computes the right thing.
fn picked(gpu: &Gpu, tuning: Tuning) -> String {
    let mut exec = GpuExecutor::new(gpu.clone()).with_tuning(tuning);
    let (x, y, plan) = plan();
    let id = exec.load(plan.clone()).unwrap();
    let values: Vec<f32> = (0..2000).map(|i| i as f32).collect();
    write_f32(&mut exec, x, &values).unwrap();
    exec.run(id, &[2]).unwrap();
    let name = exec.pick(&plan.steps()[0]).name.to_owned();
    assert_eq!(exec.chosen(&plan).get(&plan.steps()[0].key), Some(name.as_str()));
    let doubled: Vec<f32> = values.iter().map(|x| 2.0 * x).collect();
    assert_eq!(read_f32(&mut exec, id, y, 2).unwrap(), doubled, "by {name}");
    name
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map_or(Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
}

#[test]
fn the_fastest_kernel_that_is_right_wins_and_is_remembered() {
    let Some(gpu) = shared_gpus().first() else { return };
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("made/on/the/way");
    assert_eq!(picked(gpu, tuning(Tune::Full, Some(&below))), "double_fast");
    let [file] = &files(&below)[..] else { panic!("one file") };
    let text = fs::read_to_string(file).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    let step = &kept["steps"][plan().2.steps()[0].key.as_str()];
    assert_eq!((&step["kernel"], &step["full"]), (&"double_fast".into(), &true.into()), "{text}");
    let timed: Vec<&String> = step["us"].as_object().unwrap().keys().collect();
    assert_eq!(timed, ["double", "double_fast", "double_registers"], "what is wrong or refused has no time");

    // What is known is taken and not tried again, by the quick way and by the full one.
    fs::write(file, text.replace("\"kernel\": \"double_fast\"", "\"kernel\": \"double\"")).unwrap();
    for tune in [Tune::Quick, Tune::Full] {
        assert_eq!(picked(gpu, tuning(tune, Some(&below))), "double");
    }
}

#[test]
fn off_picks_by_style_and_writes_nothing() {
    let Some(gpu) = shared_gpus().first() else { return };
    let folder = tempfile::tempdir().unwrap();
    for (style, name) in [(Style::Portable, "double"), (Style::Registers, "double_registers")] {
        let gpu = gpu.clone().with_style(style);
        assert_eq!(picked(&gpu, tuning(Tune::Off, Some(folder.path()))), name);
        // Software adapters are not asked what they do not know; nor is any whose answer no file keeps.
        let quick = tuning(Tune::Quick, (style == Style::Registers).then(|| folder.path()));
        assert_eq!(picked(&gpu, quick), name);
        // Without time there is nothing to try, and no answer to keep.
        let no_time = Tuning { time: Duration::ZERO, ..tuning(Tune::Full, Some(folder.path())) };
        assert_eq!(picked(&gpu, no_time), name);
    }
    assert!(files(folder.path()).is_empty());
}

#[test]
fn quick_tries_once_where_adapters_are_fast_and_stands_by_its_answer() {
    let Some(gpu) = shared_gpus().first() else { return };
    let gpu = gpu.clone().with_style(Style::Portable);
    let folder = tempfile::tempdir().unwrap();
    // Time for none but the first: the kernel of the style is kept, for good, so that the same run has the same bits.
    let short = Tuning { time: Duration::from_nanos(1), ..tuning(Tune::Quick, Some(folder.path())) };
    assert_eq!(picked(&gpu, short), "double");
    assert_eq!(picked(&gpu, tuning(Tune::Quick, Some(folder.path()))), "double");
    assert_eq!(picked(&gpu, tuning(Tune::Full, Some(folder.path()))), "double_fast");
    assert_eq!(picked(&gpu, tuning(Tune::Quick, Some(folder.path()))), "double_fast");
    // With time, it finds the same.
    let another = tempfile::tempdir().unwrap();
    assert_eq!(picked(&gpu, tuning(Tune::Quick, Some(another.path()))), "double_fast");
    assert_eq!(files(another.path()).len(), 1);
}

/// The same adapter, open with no more than every kernel needs.
fn bare(gpu: &Gpu) -> Gpu {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let adapter = adapters.into_iter().find(|adapter| adapter.get_info().name == gpu.name()).expect("the adapter under test");
    let required_limits = adapter.limits();
    let descriptor = wgpu::DeviceDescriptor { required_features: wgpu::Features::IMMEDIATES, required_limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
    Gpu::from_wgpu(device, queue, "the host's", Checks::Off).unwrap()
}

#[test]
fn a_device_without_a_clock_is_timed_by_the_hosts() {
    let Some(gpu) = shared_gpus().first() else { return };
    let host = bare(gpu);
    assert_eq!(picked(&host, tuning(Tune::Full, None)), "double_fast");
    // Whatever the host calls it, it is the same device.
    assert_eq!(GpuExecutor::new(host).identity(), GpuExecutor::new(gpu.clone()).identity());
}

#[test]
fn what_a_device_without_subgroups_found_is_kept_beside_what_one_with_them_found() {
    let Some(gpu) = shared_gpus().first().filter(|gpu| GpuExecutor::new((*gpu).clone()).shares()) else { return };
    let mut graph = Graph::new();
    let a = graph.input("a", TensorType::f32(Shape::batched(&[8])));
    let b = graph.input("b", TensorType::f32(Shape::fixed(&[8, 8])));
    let product = graph.matmul(a, b).unwrap();
    let plan = Plan::new(&graph, &[product], 4).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for gpu in [bare(gpu), gpu.clone()] {
        GpuExecutor::new(gpu).with_tuning(tuning(Tune::Full, Some(folder.path()))).settle(&plan).unwrap();
    }
    let text = fs::read_to_string(&files(folder.path())[0]).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    let key = &plan.steps()[0].key;
    let tried = |key: &str| kept["steps"][key]["us"]["matmul_registers"].is_number();
    assert_eq!([tried(key), tried(&format!("{key}, shared"))], [false, true], "{text}");
    assert!(kept["steps"][key.as_str()]["kernel"].is_string(), "{text}");
}

#[test]
fn time_is_told_of_before_it_is_spent_and_stays_within_its_bound() {
    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let Some(gpu) = shared_gpus().first() else { return };
    let time = Duration::from_millis(200);
    let tuning = Tuning { tune: Tune::Full, folder: None, time, tell: |line| TOLD.lock().unwrap().push(line.to_owned()) };
    let mut exec = GpuExecutor::new(gpu.clone()).with_tuning(tuning);
    // Steps enough for a minute: each of another size, so that each is tried by itself.
    let mut graph = Graph::new();
    let roots: Vec<TensorId> = (1..200)
        .map(|channels| {
            let x = graph.input("x", TensorType::f32(Shape::batched(&[40, channels])));
            graph.apply(Op::Custom(Arc::new(Double)), &[x]).unwrap()
        })
        .collect();
    let plan = Plan::new(&graph, &roots, 64).unwrap();
    let began = Instant::now();
    exec.settle(&plan).unwrap();
    let spent = began.elapsed();
    let told = TOLD.lock().unwrap().clone();
    assert!(told[0].contains("199 steps") && told[0].contains("0.2 s at most"), "{told:?}");
    assert_eq!(told.iter().filter(|line| line.contains("the time is spent")).count(), 1, "{told:?}");
    // One kernel may pass the bound, and the machine may be busy; all kernels take a minute.
    assert!(spent < 75 * time, "{spent:?}");
    assert_eq!(exec.chosen(&plan).len(), 199);
}

#[test]
fn a_damaged_or_foreign_file_is_replaced_and_one_that_cannot_be_written_is_done_without() {
    let Some(gpu) = shared_gpus().first() else { return };
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(picked(gpu, tuning(Tune::Full, Some(folder.path()))), "double_fast");
    let [file] = &files(folder.path())[..] else { panic!("one file") };
    let whole = fs::read_to_string(file).unwrap();
    let device = GpuExecutor::new(gpu.clone()).identity();
    assert!(whole.contains(&device));
    let damaged = [
        String::new(),
        whole[..whole.len() / 2].to_owned(),
        whole.replace(&device, "another device"),
        whole.replace("\"shadernet_kernels\": 1", "\"shadernet_kernels\": 99"),
        whole.replace("\"kernel\": \"double_fast\"", "\"kernel\": \"no such kernel\""),
        "\u{0}\u{ff}".repeat(100),
    ];
    for text in damaged {
        fs::write(file, &text).unwrap();
        assert_eq!(picked(gpu, tuning(Tune::Full, Some(folder.path()))), "double_fast");
        let now: serde_json::Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(now["device"], device.as_str(), "after {text:.40}");
    }
    assert_eq!(picked(gpu, tuning(Tune::Full, Some(&file.join("below a file")))), "double_fast");
}

#[test]
fn what_is_chosen_beforehand_stands_above_the_file_and_costs_no_time() {
    let Some(gpu) = shared_gpus().first() else { return };
    let (_, _, plan) = plan();
    let mut choices = Choices::default();
    choices.set(&plan.steps()[0].key, "double_registers");
    let mut exec = GpuExecutor::new(gpu.clone()).with_tuning(tuning(Tune::Full, None));
    exec.choose(&choices);
    let began = Instant::now();
    exec.load(plan.clone()).unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(exec.pick(&plan.steps()[0]).name, "double_registers");
    assert_eq!(exec.chosen(&plan), choices);
}

#[test]
fn steps_have_a_key_if_they_leave_a_choice_and_another_for_another_size() {
    let key = |capacity, channels| {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorType::f32(Shape::batched(&[8, 8, channels])));
        let w = graph.input("w", TensorType::f32(Shape::fixed(&[3, 3, channels, 8])));
        let y = graph.conv2d(x, w, Conv2d::default()).unwrap();
        let flat = graph.reshape(y, &[288]).unwrap();
        let y = graph.softmax(flat).unwrap();
        let plan = Plan::new(&graph, &[y], capacity).unwrap();
        assert_eq!(plan.steps().last().unwrap().key, "", "softmax has one kernel");
        plan.steps()[0].key.clone()
    };
    let keys = [key(2, 4), key(3, 4), key(2, 8)];
    assert!(keys[0] == key(2, 4) && keys[0] != keys[1] && keys[0] != keys[2] && keys[1] != keys[2], "{keys:?}");
}
