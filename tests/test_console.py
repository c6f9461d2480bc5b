"""What is printed: how much, how wide, in which colours."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from pd_jax.reports import report
from pd_jax.runtime import console
from tests import run_folders

ROOT = pathlib.Path(__file__).parents[1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def printed(monkeypatch):
    """Prints one of each kind on a stream; returns its lines."""

    def printed(stream, level, **environment):
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.setenv(name, environment.get(name, ""))
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(console, "level", level)
        console.say("name", "bold")
        console.say("going on")
        console.detail("detail")
        console.warn("warning")
        console.show("table")
        console.error("gone wrong")
        return stream.getvalue().splitlines()

    return printed


def test_levels(printed):
    always = ["warning", "table", "error: gone wrong"]
    assert printed(io.StringIO(), console.QUIET) == always
    assert printed(io.StringIO(), console.NORMAL) == ["name", "going on", *always]
    said = ["name", "going on", "detail", *always]
    assert printed(io.StringIO(), console.VERBOSE) == said


def test_colours_only_on_a_terminal_that_wants_them(printed):
    found = printed(Terminal(), console.NORMAL)
    assert found == [
        "\x1b[1mname\x1b[0m",
        "going on",
        "\x1b[33mwarning\x1b[0m",
        "table",
        "\x1b[31merror: gone wrong\x1b[0m",
    ]
    plain = printed(io.StringIO(), console.NORMAL)
    assert printed(Terminal(), console.NORMAL, NO_COLOR="1") == plain
    assert printed(Terminal(), console.NORMAL, TERM="dumb") == plain


def test_long_lines_break_between_words_and_paths_stay_whole(capsys):
    path = "/" + "folder/" * 20
    console.say(f"short\n{'word ' * 30}{path}")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "short"
    assert " ".join(line.strip() for line in lines) == "word " * 30 + path
    assert all(len(line) <= 80 or line.strip() == path for line in lines)
    table = "| " + "1" * 70 + "   |"
    console.show(table)
    assert capsys.readouterr().out == table + "\n"


COMMANDS = {
    "help": ("pd_jax", "--help"),
    "status": ("pd_jax", "--mode=status", "--workdir=run"),
    "compare": ("pd_jax", "--mode=compare", "run", "run_2"),
    "estimate": ("pd_jax", "--mode=estimate", f"--config={ROOT}/configs/digits.py"),
    "run": ("pd_jax", f"--config={ROOT}/configs/digits.py:smoke", "--workdir=new"),
    "prepare": ("pd_jax.prepare", "--help"),
    "bench": ("pd_jax.bench", "--help"),
}
SLOW = "compare", "estimate", "run"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in COMMANDS]
)
def test_a_program_whose_output_nobody_reads_ends_well(name, tmp_path):
    run_folders.make(tmp_path / "run")
    run_folders.make(tmp_path / "run_2")
    reader, writer = os.pipe()
    os.close(reader)  # as after `| head`
    done = subprocess.run(
        [sys.executable, "-m", *COMMANDS[name]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "compare.html").exists() == (name == "compare")
    assert (tmp_path / "new" / "report.json").exists() == (name == "run")


def test_streams_that_were_closed_from_the_start():
    program = """
from pd_jax.reports import report
from pd_jax.runtime import console
console.outlive_readers()
console.show("x")
console.error("y")
"""
    command = [sys.executable, "-c", program]
    for closed in (1, 2):
        done = subprocess.run(
            ["bash", "-c", f'exec "$0" "$@" {closed}>&-', *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        heard = ("", "error: y\n") if closed == 1 else ("x\n", "")
        assert (done.returncode, done.stdout, done.stderr) == (0, *heard)


def test_a_home_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    program = """
import jax
from pd_jax.runtime import compilation
compilation.keep()
jax.jit(lambda x: x + 1)(2)
print(jax.config.jax_compilation_cache_dir)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "file")}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    said = " ".join(done.stdout.split())
    assert said.endswith("JAX_COMPILATION_CACHE_DIR=FOLDER keeps them elsewhere None")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("columns", "width"), [(200, 80), (60, 60), (5, 40)])
def test_lines_are_as_long_as_the_terminal_has_room(
    columns, width, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", str(columns))
    console.show("word " * 100)
    assert width - 5 < max(map(len, capsys.readouterr().out.splitlines())) <= width


def entries(*series):
    metrics = dict.fromkeys(("fid", "frechet_pixels", "rmse_to_teacher"), 0.5)
    row = {"sampler": "ddim", "metrics": metrics}
    return [
        {"model": name, "stage": f"{name}_{n}", "num_steps": n, **row}
        for name in series
        for n in (2, 1)
    ]


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize(
    "series", [("student",), ("a", "b"), ("a_long_name", "another_one", "a_third_one")]
)
def test_a_table_fits_the_terminal(series, width):
    text = report.summary(entries(*series), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for name in series:
        assert name in text
    assert text.count("0.500") >= 2 * len(series)
    for block in text.split("\n\n"):
        assert len({len(line) for line in block.splitlines()}) == 1


def test_a_table_has_as_much_as_fits():
    rows = entries("teacher", "student")
    for width, num in ((80, 3), (60, 2), (40, 1)):
        head = report.summary(rows, width).splitlines()[0]
        assert len(head.split("|")) - 3 == num
