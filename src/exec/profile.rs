//! Profiles: when each step of a plan was at work, and what that comes to in operations and bytes a second.
//!
//! An executor times ([`Executor::profile`](super::Executor::profile)); what is made of the times here is the same for all.

use serde::Serialize;
use serde_json::json;

use crate::plan::{Choices, Plan};

/// One run of a plan, timed. Times are in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunTimes {
    /// Images of the run.
    pub batch: usize,
    /// When each step of the plan began and ended, in order, counted from where the first run of the same profile began.
    pub steps: Vec<[u64; 2]>,
    /// What the host spent on this run: to record and submit it, or, on the CPU, beside the kernels.
    pub host: u64,
}

impl RunTimes {
    /// From where the first step began to where the last one ended.
    pub fn span(&self) -> u64 {
        let begins = self.steps.iter().map(|step| step[0]).min().unwrap_or(0);
        let ends = self.steps.iter().map(|step| step[1]).max().unwrap_or(0);
        ends.saturating_sub(begins)
    }
}

/// A plan that was run a number of times, all with one batch.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What each step of the plan took, in order.
    pub steps: Vec<StepTime>,
    /// The runs that this is taken from.
    pub runs: Vec<RunTimes>,
}

/// A step of a plan, or several steps of one layer with one kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTime {
    /// The layer.
    pub layer: String,
    /// The kernel's name.
    pub kernel: String,
    /// Steps that are added up here.
    pub calls: usize,
    /// Nanoseconds of a run, the median over the runs.
    pub ns: f64,
    /// Floating-point operations of a run.
    pub flops: u64,
    /// Bytes that a run has to move.
    pub bytes: u64,
}

impl StepTime {
    /// Operations a nanosecond: 10⁹ a second.
    pub fn gflops(&self) -> f64 {
        self.flops as f64 / self.ns.max(1.0)
    }

    /// Bytes a nanosecond: 10⁹ a second.
    pub fn gbytes(&self) -> f64 {
        self.bytes as f64 / self.ns.max(1.0)
    }
}

impl Profile {
    /// What came out of runs of `plan`, all of one batch, with these kernels picked
    /// ([`Executor::chosen`](super::Executor::chosen)).
    pub fn new(plan: &Plan, chosen: &Choices, runs: Vec<RunTimes>) -> Self {
        let batch = runs.first().map_or(0, |run| run.batch);
        let time = |i: usize| median(runs.iter().map(|run| run.steps[i][1].saturating_sub(run.steps[i][0]) as f64));
        let step = |(i, step): (usize, &crate::plan::Step)| StepTime {
            layer: step.label.clone(),
            kernel: step.name_by(chosen).to_owned(),
            calls: 1,
            ns: time(i),
            flops: step.flops(batch),
            bytes: step.bytes_moved(batch),
        };
        let steps = plan.steps().iter().enumerate().map(step).collect();
        Self { steps, runs }
    }

    /// The steps of each layer with the same kernel put together, the longest first.
    pub fn by_kernel(&self) -> Vec<StepTime> {
        let mut rows: Vec<StepTime> = Vec::new();
        for step in &self.steps {
            match rows.iter_mut().find(|row| (&row.layer, &row.kernel) == (&step.layer, &step.kernel)) {
                Some(row) => {
                    row.calls += 1;
                    row.ns += step.ns;
                    row.flops += step.flops;
                    row.bytes += step.bytes;
                }
                None => rows.push(step.clone()),
            }
        }
        rows.sort_by(|a, b| b.ns.total_cmp(&a.ns));
        rows
    }

    /// All steps together.
    pub fn total(&self) -> StepTime {
        let sum = |of: fn(&StepTime) -> u64| self.steps.iter().map(of).sum();
        StepTime {
            layer: "total".to_owned(),
            kernel: String::new(),
            calls: self.steps.len(),
            ns: self.steps.iter().map(|step| step.ns).sum(),
            flops: sum(|step| step.flops),
            bytes: sum(|step| step.bytes),
        }
    }

    /// Nanoseconds of the host for a run, the median.
    pub fn host_ns(&self) -> f64 {
        median(self.runs.iter().map(|run| run.host as f64))
    }

    /// Nanoseconds of a run on the device from its first step to its last, the median.
    pub fn span_ns(&self) -> f64 {
        median(self.runs.iter().map(|run| run.span() as f64))
    }

    /// Every step of every run as Chrome's trace format has it, for <https://ui.perfetto.dev> or `chrome://tracing`: one
    /// complete event each, `ts` and `dur` in microseconds.
    pub fn trace(&self, device: &str) -> serde_json::Value {
        let event = |(number, run): (usize, &RunTimes), (step, &[begin, end]): (&StepTime, &[u64; 2])| {
            json!({
                "name": step.kernel,
                "cat": step.layer,
                "ph": "X",
                "ts": begin as f64 / 1e3,
                "dur": end.saturating_sub(begin) as f64 / 1e3,
                "pid": 1,
                "tid": 1,
                "args": { "layer": step.layer, "run": number, "batch": run.batch, "flops": step.flops, "bytes": step.bytes },
            })
        };
        let runs = self.runs.iter().enumerate();
        let events = runs.flat_map(|run| self.steps.iter().zip(&run.1.steps).map(move |step| event(run, step)));
        json!({ "traceEvents": events.collect::<Vec<_>>(), "displayTimeUnit": "ns", "otherData": { "device": device } })
    }
}

/// The middle one of some numbers, the mean of the middle two of an even count; 0 of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;
    use crate::shape::{Shape, TensorType};

    #[test]
    fn medians_are_the_middle_of_what_was_measured() {
        assert_eq!([median([]), median([3.0]), median([9.0, 1.0]), median([5.0, 100.0, 1.0])], [0.0, 3.0, 5.0, 5.0]);
    }

    #[test]
    fn steps_of_one_layer_and_kernel_are_added_up_and_sorted_by_time() {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorType::f32(Shape::batched(&[10])));
        graph.scope("a");
        let y = graph.relu(x).unwrap();
        let z = graph.relu(y).unwrap();
        graph.scope("b");
        let sum = graph.sum(z, &[0, 1]).unwrap();
        let plan = Plan::new(&graph, &[sum], 4).unwrap();
        let run = |slow: u64| RunTimes { batch: 4, steps: vec![[0, 10], [10, 20], [25, 25 + slow]], host: slow };
        let profile = Profile::new(&plan, &Choices::default(), vec![run(30), run(90), run(40)]);
        let rows = profile.by_kernel();
        let found: Vec<_> = rows.iter().map(|row| (row.layer.as_str(), row.calls, row.ns, row.flops, row.bytes)).collect();
        assert_eq!(found, [("b", 1, 40.0, 40, 164), ("a", 2, 20.0, 80, 640)]);
        assert_eq!((profile.total().ns, profile.host_ns(), profile.span_ns()), (60.0, 40.0, 65.0));
        assert_eq!(profile.trace("none")["traceEvents"].as_array().unwrap().len(), 9);
    }
}
