"""KServe's own client, unmodified, against a running server. It cannot share a process with tritonclient: both register the protocol.

    python kserve_client.py HTTP_PORT MODEL
"""

import asyncio
import sys

import numpy as np
import requests
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

http_port, model = sys.argv[1:]
rest = f"http://127.0.0.1:{http_port}"
images = np.random.default_rng(7).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
raw = requests.post(f"{rest}/v2/models/{model}/infer", data=images.tobytes(), headers={"Inference-Header-Content-Length": "0"})
want = raw.content[int(raw.headers["Inference-Header-Content-Length"]) :]


async def ask(binary):
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=10))
    assert await client.is_server_live(rest) and await client.is_server_ready(rest) and await client.is_model_ready(rest, model)
    tensor = InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return await client.infer(rest, InferRequest(model, [tensor]), model_name=model)


for binary in (False, True):
    answer = asyncio.run(ask(binary))
    assert answer.outputs[0].as_numpy().astype(np.float32).tobytes() == want
    print("ok  kserve's client,", "binary" if binary else "JSON")
