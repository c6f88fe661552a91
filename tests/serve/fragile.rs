//! An executor that can be held up, lose its device, or panic, when a test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use shadernet::error::{Error, Result};
use shadernet::exec::ceiling::Ceiling;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::profile::RunTimes;
use shadernet::exec::{Executor, PlanId};
use shadernet::graph::TensorId;
use shadernet::plan::Plan;
use shadernet::serve::Opener;

use super::client::Gate;

/// What a test can do to its executors.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) gate: Gate,
    /// Runs that are to lose the device.
    pub(crate) lose: AtomicUsize,
    /// Runs that are to panic.
    pub(crate) panic: AtomicUsize,
    /// Times that opening a device is to fail.
    pub(crate) closed: AtomicUsize,
    /// Images computed.
    pub(crate) images: AtomicUsize,
}

struct Fragile {
    inner: CpuExecutor,
    faults: Arc<Faults>,
}

/// Takes one from a counter, if there is one.
fn take(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
}

fn lost() -> Error {
    Error::DeviceLost { device: "fragile".to_owned(), reason: "the test said so".to_owned() }
}

impl Faults {
    /// Opens executors with these faults.
    pub(crate) fn opener(self: &Arc<Self>) -> Opener {
        let faults = self.clone();
        Arc::new(move || match take(&faults.closed) {
            true => Err(lost()),
            false => Ok(Box::new(Fragile { inner: CpuExecutor::new(Some(1))?, faults: faults.clone() })),
        })
    }
}

impl Executor for Fragile {
    fn device(&self) -> String {
        "fragile".to_owned()
    }

    fn max_tensor_bytes(&self) -> u64 {
        self.inner.max_tensor_bytes()
    }

    fn load(&mut self, plan: Arc<Plan>) -> Result<PlanId> {
        self.inner.load(plan)
    }

    fn write(&mut self, tensor: TensorId, bytes: &[u8]) -> Result<()> {
        self.inner.write(tensor, bytes)
    }

    fn run(&mut self, plan: PlanId, batches: &[usize]) -> Result<()> {
        self.faults.gate.pass();
        if take(&self.faults.lose) {
            return Err(lost());
        }
        assert!(!take(&self.faults.panic), "the test said so");
        self.faults.images.fetch_add(batches.iter().sum(), Ordering::SeqCst);
        self.inner.run(plan, batches)
    }

    fn profile(&mut self, plan: PlanId, batches: &[usize]) -> Result<Vec<RunTimes>> {
        self.inner.profile(plan, batches)
    }

    fn ceiling(&self) -> Result<Ceiling> {
        self.inner.ceiling()
    }

    fn read(&mut self, plan: PlanId, tensor: TensorId, batch: usize) -> Result<Vec<u8>> {
        self.inner.read(plan, tensor, batch)
    }

    fn wait(&mut self) -> Result<()> {
        self.inner.wait()
    }

    fn poison(&mut self, plan: PlanId) -> Result<()> {
        self.inner.poison(plan)
    }

    fn allocated_bytes(&self) -> u64 {
        self.inner.allocated_bytes()
    }
}
