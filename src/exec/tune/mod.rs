//! The tuner: which of a step's kernels is the fastest on this device, found by trying them when a plan is loaded.
//!
//! A kernel may win only if it agrees with the reference on drawn numbers, and takes its place only if it is faster by more than
//! clocks wander. What was found is kept in a file, so that the same device is asked once and answers the same ever after: the same
//! kernels are the same bits. All that is tried is told, and ends when its time is spent.

mod file;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::file::Found;
use super::alone::{Alone, Drawn, verdict};
use super::{Executor, PlanId, selftest};
use crate::error::{Error, Result};
use crate::ops::Style;
use crate::plan::{Candidate, Choices, Plan, Step};

/// How much is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tune {
    /// Nothing: kernels are picked by what the adapter is.
    #[default]
    Off,
    /// What the file knows is taken; what it does not know is tried while there is time, and its answer kept. Nothing is tried on
    /// software adapters, where compiling one kernel takes longer than all the time there is, nor where no file can keep the answer.
    Quick,
    /// Every kernel of every step that was not tried so before, with more runs of each.
    Full,
}

/// How an executor chooses among the kernels of a step.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// How much is tried.
    pub tune: Tune,
    /// The folder in which answers are kept, which need not exist; nothing is written without.
    pub folder: Option<PathBuf>,
    /// The time for trying, over all plans of an executor; zero to take what is known and try nothing. Only the kernel that is being
    /// tried may pass it.
    pub time: Duration,
    /// Hears what is about to happen, a line before any time is spent.
    pub tell: fn(&str),
}

impl Default for Tuning {
    fn default() -> Self {
        Self { tune: Tune::Off, folder: None, time: Tune::Quick.time(), tell: |line| log::info!("{line}") }
    }
}

impl Tune {
    /// The time that trying takes at most, where nobody says otherwise.
    pub fn time(self) -> Duration {
        Duration::from_secs(match self {
            Self::Off => 0,
            Self::Quick => 1,
            Self::Full => 120,
        })
    }
}

/// By how much a kernel must be faster than the one that is picked without trying.
const MARGIN: f64 = 0.97;

/// Operations of the reference that a kernel is held to, at most, where little is tried and where all is; the batch is made smaller
/// for it.
const JUDGED: [u64; 2] = [8_000_000, 50_000_000];

/// Nanoseconds to spend on the runs of one kernel, and the most runs, likewise.
const ENOUGH: [f64; 2] = [5e6, 50e6];
const RUNS: [usize; 2] = [10, 50];

/// What an executor knows of tuning.
#[derive(Debug, Default)]
pub(super) struct Tuner {
    tuning: Tuning,
    spent: Duration,
    /// Whether it was told that the time is spent.
    told: bool,
}

/// Makes an executor on the same device, with nothing loaded.
type Make<'a> = &'a dyn Fn() -> Box<dyn Executor>;

impl Tuner {
    pub(super) fn new(tuning: Tuning) -> Self {
        Self { tuning, ..Self::default() }
    }

    /// Kernels for the steps of a plan that `exec`, which is to run it, has no choice for yet.
    ///
    /// # Errors
    /// A device that is lost. A kernel that is refused or computes wrong numbers is left out with a warning.
    pub(super) fn settle(&mut self, plan: &Plan, settled: &Choices, exec: &dyn Executor, make: Make<'_>) -> Result<Choices> {
        let mut choices = Choices::default();
        let (identity, style) = (exec.identity(), exec.style());
        let runs = |candidate: &Candidate<'_>| exec.runs(candidate);
        if self.tuning.tune == Tune::Off {
            return Ok(choices);
        }
        let mut open: Vec<&Step> = Vec::new();
        for step in plan.steps().iter().filter(|step| !step.key.is_empty() && !settled.of(step).is_some_and(|chosen| runs(&chosen))) {
            if !open.iter().any(|other| other.key == step.key) {
                open.push(step);
            }
        }
        let mut known = self.tuning.folder.as_deref().map_or_else(Default::default, |folder| file::read(folder, &identity));
        let full = self.tuning.tune == Tune::Full;
        // Where kernels that not every opened device can run are among those to try, the answer is another one, and all are kept.
        let kept = |step: &Step| {
            let more = |special: fn(&Candidate<'_>) -> bool| step.candidates().any(|candidate| special(&candidate) && runs(&candidate));
            let cooperative = if more(|candidate| candidate.matrices.is_some()) { ", cooperative" } else { "" };
            let shared = if more(|candidate| candidate.launch.spread().is_some()) { ", shared" } else { "" };
            format!("{}{cooperative}{shared}", step.key)
        };
        open.retain(|step| match known.get(&kept(step)) {
            Some(found)
                if (found.full || !full) && step.candidates().any(|candidate| candidate.name == found.kernel && runs(&candidate)) =>
            {
                choices.set(&step.key, &found.kernel);
                false
            }
            _ => true,
        });
        let tries = !self.tuning.time.is_zero() && (full || (style != Style::Registers && self.tuning.folder.is_some()));
        if open.is_empty() || !tries {
            return Ok(choices);
        }
        // The longest first, where there is most to win.
        open.sort_by_key(|step| std::cmp::Reverse(step.flops(plan.capacity())));
        if self.spent < self.tuning.time {
            (self.tuning.tell)(&format!(
                "tuning: trying the kernels of {} steps on {identity}, {:.1} s at most{}",
                open.len(),
                (self.tuning.time - self.spent).as_secs_f64(),
                if self.tuning.folder.is_some() { ", once for this device" } else { "" }
            ));
        }
        for step in open {
            let found = self.try_all(step, plan.capacity(), exec.usual(step).name, make)?;
            choices.set(&step.key, &found.kernel);
            known.insert(kept(step), found);
        }
        if let Some(folder) = &self.tuning.folder {
            file::write(folder, &identity, &known);
        }
        Ok(choices)
    }

    /// Tries a step's kernels while there is time, and says which is the fastest. Without time for any, it is `picked`, the one that would
    /// have been.
    fn try_all(&mut self, step: &Step, capacity: usize, picked: &str, make: Make<'_>) -> Result<Found> {
        let mut found = Found { kernel: picked.to_owned(), full: false, us: Default::default() };
        if self.spent >= self.tuning.time {
            if !std::mem::replace(&mut self.told, true) {
                (self.tuning.tell)("tuning: the time is spent; the other steps keep the kernels that suit this kind of adapter");
            }
            return Ok(found);
        }
        let began = Instant::now();
        let left = self.tuning.time - self.spent;
        let tried = Trial::new(step, capacity, self.tuning.tune == Tune::Full, make()).and_then(|mut trial| {
            // The one to beat first.
            let others: Vec<&str> =
                step.candidates().filter(|other| other.name != picked && trial.exec.runs(other)).map(|candidate| candidate.name).collect();
            let mut longest = Duration::ZERO;
            for name in std::iter::once(picked).chain(others) {
                let started = Instant::now();
                if began.elapsed() + longest >= left {
                    return Ok(false);
                }
                if let Some(us) = trial.try_one(name)? {
                    found.us.insert(name.to_owned(), us);
                }
                longest = longest.max(started.elapsed());
            }
            Ok(true)
        });
        self.spent += began.elapsed();
        match tried {
            Ok(all) => found.full = all && self.tuning.tune == Tune::Full,
            Err(error @ Error::DeviceLost { .. }) => return Err(error),
            Err(error) => log::warn!("{}: its kernels are not tried: {error}", step.title()),
        }
        if let Some(&to_beat) = found.us.get(picked) {
            let fastest = found.us.iter().min_by(|a, b| a.1.total_cmp(b.1));
            if let Some((name, us)) = fastest.filter(|(_, us)| **us < MARGIN * to_beat) {
                found.kernel.clone_from(name);
                let title = step.title();
                (self.tuning.tell)(&format!("tuning: {title}: {name} takes {us:.1} µs, {picked} {to_beat:.1}"));
            }
        }
        let times: Vec<String> = found.us.iter().map(|(name, us)| format!("{name} {us:.1}")).collect();
        log::info!("{}: {} of {} µs, in {:.2} s", step.title(), found.kernel, times.join(", "), began.elapsed().as_secs_f64());
        Ok(found)
    }
}

/// A step alone, on an executor that serves nothing else.
struct Trial<'a> {
    step: &'a Step,
    alone: Alone,
    drawn: Drawn,
    /// Images of what is drawn.
    batch: usize,
    exec: Box<dyn Executor>,
    full: bool,
    /// The least time so far, in nanoseconds.
    least: f64,
}

impl<'a> Trial<'a> {
    fn new(step: &'a Step, capacity: usize, full: bool, mut exec: Box<dyn Executor>) -> Result<Self> {
        // Where a kernel takes longer than there is time, each is compiled when it is its turn.
        if exec.style() != Style::Registers {
            exec.compile(step);
        }
        let alone = Alone::new(step, capacity)?;
        let mut batch = capacity;
        while batch > 1 && step.flops(batch) > JUDGED[usize::from(full)] {
            batch = batch.div_ceil(2);
        }
        let drawn = alone.draw(batch)?;
        Ok(Self { step, alone, drawn, batch, exec, full, least: f64::INFINITY })
    }

    /// Microseconds of a run of this kernel; none if it is refused or wrong, or so slow that it cannot win.
    fn try_one(&mut self, name: &str) -> Result<Option<f64>> {
        let mut choices = Choices::default();
        choices.set(&self.step.key, name);
        self.exec.choose(&choices);
        let exec = self.exec.as_mut();
        let wrong = |problem: String| log::warn!("{}: kernel {name} is left out: {problem}", self.step.title());
        let id = match exec.load(self.alone.plan.clone()) {
            Ok(id) => id,
            Err(Error::Kernel { reason, .. }) => {
                wrong(reason);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let tolerance = selftest::tolerance_of(&exec.pick(self.step), &self.step.op, &self.step.input_types(), self.batch);
        if let (_, Some(problem)) = verdict(&self.alone.judge(exec, id, &self.drawn)?, tolerance) {
            wrong(problem);
            return Ok(None);
        }
        let batch = self.alone.plan.capacity();
        self.alone.write(exec, &self.drawn, batch)?;
        let once = least(exec, id, batch, 1)?;
        if once > 2.0 * self.least {
            return Ok(Some(once / 1e3));
        }
        let [enough, most] = [ENOUGH[usize::from(self.full)], RUNS[usize::from(self.full)] as f64];
        let runs = (enough / once.max(1.0)).clamp(3.0, most) as usize;
        let ns = least(exec, id, batch, runs)?.min(once);
        self.least = self.least.min(ns);
        Ok(Some(ns / 1e3))
    }
}

/// The least nanoseconds of so many runs: by the device's clock, or where it has none the mean of runs submitted together.
fn least(exec: &mut dyn Executor, id: PlanId, batch: usize, runs: usize) -> Result<f64> {
    let batches = vec![batch; runs];
    match exec.profile(id, &batches) {
        Ok(times) => {
            let ns = times.iter().flat_map(|run| &run.steps).map(|[began, ended]| ended.saturating_sub(*began) as f64);
            Ok(ns.fold(f64::INFINITY, f64::min))
        }
        Err(Error::Unsupported { .. }) => {
            exec.wait()?;
            let began = Instant::now();
            exec.run(id, &batches)?;
            exec.wait()?;
            Ok(began.elapsed().as_nanos() as f64 / runs as f64)
        }
        Err(error) => Err(error),
    }
}
