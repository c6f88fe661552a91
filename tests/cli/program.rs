//! The built program in a folder of its own: no network, nobody's cache, nobody's settings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Bytes of a record of the data files.
pub(crate) const RECORD: usize = 3073;

static TRAIN: &[u8] = include_bytes!("../../src/data/sample/train.bin");
static TEST: &[u8] = include_bytes!("../../src/data/sample/test.bin");

/// A folder with the data set `data` (80 training and 40 test images), in which the program runs.
pub(crate) struct Place(tempfile::TempDir);

/// How a run ended.
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (i, batch) in TRAIN.chunks(16 * RECORD).take(5).enumerate() {
            place.write(&format!("data/data_batch_{}.bin", i + 1), batch);
        }
        place.write("data/test_batch.bin", &TEST[..40 * RECORD]);
        place
    }

    /// One with a model of one epoch, `m.safetensors`, and its history, `m.json`.
    pub(crate) fn with_model() -> Self {
        let place = Self::new();
        place.ok("train --data data --device cpu --epochs 1 --out m.safetensors --history m.json");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Names in a folder, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The program with these arguments, which stand between spaces.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(super::binary::program());
        command.args(arguments.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(variable).env_remove(variable.to_uppercase());
        }
        command.env_remove("RUST_LOG").env_remove("SHADERNET_CACHE").env("SHADERNET_OFFLINE", "1");
        for variable in
            ["HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "LOCALAPPDATA", "APPDATA", "USERPROFILE"]
        {
            command.env(variable, self.path("home"));
        }
        command
    }

    pub(crate) fn run(&self, arguments: &str) -> Done {
        Done::from(self.command(arguments).output().unwrap())
    }

    /// Runs what must succeed.
    pub(crate) fn ok(&self, arguments: &str) -> Done {
        let done = self.run(arguments);
        assert_eq!(done.code, Some(0), "{arguments}: {}", done.err);
        assert!(!done.err.contains("error:"), "{arguments}: {}", done.err);
        done
    }

    /// Runs what must succeed and answer with one JSON document.
    pub(crate) fn json(&self, arguments: &str) -> Value {
        let done = self.ok(arguments);
        serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{arguments}: {error}\n{}", done.out))
    }

    /// Runs what must fail with this code and one error that has all these words in it.
    pub(crate) fn fails(&self, code: i32, arguments: &str, words: &[&str]) -> Done {
        let done = self.run(arguments);
        done.check_failed(code, arguments, words);
        done
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Done {
    pub(crate) fn check_failed(&self, code: i32, what: &str, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{what}: {}\n{}", self.out, self.err);
        let errors: Vec<&str> = self.err.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{what}: {}", self.err);
        for word in words {
            assert!(errors[0].contains(word), "{what}: no {word:?} in {:?}", errors[0]);
        }
        assert!(!self.err.contains("panicked"), "{what}: {}", self.err);
    }
}

/// The numbers of a JSON list.
pub(crate) fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// A CIFAR-10 test image of the sample as pixels.
pub(crate) fn picture(index: usize) -> image::RgbImage {
    let planes = &TEST[index * RECORD + 1..(index + 1) * RECORD];
    image::RgbImage::from_fn(32, 32, |x, y| image::Rgb([0, 1, 2].map(|plane| planes[plane * 1024 + (y * 32 + x) as usize])))
}

/// Whether files cannot be made in `folder`; the superuser can make them everywhere.
#[cfg(unix)]
pub(crate) fn is_read_only(folder: &Path) -> bool {
    fs::write(folder.join("probe"), "").is_err()
}
