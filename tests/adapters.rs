//! The adapters of this machine, and opening them. `tests/run.sh` reads the names that are printed here.

mod common;

use shadernet::error::Error;
use shadernet::exec::gpu::{Checks, Gpu, adapters};

#[test]
fn every_usable_adapter_opens_and_an_index_past_the_last_is_refused() {
    let all = adapters();
    for adapter in all.iter().filter(|adapter| adapter.lacks.is_empty()) {
        println!("\nadapter: {} ({}, {}, subgroups {:?})", adapter.name, adapter.kind, adapter.driver, adapter.subgroup_size);
        let gpu = Gpu::open(adapter.index, Checks::Off).unwrap();
        assert_eq!(gpu.name(), adapter.name);
    }
    match Gpu::open(all.len(), Checks::Off) {
        Err(Error::UnknownDevice { available, .. }) => assert_eq!(available.len(), all.len()),
        other => panic!("expected an unknown device, got {other:?}"),
    }
}

#[test]
fn adapter_under_test_is_there_unless_only_the_cpu_is_asked_for() {
    let cpu_alone = std::env::var("SHADERNET_TESTS").is_ok_and(|v| v == "cpu");
    assert_eq!(common::gpu(Checks::On).is_none(), cpu_alone);
}
