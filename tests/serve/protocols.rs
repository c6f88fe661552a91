//! Every way of asking gives the same numbers, and every mistake an error that names it.

use std::io::Cursor;

use serde_json::{Value, json};
use shadernet::predict::{Images, Predictor};

use super::client::*;

const INFER: &str = "/v2/models/m/infer";

/// The numbers of a JSON tensor.
fn data(reply: &Reply) -> Vec<f32> {
    let json = reply.json();
    let data = json["outputs"][0]["data"].as_array().unwrap_or_else(|| panic!("{json}"));
    data.iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// The rows of a TensorFlow Serving answer, one after the other.
fn rows(reply: &Reply, key: &str) -> Vec<f32> {
    let json = reply.json();
    let rows = json[key].as_array().unwrap_or_else(|| panic!("{json}"));
    rows.iter().flat_map(|row| row.as_array().unwrap()).map(|number| number.as_f64().unwrap() as f32).collect()
}

/// Images as lists of lists of lists.
fn nested(images: &[u8], value: impl Fn(u8) -> Value) -> Value {
    let [height, width, channels] = INPUT;
    let pixel = |pixel: &[u8]| Value::from(pixel.iter().map(|&byte| value(byte)).collect::<Vec<_>>());
    let row = |row: &[u8]| Value::from(row.chunks(channels).map(pixel).collect::<Vec<_>>());
    let image = |image: &[u8]| Value::from(image.chunks(width * channels).map(row).collect::<Vec<_>>());
    Value::from(images.chunks(height * width * channels).map(image).collect::<Vec<_>>())
}

/// The text of the f32 nearest to byte/255, as clients write it.
fn fraction(byte: u8) -> Value {
    serde_json::from_str(&(f32::from(byte) / 255.0).to_string()).unwrap()
}

fn shape(images: usize) -> Value {
    json!([images, INPUT[0], INPUT[1], INPUT[2]])
}

/// A request of JSON and bytes after it.
fn with_binary(address: std::net::SocketAddr, head: &Value, binary: &[u8]) -> Reply {
    let json = head.to_string();
    let body = [json.as_bytes(), binary].concat();
    call(address, "POST", INFER, &[("Inference-Header-Content-Length", &json.len().to_string())], &body)
}

#[test]
fn every_way_of_asking_gives_the_same_numbers() {
    let served = Served::new();
    let at = served.http;
    let bytes = images(0, 3 * IMAGE);
    let want = expected(&small_model(), 1, &bytes);
    assert_eq!(infer_raw(at, &bytes).floats(), want, "a bare tensor");

    let size = |size: usize| json!({ "binary_data_size": size });
    let input = json!({ "name": "images", "datatype": "UINT8", "shape": shape(3), "parameters": size(bytes.len()) });
    let head = json!({ "id": "a", "inputs": [input], "parameters": { "binary_data_output": true, "other": [{}] } });
    let reply = with_binary(at, &head, &bytes);
    assert_eq!(reply.floats(), want, "binary UINT8");
    let answered: Value = serde_json::from_slice(&reply.body[..reply.body.len() - 4 * want.len()]).unwrap();
    assert_eq!((&answered["id"], &answered["model_name"], &answered["model_version"]), (&json!("a"), &json!("m"), &json!("1")));
    assert_eq!(answered["outputs"][0]["shape"], json!([3, CLASSES]));
    assert_eq!(answered["outputs"][0]["parameters"]["binary_data_size"], json!(4 * want.len()));

    let floats: Vec<u8> = bytes.iter().flat_map(|&byte| (f32::from(byte) / 255.0).to_le_bytes()).collect();
    let input = json!({ "name": "images", "datatype": "FP32", "shape": shape(3), "parameters": size(floats.len()) });
    assert_eq!(data(&with_binary(at, &json!({ "inputs": [input] }), &floats)), want, "binary FP32, answered in JSON");

    for (datatype, values) in [("UINT8", nested(&bytes, Value::from)), ("FP32", nested(&bytes, fraction)), ("UINT8", json!(bytes))] {
        let input = json!({ "name": "images", "datatype": datatype, "shape": shape(3), "data": values });
        let body = json!({ "inputs": [input], "outputs": [{ "name": "probabilities" }] }).to_string();
        assert_eq!(data(&post(at, INFER, body.as_bytes())), want, "JSON {datatype}");
        assert_eq!(data(&post(at, "/v2/models/m/versions/1/infer", body.as_bytes())), want, "a version");
        let wanted = body.replace("\"probabilities\"", "\"probabilities\",\"parameters\":{\"binary_data\":true}");
        assert_eq!(post(at, INFER, wanted.as_bytes()).floats(), want, "JSON, answered in binary");
    }

    let predict = |body: Value| post(at, "/v1/models/m:predict", body.to_string().as_bytes());
    let instances = nested(&bytes, fraction);
    assert_eq!(rows(&predict(json!({ "instances": instances })), "predictions"), want, "rows");
    assert_eq!(rows(&predict(json!({ "inputs": instances })), "outputs"), want, "columns");
    assert_eq!(rows(&predict(json!({ "inputs": { "images": instances } })), "outputs"), want, "named columns");
    let named: Vec<Value> = nested(&bytes, Value::from).as_array().unwrap().iter().map(|image| json!({ "images": image })).collect();
    assert_eq!(
        rows(&predict(json!({ "signature_name": "serving_bytes", "instances": named })), "predictions"),
        want,
        "named rows of bytes"
    );
}

#[test]
fn answer_does_not_depend_on_the_batch_it_was_computed_in() {
    let model = shadernet::models::cifar10_cnn(&["a", "b", "c", "d", "e", "f", "g"].map(str::to_owned));
    let one = 32 * 32 * 3;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    save(&path, &model, 5);
    let served = Served::with(|config| {
        config.models = vec![shadernet::serve::Source::File { name: "m".to_owned(), path }];
        config.max_batch = 16;
        config.max_delay = ms(3);
        config.instances = 2;
    });
    let all = images(1, 96 * one);
    let want = expected(&model, 5, &all);
    // The predictor itself first: one batch of each size against one image at a time.
    let mut predictor = Predictor::new(cpu()().unwrap(), model.clone(), &weights(&model, 5), 96).unwrap();
    for size in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 96] {
        let batch = predictor.predict_batch(&[Images::Bytes(&all[..size * one])]).unwrap();
        assert_eq!(batch.probabilities, want[..size * model.classes.len()], "a batch of {size}");
    }
    std::thread::scope(|scope| {
        for client in 0..6 {
            let (all, want, classes) = (&all, &want, model.classes.len());
            scope.spawn(move || {
                for round in 0..12 {
                    let first = (client * 16 + round) % 90;
                    let count = 1 + (client + round) % 6;
                    let got = infer_raw(served.http, &all[first * one..(first + count) * one]).floats();
                    assert_eq!(got, want[first * classes..(first + count) * classes], "images {first} and {count} from there");
                }
            });
        }
    });
    let batches = served.metric("nv_inference_exec_count{model=\"m\",version=\"1\"}");
    assert!(batches < 72.0, "{batches} batches for 72 requests: nothing was batched");
    assert_eq!(infer_raw(served.http, &all).floats(), want, "a request larger than a batch");
}

#[test]
fn pictures_are_classified_as_predict_does() {
    let served = Served::new();
    let picture = image::RgbImage::from_raw(INPUT[1] as u32, INPUT[0] as u32, images(2, IMAGE)).unwrap();
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let want = expected(&small_model(), 1, picture.as_raw());
    let best = (0..CLASSES).max_by(|&a, &b| want[a].total_cmp(&want[b])).unwrap();

    let reply = post(served.http, "/classify/m?top=2", png.get_ref()).json();
    let classes = reply["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 2);
    assert_eq!(classes[0]["index"], json!(best));
    assert_eq!(classes[0]["class"], json!(small_model().classes[best]));
    assert_eq!(classes[0]["probability"].as_f64().unwrap() as f32, want[best]);
    assert_eq!(post(served.http, "/classify", png.get_ref()).json()["classes"].as_array().unwrap().len(), 3);

    assert_eq!(post(served.http, "/classify", b"not a picture").status, 400);
    assert_eq!(post(served.http, "/classify?top=0", png.get_ref()).status, 400);
    assert_eq!(post(served.http, "/classify/n", png.get_ref()).status, 404);
    let b64 = json!({ "instances": [{ "b64": "####" }] }).to_string();
    assert!(post(served.http, "/v1/models/m:predict", b64.as_bytes()).error().contains("instance 0: no base64"));
}

#[test]
fn models_say_what_they_are() {
    let served = Served::with(|config| config.preferred_batches = vec![4, 2]);
    let json = |path: &str| get(served.http, path).json();
    assert!(json("/v2")["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));
    for path in ["/v2/models/m", "/v2/models/m/versions/1", "/v2/models/m/"] {
        let about = json(path);
        assert_eq!(about["inputs"], json!([{ "name": "images", "datatype": "UINT8", "shape": [-1, 6, 5, 3] }]));
        assert_eq!(about["outputs"], json!([{ "name": "probabilities", "datatype": "FP32", "shape": [-1, 4] }]));
        assert_eq!((about["versions"].clone(), about["parameters"]["sha256"].as_str().unwrap().len()), (json!(["1"]), 64));
    }
    let config = json("/v2/models/m/config");
    assert_eq!((&config["max_batch_size"], &config["dynamic_batching"]["preferred_batch_size"]), (&json!(8), &json!([2, 4])));
    assert_eq!(json("/v1/models/m")["model_version_status"][0]["state"], json!("AVAILABLE"));
    assert_eq!(json("/v1/models/m/versions/1/metadata")["model_spec"]["version"], json!("1"));
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/", "/openapi.json"] {
        assert_eq!(get(served.http, path).status, 200, "{path}");
    }
    infer_raw(served.http, &images(0, 5 * IMAGE));
    for path in ["/v2/models/m/stats", "/v2/models/stats"] {
        let stats = &json(path)["model_stats"][0];
        assert_eq!((&stats["inference_count"], &stats["execution_count"]), (&json!(5), &json!(1)));
        assert_eq!(stats["inference_stats"]["success"]["count"], json!(1));
        assert_eq!((&stats["batch_stats"][0]["batch_size"], stats["last_inference"].as_u64() > Some(0)), (&json!(5), true));
    }
    assert_eq!(served.metric("shadernet_input_values_total{model=\"m\",version=\"1\"}"), (5 * IMAGE) as f64);
    assert_eq!(served.metric("shadernet_batch_images_bucket{model=\"m\",version=\"1\",le=\"8\"}"), 1.0);
    assert_eq!(get(served.http, "/metrics").status, 403, "the public port tells nothing of metrics");
}

#[test]
fn classification_gives_value_index_and_label() {
    let served = Served::new();
    let bytes = images(3, 2 * IMAGE);
    let want = expected(&small_model(), 1, &bytes);
    let input = json!({ "name": "images", "datatype": "UINT8", "shape": shape(2), "data": bytes });
    let output = json!({ "name": "probabilities", "parameters": { "classification": 3 } });
    let reply = post(served.http, INFER, json!({ "inputs": [input], "outputs": [output] }).to_string().as_bytes()).json();
    let output = &reply["outputs"][0];
    assert_eq!((&output["datatype"], &output["shape"]), (&json!("BYTES"), &json!([2, 3])));
    let first = output["data"][0].as_str().unwrap();
    let best = (0..CLASSES).max_by(|&a, &b| want[a].total_cmp(&want[b])).unwrap();
    assert_eq!(first, format!("{:.6}:{best}:{}", want[best], small_model().classes[best]));
}

/// An input with one thing changed.
fn input_with(key: &str, value: Value) -> String {
    let mut input = json!({ "name": "images", "datatype": "UINT8", "shape": shape(1), "data": images(0, IMAGE) });
    input[key] = value;
    json!({ "inputs": [input] }).to_string()
}

#[test]
fn mistakes_are_named() {
    let served = Served::new();
    let mut byte = json!(images(0, IMAGE));
    byte[5] = json!(256);
    let mut half = json!(images(0, IMAGE));
    half[5] = json!(0.5);
    for (status, body, words) in [
        (400, "{".to_owned(), "EOF"),
        (400, "[]".to_owned(), "a JSON object"),
        (400, "{\"inputs\":[]}".to_owned(), "inputs: found 0"),
        (400, input_with("name", json!("x\u{1b}[2J")), "images"),
        (400, input_with("datatype", json!("INT64")), "UINT8 (0 to 255) or FP32"),
        (400, input_with("shape", json!([1, 6, 5])), "[N, 6, 5, 3]"),
        (400, input_with("shape", json!([0, 6, 5, 3])), "[N, 6, 5, 3]"),
        (400, input_with("shape", json!([-1, 6, 5, 3])), "integer"),
        (400, input_with("shape", json!([2, 6, 5, 3])), "the 180 of its shape"),
        (400, input_with("shape", json!([1, 6, 5, 1u64 << 62])), "[N, 6, 5, 3]"),
        (413, input_with("shape", json!([1u64 << 62, 6, 5, 3])), "at most 1024"),
        (400, input_with("shape", json!(vec![1; 17])), "more than 16"),
        (400, input_with("data", byte), "0 to 255"),
        (400, input_with("data", half), "0 to 255"),
        (400, input_with("data", json!(["a"])), "a number or a list"),
        (400, input_with("parameters", json!({ "binary_data_size": 90 })), "inference-header-content-length"),
        (400, input_with("data", Value::Null), "neither data"),
        (400, input_with("", Value::Null).replace("{\"inputs\"", "{\"outputs\":[{\"name\":\"x\"}],\"inputs\""), "probabilities"),
    ] {
        let reply = post(served.http, INFER, body.as_bytes());
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        assert!(reply.error().contains(words), "{body}: no {words:?} in {}", reply.error());
        assert!(!reply.error().contains('\u{1b}'), "{}", reply.error());
    }
    let nan: Vec<u8> = std::iter::repeat_n(f32::NAN.to_le_bytes(), IMAGE).flatten().collect();
    let input = json!({ "name": "images", "datatype": "FP32", "shape": shape(1), "parameters": { "binary_data_size": nan.len() } });
    assert!(with_binary(served.http, &json!({ "inputs": [input] }), &nan).error().contains("finite"));
    let huge: Vec<u8> = std::iter::repeat_n(f32::MAX.to_le_bytes(), IMAGE).flatten().collect();
    assert!(with_binary(served.http, &json!({ "inputs": [input] }), &huge).error().contains("overflows"));
    for (path, status) in
        [("/v2/models/m/versions/2", 404), ("/v2/models/m/versions/x", 404), ("/v2/models/n", 404), ("/v2/models/m/x", 404), ("/x", 404)]
    {
        assert_eq!(get(served.http, path).status, status, "{path}");
    }
    assert_eq!(get(served.http, INFER).header("allow"), Some("POST"));
    assert_eq!(post(served.http, "/v2", b"").status, 405);
    assert_eq!(post(served.http, "/v1/models/m:classify", b"{}").status, 501);
    assert_eq!(call(served.http, "POST", INFER, &[("content-encoding", "br")], b"x").status, 415);
    let failures = served.metric("nv_inference_request_failure{model=\"m\",version=\"1\",reason=\"OTHER\"}");
    assert!(failures >= 2.0, "{failures}");
}
