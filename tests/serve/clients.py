"""Existing clients, unmodified, against a running server: tritonclient over HTTP and gRPC, and requests.

    python clients.py HTTP_PORT GRPC_PORT ADMIN_PORT MODEL PICTURE.png

Every answer must be the same numbers as every other, bit for bit, whatever the protocol and the batch.
"""

import asyncio
import base64
import sys

import numpy as np
import requests
import tritonclient.grpc as grpc
import tritonclient.http as http

http_port, grpc_port, admin_port, model, picture = sys.argv[1:]
rest = f"http://127.0.0.1:{http_port}"
images = np.random.default_rng(7).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)


def same(got, what):
    got = np.asarray(got, np.float32).reshape(-1, want.shape[1])
    assert got.tobytes() == want[: len(got)].tobytes(), f"{what}: other numbers than over binary HTTP"
    print("ok ", what)


def triton(module, address, name, binary):
    client = module.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
    about = client.get_model_metadata(model)
    inputs = about["inputs"] if isinstance(about, dict) else about.inputs
    shape = inputs[0]["shape"] if isinstance(about, dict) else inputs[0].shape
    assert list(shape) == [-1, 32, 32, 3], shape
    client.get_model_config(model), client.get_inference_statistics(model), client.get_server_metadata()

    def ask(batch, **options):
        tensor = module.InferInput("images", list(batch.shape), "UINT8" if batch.dtype == np.uint8 else "FP32")
        tensor.set_data_from_numpy(batch, **({"binary_data": binary} if module is http else {}))
        return client.infer(model, [tensor], request_id="42", **options)

    answer = ask(images)
    response = answer.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "42"
    same(answer.as_numpy("probabilities"), f"{name}, 9 images")
    same(ask(images[:1]).as_numpy("probabilities"), f"{name}, 1 image")
    same(ask((images / np.float32(255)).astype(np.float32)).as_numpy("probabilities"), f"{name}, floats")
    wanted = module.InferRequestedOutput("probabilities", class_count=2)
    best = ask(images, outputs=[wanted]).as_numpy("probabilities")
    assert best.shape == (9, 2), best.shape
    for row, top in zip(want, best):
        probability, index, label = top[0].decode().split(":")
        assert int(index) == row.argmax() and abs(float(probability) - row.max()) < 1e-6 and label, top
    print("ok ", f"{name}, classification")
    for wrong in (images[:, :31], images.astype(np.float32) * np.nan):
        try:
            ask(wrong)
        except Exception as error:  # each client has its own class
            assert "expected" in str(error), error
        else:
            raise AssertionError(f"{name}: {wrong.shape} was accepted")
    print("ok ", f"{name}, errors")


tensor = http.InferInput("images", list(images.shape), "UINT8")
tensor.set_data_from_numpy(images)
want = http.InferenceServerClient(f"127.0.0.1:{http_port}").infer(model, [tensor]).as_numpy("probabilities")
assert want.shape[0] == 9 and np.allclose(want.sum(1), 1, atol=1e-5)

triton(http, f"127.0.0.1:{http_port}", "tritonclient HTTP, binary", True)
triton(http, f"127.0.0.1:{http_port}", "tritonclient HTTP, JSON", False)
triton(grpc, f"127.0.0.1:{grpc_port}", "tritonclient gRPC", True)

# The repository extension, on the admin port.
admin = http.InferenceServerClient(f"127.0.0.1:{admin_port}")
assert [line["state"] for line in admin.get_model_repository_index() if line["name"] == model] == ["READY"]
admin.load_model(model)
assert admin.is_model_ready(model)
print("ok  tritonclient HTTP, repository")

# A TensorFlow Serving client is any HTTP client with a body of JSON.
v1 = f"{rest}/v1/models/{model}"
assert requests.get(v1).json()["model_version_status"][0]["state"] == "AVAILABLE"
assert "signature_def" in requests.get(f"{v1}/metadata").json()["metadata"]
floats = (images / np.float32(255)).astype(np.float32)
rows = {"instances": floats.tolist()}
same(requests.post(f"{v1}:predict", json=rows).json()["predictions"], "TensorFlow Serving, rows")
same(requests.post(f"{v1}/versions/1:predict", json=rows).json()["predictions"], "TensorFlow Serving, a version")
same(requests.post(f"{v1}:predict", json={"inputs": floats.tolist()}).json()["outputs"], "TensorFlow Serving, columns")
named = {"instances": [{"images": image} for image in images[:3].tolist()], "signature_name": "serving_bytes"}
same(requests.post(f"{v1}:predict", json=named).json()["predictions"], "TensorFlow Serving, named rows of bytes")
for wrong, status in [({"instances": [[1, 2]]}, 400), ({}, 400), ({"instances": []}, 400)]:
    answer = requests.post(f"{v1}:predict", json=wrong)
    assert answer.status_code == status and answer.json()["error"], answer.text
print("ok  TensorFlow Serving, errors")

file = open(picture, "rb").read()
answer = requests.post(f"{rest}/classify?top=2", data=file).json()
assert len(answer["classes"]) == 2, answer
encoded = {"instances": [{"b64": base64.b64encode(file).decode()}]}
predicted = requests.post(f"{v1}:predict", json=encoded).json()["predictions"][0]
assert max(predicted) == np.float32(answer["classes"][0]["probability"]) and np.argmax(predicted) == answer["classes"][0]["index"]
print("ok  a picture, as it is and in base64")

print("all clients agree")
