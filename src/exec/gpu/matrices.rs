//! Cooperative matrices: which an adapter has, opening it with them, and proving a kernel that uses them before it is run.
//!
//! The feature is experimental in wgpu, and drivers are young. So it is asked for only if the user agrees, only where the adapter lists
//! what the kernels are written for, and a kernel runs only once it has computed what its reference says, in this process.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Executor, GpuExecutor};
use crate::error::{Error, Result};
use crate::exec::selftest;
use crate::ops::{MATRIX_BYTES, Matrices};
use crate::plan::{Plan, Step};

/// Whether kernels may multiply by cooperative matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cooperative {
    /// Never; the device is opened without. There are drivers on which asking for them panics inside wgpu, or worse.
    #[default]
    Off,
    /// Where the adapter has those that kernels are written for. If asking for them panics, which prints a message, the adapter is
    /// opened without; a program that is compiled to abort on panics ends there.
    Auto,
}

/// Subgroups of the software adapter on which these kernels were seen to be right. Mesa's lists its matrices at other widths too, and
/// then has no such feature, or crashes.
const SOFTWARE_SUBGROUP: u32 = 8;

/// Those of an adapter that kernels may be written for: square, f16 by f16 to f32.
pub(super) fn of_adapter(adapter: &wgpu::Adapter) -> Vec<Matrices> {
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    let (info, limits) = (adapter.get_info(), adapter.limits());
    if !adapter.features().contains(needed) || limits.max_compute_workgroup_storage_size < MATRIX_BYTES {
        return Vec::new();
    }
    let subgroups: Vec<u32> = match (info.device_type, info.backend, info.subgroup_min_size, info.subgroup_max_size) {
        (wgpu::DeviceType::Cpu, _, SOFTWARE_SUBGROUP, SOFTWARE_SUBGROUP) => vec![SOFTWARE_SUBGROUP],
        (wgpu::DeviceType::Cpu, ..) => Vec::new(),
        (_, wgpu::Backend::Metal, ..) => vec![32], // of every GPU that has them
        (_, _, least, most) => [32, 64].into_iter().filter(|size| (least..=most).contains(size)).collect(),
    };
    let mut all = Vec::new();
    for config in adapter.cooperative_matrix_properties() {
        let square = config.m_size == config.n_size && config.n_size == config.k_size;
        let types = (config.ab_type, config.cr_type);
        if square && types == (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32) {
            let of = |&subgroup: &u32| Matrices { edge: config.m_size as usize, subgroup: subgroup as usize };
            all.extend(subgroups.iter().map(of).filter(|matrices| !all.contains(matrices)).collect::<Vec<_>>());
        }
    }
    all
}

/// Opens a device with the feature; nothing, and a warning, if that fails in any way.
pub(super) fn request(adapter: &wgpu::Adapter, descriptor: &wgpu::DeviceDescriptor<'_>) -> Option<(wgpu::Device, wgpu::Queue)> {
    // SAFETY: what is agreed to is that the feature may have bugs; kernels that use it are run only once they are proved.
    #[allow(unsafe_code, reason = "an experimental feature cannot be had otherwise")]
    let experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
    let required_features = descriptor.required_features | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    let descriptor = wgpu::DeviceDescriptor { required_features, experimental_features, ..descriptor.clone() };
    // wgpu takes the feature from a list of sizes; a driver that has the list and not the feature makes it panic.
    let opened = catch_unwind(AssertUnwindSafe(|| pollster::block_on(adapter.request_device(&descriptor))));
    let why = match opened {
        Ok(Ok(opened)) => return Some(opened),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the driver lists them and does not have them".to_owned(),
    };
    log::warn!("{}: opened without cooperative matrices: {why}", adapter.get_info().name);
    None
}

/// Images that a kernel is proved with, at most: several, so that an image's end lies within a tile.
const IMAGES: usize = 3;

impl GpuExecutor {
    /// Runs every kernel of cooperative matrices that is picked for this plan once alone, and picks another in the place of any that
    /// does not compute what its reference says.
    ///
    /// # Errors
    /// A device that is lost.
    pub(super) fn prove(&mut self, plan: &Plan) -> Result<()> {
        for step in plan.steps() {
            let picked = self.pick(step);
            let proof = (step.key.clone(), picked.name.to_owned());
            if picked.matrices.is_none() || self.trusts || self.proved.contains(&proof) {
                continue;
            }
            match self.problem(step, plan.capacity().min(IMAGES)) {
                Ok(None) => drop(self.proved.insert(proof)),
                Err(error @ Error::DeviceLost { .. }) => return Err(error),
                told => {
                    let problem = told.unwrap_or_else(|error| Some(error.to_string())).unwrap_or_default();
                    let instead = self.usual(step).name;
                    log::warn!("cooperative matrices are not used for {}, but {instead}: {problem}", step.title());
                    self.choices.set(&step.key, instead);
                }
            }
        }
        Ok(())
    }

    /// What is wrong with the kernel picked for a step, if anything.
    fn problem(&self, step: &Step, batch: usize) -> Result<Option<String>> {
        let mut alone = Self { trusts: true, choices: self.choices.clone(), ..Self::new(self.gpu.clone()) };
        Ok(selftest::judge(&mut alone, step, batch)?.problem)
    }
}
