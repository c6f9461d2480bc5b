"""Data sets, one a file, found by name.

A data set's file defines `load(**options) -> Dataset`.
"""

import dataclasses
import functools
import inspect
import sys

import numpy as np

from pd_jax import names
from pd_jax.arcs import Denoiser


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples in memory.

    Attributes:
      images: [N, ...] float32 in [-1, 1] (points of the plane may leave it).
      labels: [N] int32, or None.
      denoise: the exact denoiser of the distribution, where there is one.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    denoise: Denoiser | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.images.shape[1:]

    @property
    def num_classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def batch(self, first: int, size: int, seed: tuple[int, ...]) -> dict:
        """Examples first .. first + size - 1 of an endless order.

        Every epoch goes through all examples in an order of its own. What comes is a
        function of the arguments alone: resuming needs no stored position.

        Returns:
          {"image": [size, ...], "label": [size] (if any)}.
        """
        place = first + np.arange(size)
        epoch, place = np.divmod(place, len(self.images))
        rows = np.empty(size, np.int64)
        for e in np.unique(epoch):
            here = epoch == e
            rows[here] = _order(len(self.images), (*seed, int(e)))[place[here]]
        return self.take(rows)

    def take(self, rows: np.ndarray) -> dict:
        """The examples of these rows, as a batch."""
        batch = {"image": self.images[rows]}
        if self.labels is not None:
            batch["label"] = self.labels[rows]
        return batch


@functools.lru_cache(maxsize=4)
def _order(num: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(num)


def known() -> list[str]:
    """The data sets' names."""
    return names.members(sys.modules[__name__])


def _load(name: str):
    return names.member(sys.modules[__name__], name, "data set").load


def options(name: str) -> dict:
    """A data set's options with their defaults."""
    parameters = inspect.signature(_load(name)).parameters.values()
    return {p.name: p.default for p in parameters}


def get(name: str, **kw) -> Dataset:
    """Loads the data set called `name` with its own options.

    Raises:
      ValueError: for an unknown name or option, listing the known ones, or data that
        cannot be used.
    """
    for key in kw:
        names.check(key, options(name), f'option of data set "{name}"')
    return _load(name)(**kw)
