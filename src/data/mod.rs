//! Where images come from and how they lie in memory: bytes, `[count, height, width, channels]`, with one label each.
//!
//! Every source (the official CIFAR-10 files, the archive they come in, a folder of pictures, the sample inside this crate)
//! ends in the same [`Dataset`], so that nothing after it knows where the data came from. Pixels stay bytes here: scaling them
//! is the first kernel of a step. What a file claims about its size is checked before memory is reserved for it.
//!
//! [`cifar`] and [`sample`] need only the standard library; the rest is the Cargo feature `data`.

use std::fmt;
use std::path::PathBuf;

pub mod cifar;

#[cfg(feature = "data")]
pub mod archive;
#[cfg(feature = "data")]
pub mod cache;
#[cfg(feature = "data")]
pub mod download;
#[cfg(feature = "data")]
mod find;
#[cfg(feature = "data")]
pub mod images;

#[cfg(feature = "data")]
pub use find::{find, find_in};

/// The classes of CIFAR-10 in label order.
pub const CIFAR10_CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Labelled images of one size.
#[derive(Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Pixels, `[count, height, width, channels]`, 0 to 255.
    pub images: Vec<u8>,
    /// The class of each image, `[count]`, each below `classes.len()`.
    pub labels: Vec<u32>,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Channels of a pixel: 3, in the order red, green, blue, from every source here.
    pub channels: usize,
    /// The name of each class, in label order.
    pub classes: Vec<String>,
}

impl Dataset {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Bytes of one image: `height * width * channels`.
    pub fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Keeps the first `count` images; all of them if there are no more.
    pub fn truncate(&mut self, count: usize) {
        let count = count.min(self.len());
        self.labels.truncate(count);
        self.images.truncate(count * self.image_len());
    }

    /// The pixels of image `i`, `[height, width, channels]`. Panics if there is no such image, as a slice does.
    pub fn image(&self, i: usize) -> &[u8] {
        &self.images[i * self.image_len()..][..self.image_len()]
    }
}

/// One line: printing millions of pixels helps nobody.
impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { height, width, channels, classes, .. } = self;
        write!(f, "Dataset({} images, {height}x{width}x{channels}, {} classes)", self.len(), classes.len())
    }
}

/// Data to train on and data to judge by, with the same image size and the same classes.
#[derive(Clone, Debug)]
pub struct Splits {
    /// The images to train on.
    pub train: Dataset,
    /// The images to validate with.
    pub test: Dataset,
    /// Where both came from.
    pub origin: Origin,
}

/// Validation accuracy that the CIFAR-10 network reaches on [`sample`] in ten epochs of batch 64: measured on the CPU, seeds 0 to 3.
pub const SAMPLE_ACCURACY: &str = "31 to 39 %";

/// Where data came from. Prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The official binary files in this folder.
    Folder(PathBuf),
    /// This archive of the official binary files.
    Archive(PathBuf),
    /// The folder of class folders here.
    ImageFolder(PathBuf),
    /// This file or folder in the user's cache.
    Cache(PathBuf),
    /// This archive, downloaded just now.
    Downloaded(PathBuf),
    /// The 1,500 images inside this crate.
    Sample,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "CIFAR-10 binary files in {}", path.display()),
            Self::Archive(path) => write!(f, "CIFAR-10 archive {}", path.display()),
            Self::ImageFolder(path) => write!(f, "image folder {}", path.display()),
            Self::Cache(path) => write!(f, "CIFAR-10 from the cache, {}", path.display()),
            Self::Downloaded(path) => write!(f, "CIFAR-10, downloaded to {}", path.display()),
            Self::Sample => write!(f, "the built-in sample of CIFAR-10 (1,000 training and 500 test images)"),
        }
    }
}

/// The data inside this crate: the first 200 images of each CIFAR-10 training file and the first 500 of the test file.
///
/// Enough to see a network learn on a machine without network, far too little to learn CIFAR-10.
pub fn sample() -> Splits {
    let read = |bytes: &[u8]| match cifar::parse("sample".as_ref(), bytes, cifar::default_classes()) {
        Ok(dataset) => dataset,
        Err(error) => panic!("the sample compiled into this crate is whole: {error}"),
    };
    Splits { train: read(include_bytes!("sample/train.bin")), test: read(include_bytes!("sample/test.bin")), origin: Origin::Sample }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_has_every_class_in_both_splits() {
        let splits = sample();
        assert_eq!((splits.train.len(), splits.test.len()), (1000, 500));
        for set in [&splits.train, &splits.test] {
            assert_eq!(set.images.len(), set.len() * 32 * 32 * 3);
            assert!((0..10).all(|class| set.labels.contains(&class)), "a class is missing: {:?}", set.labels);
            assert_eq!(set.classes, CIFAR10_CLASSES);
        }
    }

    #[test]
    fn truncate_keeps_the_first_images_and_never_more_than_there_are() {
        let full = sample().test;
        let mut set = full.clone();
        set.truncate(usize::MAX);
        assert_eq!(set, full);
        set.truncate(3);
        assert_eq!((set.len(), set.images.len(), set.is_empty()), (3, 3 * 3072, false));
        assert_eq!(set.image(2), full.image(2));
        set.truncate(0);
        assert!(set.is_empty() && set.images.is_empty());
    }

    #[test]
    fn every_origin_prints_as_one_line_with_its_path() {
        let path = || PathBuf::from("some/where");
        for origin in [
            Origin::Folder(path()),
            Origin::Archive(path()),
            Origin::ImageFolder(path()),
            Origin::Cache(path()),
            Origin::Downloaded(path()),
        ] {
            let line = origin.to_string();
            assert!(line.contains("some/where") && !line.contains('\n'), "{line}");
        }
        assert!(Origin::Sample.to_string().contains("1,000"));
    }
}
