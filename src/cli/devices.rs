//! `shadernet devices`: what there is to compute on, and which of it `auto` takes.

use clap::Args;
use serde_json::json;
use shadernet::exec::gpu::{self, AdapterSummary, DeviceChoice};

use super::{Result, answer, answer_json, format};

/// List the adapters with their limits and features, and which device `auto` takes and why.
#[derive(Args)]
#[command(after_help = "Give `--device` of the other commands an index from this list, or part of a name.")]
pub(super) struct Arguments {
    /// Answer with one JSON document: auto (device, index, why), adapters, cpu.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> Result {
    let adapters = gpu::adapters();
    let (index, why) = gpu::choose(&DeviceChoice::Auto, &adapters)?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let chosen = index.and_then(|index| adapters.get(index)).map_or("cpu", |adapter| adapter.name.as_str());
    if arguments.json {
        let auto = json!({ "device": chosen, "index": index, "why": why });
        return answer_json(&json!({ "auto": auto, "adapters": adapters, "cpu": { "threads": threads } }));
    }
    let list: String = adapters.iter().map(describe).collect();
    let cpu = format!("cpu  the CPU path: {threads} threads\n");
    answer(&format!("{list}{cpu}\nauto takes {chosen}: {why}\n"))
}

fn describe(adapter: &AdapterSummary) -> String {
    let AdapterSummary { index, name, kind, backend, driver, subgroup_size: [least, most], .. } = adapter;
    let features = if adapter.features.is_empty() { "none of interest".to_owned() } else { adapter.features.join(", ") };
    let usable = if adapter.lacks.is_empty() { "yes".to_owned() } else { format!("no: lacks {}", adapter.lacks.join("; ")) };
    let rows = [
        ("usable", usable),
        ("driver", driver.clone()),
        ("tensor", format!("at most {}", format::bytes(adapter.max_tensor_bytes))),
        (
            "workgroup",
            format!("{} invocations, {} of memory", adapter.max_invocations, format::bytes(u64::from(adapter.max_workgroup_bytes))),
        ),
        ("buffers", format!("{} in a kernel", adapter.max_storage_buffers)),
        ("subgroup", if least == most { format!("{least} invocations") } else { format!("{least} to {most} invocations") }),
        ("features", features),
    ];
    let rows: String = rows.iter().map(|(what, value)| format!("     {what:<10} {value}\n")).collect();
    format!("{index:<3}  {name} ({kind}, {backend})\n{rows}\n")
}
