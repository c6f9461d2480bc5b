"""Files that a run writes: whole ones, and lines of metrics."""

import contextlib
import json
import os
from collections.abc import Iterator

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
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # it takes room on a disk that has none
                temporary.unlink()
            raise


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
