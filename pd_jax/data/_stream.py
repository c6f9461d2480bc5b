"""Batches that a caller makes, as a data set: what `pd_jax.distil` learns from."""

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from pd_jax.data import Dataset, InMemory, to_float, to_labels
from pd_jax.runtime import console
from pd_jax.runtime.errors import Refused
from pd_jax.space import Space, kind_of
from pd_jax.storage import draws

SPREAD = 64  # batches of what is indexed that are looked at, at least


class Stream(Dataset):
    """Global batches in the caller's own order, one an update.

    Some are looked at first and kept: samples are compared with their examples, which
    are this data set's rows. They are learnt from all the same. What holds of these is
    watched in all others before anything is learnt from them.

    Attributes:
      size: examples of a batch.
      num_classes: one more than the largest label; 0 without labels.
    """

    def __init__(
        self,
        source: Iterable | Callable[[int], Iterable],
        updates: Mapping[tuple[int, int], int],
        num_kept: int,
        kind: str = "",
        num_classes: int = 0,
    ):
        """Reads some batches: the first, or of what is indexed a draw from all.

        Args:
          source: batches, or a function of the number of the first: see `_Place`. A
            batch is an array [B, ...], or {"image": [B, ...], "label": [B]}; uint8 in
            0..255, or floating point.
          updates: of each stage of the run in order, by the two numbers that end the
            seed of its batches: the training's and the stage's own.
          num_kept: how many examples to keep.
          kind: of `pd_jax.space`; default what the first batch's type and shape tell.
          num_classes: of the labels; default one more than the largest of the batches
            read here, and of all batches of a list.

        Raises:
          Refused: for what is no such batch.
        """
        self.kind = kind
        ends = itertools.accumulate(updates.values())
        self._ends = dict(zip(updates, ends))
        self._updates = dict(updates)
        self._place = _Place(source)
        self._form, self._known = None, num_classes
        self._seen = np.zeros(0, np.int64)  # how often each label was learnt from
        self._ahead = {}  # the same of each batch after those, by number
        self._counts = None  # the same of a whole list
        first = [self._checked(0, raw) for raw in self._place.first(1)]
        if not first:
            raise Refused("there is not one batch to learn from")
        self.size = len(first[0]["image"])
        whole = self._keep(first, num_kept)
        labels = whole.get("label")
        self._kept = InMemory(whole["image"], labels, kind=self.kind)
        if num_classes and labels is None:
            raise Refused(f"num_classes={num_classes}, but the batches have no labels")
        self.num_classes = num_classes or self._kept.num_classes
        if isinstance(source, list | tuple):  # what is at hand costs nothing
            self._look_at(source)
        self._known = self.num_classes

    def _keep(self, first: list[dict], num: int) -> dict:
        """Up to `num` examples, as a batch; the first batch is there."""
        needed = -(-num // self.size)
        if (of := self._place.length) is None:
            first += map(self._checked, range(1, needed), self._place.first(needed)[1:])
            return {k: np.concatenate([b[k] for b in first])[:num] for k in first[0]}
        # Batches may be sorted: some of many of them.
        numbers = np.sort(draws.rows(max(needed, SPREAD), of, 0))
        each = -(-num // len(numbers))
        rows = draws.rows(each, self.size, 0)
        some = [self._checked(int(n), self._place.at(int(n))) for n in numbers]
        whole = {k: np.concatenate([b[k][rows] for b in some]) for k in first[0]}
        kept = np.sort(draws.rows(num, len(whole["image"]), 0))
        return {k: a[kept] for k, a in whole.items()}

    def _look_at(self, batches: Sequence) -> None:
        """Checks shapes and labels of a whole list; counts classes if need be."""
        counts = np.zeros(0, np.int64)
        for number, batch in enumerate(batches):
            with self._named(number):
                parts = _parts(batch)
                self._check_shapes({name: np.shape(a) for name, a in parts.items()})
                if "label" not in parts:
                    continue
                label = to_labels(parts["label"], self.size)
                self._check_label(label)
            counts = _add(counts, np.bincount(label))
            if not self._known:
                self.num_classes = max(self.num_classes, len(counts))
        self._counts = counts if len(counts) else None

    @property
    def forgets(self) -> bool:
        """Whether a run that goes on cannot ask the source for its place."""
        return self._place.forgets

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self._kept.shape

    def __len__(self) -> int:
        """Number of examples that were kept."""
        return len(self._kept)

    def take(self, rows: np.ndarray) -> dict:
        """The examples of these rows as a batch."""
        return self._kept.take(rows)

    @property
    def labels(self) -> np.ndarray | None:
        """[N] int32, of the examples that were kept; None without labels."""
        return self._kept.labels

    def label_counts(
        self, first: int = 0, seed: tuple[int, ...] = ()
    ) -> np.ndarray | None:
        """How often each label came before a place; of a list, how often it is there.

        Where none came, of the examples that were kept.
        """
        if self.labels is None:
            return None
        if seed:
            begin = self._ends[seed[-2:]] - self._updates[seed[-2:]]
            learnt = [n for n in [*self._ahead] if n < begin + first // self.size]
            for number in learnt:
                self._seen = _add(self._seen, self._ahead.pop(number))
        counts = self._seen if self._counts is None else self._counts
        counts = counts if counts.any() else np.bincount(self.labels)
        return _add(np.zeros(self.num_classes, np.int64), counts)

    def recall(self, counts: np.ndarray) -> None:
        """Goes on from the counts of labels that a stopped run had come to."""
        if counts.sum() > self._seen.sum():
            self._seen = np.asarray(counts, np.int64)

    def go_on(self, before: dict) -> None:
        """As of any data set, of what is indexed; others may differ at every start.

        An iterator that begins as it did before was made anew: it has a place.
        """
        if self._place.length is not None:
            super().go_on(before)
        elif self.forgets:
            with contextlib.suppress(Refused):
                super().go_on(before)
                self._place.forgets = False

    def identity(self) -> dict:
        """What tells this data from other data; of a list all batches count."""
        batches = {"batches": self._place.length, "size": self.size}
        return super().identity() | batches

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
          Refused: where they end before the stage does, or a batch is not like those
            before; it is never given.
        """
        end, updates = self._ends[seed[-2:]], self._updates[seed[-2:]]
        begin = end - updates + first // size
        self._ahead.clear()
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
            batch = self._checked(number, batch)
            if "label" in batch:
                self._ahead[number] = np.bincount(batch["label"])
            mine = {name: a[own] for name, a in batch.items()}
            yield mine
        while True:  # taken ahead of need, and never used
            yield mine

    def _checked(self, number: int, batch: object) -> dict:
        """A batch as arrays of its own, like those before in all that was looked at."""
        with self._named(number):
            arrays, dtype = _arrays(batch)
            shape = arrays["image"].shape[1:]
            form = {name: a.shape for name, a in arrays.items()}, dtype == np.uint8
            if self._form is None:
                self.kind = self.kind or kind_of(shape, dtype)
                self._space, self._form = Space.of(shape, self.kind), form
            self._check_shapes(form[0])
            levels = self._form[1]
            if form[1] != levels:
                raise Refused(
                    f"its images are {dtype}, those before were "
                    f"{'uint8' if levels else 'floating point'}: give all in one type"
                )
            if not levels:
                self._space.check(arrays["image"])
            if "label" in arrays:
                self._check_label(arrays["label"])
        return arrays

    def _check_shapes(self, shapes: dict) -> None:
        """Refuses a batch of other arrays, or shapes, than the first one's."""
        if shapes != self._form[0]:
            raise Refused(
                f"it has {shapes}, the first one {self._form[0]}: all must have as "
                "many examples (leave out a last, smaller one) of one shape"
            )

    def _check_label(self, label: np.ndarray) -> None:
        """Refuses labels of classes that there are not."""
        most = int(label.max(initial=0))
        if self._known and most >= self._known:
            raise Refused(
                f"a label is {most}, and num_classes={self._known}, as it was given or "
                "as the batches tell that were looked at first: give num_classes="
                f"{most + 1}, or as many as there are"
            )

    @contextlib.contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """Says in which batch is what does not fit."""
        try:
            yield
        except Refused as error:
            raise Refused(
                f"{self._place.name(number)}: {error}. Nothing was learnt of it"
            ) from error


class _Place:
    """A place in a source: batch number n of the run, whatever the source can do.

    function                  asked for those from n on, and again where they end
    indexed (a list)          [n], counted anew after its end
    other iterable            read again from its start up to n, again after its end
    iterator                  read up to n if it begins as before, else what comes

    Attributes:
      forgets: for an iterator, which knows of no place, unless it is known to begin
        where it did before.
      length: of what is indexed, else None.
    """

    def __init__(self, source: Iterable | Callable[[int], Iterable]):
        self._source = source
        self._indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
        self.forgets = isinstance(source, Iterator)
        self.length = len(source) if self._indexed else None
        self._ahead = []  # the first batches, read but not taken
        self._next, self._rest = 0, None  # the number of what comes next, and all of it

    def at(self, number: int) -> object:
        """A batch of what is indexed."""
        return self._source[number % self.length]

    def name(self, number: int) -> str:
        """What to call a batch."""
        if self.length:
            return f"batch {number % self.length} of {self.length}, counted from 0"
        return f"batch {number} of the run, counted from 0"

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
        if self._ahead:
            return self._ahead.pop(0)
        batch = next(self._rest, None)
        if batch is None and callable(self._source):  # it may give some at a time
            self._rest = self._open(number)
            batch = next(self._rest, None)
        return batch

    def _go(self, number: int) -> None:
        """To a place that is not the next one."""
        jumps = callable(self._source) or self._indexed
        if jumps or number < self._next:
            length = operator.length_hint(self._source, 0)  # 0: not known
            start = number - number % length if length else 0
            self._next = number if jumps else start
            self._ahead, self._rest = [], self._open(self._next)
        if self._next < number:  # of what can only be read
            console.say(f"reading {number - self._next} batches that were used before")
        for _ in range(self._next, number):
            if self._ahead:
                self._ahead.pop(0)
            else:
                next(self._rest, None)

    def _open(self, number: int) -> Iterator:
        """Batches from a number on; of what can only be read, from the first."""
        if callable(self._source):
            return iter(self._source(number))
        if self._indexed:
            return map(self.at, itertools.count(number) if self.length else ())
        source = self._source
        return source if isinstance(source, Iterator) else _endless(source)


def _endless(source: Iterable) -> Iterator:
    """Started over at its end; nothing of what has nothing."""
    while True:
        batch = None
        for batch in source:
            yield batch
        if batch is None:
            return


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two counts of labels, of which one may know of more."""
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def _parts(batch: object) -> dict:
    """A batch's parts by name, as they were given; Refused for none."""
    batch = batch if isinstance(batch, dict) else {"image": batch}
    if batch.get("image") is None or not batch.keys() <= {"image", "label"}:
        raise Refused(
            f"a batch has the keys {', '.join(map(repr, batch))}: give an array, or "
            '{"image": [B, ...]} with or without "label"'
        )
    return {name: part for name, part in batch.items() if part is not None}


def _arrays(batch: object) -> tuple[dict, np.dtype]:
    """A batch as new arrays that training takes, and its own type; Refused for none."""
    batch = _parts(batch)
    image = np.asarray(batch["image"])
    arrays = {"image": np.array(to_float(image))}  # as callers may use theirs again
    if image.ndim < 2 or not image.size:
        raise Refused(f"images have shape {image.shape}: a batch is [B, ...]")
    if "label" in batch:
        arrays["label"] = to_labels(batch["label"], len(image)).copy()
    return arrays, image.dtype
