"""Batches that a caller makes, as a data set: what `pd_jax.distil` learns from."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from pd_jax.data import Dataset, InMemory, to_float, to_labels
from pd_jax.runtime.errors import Refused
from pd_jax.space import Space, kind_of


class Stream(Dataset):
    """Global batches in the caller's own order, one an update, each used once.

    The first ones are looked at and kept: samples are compared with their examples,
    which are this data set's rows. They are learnt from all the same.

    Attributes:
      size: examples of a batch.
    """

    def __init__(
        self,
        source: Iterable | Callable[[int], Iterable],
        updates: Sequence[int],
        num_kept: int,
        kind: str = "",
    ):
        """Reads the first batches.

        Args:
          source: batches, started over at the end unless it is an iterator; or a
            function that gives those from batch number n of the whole ladder on. A
            batch is an array [B, ...], or {"image": [B, ...], "label": [B]}; uint8 in
            0..255, or floating point.
          updates: of each stage of the ladder.
          num_kept: how many examples to keep.
          kind: of `pd_jax.space`; default what the first batch's type and shape tell.

        Raises:
          Refused: for what is no such batch.
        """
        self._source, self.kind = source, kind
        self._ends = np.cumsum(updates)
        self._form = None
        batches = self._checked(source(0) if callable(source) else _endless(source))
        first = list(itertools.islice(batches, 1))
        if not first:
            raise Refused("there is not one batch to learn from")
        self.size = len(first[0]["image"])
        first += itertools.islice(batches, -(-num_kept // self.size) - 1)
        self._rest = itertools.chain(first, batches)  # of what is no function
        whole = {k: np.concatenate([b[k] for b in first])[:num_kept] for k in first[0]}
        self._kept = InMemory(whole["image"], whole.get("label"), kind=self.kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self._kept.shape

    @property
    def num_classes(self) -> int:
        """One more than the largest label that was kept; 0 without labels."""
        return self._kept.num_classes

    def __len__(self) -> int:
        """Number of examples that were kept."""
        return len(self._kept)

    def take(self, rows: np.ndarray) -> dict:
        """The examples of these rows as a batch."""
        return self._kept.take(rows)

    def draw_labels(self, rng: np.random.Generator, num: int) -> np.ndarray | None:
        """Labels [num] int32, as often as they occur; None without labels."""
        return self._kept.draw_labels(rng, num)

    def batches(
        self,
        first: int,
        size: int,
        seed: tuple[int, ...],
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> Iterator[dict]:
        """Batches of one stage, whose number ends `seed`; see `Dataset.batches`.

        A function is asked for those from `first` on; an iterator just goes on.

        Raises:
          Refused: where they end before the stage does.
        """
        end = self._ends[seed[-1]]
        done = int(self._ends[seed[-1] - 1] if seed[-1] else 0) + first // size
        rest = self._rest
        if callable(self._source):
            rest = self._checked(self._source(done))
        index, count = part
        own = slice(index * size // count, (index + 1) * size // count)
        for number in range(done, end):
            batch = next(rest, None)
            if batch is None:
                raise Refused(
                    f"the batches end at number {number}, and the ladder takes "
                    f"{self._ends[-1]}, one an update: checkpoints are kept; go on "
                    "with more, or give an iterable that can be started over"
                )
            mine = {name: a[own] for name, a in batch.items()}
            yield mine
        while True:  # taken ahead of need, and never used
            yield mine

    def _checked(self, batches: Iterable) -> Iterator[dict]:
        """Batches as arrays of their own, all of one form."""
        for batch in batches:
            arrays, dtype = _arrays(batch)
            form = {name: a.shape for name, a in arrays.items()}
            if self._form is None:
                shape = arrays["image"].shape[1:]
                self.kind = self.kind or kind_of(shape, dtype)
                Space.of(shape, self.kind).check(arrays["image"])
                self._form = form
            if form != self._form:
                raise Refused(
                    f"a batch has {form}, the first one {self._form}: all must have as "
                    "many examples (leave out a last, smaller one) of one shape"
                )
            yield arrays


def _endless(source: Iterable) -> Iterator:
    """Started over at its end, unless it is an iterator."""
    while True:
        batch = None
        for batch in source:
            yield batch
        if batch is None or iter(source) is source:
            return


def _arrays(batch: object) -> tuple[dict, np.dtype]:
    """A batch as new arrays that training takes, and its own type; Refused for none."""
    batch = batch if isinstance(batch, dict) else {"image": batch}
    if "image" not in batch or not batch.keys() <= {"image", "label"}:
        raise Refused(
            f"a batch has the keys {', '.join(map(repr, batch))}: give an array, or "
            '{"image": [B, ...]} with or without "label"'
        )
    image = np.asarray(batch["image"])
    arrays = {"image": np.array(to_float(image))}  # as callers may use theirs again
    if image.ndim < 2 or not image.size:
        raise Refused(f"images have shape {image.shape}: a batch is [B, ...]")
    if batch.get("label") is not None:
        arrays["label"] = to_labels(batch["label"], len(image)).copy()
    return arrays, image.dtype
