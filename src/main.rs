//! The `shadernet` program: trains, judges, uses and inspects networks from a command line.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
