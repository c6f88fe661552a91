//! What the server counts, as Prometheus's text format: Triton's names, so that dashboards fit, and seconds of our own.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use super::State;
use super::drift::Drift;
use super::stats::{Histogram, IMAGES, SECONDS, Stats, Timer};
use super::version::Version;

/// Answers by HTTP status.
#[derive(Debug)]
pub(super) struct Answers([AtomicU64; 600]);

impl Default for Answers {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; 600])
    }
}

impl Answers {
    pub(super) fn count(&self, status: u16) {
        if let Some(counter) = self.0.get(usize::from(status)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Name, help, and how to read it.
type Sample<'a, T> = (&'static str, &'static str, &'a dyn Fn(&T) -> f64);

/// The content type of the text format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything that is counted.
pub(super) fn render(state: &State) -> String {
    let versions = state.repository.serving();
    let mut text = Text(String::new());
    render_triton(&mut text, &versions);
    render_own(&mut text, &versions);
    render_drift(&mut text, &versions);
    render_server(&mut text, state);
    text.0
}

fn render_triton(text: &mut Text, versions: &[Arc<Version>]) {
    type Of = fn(&Stats) -> &Timer;
    let counters: [Sample<'_, Stats>; 3] = [
        ("nv_inference_request_success", "Requests answered", &|s| s.success.count() as f64),
        ("nv_inference_count", "Images computed", &|s| s.images.load(Ordering::Relaxed) as f64),
        ("nv_inference_exec_count", "Batches computed", &|s| s.batches.load(Ordering::Relaxed) as f64),
    ];
    for (name, help, of) in counters {
        text.family(name, "counter", help);
        versions.iter().for_each(|version| text.sample(name, &labels(version), of(version.stats())));
    }
    text.family("nv_inference_request_failure", "counter", "Requests not answered, by reason");
    for version in versions {
        for (counter, reason) in version.stats().failures.iter().zip(["REJECTED", "CANCELED", "BACKEND", "OTHER"]) {
            let labels = format!("{},reason=\"{reason}\"", labels(version));
            text.sample("nv_inference_request_failure", &labels, counter.load(Ordering::Relaxed) as f64);
        }
    }
    let durations: [(&str, &str, Of); 5] = [
        ("request", "Time of answered requests", |s| &s.success),
        ("queue", "Time that answered requests waited", |s| &s.queue),
        ("compute_input", "Time to put images together and upload them", |s| &s.upload),
        ("compute_infer", "Time to compute", |s| &s.compute),
        ("compute_output", "Time to read answers back", |s| &s.download),
    ];
    for (part, help, of) in durations {
        let name = format!("nv_inference_{part}_duration_us");
        text.family(&name, "counter", &format!("{help}, in microseconds"));
        versions.iter().for_each(|version| text.sample(&name, &labels(version), (of(version.stats()).nanoseconds() / 1000) as f64));
    }
    let name = "nv_inference_pending_request_count";
    text.family(name, "gauge", "Requests under way, waiting or computing");
    versions.iter().for_each(|version| text.sample(name, &labels(version), version.queue().requests() as f64));
}

fn render_own(text: &mut Text, versions: &[Arc<Version>]) {
    text.histograms("shadernet_request_duration_seconds", "Time of answered requests", versions, &SECONDS, |s| &s.request_seconds);
    text.histograms("shadernet_queue_duration_seconds", "Time that answered requests waited", versions, &SECONDS, |s| &s.queue_seconds);
    text.histograms("shadernet_batch_images", "Images of a batch", versions, &IMAGES, |s| &s.batch_images);
    let gauges: [Sample<'_, Version>; 3] = [
        ("shadernet_queue_images", "Images that wait", &|v| v.queue().depth() as f64),
        ("shadernet_model_ready", "Whether an instance of the model can compute", &|v| f64::from(u8::from(v.is_ready()))),
        ("shadernet_device_memory_bytes", "Bytes that weights and values hold on the device", &|v| v.device_bytes() as f64),
    ];
    for (name, help, of) in gauges {
        text.family(name, "gauge", help);
        versions.iter().for_each(|version| text.sample(name, &labels(version), of(version)));
    }
    let seen = |version: &Version| version.stats().seen.lock().unwrap_or_else(PoisonError::into_inner).all();
    let counters: [Sample<'_, Version>; 4] = [
        ("shadernet_device_lost_total", "Times a device was lost", &|v| v.stats().device_lost.load(Ordering::Relaxed) as f64),
        ("shadernet_input_values_total", "Values of images computed; with the sums below, mean and deviation", &|v| {
            let seen = seen(v);
            (seen.values * seen.sums.len() as u64) as f64
        }),
        ("shadernet_input_sum_total", "Sum of those values, as the network takes them", &|v| seen(v).sums.iter().map(|sums| sums[0]).sum()),
        ("shadernet_input_squares_total", "Sum of their squares", &|v| seen(v).sums.iter().map(|sums| sums[1]).sum()),
    ];
    for (name, help, of) in counters {
        text.family(name, "counter", help);
        versions.iter().for_each(|version| text.sample(name, &labels(version), of(version)));
    }
    let name = "shadernet_predicted_images_total";
    text.family(name, "counter", "Images by their most probable class");
    for version in versions {
        for (class, counter) in version.model().classes.iter().zip(&version.stats().classes) {
            text.sample(name, &format!("{},class=\"{}\"", labels(version), escaped(class)), counter.load(Ordering::Relaxed) as f64);
        }
    }
}

/// The latest images against what the models were validated with, of those that say what that was.
fn render_drift(text: &mut Text, versions: &[Arc<Version>]) {
    let drift = |version: &Arc<Version>| {
        let seen = version.stats().seen.lock().unwrap_or_else(PoisonError::into_inner);
        Some((labels(version), seen.against(version.baseline()?)?))
    };
    let drifts: Vec<(String, Drift)> = versions.iter().filter_map(drift).collect();
    type Channels = fn(&Drift) -> &[f64];
    let of_channels: [(&str, &str, Channels); 2] = [
        ("shadernet_drift_input_mean", "How far a channel's mean went since validation, in standard deviations", |d| &d.mean),
        ("shadernet_drift_input_deviation", "A channel's standard deviation as a multiple of that at validation", |d| &d.deviation),
    ];
    for (name, help, of) in of_channels {
        text.family(name, "gauge", help);
        for (labels, drift) in &drifts {
            let channels = of(drift).iter().enumerate();
            channels.for_each(|(channel, &value)| text.sample(name, &format!("{labels},channel=\"{channel}\""), value));
        }
    }
    let gauges: [Sample<'_, Drift>; 3] = [
        ("shadernet_drift_classes", "Share of images by which the classes found differ from those at validation, 0 to 1", &|d| d.classes),
        ("shadernet_drift_confidence", "Mean probability of the class found, less that at validation", &|d| d.confidence),
        ("shadernet_drift_images", "Latest images that are compared", &|d| d.images as f64),
    ];
    for (name, help, of) in gauges {
        text.family(name, "gauge", help);
        drifts.iter().for_each(|(labels, drift)| text.sample(name, labels, of(drift)));
    }
}

fn render_server(text: &mut Text, state: &State) {
    text.family("shadernet_http_answers_total", "counter", "Answers over HTTP, by status");
    for (status, counter) in state.answers.0.iter().enumerate() {
        let count = counter.load(Ordering::Relaxed);
        if count > 0 {
            text.sample("shadernet_http_answers_total", &format!("code=\"{status}\""), count as f64);
        }
    }
    text.family("shadernet_connections", "gauge", "Connections that are open");
    text.sample("shadernet_connections", "", state.connections.load(Ordering::Relaxed) as f64);
    text.family("shadernet_build_info", "gauge", "Always 1; the label says which version this is");
    text.sample("shadernet_build_info", concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""), 1.0);
}

fn labels(version: &Version) -> String {
    format!("model=\"{}\",version=\"{}\"", version.name, version.number)
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The text, as it grows.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            _ => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn histograms<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        versions: &[Arc<Version>],
        bounds: &[f64; N],
        of: fn(&Stats) -> &Histogram<N>,
    ) {
        self.family(name, "histogram", help);
        for version in versions {
            let labels = labels(version);
            let (counts, sum) = of(version.stats()).cumulative();
            let bounds = bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
            for (bound, &count) in bounds.zip(&counts) {
                self.sample(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), count as f64);
            }
            self.sample(&format!("{name}_sum"), &labels, sum);
            self.sample(&format!("{name}_count"), &labels, counts.last().copied().unwrap_or(0) as f64);
        }
    }
}
