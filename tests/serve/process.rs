//! The program as a process of its own: its ports, its signals, and what it holds.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::binary;
use super::client::*;

/// A server that is a process.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// What a process holds.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) threads: usize,
    pub(crate) files: usize,
    /// Kilobytes in memory.
    pub(crate) resident: i64,
}

impl Process {
    /// Serves a file under the name `m`, on any free port.
    pub(crate) fn start(model: &Path) -> Self {
        Self::start_at(model, 0)
    }

    /// On this port.
    pub(crate) fn start_at(model: &Path, port: u16) -> Self {
        let mut command = Command::new(binary::program());
        command.args(["serve", "--device", "cpu", "--port", &port.to_string(), "--admin-port", "0", "--grpc-port", "off"]);
        command.args(["--drain-delay", "300ms"]).arg(format!("m={}", model.display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        for variable in ["AIP_HTTP_PORT", "PORT", "AIP_STORAGE_URI", "RUST_LOG"] {
            command.env_remove(variable);
        }
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = |name: &str| {
            let rest = line.split_once(name).unwrap_or_else(|| panic!("no {name:?} in {line:?}")).1;
            rest.split(|c: char| c == ',' || c.is_whitespace()).next().unwrap().parse().unwrap()
        };
        let (http, admin) = (port("HTTP "), port("admin "));
        Self { child, http, admin }
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// A number of the metrics.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        metric(self.admin, line)
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn held(&self) -> Held {
        let folder = format!("/proc/{}", self.child.id());
        let status = std::fs::read_to_string(format!("{folder}/status")).unwrap();
        let number = |name: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_end_matches("kB").trim().parse().unwrap()
        };
        let files = std::fs::read_dir(format!("{folder}/fd")).unwrap().count();
        Held { threads: number("Threads:"), files, resident: number("VmRSS:") as i64 }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
