//! Packs: parameters, moments and gradients that lie in one buffer each, so that one dispatch takes the steps of many parameters.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{compare, executors, from_bytes, gpu, noise, shared_gpus, to_bytes};
use shadernet::bench::planned_bytes;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{Checks, GpuExecutor};
use shadernet::exec::{Executor, PlanId, read_f32, reference};
use shadernet::graph::{Graph, Init, TensorId};
use shadernet::ops::*;
use shadernet::plan::Plan;
use shadernet::shape::{DType, Shape, TensorType};

/// Parameters of many sizes with a step of Adam for each, against gradients that are computed, some of them in slices.
struct Steps {
    graph: Graph,
    params: Vec<TensorId>,
    moments: Vec<TensorId>,
    grads: Vec<TensorId>,
    rate: TensorId,
    roots: Vec<TensorId>,
}

fn steps(lens: impl IntoIterator<Item = usize>) -> Steps {
    let mut graph = Graph::new();
    let rate = graph.state("rate", TensorType::f32(Shape::fixed(&[4])), 0.25);
    let (mut params, mut moments, mut grads, mut roots) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (i, len) in lens.into_iter().enumerate() {
        let param = graph.param(&format!("w{i}"), Shape::fixed(&[len]), Init::Fill(0.5));
        let slices = [1, 2, 9, 70][i % 4];
        let shape = if slices == 1 { Shape::fixed(&[len]) } else { Shape::fixed(&[slices, len]) };
        let x = graph.input(&format!("x{i}"), TensorType::f32(shape));
        let grad = graph.tanh(x).unwrap();
        let moment = graph.state("moments", Adam::moments(graph.ty(param)), 0.5);
        roots.push(graph.adam(Adam { epsilon: 0.1, ..Adam::default() }, param, moment, grad, rate).unwrap());
        params.push(param);
        moments.push(moment);
        grads.push(grad);
    }
    Steps { graph, params, moments, grads, rate, roots }
}

/// Sizes that no multiple of the alignment is near, and some that are one.
fn sizes(count: usize) -> Vec<usize> {
    (0..count).map(|i| [1, 64, 65, 1000, 63, 128, 7][i % 7] + i / 7).collect()
}

impl Steps {
    fn plan(&self) -> Arc<Plan> {
        let plan = Plan::fused(&self.graph, &self.roots, 1).unwrap();
        plan.verify().unwrap();
        Arc::new(plan)
    }

    fn leaves(&self) -> reference::Leaves {
        let leaves = self.graph.nodes().filter(|(_, node)| node.op.is_none()).map(|(id, node)| {
            let low = if id == self.rate || self.moments.contains(&id) { 0.1 } else { -1.0 };
            (id, (0..node.ty.shape.len(1)).map(|i| f64::from((low + noise(id.index() as u64, i)) as f32)).collect())
        });
        leaves.collect()
    }

    /// What two runs leave in parameters and moments.
    fn wanted(&self) -> reference::Leaves {
        let mut leaves = self.leaves();
        let plain = Plan::new(&self.graph, &self.roots, 1).unwrap();
        (0..2).for_each(|_| drop(reference::run(&plain, &mut leaves, 1).unwrap()));
        leaves
    }

    /// Writes all leaves, reads them back, runs twice, and holds parameters and moments to the reference. Returns their bits.
    fn check(&self, exec: &mut dyn Executor, id: PlanId) -> Vec<Vec<u32>> {
        let leaves: BTreeMap<_, _> = self.leaves();
        for (&leaf, value) in &leaves {
            exec.write(leaf, &to_bytes(value, DType::F32)).unwrap();
        }
        for (&leaf, value) in &leaves {
            assert_eq!(from_bytes(&exec.read(id, leaf, 1).unwrap(), DType::F32), *value, "leaf {}", leaf.index());
        }
        exec.poison(id).unwrap();
        exec.run(id, &[1, 1]).unwrap();
        let wanted = self.wanted();
        let bits = |&leaf: &TensorId| {
            let got = exec.read(id, leaf, 1).unwrap();
            compare(&from_bytes(&got, DType::F32), &wanted[&leaf], 2e-5).unwrap_or_else(|e| panic!("leaf {}: {e}", leaf.index()));
            bytemuck::pod_collect_to_vec(&got)
        };
        self.params.iter().chain(&self.moments).map(bits).collect()
    }
}

fn names(plan: &Plan) -> Vec<&'static str> {
    plan.steps().iter().map(|step| step.op.rules().name()).filter(|name| *name != "tanh").collect()
}

#[test]
fn steps_of_any_number_of_parameters_are_a_dispatch_for_every_sixteen() {
    for (count, dispatches, packs) in [(1, vec!["adam"], 0), (9, vec!["adam_group"], 3), (40, vec!["adam_group"; 3], 9)] {
        let steps = steps(sizes(count));
        let plan = steps.plan();
        assert_eq!((names(&plan), plan.packs().len()), (dispatches, packs));
        for mut exec in executors() {
            let id = exec.load(plan.clone()).unwrap();
            let on_cpu = exec.device().starts_with("cpu");
            assert!(on_cpu || exec.allocated_bytes() >= planned_bytes([&*plan]), "guard bands are more");
            let first = steps.check(exec.as_mut_executor(), id);
            exec.guards().unwrap();
            assert!(first == steps.check(exec.as_mut_executor(), id), "the same bits again, {}", exec.device());
        }
        for gpu in shared_gpus() {
            let mut exec = GpuExecutor::new(gpu.clone().with_style(Style::Portable));
            exec.load(plan.clone()).unwrap();
            assert_eq!(exec.allocated_bytes(), planned_bytes([&*plan]));
        }
    }
}

#[test]
fn one_large_parameter_among_small_ones_is_stepped_as_alone() {
    let steps = steps([3, 300_000, 1]);
    for mut exec in executors() {
        let id = exec.load(steps.plan()).unwrap();
        steps.check(exec.as_mut_executor(), id);
        exec.guards().unwrap();
    }
}

#[test]
fn parameters_that_lie_elsewhere_already_are_stepped_one_by_one_with_the_same_bits() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let steps = steps(sizes(5));
    let new = || GpuExecutor::with_guards(gpu.clone().with_style(Style::Portable));
    let mut packed = new();
    let id = packed.load(steps.plan()).unwrap();
    let want = steps.check(&mut packed, id);
    let together =
        |exec: &GpuExecutor, id| exec.buffer(id, steps.params[0]).unwrap().buffer == exec.buffer(id, steps.params[4]).unwrap().buffer;
    assert!(together(&packed, id));

    // Loaded first by a plan that knows nothing of packs.
    let mut graph = steps.graph.clone();
    let reader = graph.relu(steps.params[2]).unwrap();
    let mut exec = new();
    exec.load(Arc::new(Plan::new(&graph, &[reader], 1).unwrap())).unwrap();
    let id = exec.load(steps.plan()).unwrap();
    assert!(!together(&exec, id));
    assert!(steps.check(&mut exec, id) == want);
    exec.check_guards().unwrap();

    // One that is the host program's.
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let mine = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: 4096, usage, mapped_at_creation: false });
    let mut exec = new();
    exec.adopt(&steps.graph, steps.params[1], mine.clone(), 1).unwrap();
    let id = exec.load(steps.plan()).unwrap();
    assert_eq!(*exec.buffer(id, steps.params[1]).unwrap().buffer, mine);
    assert!(steps.check(&mut exec, id) == want);
    exec.check_guards().unwrap();
    // Timed, a step is still a step.
    assert!(exec.profile(id, &[1]).unwrap().iter().all(|run| run.steps.len() == steps.plan().steps().len()));

    // And a plan that is loaded after finds them packed.
    let mut exec = new();
    let id = exec.load(steps.plan()).unwrap();
    let later = exec.load(Arc::new(Plan::new(&graph, &[reader], 1).unwrap())).unwrap();
    assert!(steps.check(&mut exec, id) == want);
    exec.run(later, &[1]).unwrap();
    let param = read_f32(&mut exec, later, steps.params[2], 1).unwrap();
    let relu: Vec<f32> = param.iter().map(|v| v.max(0.0)).collect();
    assert_eq!(read_f32(&mut exec, later, reader, 1).unwrap(), relu);
}

#[test]
fn a_packed_tensor_is_where_the_executor_says() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let mut exec = GpuExecutor::new(gpu.with_style(Style::Portable));
    let steps = steps(sizes(5));
    let id = exec.load(steps.plan()).unwrap();
    let offsets: Vec<u64> = steps.params.iter().map(|&param| exec.buffer(id, param).unwrap().offset).collect();
    assert_eq!(offsets, [0, 256, 512, 1024, 5120]); // 1, 64, 65, 1000 and 63 elements
    let sizes: Vec<u64> = steps.params.iter().map(|&param| exec.buffer(id, param).unwrap().size.unwrap().get()).collect();
    assert_eq!(sizes, [256, 256, 512, 4096, 256]);
}

#[test]
fn what_cannot_lie_together_is_not_packed_and_computed_right() {
    let check = |steps: &Steps, packs: usize, why: &str| {
        let plan = steps.plan();
        assert_eq!(plan.packs().len(), packs, "{why}");
        for mut exec in executors() {
            let id = exec.load(plan.clone()).unwrap();
            steps.check(exec.as_mut_executor(), id);
            exec.guards().unwrap();
        }
    };
    let four = || steps(sizes(4));
    check(&four(), 3, "as it is");

    let mut read = four();
    let reader = read.graph.relu(read.grads[1]).unwrap();
    read.roots.push(reader);
    check(&read, 0, "a gradient that something else reads");

    let mut root = four();
    root.roots.push(root.grads[1]);
    check(&root, 3, "a gradient that the host reads");

    // Gradients that the host writes lie together too, and with computed ones they do not.
    let mixed = |leaves: usize| {
        let mut mixed = four();
        mixed.roots.clear();
        for i in 0..4 {
            let x = mixed.graph.node(mixed.grads[i]).inputs[0];
            let grad = if i < leaves { x } else { mixed.grads[i] };
            let operands = [mixed.params[i], mixed.moments[i], grad, mixed.rate];
            mixed.roots.push(mixed.graph.apply(Adam { epsilon: 0.1, ..Adam::default() }, &operands).unwrap());
        }
        mixed
    };
    check(&mixed(4), 3, "leaves alone");
    check(&mixed(2), 0, "leaves and values");

    // One gradient for two parameters.
    let mut twice = four();
    let shape = twice.graph.ty(twice.params[1]);
    let [param, moments] = [twice.graph.param("w", shape.shape, Init::Fill(0.0)), twice.graph.state("moments", Adam::moments(shape), 0.5)];
    let (grad, rate) = (twice.grads[1], twice.rate);
    twice.roots.push(twice.graph.adam(Adam { epsilon: 0.1, ..Adam::default() }, param, moments, grad, rate).unwrap());
    twice.params.push(param);
    twice.moments.push(moments);
    check(&twice, 0, "a gradient twice");
}

#[test]
fn parts_of_a_group_are_what_the_cpu_and_the_reference_need_not_know() {
    let steps = steps(sizes(9));
    let mut exec = CpuExecutor::new(Some(2)).unwrap();
    let id = exec.load(steps.plan()).unwrap();
    steps.check(&mut exec, id);
    let plan = steps.plan();
    let group = plan.steps().iter().find(|step| !step.parts.is_empty()).unwrap();
    assert_eq!((group.parts.len(), group.bindings().len()), (9, 4));
    let operands = |at: usize| group.parts.iter().map(move |part| part.inputs[at].tensor).collect::<Vec<_>>();
    assert_eq!((operands(0), operands(1)), (steps.params.clone(), steps.moments.clone()));
}

#[test]
fn a_pack_larger_than_a_buffer_can_be_falls_apart() {
    let Some(gpu) = gpu(Checks::Off) else { return };
    let mut exec = GpuExecutor::new(gpu.with_style(Style::Portable));
    let limit = exec.max_tensor_bytes() as usize;
    if limit > 200 << 20 {
        return println!("a buffer of this adapter can have {limit} bytes: more than this test is to take");
    }
    // The moments of each are half of what fits.
    let steps = steps([limit / 16, limit / 16, 3]);
    let id = exec.load(steps.plan()).unwrap();
    let buffer = |tensor: TensorId| exec.buffer(id, tensor).unwrap().buffer;
    assert!(buffer(steps.params[0]) == buffer(steps.params[2]) && buffer(steps.moments[0]) != buffer(steps.moments[2]));
    exec.run(id, &[1]).unwrap();
    exec.wait().unwrap();
}
