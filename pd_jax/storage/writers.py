"""Files that a run writes: whole ones, and lines of metrics."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import BinaryIO

from etils import epath


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is an object store's, such as gs://BUCKET/RUN."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def _writing(path: epath.Path) -> Iterator[None]:
    """Says which file an OSError is about, and what becomes of the run."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: not written ({error.strerror or error}); checkpoints stay as "
            "they are, and the same command goes on from there"
        ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of a local `path` at the end, atomically.

    Processes that write one path do so one after the other. What a killed one left is
    overwritten by the next; what fails leaves `path` as it was, and nothing beside it.
    """
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, f".{name}.tmp")
    while True:
        file = os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(temporary)):
                break
        file.close()  # another process, waited for, has put it in its place
    with file:
        try:
            file.truncate()
            yield file
            file.flush()
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # it takes room on a disk that has none
                os.unlink(temporary)
            raise


def write_whole(path: epath.Path, data: str | bytes) -> None:
    """Writes a file so that it is there whole or not at all.

    Raises:
      OSError: naming the file, where it cannot be written.
    """
    data = data.encode() if isinstance(data, str) else data
    with _writing(path):
        if is_remote(path):  # where an object is whole or not at all by itself
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


class JsonLines:
    """A file of one JSON object a line, appended to: a callback.

    An object store cannot append: there the file is written anew with each `flush`.
    """

    def __init__(self, path: epath.Path):
        self._path = path
        self._held = list(self.read()) if is_remote(path) else None

    def on_metrics(self, entry: dict) -> None:
        """Appends one entry; OSError where that cannot be done."""
        if self._held is not None:
            self._held.append(entry)
            return
        with _writing(self._path), open(self._path, "a") as file:
            file.write(json.dumps(entry) + "\n")

    def read(self) -> Iterator[dict]:
        """All whole entries; a last line cut short by a kill is left out."""
        if not self._path.exists():
            return
        for line in self._path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and {"stage", "update"} <= entry.keys():
                yield entry

    def on_start(self, stage: str, update: int) -> None:
        """Forgets a stage's entries after an update, which will be done again."""
        entries = [
            e for e in self.read() if e["stage"] != stage or e["update"] <= update
        ]
        write_whole(self._path, _lines(entries))
        if self._held is not None:
            self._held = entries

    def flush(self) -> None:
        """Sees to it that all entries are in the file."""
        if self._held is not None:
            write_whole(self._path, _lines(self._held))


def _lines(entries: list[dict]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)
