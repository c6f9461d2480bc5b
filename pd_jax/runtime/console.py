"""What a person sees: as much as they want, 80 columns at most, coloured on a terminal.

Errors, warnings and results are always printed; what is going on is not with --quiet,
and its details only with --verbose.
"""

import io
import os
import shutil
import sys
import textwrap
from typing import TextIO

from tqdm import tqdm

MIN_WIDTH, MAX_WIDTH = 40, 80
STYLES = {"bold": "1", "dim": "2", "red": "31", "yellow": "33"}
QUIET, NORMAL, VERBOSE = range(3)

level = NORMAL  # set by the command line
bar: tqdm | None = None  # on the terminal now; lines go above it


class _Output(io.FileIO):
    """A stream that leads nowhere once its reader has gone."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def outlive_readers() -> None:
    """Lets a program end well whose output nobody reads any more, as after `| head`.

    What it does is done: a run is not lost with its log. Comes before any output.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started the program
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            continue
        output = io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False))
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                output,
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            ),
        )


def say(text: str, style: str = "") -> None:
    """Prints what is going on."""
    if level > QUIET:
        _print(_wrapped(text), style, sys.stdout)


def detail(text: str) -> None:
    """Prints what only some want to know."""
    if level >= VERBOSE:
        _print(_wrapped(text), "dim", sys.stdout)


def warn(text: str) -> None:
    """Prints what should not be overlooked."""
    _print(_wrapped(text), "yellow", sys.stdout)


def show(text: str) -> None:
    """Prints what was asked for, such as a table of results."""
    _print(_wrapped(text), "", sys.stdout)


def error(text: str) -> None:
    """Prints what ends the program; in full lines, of which commands can be copied."""
    _print(f"error: {text}", "red", sys.stderr)


def width() -> int:
    """Columns of a line: the terminal's, within limits."""
    columns = shutil.get_terminal_size((MAX_WIDTH, 24)).columns
    return min(max(columns, MIN_WIDTH), MAX_WIDTH)


def _wrapped(text: str) -> str:
    """Text with its long lines broken between words; a path stays in one piece."""
    most = width()
    wrapper = textwrap.TextWrapper(
        most, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(
        wrapper.fill(line) if len(line) > most else line for line in text.split("\n")
    )


def _print(text: str, style: str, file: TextIO) -> None:
    if bar is not None:
        bar.clear()
    if style and _takes_colour(file):
        text = f"\x1b[{STYLES[style]}m{text}\x1b[0m"
    print(text, file=file, flush=True)


def _takes_colour(file: TextIO) -> bool:
    """Whether a stream is a terminal, and nobody objects (https://no-color.org)."""
    objects = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return file.isatty() and not objects
