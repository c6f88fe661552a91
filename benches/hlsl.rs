//! Writes the kernels of a training step on a hardware GPU as HLSL, with the constants of their launches: `cargo bench --bench hlsl -- FOLDER`.
//! `benches/sass.py` has them compiled for a GPU that need not be there. A line on standard output for each dispatch: file, layer, workgroups.

use std::collections::HashSet;
use std::path::PathBuf;

use naga::back::hlsl::{self, ShaderModel};
use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use shadernet::models;
use shadernet::ops::{Launch, Style};
use shadernet::train::{TrainConfig, training_plans};

fn translate(launch: &Launch) -> Result<String, Box<dyn std::error::Error>> {
    let module = naga::front::wgsl::parse_str(launch.kernel.source)?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module)?;
    let values = launch.constants.iter().map(|&(constant, value)| (constant.to_owned(), value)).collect();
    let (module, info) = process_overrides(&module, &info, Some((naga::ShaderStage::Compute, "main")), &values)?;
    // As for a trusted shader: nothing is checked, and no loop is counted.
    let options = hlsl::Options {
        shader_model: ShaderModel::V6_2,
        fake_missing_bindings: true,
        special_constants_binding: None,
        immediates_target: Some(hlsl::BindTarget { space: 1, ..Default::default() }),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let mut text = String::new();
    hlsl::Writer::new(&mut text, &options, &hlsl::PipelineOptions::default()).write(&module, &info, None)?;
    Ok(text)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo bench` adds `--bench` to what is given.
    let Some(folder) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from) else {
        println!("to write the kernels: cargo bench --bench hlsl -- FOLDER");
        return Ok(());
    };
    std::fs::create_dir_all(&folder)?;
    let classes: Vec<String> = (0..10).map(|class| class.to_string()).collect();
    let [plan, _] = training_plans(&models::cifar10_cnn(&classes), [50_000, 10_000], &TrainConfig::default(), u64::MAX, Style::Portable)?;
    let mut seen = HashSet::new();
    for (i, step) in plan.steps().iter().enumerate() {
        let launch = &step.launch;
        if !seen.insert(format!("{} {:?}", launch.kernel.name, launch.constants)) {
            continue;
        }
        let file = format!("{i:02}-{}.hlsl", launch.kernel.name);
        std::fs::write(folder.join(&file), translate(launch)?)?;
        println!("{file}\t{}\t{}", step.label, launch.workgroups.count(plan.capacity()));
    }
    Ok(())
}
