//! The program from outside: what each command answers. What can go wrong, and what a stopped training leaves, is in the modules.
#![cfg(feature = "cli")]

#[path = "common/program.rs"]
mod binary;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/program.rs"]
mod program;
#[cfg(unix)]
#[path = "cli/stops.rs"]
mod stops;

use std::io::Read;
use std::process::Stdio;

use program::{Place, RECORD, numbers, picture};
use serde_json::Value;
use shadernet::files::ModelFile;

#[test]
fn train_writes_model_history_plot_and_checkpoints() {
    let place = Place::new();
    let files = "--out m.safetensors --history h.json --plot p.png --checkpoint-dir ck";
    let done = place.ok(&format!("train --data data --device cpu --epochs 2 --batch-size 32 {files}"));
    assert!(done.err.is_empty(), "{}", done.err);
    for words in ["80 training and 40 test images of 32×32×3", "160,202 parameters", "epoch 1/2  loss ", "epoch 2/2  loss ", "images/s"] {
        assert!(done.out.contains(words), "no {words:?} in {}", done.out);
    }
    // Where there is no terminal, there are whole lines only.
    assert!(!done.out.contains(['\r', '\u{1b}']), "{:?}", done.out);
    assert_eq!(done.out.lines().filter(|line| line.starts_with("epoch ")).count(), 2);

    let history: Value = serde_json::from_slice(&place.read("h.json")).unwrap();
    let mut keys: Vec<&String> = history.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["accuracy", "device", "loss", "seconds", "val_accuracy", "val_loss", "val_seconds"]);
    for key in ["loss", "val_loss", "seconds", "val_seconds"] {
        assert!(numbers(&history[key]).iter().all(|&value| value > 0.0), "{key}: {}", history[key]);
    }
    for (key, images) in [("accuracy", 80.0), ("val_accuracy", 40.0)] {
        let values = numbers(&history[key]);
        assert_eq!(values.len(), 2);
        assert!(
            values.iter().all(|value| (0.0..=1.0).contains(value) && (value * images - (value * images).round()).abs() < 1e-9),
            "{values:?}"
        );
    }
    assert!(history["device"].as_str().unwrap().starts_with("cpu ("));

    let plot = image::load_from_memory_with_format(&place.read("p.png"), image::ImageFormat::Png).unwrap();
    assert!(plot.width() >= 400 && plot.height() >= 200);
    let kept = ["best.safetensors", "last.ckpt", "last.safetensors", "lock", "previous.ckpt"];
    assert_eq!(place.names("ck"), kept);
    // Each with statistics of the validation.
    assert!(place.read("ck/last.safetensors") == place.read("m.safetensors"), "two files of the last model");
    for name in ["m.safetensors", "ck/best.safetensors"] {
        let ModelFile { baseline, .. } = ModelFile::load(&place.path(name)).unwrap();
        let baseline = baseline.unwrap_or_else(|| panic!("no statistics of the validation in {name}"));
        assert!(baseline.mean.iter().all(|mean| (0.2..0.8).contains(mean)) && (0.1..=1.0).contains(&baseline.confidence), "{baseline:?}");
    }
    assert!(!place.path("home").exists(), "the program wrote into the user's folder");
}

#[test]
fn same_seed_writes_the_same_model_whatever_the_threads() {
    let place = Place::new();
    for (name, seed, threads) in [("a", 5, 1), ("b", 5, 2), ("c", 6, 2)] {
        place.ok(&format!("train --data data --device cpu --epochs 2 --batch-size 16 --seed {seed} --threads {threads} --out {name}"));
    }
    assert!(place.read("a") == place.read("b"), "two models of one seed differ");
    assert!(place.read("a") != place.read("c"), "the seed has no effect");
}

#[test]
fn evaluate_agrees_with_the_validation_and_with_itself() {
    let place = Place::with_model();
    let answer = place.json("evaluate m.safetensors --data data --device cpu --json");
    let history: Value = serde_json::from_slice(&place.read("m.json")).unwrap();
    let near = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-5;
    assert!(near(&answer["loss"], &history["val_loss"][0]) && near(&answer["accuracy"], &history["val_accuracy"][0]), "{answer}");
    assert_eq!((&answer["images"], &answer["model"]), (&40.into(), &"m.safetensors".into()));

    let confusion: Vec<Vec<f64>> = answer["confusion"].as_array().unwrap().iter().map(numbers).collect();
    let classes = answer["classes"].as_array().unwrap();
    assert_eq!((confusion.len(), classes.len()), (10, 10));
    let labels: Vec<u8> = place.read("data/test_batch.bin").chunks(RECORD).map(|record| record[0]).collect();
    let correct: f64 = (0..10).map(|class| confusion[class][class]).sum();
    assert_eq!(answer["accuracy"], correct / 40.0);
    for (i, class) in classes.iter().enumerate() {
        assert_eq!(class["images"], labels.iter().filter(|&&label| usize::from(label) == i).count(), "{class}");
        assert_eq!(class["images"].as_f64().unwrap(), confusion[i].iter().sum::<f64>(), "{class}");
        assert_eq!(class["predicted"].as_f64().unwrap(), confusion.iter().map(|row| row[i]).sum::<f64>(), "{class}");
        assert_eq!(class["correct"].as_f64().unwrap(), confusion[i][i], "{class}");
        assert!(class["class"].is_string() && class.get("precision").is_some() && class.get("recall").is_some(), "{class}");
    }

    let text = place.ok("evaluate m.safetensors --data data --device cpu --limit-test 7").out;
    for words in ["images    7\n", "\naccuracy  ", "\nautomobile ", "true \\ predicted"] {
        assert!(text.contains(words), "no {words:?} in {text}");
    }
}

#[test]
fn predict_sees_in_pictures_what_evaluate_sees_in_the_data() {
    let place = Place::with_model();
    let names: Vec<String> = (0..20).map(|i| format!("{i}.png")).collect();
    for (i, name) in names.iter().enumerate() {
        picture(i).save(place.path(name)).unwrap();
    }
    let answer = place.json(&format!("predict m.safetensors {} --top 10 --device cpu --json", names.join(" ")));
    let images = answer["images"].as_array().unwrap();
    let mut predicted = std::collections::BTreeMap::new();
    for (image, name) in images.iter().zip(&names) {
        assert_eq!(image["image"], name.as_str());
        let top = image["top"].as_array().unwrap();
        let probabilities: Vec<f64> = top.iter().map(|class| class["probability"].as_f64().unwrap()).collect();
        assert!(probabilities.is_sorted_by(|a, b| a >= b) && (probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{image}");
        *predicted.entry(top[0]["class"].as_str().unwrap()).or_insert(0) += 1;
    }
    let judged = place.json("evaluate m.safetensors --data data --limit-test 20 --device cpu --json");
    for class in judged["classes"].as_array().unwrap() {
        assert_eq!(class["predicted"], *predicted.get(class["class"].as_str().unwrap()).unwrap_or(&0), "{class}");
    }
}

#[test]
fn predict_takes_pictures_of_every_size_and_kind() {
    let place = Place::with_model();
    let large = image::DynamicImage::from(picture(3)).resize_exact(1500, 900, image::imageops::FilterType::Triangle);
    large.to_rgb8().save(place.path("large.jpg")).unwrap();
    large.to_luma8().save(place.path("grey.png")).unwrap();
    large.to_rgba8().save(place.path("alpha.png")).unwrap();
    large.to_rgb16().save(place.path("16bit.png")).unwrap();
    image::RgbImage::from_pixel(1, 1, image::Rgb([9, 8, 7])).save(place.path("dot.png")).unwrap();
    let done = place.ok("predict m.safetensors large.jpg grey.png alpha.png 16bit.png dot.png --top 1 --device cpu");
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines.len(), 10, "{}", done.out);
    for (pair, name) in lines.chunks(2).zip(["large.jpg", "grey.png", "alpha.png", "16bit.png", "dot.png"]) {
        assert!(pair[0] == name && pair[1].starts_with("  ") && pair[1].ends_with(" %"), "{pair:?}");
    }
    assert!(done.err.is_empty(), "{}", done.err);
}

#[test]
fn summary_is_the_table_that_keras_prints() {
    let place = Place::with_model();
    let text = place.ok("summary").out;
    assert_eq!(place.ok("summary m.safetensors").out, text);
    let row = |layer: &str, shape: &str, params: &str| format!("{layer:<30}  {shape:<18}  {params:>7}\n");
    for row in [
        row("conv2d (Conv2D)", "(None, 30, 30, 32)", "896"),
        row("max_pooling2d (MaxPooling2D)", "(None, 15, 15, 32)", "0"),
        row("conv2d_2 (Conv2D)", "(None, 4, 4, 128)", "73,856"),
        row("flatten (Flatten)", "(None, 512)", "0"),
        row("dense_1 (Dense)", "(None, 10)", "1,290"),
        "\nTotal params: 160,202 (625.79 KB)\n".to_owned(),
    ] {
        assert!(text.contains(&row), "no {row:?} in\n{text}");
    }

    let answer = place.json("summary m.safetensors --batch-size 32 --json");
    let layers = answer["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|layer| layer["params"].as_u64().unwrap()).sum::<u64>(), 160_202);
    assert_eq!((&answer["params"], &answer["bytes"]), (&160_202.into(), &640_808.into()));
    assert_eq!(layers[0]["output_shape"], serde_json::json!([null, 30, 30, 32]));
    for plan in ["training", "evaluation", "inference"] {
        assert!(answer["plans"][plan]["slot_bytes"].as_u64() > Some(0) && answer["plans"][plan]["param_bytes"] == 640_808, "{answer}");
    }
    assert_eq!(answer["plans"]["training"]["batch"], 32);
}

#[test]
fn plan_lists_every_dispatch_with_its_memory() {
    let place = Place::new();
    let answer = place.json("plan --batch-size 8 --json");
    for (name, kernels) in [("training", ["conv2d_relu_pool_grad", "adam_group"]), ("inference", ["conv2d_relu_pool", "softmax"])] {
        let plan = &answer[name];
        let (steps, slots) = (plan["steps"].as_array().unwrap(), plan["slots"].as_array().unwrap());
        for kernel in kernels {
            assert!(steps.iter().any(|step| step["kernel"] == kernel), "{name}: no {kernel}");
        }
        for step in steps {
            assert!(step["workgroups"].as_u64() > Some(0) && step["layer"].is_string(), "{step}");
            for operand in step["operands"].as_array().unwrap().iter().chain(step["results"].as_array().unwrap()) {
                let Some(slot) = operand["slot"].as_u64() else { continue };
                assert!(operand["bytes"].as_u64() <= slots[slot as usize]["bytes"].as_u64(), "{step}");
            }
        }
        let packs = plan["packs"].as_array().unwrap().iter().filter(|pack| pack["of"] == "slots");
        let bytes = slots.iter().map(|slot| &slot["bytes"]).chain(packs.map(|pack| &pack["padding"]));
        assert_eq!(plan["slot_bytes"].as_u64().unwrap(), bytes.map(|bytes| bytes.as_u64().unwrap()).sum::<u64>());
    }
    let conv = &answer["training"]["steps"][2];
    assert!(conv["kernel"] == "conv2d_relu_pool_quads" && conv["picked"].is_null(), "{conv}");
    let (registers, tiles): (Vec<_>, Vec<_>) =
        conv["variants"].as_array().unwrap().iter().partition(|kernel| kernel["style"] == "registers");
    assert!(tiles.len() >= 4 && tiles.iter().all(|tile| tile["name"].as_str().unwrap().starts_with("conv2d_relu_pool_quads/")), "{conv}");
    assert!(registers.len() == 1 && registers[0]["name"] == "conv2d_relu_pool_registers", "{conv}");
    // Of a device, with the kernels that it picks and no others.
    let of_device = place.json("plan --batch-size 8 --device cpu --json");
    assert_eq!(of_device["training"]["steps"][2]["picked"], "conv2d_relu_pool");
    let listed = place.ok("plan --batch-size 8 --device cpu").out;
    assert!(listed.contains(" conv2d_relu_pool ") && !listed.contains(" or portable"), "{listed}");
    place.fails(2, "plan --tune sometimes", &["--tune"]);
    place.fails(2, "train --tune sometimes", &["sometimes", "--tune"]);
    let text = place.ok("plan --batch-size 8").out;
    assert!(text.contains("or portable") && text.contains("more of other tiles"), "{text}");
    let dispatches = text.lines().filter(|line| line.contains(" -> ") && !line.contains("operands -> result")).count();
    let steps = ["training", "evaluation", "inference"].map(|name| answer[name]["steps"].as_array().unwrap().len());
    assert_eq!(dispatches, steps.iter().sum::<usize>(), "{text}");
}

#[test]
fn devices_say_what_auto_takes() {
    let place = Place::new();
    let answer = place.json("devices --json");
    let adapters = answer["adapters"].as_array().unwrap();
    for (i, adapter) in adapters.iter().enumerate() {
        assert!(adapter["index"] == i && adapter["name"].is_string() && adapter["max_tensor_bytes"].as_u64() > Some(0), "{adapter}");
    }
    let auto = &answer["auto"];
    let name = auto["index"].as_u64().map_or("cpu", |index| adapters[index as usize]["name"].as_str().unwrap());
    assert!(auto["device"] == name && auto["why"].is_string() && answer["cpu"]["threads"].as_u64() > Some(0), "{answer}");
    let text = place.ok("devices").out;
    assert!(text.contains("cpu  the CPU path: ") && text.contains(&format!("\nauto takes {name}: ")), "{text}");
}

#[test]
fn selftest_passes_on_the_cpu() {
    let place = Place::new();
    let answer = place.json("selftest --device cpu --batch-size 2 --json");
    let verdicts = answer["verdicts"].as_array().unwrap();
    assert!(answer["passed"] == true && answer["device"].as_str().unwrap().starts_with("cpu"), "{answer}");
    for kernel in ["conv2d_relu_pool", "conv2d_relu_pool_weight_grad", "dense", "dense_grad", "loss_head", "adam", "softmax"] {
        assert!(verdicts.iter().any(|verdict| verdict["kernel"] == kernel), "no {kernel}");
    }
    assert!(verdicts.iter().all(|verdict| verdict["problem"].is_null() && verdict["worst"].as_f64() <= Some(1.0)), "{answer}");
}

#[test]
fn every_command_has_help() {
    let place = Place::new();
    for command in ["train", "evaluate", "predict", "summary", "devices", "plan", "selftest"] {
        let help = place.ok(&format!("{command} --help")).out;
        assert!(help.contains(&format!("Usage: shadernet {command}")), "{help}");
        assert_eq!(help.contains("--json"), command != "train", "{help}");
        assert!(place.ok("--help").out.contains(&format!("\n  {command} ")));
    }
    assert!(place.ok("--version").out.starts_with("shadernet "));
}

#[test]
fn reader_that_leaves_early_is_no_failure() {
    let place = Place::with_model();
    for arguments in
        ["summary", "plan --json", "evaluate m.safetensors --data data --device cpu", "train --data data --device cpu --epochs 1"]
    {
        let mut child = place.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""), "{arguments}");
    }
}
