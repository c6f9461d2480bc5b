"""Pictures that are read and decoded as they are needed, through Grain."""

import atexit
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import shutil
import signal
import threading
import weakref
from collections.abc import Iterator
from concurrent import futures
from multiprocessing import resource_tracker
from typing import Protocol

import grain.python as grain
import numpy as np
from absl import flags

from pd_jax.data import Dataset, to_float, to_labels
from pd_jax.data._images import Unreadable, decode
from pd_jax.runtime.errors import Refused
from pd_jax.storage.files import brief

BUFFERED = 2  # batches that every reading process holds ready, beside those it works on

_OPEN: weakref.WeakSet = weakref.WeakSet()  # batches that were not closed


class Source(Protocol):
    """Records by number. It is pickled for worker processes, and `str` names it.

    A record is {"image": an encoded picture, or uint8 [H, W, C] as it shall be,
    "label": int (if any)}.

    Attributes:
      labels: [N] int32, of all records, as one array; None without labels.
    """

    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> dict: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Records(Dataset):
    """A source's pictures, cropped to their central square and resized.

    Attributes:
      source: the records.
      shape: (size, size, channels).
      num_classes: one more than the largest label; 0 without labels.
      flip: mirrors half of the training images left to right.
      label_names: the classes' names, where they have any.
    """

    source: Source
    shape: tuple[int, int, int]
    num_classes: int = 0
    flip: bool = False
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """[N] int32, of all records, as one array; None without labels.

        Raises:
          Refused: for labels of classes that there are not.
        """
        if not self.num_classes:
            return None
        labels = to_labels(self.source.labels, len(self), f"{self.source}: labels")
        self._check(labels, np.arange(len(self)))
        return labels

    def _check(self, labels: np.ndarray, rows: np.ndarray) -> None:
        """Refuses labels of these rows that are of no class, naming the first."""
        wrong = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if len(wrong):
            raise Refused(
                f"{self.source}: record {rows[wrong[0]]} has label {labels[wrong[0]]}, "
                f"and there are {self.num_classes} classes, counted from 0: prepare "
                "the data again"
            )

    def __getitem__(self, row: int) -> dict:
        """{"image": uint8 of `shape`, "label": int32 (if any)}.

        Raises:
          Refused: for a record that cannot be read or does not decode,
            naming it.
        """
        try:
            record = self.source[row]
        except Exception as error:  # readers have no kind of their own
            raise Refused(
                f"{self.source}: record {row} cannot be read ({brief(error)}); put "
                "back, or prepare again, the files that it is in"
            ) from error
        image = record["image"]
        if isinstance(image, bytes):
            try:
                image = decode(image, self.shape[0], self.shape[-1])
            except Unreadable as error:
                raise Refused(
                    f"{self.source}: record {row} does not decode ({error})"
                ) from error
        elif np.shape(image) != self.shape:
            # Of a file that ends where one of its blocks does, records are empty.
            raise Refused(
                f"{self.source}: record {row} is not a picture; put back, or prepare "
                "again, the files that it is in"
            )
        if not self.num_classes:
            return {"image": image}
        label = np.array([record["label"]], np.int32)
        self._check(label, np.array([row]))
        return {"image": image, "label": label[0]}

    def take(self, rows: np.ndarray) -> dict:
        """The examples of these rows as a batch."""
        with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            examples = list(threads.map(self.__getitem__, map(int, rows)))
        batch = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
        return {**batch, "image": to_float(batch["image"])}

    def batches(
        self,
        first: int,
        size: int,
        seed: tuple[int, ...],
        part: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> Iterator[dict]:
        """Endless batches for training; see `Dataset.batches`.

        Worker processes import this package but leave accelerators alone; they end with
        the iterator, or with this process. Without any, threads read and decode.
        """
        if not flags.FLAGS.is_parsed():  # a program without flags; Grain asks for some
            flags.FLAGS.mark_as_parsed()
        index, count = part
        order, flips = (
            int(s.generate_state(1)[0]) for s in np.random.SeedSequence(seed).spawn(2)
        )
        # A place in the order is an index of `examples`, so that where to start, and
        # which part to take, are slices.
        examples = grain.MapDataset.source(self).shuffle(seed=order).repeat()
        if self.flip:
            examples = examples.random_map(_flip, seed=flips)
        endless = examples[first : first + 2**53]
        mine = endless.batch(size // count)[index::count]
        threads = 2 if workers else min(os.cpu_count() or 1, 16)
        loader = mine.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        ).mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=BUFFERED),
            worker_init_fn=_start_worker,
        )
        batches = _each(loader, str(self.source), workers)
        _OPEN.add(batches)
        return batches


def _each(loader: grain.IterDataset, name: str, workers: int) -> Iterator[dict]:
    try:
        with contextlib.closing(iter(loader)) as batches:
            with _signals_kept_off():  # which starts threads and processes
                first = next(batches)
            yield from map(_own, itertools.chain([first], batches))
    except (RuntimeError, OSError) as error:  # of processes, or what they share
        raise OSError(
            f"{name}: reading with run.data_workers={workers} ended ({brief(error)}). "
            f"Memory or {_shared_memory()}, through which such processes hand over "
            "batches, may be full: fewer of them need less of both. The same command "
            "goes on from the last checkpoint"
        ) from error


def _shared_memory() -> str:
    """The memory that processes share, with its size where that is limited."""
    with contextlib.suppress(OSError):
        return f"/dev/shm ({shutil.disk_usage('/dev/shm').total / 1e6:.0f} MB)"
    return "shared memory"


@atexit.register
def _close() -> None:
    """Closes what was left open, while there is an interpreter to do it."""
    for batches in list(_OPEN):
        with contextlib.suppress(ValueError):  # another thread is waiting for one
            batches.close()


def _own(batch: dict) -> dict:
    """A batch in this process's memory: a worker's lies in memory shared with it."""
    copy = {key: np.array(value) for key, value in batch.items()}
    return {**copy, "image": to_float(copy["image"])}


def _flip(example: dict, rng: np.random.Generator) -> dict:
    if rng.random() < 0.5:
        return {**example, "image": example["image"][:, ::-1]}
    return example


@contextlib.contextmanager
def _signals_kept_off() -> Iterator[None]:
    """Has processes started here, from any thread started here, never hear a signal.

    SIGINT and SIGTERM reach a whole group of processes: the parent decides what
    follows. What is blocked stays so from birth on, through all that is imported.
    """
    resource_tracker.ensure_running()  # whose start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index: int, count: int) -> None:
    """Makes a worker process end when its parent does."""
    del index, count
    parent = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
