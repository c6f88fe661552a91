"""A model of the same answers with WIDTH times as many filters and units, and about WIDTH² times the work: python3 benches/widen.py MODEL WIDTH OUT

Every filter is there WIDTH times, and what comes in WIDTH times is multiplied by 1 / WIDTH. Without statistics of a validation.
"""

import array
import json
import struct
import sys

source, width, target = sys.argv[1], int(sys.argv[2]), sys.argv[3]
data = open(source, "rb").read()
length = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8 : 8 + length])
metadata = header.pop("__metadata__")
metadata.pop("baseline", None)
model = json.loads(metadata["model"])
names = list(dict.fromkeys(name.split("/")[0] for name in header))
tensors, channels = {}, model["input"][2]
for name in names:
    kernel, bias = header[f"{name}/kernel"], header[f"{name}/bias"]
    values = {part: array.array("f", data[8 + length :][slice(*one["data_offsets"])]) for part, one in (("kernel", kernel), ("bias", bias))}
    *before, rows, columns = kernel["shape"]
    # The first layer takes the images as they are, the last has a unit for each class.
    wide_in, wide_out = 1 if name == names[0] else width, 1 if name == names[-1] else width
    # A dense layer after a flattened image has its channels for each place; filters are repeated among those of their place.
    place = channels if not before and rows % channels == 0 else rows
    scaled = array.array("f", (value / wide_in for value in values["kernel"]))
    lines = [scaled[at : at + columns] * wide_out for at in range(0, len(scaled), columns)]
    out = array.array("f")
    for first in range(0, len(lines), place):
        for line in lines[first : first + place] * wide_in:
            out.extend(line)
    tensors[f"{name}/bias"] = ([columns * wide_out], values["bias"] * wide_out)
    tensors[f"{name}/kernel"] = ([*before, rows * wide_in, columns * wide_out], out)
    channels = columns
for layer in model["layers"]:
    for key in ("filters", "units"):
        if key in layer and layer is not model["layers"][-1]:
            layer[key] *= width
model["name"] += f"_x{width}"
metadata["model"] = json.dumps(model, separators=(",", ":"))
at, out_header = 0, {"__metadata__": metadata}
for name, (shape, values) in sorted(tensors.items()):
    out_header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * len(values)]}
    at += 4 * len(values)
text = json.dumps(out_header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
with open(target, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + b"".join(values.tobytes() for _, (_, values) in sorted(tensors.items())))
