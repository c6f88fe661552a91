//! Folders of pictures.

use std::fs;

use shadernet::Error;
use shadernet::data::{Origin, find_in, images};

use super::files::{picture, picture_folder, write};

#[test]
fn picture_folder_takes_classes_and_files_by_name() {
    let folder = picture_folder(&["cat", "ant", "bee"], 20, 12);
    write(&folder.path().join("train/ant"), "notes.txt", b"skipped");
    write(&folder.path().join("train/ant"), "._1.png", b"skipped");
    write(&folder.path().join("train"), ".DS_Store", b"skipped");
    let splits = find_in(Some(folder.path()), None, None, &mut |_, _| {}).unwrap();
    assert_eq!(splits.origin, Origin::ImageFolder(folder.path().to_path_buf()));
    assert_eq!(splits.train.classes, ["ant", "bee", "cat"]);
    assert_eq!(splits.train.labels, [0, 0, 1, 1, 2, 2]);
    assert_eq!(splits.test.labels, [0, 1, 2]);
    assert_eq!((splits.train.height, splits.train.width, splits.train.channels), (12, 20, 3));
    // Greys by class in the order given above and by number; PNG keeps them exactly, JPEG nearly.
    assert_eq!(splits.train.image(0), [11; 20 * 12 * 3]);
    assert_eq!(splits.train.image(4)[0], 1);
    assert!(splits.train.image(5)[0].abs_diff(2) <= 2, "{}", splits.train.image(5)[0]);
}

#[test]
fn pictures_of_several_sizes_all_become_32_by_32() {
    let folder = picture_folder(&["a", "b"], 32, 40);
    write(&folder.path().join("test/b"), "other.png", &picture(7, 90, 200, image::ImageFormat::Png));
    let (train, test) = images::load_image_folder(folder.path()).unwrap();
    assert_eq!((train.height, train.width, test.height, test.width), (32, 32, 32, 32));
    assert_eq!((train.images.len(), test.images.len()), (4 * 3072, 3 * 3072));
    assert_eq!(test.image(2), [200; 3072]);
}

#[test]
fn splits_with_different_classes_are_refused_by_name() {
    let folder = picture_folder(&["a", "b"], 8, 8);
    fs::rename(folder.path().join("test/b"), folder.path().join("test/c")).unwrap();
    let error = images::load_image_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains(r#"only in train: ["b"]; only in test: ["c"]"#), "{error}");
}

#[test]
fn picture_that_is_none_is_named() {
    for bytes in [&b"not a picture"[..], b"", &picture(8, 8, 1, image::ImageFormat::Png)[..50]] {
        let folder = picture_folder(&["a", "b"], 8, 8);
        let path = write(&folder.path().join("train/b"), "broken.png", bytes);
        match images::load_image_folder(folder.path()) {
            Err(Error::Data { path: named, .. }) => assert_eq!(named, path),
            other => panic!("{other:?}"),
        }
        assert!(matches!(images::read_image(&path, 32, 32), Err(Error::Data { .. })));
    }
}

#[test]
fn class_without_pictures_and_split_without_classes_are_refused() {
    let folder = picture_folder(&["a"], 8, 8);
    fs::create_dir(folder.path().join("train/empty")).unwrap();
    assert!(images::load_image_folder(folder.path()).unwrap_err().to_string().contains("empty: found no picture"));
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("train")).unwrap();
    fs::create_dir_all(folder.path().join("test")).unwrap();
    assert!(images::load_image_folder(folder.path()).unwrap_err().to_string().contains("no class folder"));
}

#[test]
fn read_image_takes_any_size_and_trusts_the_content_over_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "really-a-jpeg.png", &picture(300, 200, 128, image::ImageFormat::Jpeg));
    let pixels = images::read_image(&path, 32, 48).unwrap();
    assert_eq!(pixels.len(), 32 * 48 * 3);
    assert!(pixels.iter().all(|p| p.abs_diff(128) <= 2));
    assert!(matches!(images::read_image(&folder.path().join("none.png"), 32, 32), Err(Error::Io { .. })));
}
