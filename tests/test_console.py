"""What is printed: how much, how wide, in which colours."""

import io

import pytest

from pd_jax.runtime import console


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
