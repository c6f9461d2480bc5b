"""What tells data from other data: its content, wherever it lies.

Of a seeded sample of examples a random projection each is compared, not their bits:
decoders, and the processors on which data was made, differ in the last ones.
"""

import numpy as np

from pd_jax.runtime.errors import Refused
from pd_jax.storage import draws

EXAMPLES = 64
TOLERANCE = 0.01  # of a projection's size


def of(dataset) -> dict:
    """The identity of a `Dataset`, of JSON: count, shape, and the sample's values."""
    batch = dataset.take(np.sort(draws.rows(EXAMPLES, len(dataset), 0)))
    x = np.asarray(batch["image"], np.float64)
    x = x.reshape(len(x), -1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], x.shape[1])
    labels = batch.get("label")
    return {
        "examples": len(dataset),
        "shape": list(dataset.shape),
        "values": [float(f"{v:.6g}") for v in x @ signs / np.sqrt(len(signs))],
        "labels": None if labels is None else labels.tolist(),
    }


def check(before: dict, now: dict) -> None:
    """Raises Refused unless two identities are of the same data."""
    for name, value in now.items():
        if name == "values" or before[name] == value:
            continue
        values = f": {before[name]} -> {value}" if name != "labels" else ""
        raise Refused(f"{name} of the data{values}")
    a, b = np.array(before["values"]), np.array(now["values"])
    off = np.abs(a - b) > TOLERANCE * np.sqrt(np.mean(a**2))
    if off.any():
        raise Refused(f"{off.sum()} of {len(off)} examples compared are others")
