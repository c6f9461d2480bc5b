"""Weights from the files that the paper's authors released."""

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import tensorstore

from pd_jax.runtime.errors import Refused
from pd_jax.storage import files
from pd_jax.storage.writers import is_remote


def load_released(path: str, like: dict) -> tuple[dict, int | None]:
    """Weights from a released file of the paper, or any file of that form.

    Such a file is Flax msgpack: a dictionary with the weights under `ema_params`, and
    for a student its step count under `num_sample_steps`. Reading it runs no code.

    Args:
      path: a local path, or one that TensorStore opens, such as gs://BUCKET/FILE.
      like: nested dict of arrays or `jax.ShapeDtypeStruct`, as the network has them.

    Returns:
      Weights as NumPy arrays in the shapes and types of `like`, where unit axes may
      differ; and the step count, None for a base model.

    Raises:
      Refused: for a file that is missing, damaged, or of another network, naming
        every leaf that is missing, extra or of another shape.
    """
    try:
        content = files.parse_msgpack(_bytes(path))
        weights = flax.traverse_util.flatten_dict(content["ema_params"], sep="/")
        num_steps = int(content.get("num_sample_steps") or 0)
    except Exception as error:  # whatever a damaged file leads to
        raise Refused(
            f"{path}: not a released checkpoint, which is Flax msgpack with ema_params "
            f"({files.brief(error)})"
        ) from error
    wanted = flax.traverse_util.flatten_dict(like, sep="/")
    problems = [
        f"missing {name} {tuple(wanted[name].shape)}"
        for name in wanted.keys() - weights.keys()
    ]
    problems += [f"extra {name}" for name in weights.keys() - wanted.keys()]
    for name in wanted.keys() & weights.keys():
        here, there = wanted[name].shape, getattr(weights[name], "shape", None)
        if there is None or _squeezed(here) != _squeezed(there):
            problems.append(f"{name} is {there}, not {tuple(here)}")
        elif not jnp.issubdtype(weights[name].dtype, jnp.floating):
            problems.append(f"{name} is of {weights[name].dtype}, not floating point")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise Refused(
            f"{path} holds another network: {'; '.join(sorted(problems)[:8])}{more}"
        )
    arrays = {
        name: np.asarray(weights[name]).astype(leaf.dtype).reshape(leaf.shape)
        for name, leaf in wanted.items()
    }
    return flax.traverse_util.unflatten_dict(arrays, sep="/"), num_steps or None


def _bytes(path: str) -> bytes:
    """A whole file, local or remote."""
    if not is_remote(path):
        return files.existing(path).read_bytes()
    folder, _, name = path.rpartition("/")
    read = tensorstore.KvStore.open(folder + "/").result().read(name).result()
    if read.state != "value":
        raise FileNotFoundError(f"no such file: {path}")
    return read.value


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
