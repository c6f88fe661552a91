"""TLS and bearer tokens, over HTTP and gRPC.

    python secure.py HTTP_PORT GRPC_PORT MODEL CERTIFICATE TOKEN
"""

import sys

import grpc
import numpy as np
import requests
import tritonclient.grpc as triton

http_port, grpc_port, model, certificate, token = sys.argv[1:]
rest, image = f"https://127.0.0.1:{http_port}", np.full((1, 32, 32, 3), 99, np.uint8)
good = {"Authorization": f"Bearer {token}"}
raw = {"Inference-Header-Content-Length": "0"}


def status(headers):
    return requests.post(f"{rest}/v2/models/{model}/infer", image.tobytes(), headers=headers, verify=certificate).status_code


assert requests.get(f"{rest}/v2/health/ready", verify=certificate).status_code == 200
assert status({**raw, **good}) == 200
assert status(raw) == status({**raw, "Authorization": f"Bearer {token}x"}) == 401
try:
    requests.get(f"http://127.0.0.1:{http_port}/v2", timeout=5)
except requests.ConnectionError:
    pass
else:
    raise AssertionError("answered without TLS")
print("ok  HTTP with TLS and a token")

client = triton.InferenceServerClient(f"localhost:{grpc_port}", ssl=True, root_certificates=certificate)
tensor = triton.InferInput("images", [1, 32, 32, 3], "UINT8")
tensor.set_data_from_numpy(image)
assert client.is_server_ready()
assert client.infer(model, [tensor], headers={"authorization": f"Bearer {token}"}).as_numpy("probabilities").shape == (1, 10)
try:
    client.infer(model, [tensor])
except triton.InferenceServerException as error:
    assert "UNAUTHENTICATED" in error.status(), error.status()
else:
    raise AssertionError("answered without a token")
channel = grpc.secure_channel(f"localhost:{grpc_port}", grpc.ssl_channel_credentials(open(certificate, "rb").read()))
health = channel.unary_unary("/grpc.health.v1.Health/Check")
assert health(b"") == b"\x08\x01", "SERVING"
print("ok  gRPC with TLS and a token")
