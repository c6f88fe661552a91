//! Timing a plan's dispatches with the device's own clock.
//!
//! A timestamp is written once all work before it is done, so between two of them lies what a dispatch added: of two
//! dispatches that run side by side the second shows only what it took beyond the first.

use std::time::Instant;

use super::{GpuExecutor, Loaded, PlanId, Result, RunTimes, STEPS_PER_SUBMISSION, check_batches};
use crate::error::Error;

/// How an adapter tells the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamps {
    /// Between the dispatches of a pass, as a plan is run: one timestamp before the first and one after each.
    Between,
    /// At both ends of a pass, so each dispatch gets a pass of its own: two timestamps each.
    Around,
}

impl Stamps {
    /// Timestamps of a run with so many dispatches.
    fn count(self, dispatches: usize) -> usize {
        match self {
            Self::Between => dispatches + 1,
            Self::Around => 2 * dispatches,
        }
    }

    /// When each dispatch of a run began and ended.
    fn spans(self, ticks: &[u64], dispatches: usize) -> impl Iterator<Item = [u64; 2]> {
        let stride = if self == Self::Between { 1 } else { 2 };
        (0..dispatches).map(move |i| [ticks[stride * i], ticks[stride * i + 1]])
    }
}

impl GpuExecutor {
    /// Runs a plan once for each batch, as [`run`](super::Executor::run) does, and reads the device's clock around each step.
    pub(super) fn time(&mut self, plan: PlanId, batches: &[usize]) -> Result<Vec<RunTimes>> {
        let stamps = self.stamps()?;
        let loaded = self.loaded(plan)?;
        check_batches(&loaded.plan, batches)?;
        let dispatches = loaded.dispatches.len();
        if dispatches == 0 {
            return Ok(batches.iter().map(|&batch| RunTimes { batch, steps: Vec::new(), host: 0 }).collect());
        }
        let most = wgpu::QUERY_SET_MAX_QUERIES as usize;
        if stamps.count(dispatches) > most {
            let expected = format!("few enough for {most} timestamps");
            return Err(Error::invalid("dispatches of a plan to profile", dispatches, expected));
        }
        let runs_at_once = STEPS_PER_SUBMISSION.min(most / stamps.count(dispatches));
        let period = f64::from(self.gpu.queue.get_timestamp_period());
        let mut runs = Vec::with_capacity(batches.len());
        let mut origin = None;
        for chunk in batches.chunks(runs_at_once) {
            let (ticks, host) = self.submit_timed(plan, chunk, stamps)?;
            let origin = *origin.get_or_insert(ticks[0]);
            let ns = |tick: u64| (tick.saturating_sub(origin) as f64 * period) as u64;
            for (&batch, ticks) in chunk.iter().zip(ticks.chunks_exact(stamps.count(dispatches))) {
                let steps = stamps.spans(ticks, dispatches).map(|span| span.map(ns)).collect();
                runs.push(RunTimes { batch, steps, host });
            }
        }
        Ok(runs)
    }

    fn stamps(&self) -> Result<Stamps> {
        let features = self.gpu.device.features();
        let period = self.gpu.queue.get_timestamp_period();
        if !tells_time(period) {
            let lacks = format!("a clock: it says that its timestamps are {period} ns apart");
            return Err(Error::Unsupported { adapter: self.gpu.name.clone(), lacks });
        }
        if features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
            Ok(Stamps::Between)
        } else if features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            Ok(Stamps::Around)
        } else {
            let lacks = "TIMESTAMP_QUERY, without which nothing can be profiled here".to_owned();
            Err(Error::Unsupported { adapter: self.gpu.name.clone(), lacks })
        }
    }

    /// One submission: all its timestamps, and what the host spent on each run without them.
    fn submit_timed(&mut self, plan: PlanId, batches: &[usize], stamps: Stamps) -> Result<(Vec<u64>, u64)> {
        self.gpu.check_alive()?;
        let device = &self.gpu.device;
        let loaded = self.loaded(plan)?;
        let per_run = stamps.count(loaded.dispatches.len());
        let count = (per_run * batches.len()) as u32;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);

        // What a plain run would have recorded is recorded, timed and dropped.
        let began = Instant::now();
        let mut plain = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("shadernet run") });
        for &batch in batches {
            self.encode(&mut plain, plan, batch)?;
        }
        drop(plain.finish());
        let mut host = began.elapsed();

        let label = Some("profile");
        let set = device.create_query_set(&wgpu::QuerySetDescriptor { label, ty: wgpu::QueryType::Timestamp, count });
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let ticks = device.create_buffer(&wgpu::BufferDescriptor { label, size: 8 * u64::from(count), usage, mapped_at_creation: false });
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label });
        for (i, &batch) in batches.iter().enumerate() {
            encode_timed(&mut encoder, loaded, batch, stamps, (&set, (i * per_run) as u32));
        }
        encoder.resolve_query_set(&set, 0..count, &ticks, 0);
        let commands = encoder.finish();
        let began = Instant::now();
        self.gpu.queue.submit([commands]);
        host += began.elapsed();
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(self.gpu.blame(self.gpu.lost(error.to_string())));
        }
        let bytes = self.read_bytes(&ticks, 0, 8 * count as usize)?;
        Ok((bytemuck::pod_collect_to_vec(&bytes), host.as_nanos() as u64 / batches.len() as u64))
    }
}

/// Whether timestamps of this period, in nanoseconds, can be turned into times: a driver may know no frequency of its clock.
fn tells_time(period: f32) -> bool {
    period.is_finite() && period > 0.0
}

/// Records one run with its timestamps, from number `first` of the set on.
fn encode_timed(encoder: &mut wgpu::CommandEncoder, loaded: &Loaded, batch: usize, stamps: Stamps, (set, first): (&wgpu::QuerySet, u32)) {
    match stamps {
        Stamps::Between => {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.write_timestamp(set, first);
            for (dispatch, stamp) in loaded.dispatches.iter().zip(first + 1..) {
                dispatch.record(&mut pass, batch);
                pass.write_timestamp(set, stamp);
            }
        }
        Stamps::Around => {
            for (dispatch, stamp) in loaded.dispatches.iter().zip((first..).step_by(2)) {
                let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                    query_set: set,
                    beginning_of_pass_write_index: Some(stamp),
                    end_of_pass_write_index: Some(stamp + 1),
                });
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
                dispatch.record(&mut pass, batch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_no_known_period_tells_no_time() {
        assert!([f32::INFINITY, f32::NAN, 0.0, -1.0].iter().all(|&period| !tells_time(period)));
        assert!(tells_time(1.0) && tells_time(52.083));
    }
}
