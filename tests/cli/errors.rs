//! Bad input: one error that says what was found and what was expected, the right exit code, and nothing lost.

use std::fs::{self, File};

use serde_json::json;

use crate::program::{Place, RECORD, picture};

#[test]
fn wrong_usage_ends_with_2_and_trains_nothing() {
    let place = Place::new();
    for (arguments, words) in [
        ("", &[][..]),
        ("bogus", &["bogus"]),
        ("summary --bogus", &["--bogus"]),
        ("predict m.safetensors", &["required arguments were not provided"]),
        ("predict m.safetensors a.png --top 0", &["'0'", "--top", "at least 1"]),
        ("train --limit-train 0", &["'0'", "--limit-train", "at least 1"]),
        ("train --limit-test 0", &["'0'", "--limit-test", "at least 1"]),
        ("train --epochs 0", &["'0'", "--epochs", "at least 1"]),
        ("train --batch-size 0", &["'0'", "--batch-size", "1 to 65536"]),
        ("train --batch-size -3", &["'-3'", "--batch-size", "1 to 65536"]),
        ("train --batch-size 65537", &["'65537'", "--batch-size", "1 to 65536"]),
        ("train --lr 0", &["'0'", "--lr", "positive"]),
        ("train --lr -1", &["'-1'", "--lr", "positive"]),
        ("train --lr nan", &["'nan'", "--lr", "positive"]),
        ("train --seed -1", &["'-1'", "--seed", "from 0 to"]),
        ("train --threads 1025", &["'1025'", "--threads", "1 to 1024"]),
        ("train --precision f64", &["'f64'", "--precision"]),
        ("train --cooperative on", &["'on'", "--cooperative"]),
        ("train --plot p.jpg", &["'p.jpg'", "--plot", ".png"]),
        ("train --resume", &["required arguments were not provided"]),
    ] {
        if arguments.is_empty() {
            let done = place.run("");
            assert!(done.code == Some(2) && done.err.contains("Usage: shadernet"), "{}", done.err);
            continue;
        }
        // If it were taken for right, it should not train for long.
        let data = if arguments.starts_with("train") { " --data nowhere" } else { "" };
        let done = place.fails(2, &format!("{arguments}{data}"), words);
        assert!(done.out.is_empty(), "{arguments}: {}", done.out);
    }
    assert_eq!(place.names("."), ["data"]);
}

#[test]
fn damaged_data_is_named_with_file_and_place() {
    let place = Place::new();
    let whole = place.read("data/data_batch_3.bin");
    let expect = |words: &[&str]| place.fails(1, "train --data data --device cpu --epochs 1", words);
    fs::remove_file(place.path("data/data_batch_3.bin")).unwrap();
    expect(&["data_batch_3.bin", "cannot open"]);
    place.write("data/data_batch_3.bin", &whole[..5000]);
    expect(&["data_batch_3.bin", "byte 5000", "1927 bytes into a record", "records of 3073"]);
    place.write("data/data_batch_3.bin", &[]);
    expect(&["data_batch_3.bin", "found an empty file", "records of 3073"]);
    // A sparse file of more than the 10,000 records of an official one.
    File::create(place.path("data/data_batch_3.bin")).unwrap().set_len(10_001 * RECORD as u64).unwrap();
    expect(&["data_batch_3.bin", "found 30733073 bytes", "at most 30730000"]);
    let mut mislabelled = whole.clone();
    mislabelled[2 * RECORD] = 11;
    place.write("data/data_batch_3.bin", &mislabelled);
    expect(&["data_batch_3.bin", "byte 6146", "label 11", "0 to 9"]);

    place.write("notes.txt", b"hello");
    place.write("other/readme.md", b"hello");
    let archive_of_noise: Vec<u8> = [vec![0x1f, 0x8b], whole[..500].to_vec()].concat();
    place.write("noise.tar.gz", &archive_of_noise);
    for (path, words) in [
        ("nowhere", &["nowhere", "cannot open"][..]),
        ("notes.txt", &["notes.txt", "found bytes [68, 65]", "expected cifar-10-binary.tar.gz"]),
        ("other", &["data folder other", "found readme.md", "expected data_batch_1.bin"]),
        ("noise.tar.gz", &["noise.tar.gz", "found damage", "expected a whole tar archive"]),
    ] {
        place.fails(1, &format!("train --data {path} --device cpu --epochs 1"), words);
    }
}

#[test]
fn mixed_precision_without_a_gpu_names_what_is_lacking_and_trains_nothing() {
    let place = Place::new();
    let words = ["error: cpu (", "lacks 16-bit floats", "SHADER_F16", "train in f32"];
    let done = place.fails(1, "train --data data --device cpu --precision mixed --out m.safetensors", &words);
    assert!(done.out.is_empty(), "{}", done.out);
    assert_eq!(place.names("."), ["data"]);
}

#[test]
fn unusable_models_are_refused_by_every_command_that_reads_one() {
    let place = Place::with_model();
    let model = place.read("m.safetensors");
    picture(0).save(place.path("0.png")).unwrap();
    place.write("empty", &[]);
    place.write("short", &model[..300_000]);
    place.write("tiny", &model[..5]);
    let header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    place.write("foreign", &[&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat());
    let mut torn = model.clone();
    torn[40] = 0xff;
    place.write("torn", &torn);
    for (name, words) in [
        ("nowhere", &["nowhere: cannot open"][..]),
        ("empty", &["empty: not a usable model", "0 bytes", "expected a safetensors file"]),
        ("tiny", &["tiny: not a usable model", "5 bytes", "expected a safetensors file"]),
        ("short", &["short: not a usable model", "300000 bytes", "truncated"]),
        ("0.png", &["0.png: not a usable model", "expected safetensors"]),
        ("m.json", &["m.json: not a usable model", "expected safetensors"]),
        ("foreign", &["foreign: not a usable model", "expected format shadernet"]),
        ("torn", &["torn: not a usable model", "header"]),
        ("data", &["data: not a usable model", "found a folder"]),
    ] {
        place.fails(1, &format!("evaluate {name} --data data --device cpu"), words);
        place.fails(1, &format!("predict {name} 0.png --device cpu"), words);
        place.fails(1, &format!("summary {name}"), words);
    }
    place.fails(1, "plan short", &["short: not a usable model"]);
    place.fails(1, "selftest short --device cpu", &["short: not a usable model"]);

    // The last bytes are a weight of the last layer; a NaN there is a valid file and a useless model.
    let mut broken = model.clone();
    let end = broken.len() - 4;
    broken[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    place.write("nan", &broken);
    place.fails(1, "evaluate nan --data data --device cpu", &["found NaN", "the model is not usable"]);
    let done = place.fails(1, "predict nan 0.png --device cpu --json", &["found NaN", "the model is not usable"]);
    assert!(done.out.is_empty(), "{}", done.out);
}

#[test]
fn unreadable_pictures_are_named_and_the_others_answered() {
    let place = Place::with_model();
    picture(0).save(place.path("good.png")).unwrap();
    picture(1).save(place.path("good.jpg")).unwrap();
    place.write("half.png", &place.read("good.png")[..400]);
    place.write("half.jpg", &place.read("good.jpg")[..700]);
    place.write("text.png", b"hello");
    place.write("empty.png", &[]);
    for (name, words) in [
        ("nowhere.png", "cannot open"),
        ("data", "found a folder, expected a file"),
        ("text.png", "expected the start of a PNG or JPEG"),
        ("empty.png", "found an empty file"),
        ("half.png", "expected a whole PNG or JPEG"),
        ("half.jpg", "expected the rest of the JPEG"),
    ] {
        let done = place.fails(1, &format!("predict m.safetensors {name} good.png --top 1 --device cpu"), &[name, words]);
        assert!(done.out.starts_with("good.png\n") && done.out.lines().count() == 2, "{}", done.out);
    }
    let done = place.fails(1, "predict m.safetensors good.jpg text.png --device cpu --json", &["text.png"]);
    let answer: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(answer["images"][0]["top"].as_array().unwrap().len(), 3);
    assert!(answer["images"][1]["error"].as_str().unwrap().contains("text.png") && answer["images"][1]["top"].is_null(), "{answer}");
}

#[test]
fn unknown_devices_are_answered_with_those_there_are() {
    let place = Place::with_model();
    for (arguments, device) in [
        ("train --data data", "bogus"),
        ("train --data data", "99"),
        ("evaluate m.safetensors --data data", "99"),
        ("predict m.safetensors 0.png", "bogus"),
        ("selftest", "99"),
    ] {
        place.fails(1, &format!("{arguments} --device {device}"), &[&format!("no device matches {device:?}; found: "), "cpu"]);
    }
}

#[test]
fn broken_loss_ends_the_training_and_keeps_what_was_saved() {
    let place = Place::with_model();
    let model = place.read("m.safetensors");
    let words = ["the loss is", "at epoch 1, step ", "first tensor that is not finite", "lower learning rate"];
    place.fails(1, "train --data data --device cpu --batch-size 8 --lr 1e30 --out m.safetensors --history h.json --plot p.png", &words);
    assert!(place.read("m.safetensors") == model, "a broken model took the place of a good one");
    assert_eq!(place.names("."), ["data", "m.json", "m.safetensors"]);
    // With one step an epoch some epochs are whole before it breaks: they are in the history, and still no model is written.
    place.fails(1, "train --data data --device cpu --batch-size 80 --lr 1e4 --out m.safetensors --history h.json", &["the loss is"]);
    assert!(place.read("m.safetensors") == model, "a broken model took the place of a good one");
    let history: serde_json::Value = serde_json::from_slice(&place.read("h.json")).unwrap();
    assert!(!history["loss"].as_array().unwrap().is_empty(), "{history}");
}

#[test]
fn results_that_cannot_be_written_are_noticed_before_training() {
    let place = Place::new();
    place.write("file", b"x");
    for (options, words) in [
        ("--out nowhere/m.safetensors", &["--out nowhere/m.safetensors", "no such folder"][..]),
        ("--out file/m.safetensors", &["--out file/m.safetensors", "found no folder"]),
        ("--history data", &["--history data", "found a folder", "expected a file"]),
        ("--plot data/", &["--plot", ".png"]),
        ("--out m --history m", &["--history m", "a file of --out", "a file of its own"]),
        ("--out m --history data/../m", &["--history data/../m", "a file of --out"]),
        ("--checkpoint-dir ck --out ck/last.ckpt", &["--out ck/last.ckpt", "a file of --checkpoint-dir"]),
        ("--checkpoint-dir file", &["file", "checkpoint folder"]),
    ] {
        let code = if options.starts_with("--plot") { 2 } else { 1 };
        let done = place.fails(code, &format!("train --data data --device cpu --epochs 1 {options}"), words);
        assert!(done.out.is_empty(), "{options} was noticed late: {}", done.out);
    }
    assert!(!place.path("m").exists());
}

#[test]
#[cfg(unix)]
fn read_only_folders_and_full_devices_are_errors() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::with_model();
    if cfg!(target_os = "linux") {
        place.fails(1, "train --data data --device cpu --out /dev/full", &["--out /dev/full", "a device or a pipe"]);
        for arguments in ["summary", "plan --json", "evaluate m.safetensors --data data --device cpu"] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let output = place.command(arguments).stdout(full).output().unwrap();
            crate::program::Done::from(output).check_failed(1, arguments, &["cannot write to standard output"]);
        }
    }
    fs::create_dir(place.path("locked")).unwrap();
    fs::set_permissions(place.path("locked"), fs::Permissions::from_mode(0o555)).unwrap();
    if crate::program::is_read_only(&place.path("locked")) {
        place.fails(1, "train --data data --device cpu --out locked/m", &["locked/m: cannot be written", "ermission denied"]);
        place.fails(1, "train --data data --device cpu --checkpoint-dir locked", &["locked", "ermission denied"]);
    }
}

#[test]
fn without_network_the_sample_is_used_and_said_so() {
    let place = Place::new();
    let train = "train --device cpu --epochs 1 --limit-train 20 --limit-test 10";
    // A proxy where nobody listens: the download is tried, and goes nowhere.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = format!("http://127.0.0.1:{port}");
    let mut unreachable = place.command(train);
    unreachable.env("SHADERNET_OFFLINE", "0").env("https_proxy", &proxy).env("http_proxy", &proxy).env("all_proxy", &proxy);
    let offline = place.command(train);
    for (mut command, why) in [(unreachable, "CIFAR-10 could not be downloaded"), (offline, "SHADERNET_OFFLINE=1")] {
        let done = crate::program::Done::from(command.output().unwrap());
        assert_eq!(done.code, Some(0), "{}", done.err);
        assert!(done.err.contains(why) && done.err.contains("using the built-in sample"), "{}", done.err);
        assert!(done.out.contains("2 % of CIFAR-10") && done.out.contains("accuracy of 31 to 39 % after 10 epochs"), "{}", done.out);
    }
    assert!(!place.path("home").exists(), "a failed download left something behind");
}

#[test]
fn damaged_checkpoints_are_passed_over_or_refused_but_not_replaced() {
    let place = Place::new();
    let train = "train --data data --device cpu --batch-size 16 --checkpoint-dir ck --epochs";
    place.ok(&format!("{train} 2"));
    let [last, previous] = ["ck/last.ckpt", "ck/previous.ckpt"].map(|name| place.read(name));
    for damaged in [&last[..1000], b"", b"not a checkpoint at all", &place.read("ck/last.safetensors")] {
        place.write("ck/last.ckpt", damaged);
        place.write("ck/previous.ckpt", damaged);
        place.fails(1, &format!("{train} 3 --resume"), &["ck/last.ckpt: not a usable checkpoint", "found", "expected"]);
        assert!(place.read("ck/last.ckpt") == damaged, "a refused checkpoint was replaced");
    }
    place.write("ck/previous.ckpt", &previous);
    let done = place.ok(&format!("{train} 2 --resume --out resumed"));
    assert!(done.err.contains("taking the checkpoint before it") && done.out.contains("after epoch 1\n"), "{}{}", done.out, done.err);

    place.write("ck/last.ckpt", &last);
    for (options, words) in [
        ("2 --resume --seed 7", &["found seed 0", "expected seed 7"]),
        ("2 --resume --lr 0.1", &["found learning rate 0.001", "expected learning rate 0.1"]),
        ("2 --resume --limit-train 50", &["80 images", "50 images"]),
        ("2", &["the checkpoint of an earlier run", "--resume"]),
    ] {
        place.fails(1, &format!("{train} {options}"), words);
    }
    let batch = "train --data data --device cpu --batch-size 8 --checkpoint-dir ck --epochs 2 --resume";
    place.fails(1, batch, &["found batch size 16", "expected batch size 8"]);
    assert!(place.read("ck/last.ckpt") == last, "a refused resume changed the checkpoint");
    assert_eq!(json!(place.names("ck")), json!(["best.safetensors", "last.ckpt", "last.safetensors", "lock", "previous.ckpt"]));
}
