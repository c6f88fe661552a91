//! The command line: what can be asked for, how answers and errors leave the program, and with which exit code.
//!
//! A command writes its answer to standard output, as text or as one JSON document, and everything else to standard error.
//! It uses the library's public interface only.

mod bench;
mod devices;
mod evaluate;
mod format;
mod kernels;
mod plan;
mod precision;
mod predict;
mod profile;
mod progress;
mod selftest;
#[cfg(all(feature = "serve", unix))]
mod serve;
mod summary;
mod train;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use shadernet::exec::Executor;
use shadernet::exec::cpu::CpuExecutor;
use shadernet::exec::gpu::{self, Checks, DeviceChoice, Gpu, GpuExecutor, GpuOptions};
use shadernet::exec::tune::{Tune, Tuning};
use shadernet::files::{NamedTensor, load_model};
use shadernet::models::cifar10_cnn;
use shadernet::nn::Model;
use shadernet::plan::{Choices, Plan};
use shadernet::{Error, data};

/// Train and run convolutional networks with hand-written WGSL kernels, on any GPU, or on the CPU.
#[derive(Parser)]
#[command(name = "shadernet", version, max_term_width = 100, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  shadernet train --out cnn.safetensors --plot curve.png
  shadernet evaluate cnn.safetensors
  shadernet predict cnn.safetensors cat.png dog.jpg --top 5
  shadernet serve cnn.safetensors

Exit codes: 0 done, 1 failed (one message on standard error says why), 2 wrong usage.
Environment:
  RUST_LOG                    error, warn, info or debug; default warn, for serve info
  SHADERNET_CACHE             folder for downloads and compiled kernels; default: the user's cache folder
  SHADERNET_KERNEL_CACHE=off  keep no compiled kernels
  SHADERNET_COOPERATIVE=off   use no cooperative matrices
  SHADERNET_OFFLINE=1         never download";

#[derive(Subcommand)]
enum Command {
    Train(train::Arguments),
    Evaluate(evaluate::Arguments),
    Predict(predict::Arguments),
    Summary(summary::Arguments),
    Devices(devices::Arguments),
    Plan(plan::Arguments),
    Profile(profile::Arguments),
    Bench(bench::Arguments),
    Selftest(selftest::Arguments),
    #[cfg(all(feature = "serve", unix))]
    Serve(Box<serve::Arguments>),
}

/// Why a command did not succeed.
enum Failure {
    /// To be told.
    Error(Error),
    /// Standard output does not take the answer.
    Output(io::Error),
    /// Told already.
    Told,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

type Result<T = (), E = Failure> = std::result::Result<T, E>;

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        #[cfg(all(feature = "serve", unix))]
        Command::Serve(arguments) => progress::start_service_log(arguments.log_format == serve::LogFormat::Json),
        _ => progress::start_log(),
    }
    let done = match cli.command {
        Command::Train(arguments) => train::run(arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments),
        Command::Predict(arguments) => predict::run(&arguments),
        Command::Summary(arguments) => summary::run(&arguments),
        Command::Devices(arguments) => devices::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Profile(arguments) => profile::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Selftest(arguments) => selftest::run(&arguments),
        #[cfg(all(feature = "serve", unix))]
        Command::Serve(arguments) => serve::run(*arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads, `head` for example, has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            match failure {
                Failure::Error(error) => complain(&error),
                Failure::Output(error) => complain(&format!("cannot write to standard output: {error}")),
                Failure::Told => {}
            }
            ExitCode::FAILURE
        }
    }
}

/// Writes an error to standard error, and goes on where nobody reads that.
fn complain(error: &dyn std::fmt::Display) {
    progress::remark(&format!("error: {}", printable(&error.to_string())));
}

/// A message may quote what stands in a damaged file, and that is not for the terminal to obey.
fn printable(message: &str) -> String {
    message.chars().map(|c| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Writes an answer to standard output.
fn answer(text: &str) -> Result {
    let mut out = io::stdout().lock();
    let text = if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Writes an answer as one JSON document.
fn answer_json(value: &serde_json::Value) -> Result {
    answer(&format!("{value:#}"))
}

/// Where to compute.
#[derive(Args, Clone)]
struct Device {
    /// Where to compute: `auto` (the best hardware GPU, else the CPU), `cpu`, `gpu` (a hardware GPU or an error), or an
    /// adapter's index or part of its name as `shadernet devices` lists them; a software adapter is used only when named.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Threads of the CPU path [default: one for each core].
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// How a GPU's kernels are chosen among those that compute the same: `off` (by the kind of adapter), `quick` (by what was found
    /// out before; what is new is tried once, for a second at most, but not on software adapters), `full` (all are tried at length,
    /// for two minutes at most). What is found out is kept in the cache folder.
    #[arg(long, value_enum, default_value_t = Tuned::Quick, value_name = "HOW")]
    tune: Tuned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tuned {
    Off,
    Quick,
    Full,
}

/// A device that a choice came to, ready to open as often as needed.
enum Chosen {
    Cpu(Option<usize>),
    Gpu(Gpu, Tuning),
}

impl Device {
    /// Settles which device it is, and why.
    fn choose(&self, options: impl Into<GpuOptions>) -> Result<(Chosen, String), Error> {
        // The CPU path needs no driver, so asking for it must not wake one.
        let adapters = if self.device == DeviceChoice::Cpu { Vec::new() } else { gpu::adapters() };
        let (index, why) = gpu::choose(&self.device, &adapters)?;
        let chosen = match index {
            Some(index) => {
                let (gpu, folder) = (Gpu::open_with(index, options.into())?, kernel_cache());
                let gpu = match &folder {
                    Some(folder) => gpu.with_cache(folder),
                    None => gpu,
                };
                let tune = match self.tune {
                    Tuned::Off => Tune::Off,
                    Tuned::Quick => Tune::Quick,
                    Tuned::Full => Tune::Full,
                };
                Chosen::Gpu(gpu, Tuning { tune, folder, time: tune.time(), tell: progress::remark })
            }
            None => Chosen::Cpu(self.threads),
        };
        if self.threads.is_some() && index.is_some() {
            log::warn!("--threads has no effect on a GPU");
        }
        Ok((chosen, why))
    }

    /// A device for which kernels are chosen by what is known, and nothing is tried.
    fn known(device: DeviceChoice) -> Result<Chosen, Error> {
        let (mut chosen, _) = Self { device, threads: None, tune: Tuned::Quick }.choose(Checks::Off)?;
        if let Chosen::Gpu(_, tuning) = &mut chosen {
            tuning.time = Duration::ZERO;
        }
        Ok(chosen)
    }

    /// Whether it comes to the CPU.
    #[cfg(all(feature = "serve", unix))]
    fn is_cpu(&self) -> Result<bool, Error> {
        let adapters = if self.device == DeviceChoice::Cpu { Vec::new() } else { gpu::adapters() };
        Ok(gpu::choose(&self.device, &adapters)?.0.is_none())
    }

    /// An executor on it, and why it is that device.
    fn open(&self) -> Result<(Box<dyn Executor>, String), Error> {
        self.open_with(GpuOptions::default())
    }

    /// The same, with a GPU opened so.
    fn open_with(&self, options: GpuOptions) -> Result<(Box<dyn Executor>, String), Error> {
        let (chosen, why) = self.choose(options)?;
        Ok((chosen.executor()?, why))
    }
}

/// The folder in which compiled kernels and the choice among them are kept; none if the user wants none.
fn kernel_cache() -> Option<PathBuf> {
    let wanted = std::env::var_os("SHADERNET_KERNEL_CACHE").is_none_or(|value| value != "off");
    wanted.then(data::cache::folder)?.map(|folder| folder.join("kernels"))
}

impl Chosen {
    /// The driver of a GPU, the processor's name otherwise, if the system tells.
    fn driver(&self) -> Option<String> {
        match self {
            Self::Cpu(_) => shadernet::bench::processor(),
            Self::Gpu(gpu, _) => Some(gpu.driver()),
        }
    }

    fn executor(&self) -> Result<Box<dyn Executor>, Error> {
        Ok(match self {
            Self::Cpu(threads) => Box::new(CpuExecutor::new(*threads)?),
            Self::Gpu(gpu, tuning) => Box::new(GpuExecutor::new(gpu.clone()).with_tuning(tuning.clone())),
        })
    }

    /// What an executor on it would pick for these plans.
    fn choices<'a>(&self, plans: impl Iterator<Item = &'a Plan>) -> Result<Choices, Error> {
        let mut choices = Choices::default();
        if let Self::Gpu(gpu, tuning) = self {
            let mut exec = GpuExecutor::new(gpu.clone()).with_tuning(tuning.clone());
            for plan in plans {
                exec.settle(plan)?;
                choices.extend(exec.chosen(plan));
            }
        }
        Ok(choices)
    }

    /// An executor that picks these kernels.
    fn with(&self, choices: &Choices) -> Result<Box<dyn Executor>, Error> {
        let mut exec: Box<dyn Executor> = match self {
            Self::Cpu(_) => self.executor()?,
            Self::Gpu(gpu, _) => Box::new(GpuExecutor::new(gpu.clone())),
        };
        exec.choose(choices);
        Ok(exec)
    }
}

/// The model of a file with its weights, or the built-in network without any.
fn model_or_builtin(path: Option<&Path>) -> Result<(Model, Option<Vec<NamedTensor>>), Error> {
    match path {
        Some(path) => load_model(path).map(|(model, weights)| (model, Some(weights))),
        None => Ok((cifar10_cnn(&data::CIFAR10_CLASSES.map(str::to_owned)), None)),
    }
}

/// The images of CIFAR-10, for which memory is reckoned where no data is at hand.
const CIFAR10_IMAGES: [usize; 2] = [50_000, 10_000];

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err("expected a whole number of at least 1".to_owned()),
    }
}

/// More threads than any machine has cores would take the machine down.
fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1024) => Ok(number),
        _ => Err("expected a whole number from 1 to 1024".to_owned()),
    }
}

fn batch_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=65_536) => Ok(number),
        _ => Err("expected a whole number from 1 to 65536".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn messages_do_not_command_the_terminal() {
        assert_eq!(super::printable("“é”\u{1b}[2J\n\u{9b}"), "“é”\\u{1b}[2J\n\\u{9b}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
