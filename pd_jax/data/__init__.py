"""Data sets, one a file, found by name.

A data set's file defines `load(**options) -> Dataset`. Each option is a config key,
with its default. `Dataset` says what the rest of the project asks of any; most are
`InMemory`. Where options alone tell the examples' shape, a file may also define
`describe`, with the same options: see `Description`.
"""

import abc
import dataclasses
import functools
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pd_jax.arcs import Denoiser
from pd_jax.data import _identity
from pd_jax.runtime import registry
from pd_jax.runtime.errors import Refused
from pd_jax.space import Space, kind_of


class Description(NamedTuple):
    """A data set without its examples.

    Attributes:
      shape: shape of one example.
      num_classes: one more than the largest label; 0 without labels, None where only
        the data could tell.
      denoise: the exact denoiser of the distribution, where there is one.
      kind: of `pd_jax.space`; "" for what the shape tells.
    """

    shape: tuple[int, ...]
    num_classes: int | None = 0
    denoise: Denoiser | None = None
    kind: str = ""


class Dataset(abc.ABC):
    """Examples of one distribution, by row.

    A batch is {"image": [B, ...] float32, "label": [B] int32 (if any)}; pictures lie in
    [-1, 1].

    Attributes:
      shape: shape of one example.
      kind: of `pd_jax.space`; "" for what the shape tells.
      num_classes: one more than the largest label; 0 without labels.
      labels: [N] int32, of all examples, as one array; None without labels.
      denoise: the exact denoiser of the distribution, where there is one.
      reference: examples that samples are compared with: held-back ones, or these.
    """

    shape: tuple[int, ...]
    num_classes: int
    labels: np.ndarray | None = None
    kind: str = ""
    denoise: Denoiser | None = None

    @property
    def reference(self) -> "Dataset":
        """Examples that samples are compared with."""
        return self

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def take(self, rows: np.ndarray) -> dict:
        """The examples of these rows as a batch, as they are: nothing is random."""

    @abc.abstractmethod
    def batches(
        self,
        first: int,
        size: int,
        seed: tuple[int, ...],
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> Iterator[dict]:
        """Endless batches for training, augmented, from place `first` of an order.

        Every epoch goes through all examples in an order of its own. What comes is a
        function of place and seed alone: resuming needs no stored position, and a
        global batch holds the same examples on any number of processes.

        Args:
          first: examples of the order that are skipped.
          size: examples of a global batch.
          seed: of order and augmentation.
          part: (i, n) for the i-th of n equal parts of every global batch.
          workers: processes that read and decode; 0 for none but this one.
        """

    def draw_labels(self, rng: np.random.Generator, num: int) -> np.ndarray | None:
        """Labels [num] int32, as often as they occur; None without labels."""
        if self.labels is None:
            return None
        return self.labels[rng.integers(len(self.labels), size=num)]

    def label_counts(
        self, first: int = 0, seed: tuple[int, ...] = ()
    ) -> np.ndarray | None:
        """How often each label occurs, [num_classes]; None without labels.

        Args:
          first, seed: a place, as for `batches`: what is known only as it comes counts
            what came before that, and nothing that was read ahead.
        """
        if self.labels is None:
            return None
        return np.bincount(self.labels, minlength=self.num_classes)

    def recall(self, counts: np.ndarray) -> None:
        """Told what `label_counts` a stopped run had come to; of use to streams."""
        return None

    def identity(self) -> dict:
        """What tells this data from other data, of JSON; see `_identity`."""
        return _identity.of(self)

    def go_on(self, before: dict) -> None:
        """Goes on with what a run had learnt from before, by its identity.

        Raises:
          Refused: for other data.
        """
        _identity.check(before, self.identity())


@dataclasses.dataclass(frozen=True, eq=False)
class InMemory(Dataset):
    """Examples that need no decoding.

    Attributes:
      images: [N, ...], floating point, or uint8 in 0..255; an array, or what is indexed
        by rows like one, whose values are checked as they come.
      labels: [N] integers from 0 on, or None.
      denoise: the exact denoiser of the distribution, where there is one.
      flip: mirrors half of the training images left to right.
      held_back: examples that samples are compared with, in place of these.
      kind: of `pd_jax.space`; default what type and shape tell.

    Raises:
      Refused: for images or labels that are not as above, or are not of the kind.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    denoise: Denoiser | None = None
    flip: bool = False
    held_back: Dataset | None = None
    kind: str = ""

    def __post_init__(self):
        kind = self.kind or kind_of(self.shape, self.images.dtype)
        object.__setattr__(self, "kind", kind)
        space = Space.of(self.shape, kind)
        if _type(self.images) != np.uint8 and isinstance(self.images, np.ndarray):
            space.check(self.images)
        if self.labels is not None:
            labels = to_labels(self.labels, len(self.images))
            object.__setattr__(self, "labels", labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.images.shape[1:]

    @property
    def num_classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def reference(self) -> Dataset:
        """The examples held back, or these."""
        return self if self.held_back is None else self.held_back

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.images)

    def take(self, rows: np.ndarray) -> dict:
        """The examples of these rows as a batch."""
        images = self.images[rows]
        batch = {"image": to_float(images)}
        if not isinstance(self.images, np.ndarray) and images.dtype != np.uint8:
            Space.of(self.shape, self.kind).check(batch["image"])  # read just now
        if self.labels is not None:
            batch["label"] = self.labels[rows]
        return batch

    def batches(
        self,
        first: int,
        size: int,
        seed: tuple[int, ...],
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> Iterator[dict]:
        """Endless batches for training; see `Dataset.batches`."""
        index, count = part
        own = size // count
        while True:
            place = first + index * own + np.arange(own)
            first += size
            epoch, place = np.divmod(place, len(self))
            rows, flipped = np.empty(own, np.int64), np.empty(own, bool)
            for e in np.unique(epoch):
                here = epoch == e
                order = _order(len(self), (*seed, int(e)))
                rows[here] = order[place[here]]
                if self.flip:
                    flips = _flips(len(self), (*seed, int(e)))
                    flipped[here] = flips[place[here]]
            batch = self.take(rows)
            if self.flip:
                image = batch["image"]
                image[flipped] = image[flipped][:, :, ::-1]
            yield batch


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs(InMemory):
    """Steps along a teacher's paths: {"image", "noise" [B, ...], "step", "label" [B]}.

    Attributes:
      images: what a step reaches: of the last one data.
      noise: [N, ...] float32, what it leaves: of the first one standard normal.
      step: [N] int32, which one, counted down to 1; 1 for all where None: the path is
        one step.
    """

    noise: np.ndarray | None = None
    step: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> dict:
        """The pairs of these rows."""
        step = np.ones(len(rows), np.int32) if self.step is None else self.step[rows]
        return super().take(rows) | {"noise": self.noise[rows], "step": step}


def _type(images: np.ndarray, name: str = "images") -> np.dtype:
    """The type of images, called `name`; Refused for one that is not learnt from."""
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise Refused(f"{name} are {images.dtype}: give uint8 or floating point")
    return images.dtype


def to_float(images: np.ndarray, name: str = "images") -> np.ndarray:
    """Images, called `name`: uint8 in 0..255 as [-1, 1], floats as they are; float32.

    Raises:
      Refused: for images of other types.
    """
    if _type(images, name) != np.uint8:
        with np.errstate(over="ignore"):  # to infinity, which `Space.check` refuses
            return np.asarray(images, np.float32)
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_labels(labels: np.ndarray, num: int, name: str = "labels") -> np.ndarray:
    """Labels, called `name`, as int32 [num].

    Raises:
      Refused: for what are not so many whole numbers from 0 to 2^31 - 1.
    """
    labels = np.asarray(labels)
    if labels.shape != (num,) or not np.issubdtype(labels.dtype, np.integer):
        raise Refused(
            f"{name} are {labels.dtype} {labels.shape}: give integers, one for each of "
            f"{num} images"
        )
    if num and labels.min() < 0:
        raise Refused(f"{name} are negative in part: count from 0")
    if num and labels.max() >= 2**31:
        raise Refused(f"{name} go up to {labels.max()}: 2^31 - 1 is the largest")
    return labels.astype(np.int32, copy=False)


@functools.lru_cache(maxsize=4)
def _order(num: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(num)


@functools.lru_cache(maxsize=4)
def _flips(num: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng((*seed, 1)).random(num) < 0.5


def known() -> list[str]:
    """The data sets' names."""
    return registry.members(sys.modules[__name__])


def _module(name: str) -> ModuleType:
    return registry.member(sys.modules[__name__], name, "data set")


def options(name: str) -> dict:
    """A data set's options with their defaults."""
    parameters = inspect.signature(_module(name).load).parameters.values()
    return {p.name: p.default for p in parameters}


def get(name: str, **kw) -> Dataset:
    """Loads the data set called `name` with its own options.

    Raises:
      Refused: for an unknown name or option, listing the known ones, or data that
        cannot be used.
    """
    for key in kw:
        registry.check(key, options(name), f'option of data set "{name}"')
    return _module(name).load(**kw)


def describe(name: str, **kw) -> Description:
    """Describes the data set called `name`, by its `describe` if that knows, else by
    loading it.

    Raises:
      Refused: as for `get`.
    """
    known_by = getattr(_module(name), "describe", None)
    description = known_by(**kw) if known_by else None
    if description is not None:
        return Description(*description)
    dataset = get(name, **kw)
    return Description(
        dataset.shape, dataset.num_classes, dataset.denoise, dataset.kind
    )


def source(dataset: Dataset, kind: str) -> Dataset:
    """What a training is fed: the data set itself, places alone, or pairs.

    Args:
      dataset: the run's, or its `Description`, which is never asked for batches.
      kind: "images"; "places" for a method that needs no examples; or "pairs", which
        are made when their turn comes: until then there is one, of zeros.
    """
    if kind == "places" and isinstance(dataset, Dataset):
        return Places(dataset)
    if kind == "pairs":
        shape, label = (1, *dataset.shape), np.zeros(1, np.int32)
        zeros = np.zeros(shape, np.float32)
        return Pairs(zeros, label if dataset.num_classes else None, noise=zeros)
    return dataset


class Places(Dataset):
    """Batches without examples: {"place": [B] int32}, with labels if the data has any.

    Labels are drawn as often as the data has them.
    """

    def __init__(self, dataset: Dataset):
        """Of a data set, whose labels and held-back examples it has."""
        self._dataset = dataset
        self.shape, self.num_classes = dataset.shape, dataset.num_classes
        self.kind, self.labels = dataset.kind, dataset.labels

    @property
    def reference(self) -> Dataset:
        """Examples that samples are compared with."""
        return self._dataset.reference

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._dataset)

    def take(self, rows: np.ndarray) -> dict:
        """Rows as places."""
        return {"place": rows.astype(np.int32)}

    def batches(
        self,
        first: int,
        size: int,
        seed: tuple[int, ...],
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> Iterator[dict]:
        """Endless batches; see `Dataset.batches`."""
        index, count = part
        own = size // count
        while True:
            place = np.arange(first + index * own, first + (index + 1) * own)
            batch = {"place": (place % 2**31).astype(np.int32)}
            labels = self.draw_labels(np.random.default_rng((*seed, first)), size)
            if labels is not None:
                batch["label"] = labels[index * own : (index + 1) * own]
            first += size
            yield batch
