"""Batches that a caller makes, as a data set: what `pd_jax.distil` learns from."""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from pd_jax.data import Dataset, InMemory, to_float, to_labels
from pd_jax.runtime.errors import Refused
from pd_jax.space import Space, kind_of


class Stream(Dataset):
    """Global batches in the caller's own order, one an update.

    Some are looked at first and kept: samples are compared with their examples, which
    are this data set's rows. They are learnt from all the same.

    Attributes:
      size: examples of a batch.
    """

    def __init__(
        self,
        source: Iterable | Callable[[int], Iterable],
        updates: Mapping[tuple[int, int], int],
        num_kept: int,
        kind: str = "",
    ):
        """Reads the first batches.

        Args:
          source: batches, or a function of the number of the first: see `_Place`. A
            batch is an array [B, ...], or {"image": [B, ...], "label": [B]}; uint8 in
            0..255, or floating point.
          updates: of each stage of the run in order, by the two numbers that end the
            seed of its batches: the training's and the stage's own.
          num_kept: how many examples to keep.
          kind: of `pd_jax.space`; default what the first batch's type and shape tell.

        Raises:
          Refused: for what is no such batch.
        """
        self.kind = kind
        ends = itertools.accumulate(updates.values())
        self._ends = dict(zip(updates, ends))
        self._updates = dict(updates)
        self._place = _Place(source)
        self._form = None
        first = [self._checked(raw) for raw in self._place.first(1)]
        if not first:
            raise Refused("there is not one batch to learn from")
        self.size = len(first[0]["image"])
        more = self._place.first(-(-num_kept // self.size))[1:]
        first += [self._checked(raw) for raw in more]
        whole = {k: np.concatenate([b[k] for b in first])[:num_kept] for k in first[0]}
        self._kept = InMemory(whole["image"], whole.get("label"), kind=self.kind)

    @property
    def forgets(self) -> bool:
        """Whether a run that goes on cannot ask the source for its place."""
        return self._place.forgets

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
        """Batches of one stage, whose numbers end `seed`; see `Dataset.batches`.

        Raises:
          Refused: where they end before the stage does.
        """
        end, updates = self._ends[seed[-2:]], self._updates[seed[-2:]]
        begin = end - updates + first // size
        index, count = part
        own = slice(index * size // count, (index + 1) * size // count)
        for number in range(begin, end):
            batch = self._place.take(number)
            if batch is None:
                raise Refused(
                    f"the batches end at number {number}, and the run takes "
                    f"{max(self._ends.values())}, one an update: checkpoints are kept; "
                    "go on with more, or give an iterable that can be started over"
                )
            mine = {name: a[own] for name, a in self._checked(batch).items()}
            yield mine
        while True:  # taken ahead of need, and never used
            yield mine

    def _checked(self, batch: object) -> dict:
        """A batch as arrays of its own, of the first one's form."""
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
        return arrays


class _Place:
    """A place in a source: batch number n of the run, whatever the source can do.

    function                  asked for those from n on
    indexed (a list)          [n], counted anew after its end
    other iterable            read again from its start up to n, again after its end
    iterator                  whatever comes next

    Attributes:
      forgets: for an iterator, which knows of no place.
    """

    def __init__(self, source: Iterable | Callable[[int], Iterable]):
        self._source = source
        self._indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
        self.forgets = isinstance(source, Iterator)
        self._ahead = []  # the first batches, read but not taken
        self._next, self._rest = 0, None  # the number of what comes next, and all of it

    def first(self, num: int) -> list:
        """Up to `num` batches from number 0 on; the next `take` may want them again."""
        missing = num - len(self._ahead)
        if self._rest is None:
            self._rest = self._open(0)
        self._ahead += itertools.islice(self._rest, max(0, missing))
        return self._ahead[:num]

    def take(self, number: int) -> object | None:
        """The batch of this number; None after the last one."""
        if number != self._next and not self.forgets:
            self._go(number)
        self._next = number + 1
        return self._ahead.pop(0) if self._ahead else next(self._rest, None)

    def _go(self, number: int) -> None:
        """To a place that is not the next one."""
        jumps = callable(self._source) or self._indexed
        if jumps or number < self._next:
            length = operator.length_hint(self._source, 0)  # 0: not known
            start = number - number % length if length else 0
            self._next = number if jumps else start
            self._ahead, self._rest = [], self._open(self._next)
        for _ in range(self._next, number):  # of what can only be read
            if self._ahead:
                self._ahead.pop(0)
            else:
                next(self._rest, None)

    def _open(self, number: int) -> Iterator:
        """Batches from a number on; of what can only be read, from the first."""
        if callable(self._source):
            return iter(self._source(number))
        if self._indexed:
            num = len(self._source)
            rows = itertools.count(number) if num else ()
            return (self._source[row % num] for row in rows)
        return iter(self._source) if self.forgets else _endless(self._source)


def _endless(source: Iterable) -> Iterator:
    """Started over at its end; nothing of what has nothing."""
    while True:
        batch = None
        for batch in source:
            yield batch
        if batch is None:
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
