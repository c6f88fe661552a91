//! What a person sees while something takes its time: a bar in a terminal, nothing but whole lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::format;

/// The bar on the screen: lines that others write must not land in the middle of it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Starts the log. It goes to standard error, and around a bar that is there.
pub(super) fn start_log() {
    let style = if io::stderr().is_terminal() { env_logger::WriteStyle::Auto } else { env_logger::WriteStyle::Never };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .format_target(false)
        .write_style(style)
        .target(env_logger::Target::Pipe(Box::new(LogTarget)))
        .init();
}

/// Starts the log of a service: with times, from `info` on, and with what a line is about as pairs of names and values.
#[cfg(all(feature = "serve", unix))]
pub(super) fn start_service_log(json: bool) {
    let style = if io::stderr().is_terminal() { env_logger::WriteStyle::Auto } else { env_logger::WriteStyle::Never };
    let mut log = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn,shadernet=info"));
    log.format_timestamp_millis().write_style(style);
    if json {
        log.format(|out, record| {
            let mut pairs = Pairs(serde_json::Map::new());
            pairs.0.insert("time".to_owned(), out.timestamp_millis().to_string().into());
            pairs.0.insert("level".to_owned(), record.level().as_str().into());
            pairs.0.insert("target".to_owned(), record.target().into());
            pairs.0.insert("message".to_owned(), record.args().to_string().into());
            let _ = record.key_values().visit(&mut pairs);
            writeln!(out, "{}", serde_json::Value::Object(pairs.0))
        });
    }
    log.init();
}

/// Pairs of a log line as JSON.
#[cfg(all(feature = "serve", unix))]
struct Pairs(serde_json::Map<String, serde_json::Value>);

#[cfg(all(feature = "serve", unix))]
impl<'a> log::kv::VisitSource<'a> for Pairs {
    fn visit_pair(&mut self, key: log::kv::Key<'a>, value: log::kv::Value<'a>) -> Result<(), log::kv::Error> {
        let value = match (value.to_u64(), value.to_f64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => value.to_string().into(),
        };
        self.0.insert(key.to_string(), value);
        Ok(())
    }
}

struct LogTarget;

impl Write for LogTarget {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        around(|| io::stderr().write_all(text)).map(|()| text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Does something to the screen while the bar is out of its way.
fn around<T>(work: impl FnOnce() -> T) -> T {
    let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(work),
        None => work(),
    }
}

/// Writes a line to standard output. Whether anybody reads it does not matter to the work it tells of.
pub(super) fn line(text: &str) {
    around(|| {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    });
}

/// Writes a line to standard error.
pub(super) fn remark(text: &str) {
    around(|| {
        let _ = writeln!(io::stderr(), "{text}");
    });
}

/// A bar that is on the screen while it lives, if standard error is a terminal.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar over images, of which some are done. It gets what the terminal has left beside the figures.
    pub(super) fn images(title: &str, done: usize, all: usize) -> Self {
        let digits = all.to_string().len();
        let template = format!("{{prefix}} {{wide_bar}} {{pos:>{digits}}}/{{len}} {{rate:>13}} {{eta:>3}} left {{msg}}");
        Self::new(title, done as u64, all as u64, &template)
    }

    /// A bar over bytes.
    pub(super) fn bytes(title: &str, done: u64, all: u64) -> Self {
        Self::new(title, done, all, "{prefix} {wide_bar} {bytes:>10}/{total_bytes} {bytes_per_sec:>12} {eta:>3} left")
    }

    fn new(title: &str, done: u64, all: u64, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{:.0} images/s", state.per_sec());
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("rate", rate).progress_chars("━╸─"));
        bar.set_prefix(title.to_owned());
        bar.set_position(done);
        bar.reset_eta();
        bar.enable_steady_tick(Duration::from_millis(250));
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self(bar)
    }

    /// Moves it to this many of all.
    pub(super) fn set(&self, done: u64) {
        self.0.set_position(done);
    }

    /// Sets what stands behind it.
    pub(super) fn say(&self, message: String) {
        self.0.set_message(message);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.0.finish_and_clear();
    }
}

/// Tells of a download: a bar in a terminal, elsewhere a line at each tenth.
#[derive(Default)]
pub(super) struct Download {
    bar: Option<Bar>,
    told: Option<u64>,
}

impl Download {
    /// So many bytes are there, of so many.
    pub(super) fn update(&mut self, done: u64, total: Option<u64>) {
        let all = total.unwrap_or(0);
        if io::stderr().is_terminal() {
            self.bar.get_or_insert_with(|| Bar::bytes("downloading CIFAR-10", done, all)).set(done);
            return;
        }
        let tenth = (10 * done).checked_div(all).unwrap_or(done / (16 << 20));
        if self.told.is_none_or(|told| tenth > told) {
            self.told = Some(tenth);
            let of = total.map_or(String::new(), |total| format!(" of {}", format::bytes(total)));
            remark(&format!("downloading CIFAR-10: {}{of}", format::bytes(done)));
        }
    }
}
