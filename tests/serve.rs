//! The server from outside, over loopback: what it answers, what it withstands, and how it starts, changes and ends.
#![cfg(feature = "serve")]

#[path = "serve/again.rs"]
mod again;
#[cfg(feature = "cli")]
#[path = "common/program.rs"]
mod binary;
#[path = "serve/client.rs"]
mod client;
#[path = "serve/clients.rs"]
mod clients;
#[path = "serve/corpus.rs"]
mod corpus;
#[path = "serve/drift.rs"]
mod drift;
#[path = "serve/faults.rs"]
mod faults;
#[path = "serve/fragile.rs"]
mod fragile;
#[path = "serve/fuzz.rs"]
mod fuzz;
#[path = "serve/life.rs"]
mod life;
#[cfg(all(unix, feature = "cli"))]
#[path = "serve/process.rs"]
mod process;
#[path = "serve/protocols.rs"]
mod protocols;
#[path = "serve/storage.rs"]
mod storage;
#[cfg(feature = "otel")]
#[path = "serve/traces.rs"]
mod traces;
