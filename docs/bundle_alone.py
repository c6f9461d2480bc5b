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
key = np.array([0, 0], np.uint32)  # the second number is the seed
place = np.arange(64, dtype=np.uint32)  # the first 64 samples of it
label = [np.full(64, -1, np.int32)] if about["labels"] else []  # -1: any
images = np.asarray(program.call(arrays, key, place, *label))

print(f"{about['num_steps']} steps: {images.dtype} {images.shape}")
np.save("samples.npy", images)
