"""Faults within a run: numbers, disks, memory, and students that are worse."""

import json
import re
import resource
import shutil
import subprocess

import jax
import numpy as np
import pytest

from pd_jax import api
from pd_jax.checkpoint import StageCheckpoints
from pd_jax.config import default
from pd_jax.config.setup import build
from pd_jax.costs import memory
from pd_jax.data import InMemory
from pd_jax.evaluation import regressions
from pd_jax.evaluation.rows import Row
from pd_jax.training.loop import Diverged, Loop
from tests.test_train import tiny

FEW = {
    "ladder.start": 2,
    "eval.teacher_steps": (1,),
    "eval.num_samples": 20,
    "eval.reference_steps": 2,
}


def kept(workdir):
    folder = workdir / "checkpoints" / "teacher"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


@pytest.fixture
def poison(monkeypatch):
    """Updates of the teacher whose batches have a pixel that is not a number."""
    updates, plain = set(), InMemory.batches

    def batches(self, first, size, seed, *rest):
        for i, batch in enumerate(plain(self, first, size, seed, *rest)):
            if seed[1] == 0 and first // size + i + 1 in updates:
                batch["image"][5, 3, 3] = np.nan
            yield batch

    monkeypatch.setattr(InMemory, "batches", batches)
    return updates


@pytest.mark.slow
def test_updates_that_are_not_finite_are_skipped_told_and_too_many_stop(
    poison, tmp_path, capsys
):
    config = tiny(**FEW, **{"run.most_skipped": 6})
    poison |= {7, *range(12, 21)}
    says = r"teacher: the loss is nan, .* nan at update 17, .* in a row: 6 \(run\.most_"
    with pytest.raises(Diverged, match=says):
        api.run(config, tmp_path / "run", "tiny")
    assert kept(tmp_path / "run") == [5, 10]  # not 15, amid them
    poison -= set(range(12, 21))
    report = api.run(config, tmp_path / "run", "tiny")

    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 updates skipped; the loss is nan" in printed
    assert "examples 96 to 111 of the data's order" in printed
    assert [w.partition(",")[0] for w in report["warnings"]][:1] == [
        "teacher: 1 of 20 updates skipped"
    ]
    assert report["warnings"][0] in (tmp_path / "run" / "report.md").read_text()
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {e["update"]: e["skipped"] for e in lines if e["skipped"]} == {8: 1}
    where = [e["skipped_at"] for e in lines if "skipped_at" in e]
    assert where == [[{"update": 7, "examples": [96, 111]}]]
    assert all(np.isfinite(e["loss"]) for e in lines)


class Reached(Exception):
    """A run got as far as its next update."""


def in_the_way(workdir):
    (workdir / "metrics.jsonl").unlink()
    (workdir / "metrics.jsonl").mkdir()


def out_of_the_way(workdir):
    (workdir / "metrics.jsonl").rmdir()


SOFT, HARD = resource.getrlimit(resource.RLIMIT_FSIZE)


def no_long_files(workdir):
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, HARD))


def long_files(workdir):
    resource.setrlimit(resource.RLIMIT_FSIZE, (SOFT, HARD))


DISKS = {
    "not writable": (in_the_way, out_of_the_way, "metrics.jsonl: not written", 15),
    "vanished": (shutil.rmtree, lambda workdir: None, "teacher: gone", 0),
    "a quota": (no_long_files, long_files, "not written", 10),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", DISKS)
def test_a_disk_that_fails_loses_nothing_that_was_saved(
    case, tmp_path, monkeypatch, capsys
):
    loses_nothing(*DISKS[case], tmp_path / "run", monkeypatch)


def loses_nothing(fail, repair, says, update, workdir, monkeypatch):
    """Goes on from `update` where the disk fails as 15 is saved, and is repaired."""
    plain = StageCheckpoints.save

    def save(self, state, method, facts):
        if int(state.step) == 15:
            self._wait()
            fail(workdir)
        plain(self, state, method, facts)

    def reach(self, state):
        raise Reached(self._stage.name, self.done)

    monkeypatch.setattr(StageCheckpoints, "save", save)
    try:
        with pytest.raises(OSError, match=says):
            api.run(tiny(**FEW), workdir, "tiny")
    finally:
        repair(workdir)
    monkeypatch.setattr(Loop, "call", reach)
    with pytest.raises(Reached) as reached:
        api.run(tiny(**FEW), workdir, "tiny")
    assert reached.value.args == ("teacher", update)


def mount(*arguments):
    if subprocess.run(["mount", *arguments], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own, of 4 MB."""
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path)
    yield tmp_path
    subprocess.run(["umount", "--recursive", "--lazy", tmp_path], check=True)


def fill_up_to(left):
    def fill(workdir):
        room = shutil.disk_usage(workdir).free - left
        (workdir.parent / "ballast").write_bytes(bytes(room))

    return fill


def make_room(workdir):
    (workdir.parent / "ballast").unlink(missing_ok=True)


def write_protect(workdir):
    folder = workdir / "checkpoints" / "teacher"
    mount("--bind", folder, folder)
    mount("-o", "remount,bind,ro", folder)


def unprotect(workdir):
    subprocess.run(["umount", workdir / "checkpoints" / "teacher"], check=True)


SMALL_DISKS = {
    "full": (fill_up_to(0), make_room, "no room: it takes 0.2 MB, and 0.0 MB are"),
    "full once begun": (fill_up_to(2**16), make_room, "not written .*No space"),
    "read-only": (write_protect, unprotect, "not written .*Read-only"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", SMALL_DISKS)
def test_a_small_disk_that_fails(case, small_disk, monkeypatch, capsys):
    if case == "full once begun":  # by others
        monkeypatch.setattr(StageCheckpoints, "_check_place", lambda *of: None)
    loses_nothing(*SMALL_DISKS[case], 10, small_disk / "run", monkeypatch)


def test_devices_out_of_memory_name_the_keys():
    config = default("digits", "dit")
    config.teacher.updates = config.ladder.start = 2
    config.ladder.updates = (2,)
    setup = build(config)
    says = r"GB on each of 4 devices .*ladder\.batch than 128, .* model.remat \(now Fal"
    assert re.search(says, memory.advice(setup, "ladder"))
    says = r"run\.eval_batch than 1000"
    assert re.search(says, memory.advice(setup, "evaluation"))


def test_devices_out_of_memory_end_a_run_with_advice(tmp_path, monkeypatch):
    said = "RESOURCE_EXHAUSTED: Out of memory"

    def fail(self, state):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(Loop, "call", fail)
    with pytest.raises(
        MemoryError, match=r"teacher: a device is .* teacher\.batch than"
    ):
        api.run(tiny(**FEW), tmp_path / "run", "tiny")
    said = "INTERNAL: another"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        api.run(tiny(**FEW), tmp_path / "run", "tiny")


def worse(monkeypatch, *figures):
    """Rows get these Frechet distances in the order in which they are measured."""
    left = list(figures)
    distance = "pd_jax.metrics.frechet_pixels.frechet_distance"
    monkeypatch.setattr(distance, lambda samples, data: left.pop(0))


@pytest.mark.slow
def test_a_student_that_is_worse_than_its_teacher_ends_the_ladder(
    tmp_path, monkeypatch, capsys
):
    few = {**FEW, "ladder.start": 8, "eval.teacher_steps": (9, 1)}
    config = tiny(**few, **{"ladder.on_regression": "stop"})
    # The halves of the data, teacher_9, student_4, _2, teacher_1.
    worse(monkeypatch, 0.5, 1.0, 1.9, 3.9, 7.0)
    report = api.run(config, tmp_path / "run", "tiny")
    rows = [(r["model"], r["num_steps"]) for r in report["rows"]]
    assert rows == [("teacher", 9), ("teacher", 1), ("student", 4), ("student", 2)]
    assert set(report["updates"]) == {"teacher", "student_4", "student_2"}
    (warning,) = report["warnings"]
    assert "student_2: frechet_pixels is 3.9" in warning
    assert "times the 1.9 of student_4" in warning
    assert "student_2 is worse than its teacher" in capsys.readouterr().out
    (tmp_path / "run" / "report.json").unlink()
    assert api.run(config, tmp_path / "run", "tiny")["rows"] == report["rows"]


def test_what_a_student_is_held_against():
    config = tiny(**{"ladder.start": 16, "eval.teacher_steps": (64, 12, 1)})
    config.eval.max_steps = 4
    setup = build(config)
    four, two = (Row("student", n, f"student_{n}", "ddim") for n in (4, 2))
    assert regressions.taught_by(four, setup) == Row("teacher", 12, "teacher", "ddim")
    assert regressions.taught_by(two, setup) == four
