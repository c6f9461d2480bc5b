"""Samples of a bundle with jax and flatbuffers alone: bundle_alone.py BUNDLE."""

import json
import sys

import jax
import numpy as np
from jax import export

path = sys.argv[1] if sys.argv[1:] else sys.exit("give the file of a bundle")
with open(path, "rb") as file:  # safetensors: a length, a JSON header, the data
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    data = file.read()
about = json.loads(header.pop("__metadata__")["pd_jax"])["content"]
kinds, arrays = {"F32": "f4", "BF16": jax.numpy.bfloat16, "F16": "f2", "U8": "u1"}, {}
for name, part in header.items():
    values = np.frombuffer(data[slice(*part["data_offsets"])], kinds[part["dtype"]])
    arrays[name] = values.reshape(part["shape"])

program = export.deserialize(bytearray(arrays.pop("sampler")))
key, place = np.uint32([0, 0]), np.arange(64, dtype=np.uint32)  # seed 0, samples 0-63
label = [np.full(64, -1, np.int32)] if about["labels"] else []  # -1: any
x = np.asarray(program.call(arrays, key, place, *label))
if wrong := len(x) - np.isfinite(x).reshape(len(x), -1).all(1).sum():
    sys.exit(f"{wrong} of {len(x)} samples are not finite")
if about.get("kind") == "pictures":  # as grey levels; older bundles give these
    x = ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
print(f"{about['num_steps']} steps: {x.dtype} {x.shape}")
np.save("samples.npy", x)
