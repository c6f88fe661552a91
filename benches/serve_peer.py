"""The peer in the race of servers: FastAPI and onnxruntime, as a careful Python user would write it.

    python serve_peer.py MODEL.safetensors MODEL.onnx     writes the same network, with the same weights, as ONNX
    MODEL=MODEL.onnx uvicorn serve_peer:app --workers 2   serves it: POST /infer, the bytes of one or more images

Each worker has one thread of onnxruntime, so that two workers use the two cores; one worker with two threads was slower.
"""

import os
import sys

import numpy as np

if __name__ == "__main__":
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import load_file

    weights = load_file(sys.argv[1])
    tensors, nodes, x = {}, [], "nchw"
    nodes.append(helper.make_node("Transpose", ["images"], [x], perm=[0, 3, 1, 2]))
    for i in ("", "_1", "_2"):
        tensors[f"k{i}"] = weights[f"conv2d{i}/kernel"].transpose(3, 2, 0, 1)
        tensors[f"b{i}"] = weights[f"conv2d{i}/bias"]
        nodes += [
            helper.make_node("Conv", [x, f"k{i}", f"b{i}"], [f"c{i}"]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
            helper.make_node("MaxPool", [f"r{i}"], [f"p{i}"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        x = f"p{i}"
    nodes += [helper.make_node("Transpose", [x], ["nhwc"], perm=[0, 2, 3, 1]), helper.make_node("Flatten", ["nhwc"], ["flat"])]
    for i, source, result in (("", "flat", "hidden"), ("_1", "active", "logits")):
        tensors[f"w{i}"], tensors[f"d{i}"] = weights[f"dense{i}/kernel"], weights[f"dense{i}/bias"]
        nodes.append(helper.make_node("Gemm", [source, f"w{i}", f"d{i}"], [result]))
        if not i:
            nodes.append(helper.make_node("Relu", ["hidden"], ["active"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 32, 32, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, sys.argv[2])
else:
    import onnxruntime
    from fastapi import FastAPI, Request, Response

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("THREADS", "1"))
    session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
    app = FastAPI()

    @app.post("/infer")
    async def infer(request: Request):
        images = np.frombuffer(await request.body(), np.uint8).reshape(-1, 32, 32, 3)
        answer = session.run(None, {"images": images.astype(np.float32) / np.float32(255)})[0]
        return Response(answer.tobytes(), media_type="application/octet-stream")
