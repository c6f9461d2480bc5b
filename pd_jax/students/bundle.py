"""Bundles: a student in one file, in the safetensors format.

    params/...     weights, named as in the network
    sampler        the sampler as a program for everyone: the bytes of `jax.export`
    __metadata__   {"pd_jax": all the rest as JSON, with checksums}

Any reader of safetensors opens one. Here networks are rebuilt by name, and the program,
which is code, is run only where that is asked for (`pd_jax.load(path, program=True)`).
"""

import hashlib
import json
import os
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from pd_jax.runtime.errors import Refused
from pd_jax.storage import files
from pd_jax.storage.writers import write_whole

FORMAT = 1
SUFFIX = ".safetensors"
KEY, PARAMS, SAMPLER = "pd_jax", "params/", "sampler"
MOST_DEPTH = 64  # of the weights' names
MOST_STEPS = 2**23
MOST_VALUES = 2**28  # of one sample
KINDS = {
    "num_steps": int,
    "schedule": dict | None,
    "sampler": str,
    "clip": bool,
    "shape": list,
    "kind": str,
    "labels": list | int | None,
    "model": dict | None,
    "precision": str,
    "metrics": dict,
    "facts": dict,
    "digests": dict,
}
# Lacking in older files, with what they then mean.
OPTIONAL = {"step_counts": [], "kind": "", "label_counts": []}


def flatten(params: Any) -> dict[str, Any]:
    """The arrays of a pytree by name, such as "block_0/dense/kernel" or "layers/0/w".

    Raises:
      ValueError: for anything that names could not tell apart.
    """
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = [jax.tree_util.keystr((part,), simple=True) for part in path]
        name = "/".join(parts)
        if not all(parts) or name.count("/") != len(parts) - 1 or name in flat:
            raise ValueError(f"weights {path}: names are different texts without /")
        if not hasattr(leaf, "dtype"):
            raise ValueError(f"weights {name}: {type(leaf).__name__} is no array")
        flat[name] = leaf
    if not flat:
        raise ValueError("there are no weights")
    return flat


def unflatten(weights: dict[str, Any]) -> dict:
    """Nested dicts of arrays, from their names; ValueError where there are none."""
    for name in weights:
        parts = name.split("/")
        inner = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if len(parts) > MOST_DEPTH or any(part in weights for part in inner):
            raise ValueError(f"weights {name[:100]}: no name of an array in a tree")
    return flax.traverse_util.unflatten_dict(weights, sep="/")


def with_lists(tree: Any) -> Any:
    """Nested dicts with lists where all names are 0, 1, ...: as lists are flattened."""
    if not isinstance(tree, dict):
        return tree
    inner = {name: with_lists(part) for name, part in tree.items()}
    places = [str(i) for i in range(len(inner))]
    return [inner[i] for i in places] if inner.keys() == set(places) else inner


def digest(weights: dict[str, np.ndarray]) -> str:
    """SHA-256 of arrays with their names, shapes and types; order does not matter."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        array = np.asarray(weights[name], order="C")
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def write(
    path: str | os.PathLike, params: dict, program: bytes, content: dict
) -> tuple[int, str]:
    """Writes a bundle, whole or not at all.

    Args:
      path: the file.
      params: nested dict of arrays.
      program: a serialized `jax.export.Exported`.
      content: the rest: what `KINDS` lists, without "digests", as JSON.

    Returns:
      The file's bytes, and their SHA-256.

    Raises:
      ValueError: for weights that have no names, or content that is no JSON.
      OSError: where the file cannot be written.
    """
    flat = flatten(params)
    weights = {name: np.asarray(leaf, order="C") for name, leaf in flat.items()}
    sampler = np.frombuffer(program, np.uint8)
    digests = {
        "params": digest(weights),
        "sampler": hashlib.sha256(program).hexdigest(),
    }
    content = _as_json({"format": FORMAT, **content, "digests": digests})
    sealed = json.dumps({"content": content, "sha256": _sum(content)}, sort_keys=True)
    tensors = {PARAMS + name: array for name, array in weights.items()}
    data = safetensors.numpy.save({**tensors, SAMPLER: sampler}, {KEY: sealed})
    write_whole(epath.Path(path), data)
    return len(data), hashlib.sha256(data).hexdigest()


def _as_json(content: dict) -> dict:
    """The content as it will be read."""
    try:
        return json.loads(json.dumps(content))
    except TypeError as error:
        raise ValueError(f"metrics and facts are kept as JSON: {error}") from error


def _sum(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Bundle:
    """A bundle that is open; its weights are read when asked for.

    Attributes:
      content: what `KINDS` lists, checked.
      shapes: each weight's shape by its name.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens the file at `path`; ValueError where it is no bundle."""
        self._path = os.fspath(path)
        files.existing(self._path)
        try:
            # Which checks that all that it says of sizes agrees with the file.
            self._file = safetensors.safe_open(self._path, "numpy")
            self._names = set(self._file.keys())
            self.content = _content(self._file.metadata())
            slices = {name: self._file.get_slice(name) for name in self._names}
            self.shapes = {
                name.removeprefix(PARAMS): tuple(part.get_shape())
                for name, part in slices.items()
                if name.startswith(PARAMS)
            }
            if self._names != {*(PARAMS + name for name in self.shapes), SAMPLER}:
                raise ValueError("its arrays are not weights and a sampler")
        except Refused:
            raise
        except Exception as error:  # damage can surface anywhere
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> Refused:
        return Refused(f"{self._path}: not a bundle of pd_jax ({files.brief(error)})")

    def program(self) -> bytes:
        """The sampler as a program, as it is: `params` checks it."""
        return self._file.get_tensor(SAMPLER).tobytes()

    def params(self) -> dict:
        """The weights, as nested dicts of NumPy arrays.

        Raises:
          ValueError: where they are not what was written.
        """
        try:
            weights = {n: self._file.get_tensor(PARAMS + n) for n in self.shapes}
            program = self._file.get_tensor(SAMPLER)
            sums = {
                "params": digest(weights),
                "sampler": hashlib.sha256(program.tobytes()).hexdigest(),
            }
            for part, expected in self.content["digests"].items():
                if sums.get(part) != expected:
                    raise ValueError(f"its {part} are not those that were written")
            return unflatten(weights)
        except Exception as error:
            raise self._damaged(error) from error


def _content(metadata: dict[str, str] | None) -> dict:
    """What a bundle says of itself, checked."""
    sealed = (metadata or {}).get(KEY)
    if sealed is None:
        raise ValueError(f'it has no metadata "{KEY}"')
    if len(sealed) > files.MOST_JSON_BYTES:
        raise ValueError(f"more than {files.MOST_JSON_BYTES} bytes of metadata")
    sealed = json.loads(sealed)
    content = sealed["content"]
    if _sum(content) != sealed["sha256"]:
        raise ValueError("its metadata are not those that were written")
    if content["format"] != FORMAT:
        raise ValueError(
            f"its format is {str(content['format'])[:20]}, and this version of pd_jax "
            f"reads {FORMAT}"
        )
    content = OPTIONAL | content
    for key, kind in KINDS.items():
        if key not in content or not isinstance(content[key], kind):
            raise ValueError(f"{key} is {str(content.get(key))[:100]}")
    if set(content["digests"]) != {"params", SAMPLER}:
        raise ValueError("it has no checksums")
    if not 1 <= content["num_steps"] <= MOST_STEPS:
        raise ValueError(f"num_steps is {content['num_steps']}")
    counts = content["step_counts"]
    if not isinstance(counts, list) or not all(
        type(n) is int and 1 <= n <= MOST_STEPS for n in counts
    ):
        raise ValueError(f"step_counts is {str(counts)[:100]}")
    counts = content["label_counts"]
    if not isinstance(counts, list) or not all(
        type(n) is int and 0 <= n < 2**53 for n in counts
    ):
        raise ValueError(f"label_counts is {str(counts)[:100]}")
    _check_shape(content["shape"])
    labels = content["labels"]
    if isinstance(labels, list) and not all(isinstance(name, str) for name in labels):
        raise ValueError("its labels are not names")
    if isinstance(labels, int) and not 0 <= labels < 2**31:
        raise ValueError(f"labels is {str(labels)[:100]}")
    return content


def _check_shape(shape: list) -> None:
    values = 1
    for n in shape:
        if type(n) is not int or not 1 <= n <= MOST_VALUES // values:
            raise ValueError(f"shape is {str(shape)[:100]}")
        values *= n
    if not shape:
        raise ValueError("shape is empty")
