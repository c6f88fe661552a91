//! What a profile says of each kernel, as a table and as JSON: time, share, and how near it is to what the device can do.

use serde_json::json;
use shadernet::bench::Measured;
use shadernet::exec::ceiling::Ceiling;
use shadernet::exec::profile::StepTime;

use super::format;

/// The kernels of each layer, the longest first, then all together, then what the columns mean.
pub(super) fn table(measured: &Measured, ceiling: &Ceiling) -> String {
    let (rows, total) = (measured.profile.by_kernel(), measured.profile.total());
    let cells = |row: &StepTime| {
        let per_cent = |part: f64| digits(100.0 * part);
        vec![
            row.layer.clone(),
            row.kernel.clone(),
            row.calls.to_string(),
            digits(row.ns / 1e3),
            per_cent(row.ns / total.ns.max(1.0)),
            digits(row.gflops()),
            per_cent(row.gflops() / ceiling.gflops),
            digits(row.gbytes()),
            per_cent(row.gbytes() / ceiling.gbytes),
        ]
    };
    let heading = ["layer", "kernel", "calls", "µs", "% time", "GFLOP/s", "% ceiling", "GB/s", "% memory"];
    let cells: Vec<Vec<String>> = rows.iter().chain([&total]).map(cells).collect();
    let Ceiling { gflops, gbytes, how } = ceiling;
    format!(
        "{}\nA step takes {} µs from its first kernel to its last, {} µs with everything around it; the host spends {} µs on it.\n\
         Ceilings, measured on this device just now: {} GFLOP/s, {} GB/s ({how}).\n",
        format::table(&heading, "<<>>>>>>>", &cells),
        digits(measured.profile.span_ns() / 1e3),
        digits(measured.wall_ns / 1e3),
        digits(measured.profile.host_ns() / 1e3),
        digits(*gflops),
        digits(*gbytes),
    )
}

/// A measured number with as many digits as mean something.
fn digits(value: f64) -> String {
    match value {
        100.0.. => format::grouped(value.round() as u64),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The same numbers, each step of the plan among them.
pub(super) fn to_json(measured: &Measured, ceiling: &Ceiling) -> serde_json::Value {
    let total = measured.profile.total();
    let row = |row: &StepTime| {
        json!({
            "layer": row.layer,
            "kernel": row.kernel,
            "calls": row.calls,
            "us": row.ns / 1e3,
            "share": row.ns / total.ns.max(1.0),
            "flops": row.flops,
            "bytes": row.bytes,
            "gflops": row.gflops(),
            "of_ceiling": row.gflops() / ceiling.gflops,
            "gbytes": row.gbytes(),
            "of_memory": row.gbytes() / ceiling.gbytes,
        })
    };
    json!({
        "runs": measured.profile.runs.len(),
        "batch": measured.profile.runs.first().map(|run| run.batch),
        "kernels": measured.profile.by_kernel().iter().map(row).collect::<Vec<_>>(),
        "steps": measured.profile.steps.iter().map(row).collect::<Vec<_>>(),
        "total": row(&total),
        "span_us": measured.profile.span_ns() / 1e3,
        "wall_us": measured.wall_ns / 1e3,
        "host_us": measured.profile.host_ns() / 1e3,
        "ceiling": ceiling,
    })
}
