"""What a run writes while it goes: whole files, metric lines, and its progress."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator

from etils import epath
from tqdm import tqdm

from pd_jax import console


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
        kept = [e for e in self.read() if e["stage"] != stage or e["update"] <= update]
        write_whole(self._path, _lines(kept))
        if self._held is not None:
            self._held = kept

    def flush(self) -> None:
        """Sees to it that all entries are in the file."""
        if self._held is not None:
            write_whole(self._path, _lines(self._held))


def _lines(entries: list[dict]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


class Progress:
    """One bar for a whole run on a terminal; elsewhere a line every few seconds.

    Work is counted in forward passes of one example, so that training and sampling
    share one measure and the time left is that of the run.
    """

    def __init__(self, total: int, done: int, seconds: float, shown: bool = True):
        """Of `total` work, of which `done`; not `shown`: nothing is printed."""
        self._total, self._initial, self._done = max(total, 1), done, done
        self._seconds = seconds
        self._began = self._printed = time.monotonic()
        self._text, self._shown = "", shown
        self._bar = None
        if shown and console.level > console.QUIET and sys.stderr.isatty():
            self._bar = console.bar = tqdm(
                total=self._total,
                initial=done,
                bar_format="{percentage:3.0f}%|{bar:10}| {elapsed}<{remaining} {desc}",
                dynamic_ncols=True,
                leave=False,
            )

    def advance(self, work: int, text: str | None = None) -> None:
        """Counts work; `text` says what is going on, the last one stays."""
        self._done += work
        self._text = self._text if text is None else text
        if self._bar is not None:
            self._bar.set_description_str(self._text, refresh=False)
            self._bar.update(work)
        elif self._shown and time.monotonic() - self._printed >= self._seconds:
            self._printed = time.monotonic()
            share = self._done / self._total
            done, left = self._done - self._initial, ""
            if done > 0.01 * self._total:  # before, it is mostly compiling
                each = (self._printed - self._began) / done
                left = tqdm.format_interval((self._total - self._done) * each)
                left = f", {left} left"
            console.say(f"{share:4.0%}{left}  {self._text}")

    def say(self, line: str) -> None:
        """Prints a line of its own, above the bar."""
        if self._shown:
            console.say(line)

    def warn(self, line: str) -> None:
        """Prints one that should not be overlooked."""
        if self._shown:
            console.warn(line)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            console.bar = None
