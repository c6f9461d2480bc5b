"""The time left of a run, on a clock of the tests' own."""

from types import SimpleNamespace

import pytest

from pd_jax.runtime import compilation, progress

# Of each part: (work, seconds a unit, seconds of compiling first).
PARTS = {
    "teacher": (100, 0.2, 3.0),
    "ladder": (300, 0.23, 5.0),
    "rest": (50, 0.2, 3.0),
}


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0, compiled=7.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(compilation, "seconds", lambda: clock.compiled)
    return clock


def run(clock, bar, parts):
    """Does all work; yields the estimate after each unit."""
    for name, (work, each, compiling) in parts.items():
        clock.now += compiling
        clock.compiled += compiling
        for i in range(work):
            clock.now += each
            bar.advance(name, 1, f"{name} {i}")
            yield bar.seconds_left


def test_time_left_is_right_from_a_tenth_on(clock, capsys):
    work = {name: (0, work) for name, (work, *_) in PARTS.items()}
    bar = progress.Progress("run", work, seconds=5.0)
    began = clock.now
    told = [(clock.now, left) for left in run(clock, bar, PARTS)]
    total = clock.now - began
    for now, left in told:
        if now - began < progress.TELLING_SECONDS + 3.0 - 0.1:  # compiling is no work
            assert left is None
        elif now - began >= 0.1 * total:
            truth = began + total - now
            assert left == pytest.approx(truth, rel=0.25, abs=1.0)
    assert "left of the run  ladder" in capsys.readouterr().out


def test_compiling_is_said_at_once_and_moves_nothing(clock, capsys):
    bar = progress.Progress("run", {"teacher": (0, 100), "ladder": (0, 100)}, 5.0)
    for _ in range(100):
        clock.now += 0.1
        bar.advance("teacher", 1, "teacher")
    before = bar.seconds_left
    assert before == pytest.approx(10.0)
    bar.show("ladder  compiling")
    assert capsys.readouterr().out.endswith(
        " 50%, 00:10 left of the run  ladder  compiling\n"
    )
    clock.now, clock.compiled = clock.now + 60.0, clock.compiled + 60.0
    bar.advance("ladder", 0, "ladder")
    assert bar.seconds_left == before


def test_a_part_that_is_slower_than_those_before_is_noticed(clock):
    bar = progress.Progress("run", {"teacher": (0, 100), "ladder": (0, 100)}, 5.0)
    told = list(run(clock, bar, {"teacher": (100, 0.1, 0.0), "ladder": (50, 1.0, 0.0)}))
    assert told[99] == pytest.approx(10.0)
    assert told[-1] == pytest.approx(50.0, rel=0.1)


def test_what_comes_before_a_first_result_is_no_pace(clock):
    bar = progress.Progress("run", {"ladder": (0, 100)}, 5.0)
    clock.now += 40.0  # files, a data set, another library
    for _ in range(51):
        bar.advance("ladder", 0, "ladder")
        bar.advance("ladder", 1, "ladder")
        clock.now += 0.2
    assert bar.seconds_left == pytest.approx(9.8)


def test_work_that_need_not_be_done_is_no_pace(clock):
    bar = progress.Progress("run", {"ladder": (0, 1000)}, 5.0)
    for _ in range(100):
        clock.now += 0.1
        bar.advance("ladder", 1, "ladder")
    bar.drop("ladder", 800)
    assert bar.seconds_left == pytest.approx(10.0)


def test_a_run_that_goes_on_measures_its_own_pace(clock):
    bar = progress.Progress("run", {"teacher": (900, 1000)}, 5.0)
    for _ in range(50):
        clock.now += 0.2
        bar.advance("teacher", 1, "teacher")
    assert bar.seconds_left == pytest.approx(10.0)
