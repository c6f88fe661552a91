//! Where data comes from, tried from outside.
#![cfg(feature = "data")]

#[path = "data/archives.rs"]
mod archives;
#[path = "data/downloads.rs"]
mod downloads;
#[path = "data/files.rs"]
mod files;
#[path = "data/pictures.rs"]
mod pictures;
#[path = "data/search.rs"]
mod search;
#[path = "data/server.rs"]
mod server;
