"""Pairs of noise and a teacher's sample of it, made in parts in a run's folder.

Of a student of several steps, the places on the teacher's path between them as well.

The i-th pair is a function of the run's seed and i alone. Parts that are there and
whole are not made again; several processes make every n-th part each, and read all.
"""

import dataclasses
import io
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pd_jax import samplers, space
from pd_jax.data import Dataset, Pairs
from pd_jax.runtime import processes
from pd_jax.storage.writers import write_whole
from pd_jax.students import Student

PART = 4096  # pairs of a file


def make(
    folder: epath.Path,
    teacher: Student,
    dataset: Dataset,
    num: int,
    num_steps: int,
    key: jax.Array,
    advance: Callable[[str], None],
    stops: int = 1,
) -> Pairs:
    """Pairs, from a folder or made there.

    Args:
      folder: where their parts are kept.
      teacher: what makes samples of noise.
      dataset: whose labels they have, as often.
      num: how many.
      num_steps: the teacher's, for each.
      key: of noise and labels.
      advance: told what is being made; may raise to stop.
      stops: the student's steps, of which num_steps is a multiple.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index, count = processes.part()
    starts = range(0, num, PART)
    for part in range(index, len(starts), count):
        path = folder / f"{part:06d}.npz"
        size = min(PART, num - starts[part])
        if _read(path, size, stops) is None:
            rows = np.arange(starts[part], starts[part] + size)
            advance(f"{starts[part]}/{num}")
            made = _part(teacher, dataset, rows, num_steps, key, advance, stops)
            content = io.BytesIO()
            np.savez(content, **made)
            write_whole(path, content.getvalue())
    if count > 1:
        multihost_utils.sync_global_devices(os.fspath(folder))
    # Filled part by part: a data set this large is there once.
    shape = stops, num, *teacher.shape
    noise, images = np.empty(shape, np.float32), np.empty(shape, np.float32)
    labels = []
    for part, start in enumerate(starts):
        rows = slice(start, min(start + PART, num))
        read = _read(folder / f"{part:06d}.npz", rows.stop - start, stops)
        if read is None:
            raise OSError(
                f"{folder}: a part is not there, or damaged, after being made"
            )
        # Along each path: what every step leaves, and what it reaches.
        path = [read["noise"], *np.moveaxis(read["path"], 1, 0), read["image"]]
        noise[:, rows], images[:, rows] = path[:-1], path[1:]
        labels += [read["label"]] if "label" in read else []
    # Samples that are not clipped may leave the bounds of pictures.
    return Pairs(
        images.reshape(-1, *teacher.shape),
        np.tile(np.concatenate(labels), stops) if labels else None,
        kind=space.SIGNALS,
        noise=noise.reshape(-1, *teacher.shape),
        step=np.repeat(np.arange(stops, 0, -1, dtype=np.int32), num),
    )


def _read(path: epath.Path, size: int, stops: int) -> dict[str, np.ndarray] | None:
    """A part, or None where it is not there whole."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            part = {name: file[name] for name in file}
    except Exception:  # damage can surface anywhere in zipfile, zlib, NumPy
        return None
    if not {"image", "noise"} <= part.keys():
        return None
    # Of a version that knew one step alone.
    part.setdefault("path", np.zeros((len(part["image"]), 0, *part["image"].shape[1:])))
    good = part["path"].shape[1] == stops - 1
    return part if good and all(len(a) == size for a in part.values()) else None


def _part(
    teacher: Student,
    dataset: Dataset,
    rows: np.ndarray,
    num_steps: int,
    key: jax.Array,
    advance: Callable[[str], None],
    stops: int,
    batch: int = 256,
) -> dict[str, np.ndarray]:
    """The pairs of some rows: in batches of one size, whatever the devices."""
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    batch = -(-batch // mesh.size) * mesh.size
    params = jax.device_put(teacher.params, split.update(spec=PartitionSpec()))
    teacher = dataclasses.replace(teacher, params=params)
    labels = None
    if teacher.num_classes > 1:
        bits = np.asarray(jax.random.key_data(key)).tolist()
        drawn = [
            dataset.draw_labels(np.random.default_rng((*bits, i)), 1) for i in rows
        ]
        labels = np.concatenate(drawn)
    images = []
    for first in range(0, len(rows), batch):
        advance(f"{rows[first]}")
        at = rows[np.minimum(np.arange(first, first + batch), len(rows) - 1)]
        own = (
            None if labels is None else labels[np.minimum(at - rows[0], len(rows) - 1)]
        )
        x = np.asarray(teacher.draw(key, at, own, num_steps, split, stops=stops))
        x = x.reshape(stops, batch, *teacher.shape)
        images.append(np.moveaxis(x, 0, 1)[: len(rows) - first])
    draw = jax.jit(samplers.noise, static_argnums=2)
    noise = draw(key, jnp.asarray(rows, jnp.uint32), teacher.shape)
    path = np.concatenate(images)
    made = {"image": path[:, -1], "path": path[:, :-1], "noise": np.asarray(noise)}
    return made if labels is None else made | {"label": labels}
