"""Caches of decoded folders: made once, whole, and shared by processes."""

import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from concurrent import futures

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import (
    ArrayRecordReader,
    ArrayRecordWriter,
)
from etils import epath
from tqdm import tqdm

from pd_jax.data._images import Unreadable, resize, square
from pd_jax.runtime.errors import Refused
from pd_jax.storage.files import brief, read_json

# Of what Pillow reads; in capitals, too.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".tga", ".mpo"),
)
FORMAT = 1  # of the cache, and of how pictures are decoded


@dataclasses.dataclass(frozen=True)
class File:
    """A picture's path below its folder, with slashes, and what tells it changed."""

    name: str
    num_bytes: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Cached:
    """A cache's own account.

    Attributes:
      file: the squares.
      notes: this account as a file.
      places: for each square, the place of its file in the listing.
      bad: (name, cause) of each file that cannot be read.
      enlarged: how many pictures were smaller than the squares.
    """

    file: pathlib.Path
    notes: pathlib.Path
    places: list[int]
    bad: list[tuple[str, str]]
    enlarged: int


def listing(root: pathlib.Path) -> tuple[list[File], list[str]]:
    """All pictures below a folder, by name; linked folders count.

    Returns:
      The pictures; and the paths of all other files, by name.
    """

    def fail(error: OSError):
        raise error

    files, others, seen = [], [], set()
    for folder, inside, names in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            inside.clear()
            continue
        seen.add(real)
        inside[:] = [name for name in inside if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            path = pathlib.Path(folder, name)
            if not name.lower().endswith(SUFFIXES):
                others.append(path.relative_to(root).as_posix())
                continue
            try:
                stat = path.stat()
                size, time = stat.st_size, stat.st_mtime_ns
            except OSError:  # a link to nothing: reading it will say so
                size, time = -1, 0
            files.append(File(path.relative_to(root).as_posix(), size, time))
    return sorted(files, key=lambda file: file.name), sorted(others)


def get(
    root: pathlib.Path, files: list[File], size: int, allowed: int, cache: str
) -> Cached:
    """The cache of these files, made if need be.

    Raises:
      Refused: for more than `allowed` unreadable files, or none that is readable.
      OSError: where the cache cannot be written, naming the key.
    """
    inventory = [dataclasses.astuple(file) for file in files]
    text = json.dumps([FORMAT, size, inventory], ensure_ascii=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    name = f"{root.resolve().name}-{size}-{key}"
    try:
        folder = pathlib.Path(cache).expanduser() / name
        if not folder.is_dir():
            _make_once(folder, root, files, size)
    except (OSError, RuntimeError) as error:  # RuntimeError: the writer's; or no home
        raise OSError(
            f'data.cache="{cache}": the cache of data.path cannot be written there '
            f"({brief(error)}): make room, or give another folder with "
            "--config.data.cache=FOLDER"
        ) from error
    return _read(folder, allowed, len(files))


def _make_once(
    folder: pathlib.Path, root: pathlib.Path, files: list[File], size: int
) -> None:
    """Makes a cache in one process of a machine; the others wait.

    Machines that share storage may each make one: the first to finish gives its name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    ours = folder.with_name(f".{folder.name}.{socket.gethostname()}")
    with open(f"{ours}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return
        unfinished = pathlib.Path(f"{ours}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)  # of one that was killed
        unfinished.mkdir()
        try:
            _make(unfinished, root, files, size)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not folder.is_dir():
                raise


def _make(
    folder: pathlib.Path, root: pathlib.Path, files: list[File], size: int
) -> None:
    places, bad, enlarged = [], [], 0
    # A group of one: squares are read one by one, in any order.
    writer = ArrayRecordWriter(str(folder / "squares"), "group_size:1,uncompressed")
    shown = tqdm(_squares(root, files, size), "caching", len(files), disable=None)
    for i, (pixels, note) in enumerate(shown):
        if pixels is None:
            bad.append((files[i].name, note))
            continue
        places.append(i)
        enlarged += note
        writer.write(pixels.tobytes())
    writer.close()
    notes = {"kept": places, "bad": bad, "enlarged": enlarged}
    (folder / "notes.json").write_text(json.dumps(notes))


def _squares(
    root: pathlib.Path, files: list[File], size: int
) -> Iterator[tuple[np.ndarray | None, bool | str]]:
    """For each file (square, whether enlarged), or (None, cause)."""

    def read(file: File):
        try:
            picture = square((root / file.name).read_bytes())
        except OSError as error:
            return None, error.strerror
        except Unreadable as error:
            return None, str(error)
        return resize(picture, size), picture.width < size

    threads = os.cpu_count() or 1
    with futures.ThreadPoolExecutor(threads) as pool:
        rest = iter(files)
        while some := list(itertools.islice(rest, 16 * threads)):
            yield from pool.map(read, some)


def _read(folder: pathlib.Path, allowed: int, num: int) -> Cached:
    file, notes = folder / "squares", folder / "notes.json"
    try:
        account = read_json(epath.Path(notes))
        cached = Cached(file, notes, account.pop("kept"), **account)
        whole = len(Squares(file, 0, None)) == len(cached.places)
        whole &= all(type(i) is int and 0 <= i < num for i in cached.places)
        whole &= all(len(entry) == 2 for entry in cached.bad)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError):
        whole = False
    if not whole:
        raise _damaged(folder)
    # A cache is kept whatever it lacks: allowing more then costs nothing.
    if len(cached.bad) > allowed or not cached.places:
        shown = "\n".join(f"  {name}: {cause}" for name, cause in cached.bad[:20])
        raise Refused(
            f"{len(cached.bad)} of {num} pictures cannot be read, and data.max_bad "
            f"allows {allowed}: repair or remove them, or allow more. All are listed "
            f"in {notes}; the first are\n{shown}"
        )
    return cached


def _damaged(folder: pathlib.Path) -> ValueError:
    return ValueError(f"{folder} is damaged: delete it, and it is made again")


@dataclasses.dataclass(frozen=True)
class Squares:
    """A cache's squares; see `_records.Source`.

    Attributes:
      file: the cache's file.
      size: height and width.
      labels: [N] int32, or None.
    """

    file: pathlib.Path
    size: int
    labels: np.ndarray | None

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(str(self.file))

    def __str__(self) -> str:
        return str(self.file)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> dict:
        pixels = np.frombuffer(self._records[row], np.uint8)
        record = {"image": pixels.reshape(self.size, self.size, 3)}
        if self.labels is not None:
            record["label"] = self.labels[row]
        return record

    def all(self) -> np.ndarray:
        """All squares, [N, size, size, 3].

        Raises:
          Refused: for a file that is damaged.
        """
        reader = ArrayRecordReader(str(self.file))
        num = reader.num_records()
        squares = np.empty((num, self.size, self.size, 3), np.uint8)
        for first in range(0, num, 1024):
            rows = range(first, min(first + 1024, num))
            try:
                some = b"".join(reader.read(list(rows)))
            except RuntimeError as error:
                raise _damaged(self.file.parent) from error
            pixels = np.frombuffer(some, np.uint8)
            squares[first : rows.stop] = pixels.reshape(-1, *squares.shape[1:])
        reader.close()
        return squares
