//! Pictures as data: which files of a folder count, what size they get, and how much memory a picture may ask for.
//!
//! A data set of pictures is `train/CLASS/*.png` and `test/CLASS/*.png` (or `.jpg`, `.jpeg`). If all pictures of both splits share
//! one size of at most 256×256, they keep it; otherwise all become 32×32. Classes and files are taken in the order of their names, so
//! the same folder is the same data set on every machine. Grey becomes RGB, 16 bits become 8, transparency is dropped,
//! and the orientation that a camera recorded is applied.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use rayon::prelude::*;

use super::{Dataset, cifar};
use crate::{Error, Result};

/// Height and width of images that do not share a size.
const COMMON_SIDE: usize = 32;
/// The largest shared height or width that is kept.
const LARGEST_KEPT: usize = 256;
/// A picture file larger than this is not read.
const FILE_BYTES: u64 = 128 << 20;
/// A picture that decodes to more than this is refused by its header: 64 million pixels of three bytes.
const DECODED_BYTES: u64 = 192 << 20;
/// A picture higher or wider than this is refused by its header.
const LARGEST_SIDE: u32 = 16_384;

/// Reads the PNG or JPEG at `path`, resized to `[height, width, 3]` bytes. The content decides the format, not the name.
///
/// The resize is linear (a triangle filter, as wide as the reduction asks for) and does not keep the aspect ratio.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Data`] if it is no picture or a larger one than is reasonable, [`Error::Invalid`] for a size of 0.
pub fn read_image(path: &Path, height: usize, width: usize) -> Result<Vec<u8>> {
    decode_image(path, &read_file(path)?, height, width)
}

/// Decodes a PNG or JPEG from memory as [`read_image`] does. `path` only names it in errors.
///
/// # Errors
/// [`Error::Data`] and [`Error::Invalid`] as for [`read_image`].
pub fn decode_image(path: &Path, bytes: &[u8], height: usize, width: usize) -> Result<Vec<u8>> {
    let side = |what: &str, side: usize| match u32::try_from(side) {
        Ok(side @ 1..=LARGEST_SIDE) => Ok(side),
        _ => Err(Error::invalid(format!("{what} of a resized picture"), side, format!("1 to {LARGEST_SIDE}"))),
    };
    let (rows, columns) = (side("height", height)?, side("width", width)?);
    let decoder = open(path, bytes)?;
    let mut decoder = decoder.map_err(|e| refused(path, e))?;
    // The file's own wish to be turned is not worth failing for.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| refused(path, e))?;
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    if picture.dimensions() == (columns, rows) {
        return Ok(picture.into_raw());
    }
    Ok(image::imageops::resize(&picture, columns, rows, FilterType::Triangle).into_raw())
}

/// Whether `folder` has the folders `train` and `test`.
pub fn is_image_folder(folder: &Path) -> bool {
    folder.join("train").is_dir() && folder.join("test").is_dir()
}

/// Reads the training and the test set from the class folders in `folder/train` and `folder/test`.
///
/// Other files are skipped, and so are names that start with a dot.
///
/// # Errors
/// [`Error::Io`] for what cannot be read; [`Error::Invalid`] for a split without classes, a class without pictures, or splits whose
/// classes differ; [`Error::Data`] for a picture that cannot be decoded.
pub fn load_image_folder(folder: &Path) -> Result<(Dataset, Dataset)> {
    let train = list_split(&folder.join("train"))?;
    let test = list_split(&folder.join("test"))?;
    if train.classes != test.classes {
        let only = |a: &Split, b: &Split| a.classes.iter().filter(|name| !b.classes.contains(name)).cloned().collect::<Vec<_>>();
        let found = format!("only in train: {:?}; only in test: {:?}", only(&train, &test), only(&test, &train));
        return Err(Error::invalid(format!("classes of {}", folder.display()), found, "the same class folders in train and test"));
    }
    let sizes: Vec<(usize, usize)> =
        train.files.par_iter().chain(&test.files).map(|(path, _)| picture_size(path)).collect::<Result<_>>()?;
    let shared = sizes.iter().all(|size| *size == sizes[0]) && sizes[0].0.max(sizes[0].1) <= LARGEST_KEPT;
    let size = if shared { sizes[0] } else { (COMMON_SIDE, COMMON_SIDE) };
    if !shared {
        log::warn!("{}: the pictures differ in size or are large: all become {COMMON_SIDE}x{COMMON_SIDE}", folder.display());
    }
    Ok((decode_split(train, size)?, decode_split(test, size)?))
}

/// A split before its pictures are read.
struct Split {
    classes: Vec<String>,
    /// Each picture with its label.
    files: Vec<(PathBuf, u32)>,
}

fn list_split(folder: &Path) -> Result<Split> {
    let mut split = Split { classes: Vec::new(), files: Vec::new() };
    for class in sorted_entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let label = split.classes.len() as u32;
        let count = split.files.len();
        split.files.extend(sorted_entries(&class)?.into_iter().filter(|path| is_picture(path)).map(|path| (path, label)));
        if split.files.len() == count {
            return Err(Error::invalid(format!("class folder {}", class.display()), "no picture", "PNG or JPEG files"));
        }
        split.classes.push(class.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    if split.classes.is_empty() {
        return Err(Error::invalid(
            format!("folder {}", folder.display()),
            "no class folder",
            "one folder a class, with PNG or JPEG files",
        ));
    }
    Ok(split)
}

/// What is in a folder, by name, without hidden files (`.DS_Store`, `._picture.png`). A name must be text, since it names a class.
fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || Error::io(folder, "cannot list");
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        match entry.file_name().to_str() {
            Some(name) if name.starts_with('.') => {}
            Some(_) => paths.push(entry.path()),
            None => return Err(Error::invalid("file name", entry.path().display(), "UTF-8")),
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    ["png", "jpg", "jpeg"].contains(&extension.as_str())
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let size = cifar::file_size(path)?;
    if size > FILE_BYTES {
        return Err(cifar::data(path, FILE_BYTES, format!("{size} bytes"), format!("a picture file of at most {FILE_BYTES} bytes")));
    }
    fs::read(path).map_err(Error::io(path, "cannot read"))
}

/// A decoder that has read the header and found it within the limits.
fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<image::ImageResult<impl ImageDecoder + 'a>> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(Error::io(path, "cannot read"))?;
    if reader.format().is_none() {
        let found = if bytes.is_empty() { "an empty file".to_owned() } else { format!("bytes {:02x?}", &bytes[..bytes.len().min(8)]) };
        return Err(cifar::data(path, 0, found, "the start of a PNG or JPEG"));
    }
    // The decoder would end the thread (png 0.18.1).
    if reader.format() == Some(ImageFormat::Png)
        && let Some((at, length)) = broken_palette(bytes)
    {
        return Err(cifar::data(
            path,
            at as u64,
            format!("a palette of {length} bytes"),
            "a multiple of 3, one each for red, green and blue",
        ));
    }
    // The decoder would leave the rest of the picture grey.
    if reader.format() == Some(ImageFormat::Jpeg) && !has_jpeg_end(bytes) {
        return Err(cifar::data(
            path,
            bytes.len() as u64,
            "the end of the file".to_owned(),
            "the rest of the JPEG, up to its end marker ff d9",
        ));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE);
    limits.max_image_height = Some(LARGEST_SIDE);
    limits.max_alloc = Some(DECODED_BYTES);
    let mut reader = reader;
    reader.limits(limits);
    Ok(reader.into_decoder().and_then(|decoder| {
        // The decoders check the sides; what both make together is checked here, before the pixels get memory.
        let mut limits = Limits::default();
        limits.max_alloc = Some(DECODED_BYTES);
        limits.reserve(decoder.total_bytes())?;
        Ok(decoder)
    }))
}

/// Whether a JPEG goes on to its end marker: outside of its segments, a byte ff begins a marker unless 00 follows.
fn has_jpeg_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(skipped) = bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xff)) {
        at += skipped;
        at += match bytes.get(at + 1..) {
            Some([0xd9, ..]) => return true,
            Some([0xff, ..]) => 1,
            Some([0x00 | 0x01 | 0xd0..=0xd8, ..]) => 2,
            Some([_, high, low, ..]) => 2 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => return false,
        };
    }
    false
}

/// Where a PNG has a palette whose colours are not whole, and of how many bytes.
fn broken_palette(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut at = 8; // behind the signature: chunks of a length, a name, as many bytes, and a check sum
    loop {
        let (length, rest) = bytes.get(at..)?.split_first_chunk()?;
        let length = u32::from_be_bytes(*length) as usize;
        if rest.starts_with(b"PLTE") && !length.is_multiple_of(3) {
            return Some((at, length));
        }
        at = at.checked_add(length)?.checked_add(12)?;
    }
}

fn refused(path: &Path, error: image::ImageError) -> Error {
    cifar::data(path, 0, format!("a picture that cannot be decoded ({error})"), "a whole PNG or JPEG of at most 16384x16384 and 192 MiB")
}

/// Height and width once turned upright, from the header.
fn picture_size(path: &Path) -> Result<(usize, usize)> {
    let bytes = read_file(path)?;
    let mut decoder = open(path, &bytes)?.map_err(|e| refused(path, e))?;
    let (width, height) = decoder.dimensions();
    use image::metadata::Orientation as Turn;
    Ok(match decoder.orientation() {
        Ok(Turn::Rotate90 | Turn::Rotate270 | Turn::Rotate90FlipH | Turn::Rotate270FlipH) => (width as usize, height as usize),
        _ => (height as usize, width as usize),
    })
}

fn decode_split(split: Split, (height, width): (usize, usize)) -> Result<Dataset> {
    let mut images = vec![0; split.files.len() * height * width * 3];
    let slots = images.par_chunks_exact_mut(height * width * 3);
    slots.zip(&split.files).try_for_each(|(slot, (path, _))| {
        slot.copy_from_slice(&read_image(path, height, width)?);
        Ok::<(), Error>(())
    })?;
    let labels = split.files.iter().map(|(_, label)| *label).collect();
    Ok(Dataset { images, labels, height, width, channels: 3, classes: split.classes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(picture: &DynamicImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn picture_of_the_asked_size_keeps_every_byte() {
        let bytes: Vec<u8> = (0..4 * 5 * 3).map(|i| i as u8).collect();
        let picture = image::RgbImage::from_raw(5, 4, bytes.clone()).unwrap();
        assert_eq!(decode_image(Path::new("x"), &png(&picture.into()), 4, 5).unwrap(), bytes);
    }

    #[test]
    fn halving_takes_in_every_pixel_of_a_uniform_half() {
        let picture = image::RgbImage::from_fn(64, 64, |x, _| image::Rgb(if x < 32 { [200, 0, 10] } else { [0, 100, 10] }));
        let small = decode_image(Path::new("x"), &png(&picture.into()), 8, 16).unwrap();
        assert_eq!(small.len(), 8 * 16 * 3);
        assert_eq!((&small[..3], &small[15 * 3..16 * 3]), (&[200, 0, 10][..], &[0, 100, 10][..]));
    }

    #[test]
    fn grey_and_sixteen_bit_pictures_become_rgb_bytes() {
        let grey = DynamicImage::from(image::GrayImage::from_pixel(2, 1, image::Luma([77])));
        assert_eq!(decode_image(Path::new("x"), &png(&grey), 1, 2).unwrap(), [77; 6]);
        let deep = image::ImageBuffer::<image::Rgb<u16>, _>::from_pixel(1, 1, image::Rgb([65535_u16, 0, 257 * 5]));
        assert_eq!(decode_image(Path::new("x"), &png(&deep.into()), 1, 1).unwrap(), [255, 0, 5]);
    }

    /// The header of a PNG may claim any size; the refusal must come from the claim, not from a lack of memory.
    #[test]
    fn hostile_header_is_refused_before_memory_is_reserved() {
        let small = png(&image::RgbImage::new(4, 4).into());
        for (width, height) in [(16_000_u32, 16_000_u32), (1 << 30, 1), (1, 1 << 30), (0x7fff_ffff, 0x7fff_ffff)] {
            let mut bytes = small.clone();
            bytes[16..20].copy_from_slice(&width.to_be_bytes());
            bytes[20..24].copy_from_slice(&height.to_be_bytes());
            let checksum = crc32fast::hash(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
            let error = decode_image(Path::new("big.png"), &bytes, 32, 32).unwrap_err().to_string();
            assert!(error.contains("big.png") && error.contains("imit"), "{width}x{height}: {error}");
        }
    }

    #[test]
    fn jpeg_that_claims_more_than_the_limit_is_refused() {
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(image::RgbImage::new(8, 8)).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
        let mut bytes = bytes.into_inner();
        let frame = bytes.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        bytes[frame + 5..frame + 9].copy_from_slice(&[0x3f, 0xff, 0x3f, 0xff]);
        let error = decode_image(Path::new("big.jpg"), &bytes, 32, 32).unwrap_err().to_string();
        assert!(error.contains("big.jpg") && error.contains("imit"), "{error}");
    }

    #[test]
    fn png_whose_palette_is_not_whole_colours_is_refused() {
        let chunk = |name: &[u8], data: &[u8]| {
            let body = [name, data].concat();
            [&(data.len() as u32).to_be_bytes(), &body[..], &crc32fast::hash(&body).to_be_bytes()].concat()
        };
        let header = chunk(b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, 8, 3, 0, 0, 0]);
        for (colours, length) in [(&[1, 2, 3, 4][..], 4), (&[9; 37], 37)] {
            let [palette, alpha] = [chunk(b"PLTE", colours), chunk(b"tRNS", &[255; 2])];
            let bytes = [b"\x89PNG\r\n\x1a\n", &header[..], &palette, &alpha, &chunk(b"IDAT", &[])].concat();
            let error = decode_image(Path::new("p.png"), &bytes, 4, 4).unwrap_err().to_string();
            assert!(error.contains("p.png") && error.contains(&format!("a palette of {length} bytes")), "{error}");
        }
        // Cut anywhere, it is refused too.
        let whole = [b"\x89PNG\r\n\x1a\n", &header[..], &chunk(b"PLTE", &[1, 2, 3])].concat();
        assert!((0..whole.len()).all(|end| decode_image(Path::new("p.png"), &whole[..end], 4, 4).is_err()));
    }

    #[test]
    fn size_of_zero_is_refused() {
        let bytes = png(&image::RgbImage::new(1, 1).into());
        assert!(decode_image(Path::new("x"), &bytes, 0, 4).unwrap_err().to_string().contains("found 0"));
    }
}
