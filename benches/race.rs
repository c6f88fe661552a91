//! `cargo bench --bench race [-- ARGUMENTS]`: what `shadernet bench` measures, with its arguments.
//!
//! The measuring is done by the program itself, in a process of its own, so that the peak of memory and the time to start are
//! those of a user. `benches/race.sh` runs it in turn with other programs.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let (ours, given): (Vec<_>, Vec<_>) = std::env::args_os().skip(1).partition(|argument| argument == "--bench");
    if ours.is_empty() {
        // `cargo test --all-targets` runs benches too, without this flag; there is nothing to test here.
        println!("to measure: cargo bench --bench race");
        return ExitCode::SUCCESS;
    }
    match Command::new(env!("CARGO_BIN_EXE_shadernet")).arg("bench").args(given).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot start {}: {error}", env!("CARGO_BIN_EXE_shadernet"));
            ExitCode::FAILURE
        }
    }
}
