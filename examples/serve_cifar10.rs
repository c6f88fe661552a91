//! A program with a server inside: trains for a moment, serves the result, asks for it, and ends.
//!
//! `cargo run --release --example serve_cifar10`

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use shadernet::exec::cpu::CpuExecutor;
use shadernet::serve::{Config, Server, Source};
use shadernet::{data, models, train};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let images = data::sample();
    let model = models::cifar10_cnn(&images.train.classes);
    let config = train::TrainConfig { epochs: 3, ..Default::default() };
    let device = Box::new(CpuExecutor::new(None)?);
    let mut trainer = train::Trainer::new(device, model.clone(), &images.train, &images.test, config)?;
    trainer.fit(&mut |_event| ControlFlow::Continue(()))?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("cifar.safetensors");
    trainer.save_model(&path)?;

    // Each instance of a model opens a device of its own: here the CPU.
    let mut config = Config::new(vec![Source::File { name: "cifar".to_owned(), path }], Arc::new(|| Ok(Box::new(CpuExecutor::new(None)?))));
    config.http = SocketAddr::from(([127, 0, 0, 1], 0)); // a free port
    (config.grpc, config.admin) = (None, None);
    let server = Server::start(config)?;

    let image = images.test.image(0);
    let mut client = TcpStream::connect(server.http())?;
    write!(client, "POST /v2/models/cifar/infer HTTP/1.1\r\nhost: here\r\nconnection: close\r\n")?;
    write!(client, "inference-header-content-length: 0\r\ncontent-length: {}\r\n\r\n", image.len())?;
    client.write_all(image)?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    let row = answer[answer.len() - 4 * model.classes.len()..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    for (class, probability) in model.classes.iter().zip(row) {
        println!("{class:<12} {:5.1} %", 100.0 * probability);
    }
    assert!(server.stop(Duration::ZERO, Duration::from_secs(5)), "every request was answered");
    Ok(())
}
