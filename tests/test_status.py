"""Where a run is, by folders as runs at work and broken ones leave them."""

import fcntl
import json
import os
import re
import shutil
import time

import pytest

from pd_jax import checkpoint
from pd_jax.reports import status
from pd_jax.runtime.errors import Refused
from tests import run_folders
from tests.test_train import tiny


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def save(workdir, stage, update, seconds, **facts):
    facts = {"format": checkpoint.FORMAT, "seconds": seconds, "end": 20, **facts}
    write(workdir / "checkpoints" / stage / str(update) / "facts/metadata", facts)


@pytest.fixture
def workdir(tmp_path):
    """A run of 20 + 12 + 12 updates, within its teacher."""
    workdir = tmp_path / "run"
    write(workdir / "config.json", tiny().to_dict())
    save(workdir, "teacher", 5, 4.0)
    save(workdir, "teacher", 10, 5.0)
    lines = [{"stage": "teacher", "update": u, "loss": 1.0 / u} for u in (5, 10, 15)]
    write(workdir / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in lines))
    write(workdir / ".lock", "")
    return workdir


def told(workdir, capsys):
    status.tell(status.read(workdir))
    return capsys.readouterr().out


def test_a_run_at_work_and_a_stopped_one(workdir, capsys):
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    found = status.read(workdir)
    assert [s.name for s in found.record.stages] == [
        "teacher",
        "student_2",
        "student_1",
    ]
    assert [s.planned for s in found.record.stages] == [20, 12, 12]
    assert [s.saved for s in found.record.stages] == [10, 0, 0]
    assert found.record.stages[0].rate == 5.0
    assert found.in_use is False
    # From the last checkpoint on: 10 updates, 5 a second.
    assert found.left == {"teacher": 2.0, "ladder": None, "evaluation": None}
    assert len(found.record.missing) == 4
    assert "10/20" in told(workdir, capsys)
    with open(workdir / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = status.read(workdir)
        printed = told(workdir, capsys)
    assert found.in_use
    assert found.left["teacher"] == 1.0  # 5 updates after the last line
    assert "a process is at work on it" in " ".join(printed.split())
    assert "15/20" in printed
    assert "10, 00:0" in printed  # the last checkpoint's update and age
    assert "0.0667" in printed
    assert "ladder not known yet" in printed
    assert max(map(len, printed.replace(str(workdir), "").splitlines())) <= 80
    # It kept no lock and wrote nothing.
    with open(workdir / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}


def test_a_narrow_terminal(workdir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    printed = told(workdir, capsys)
    assert max(map(len, printed.replace(str(workdir), "").splitlines())) <= 60
    assert re.search(r"10/20 .*0\.0667 .*\n  last checkpoint: 00:0", printed)


def test_time_left_of_ladder_and_evaluation(workdir):
    save(workdir, "teacher", 20, 10.0)
    save(workdir, "student_2", 12, 6.0, end=12)
    for steps, seconds in ((4, 3.0), (1, 2.0)):
        entry = {"model": "teacher", "sampler": "ddim", "num_steps": steps}
        entry |= {"metrics": {"frechet_pixels": 1.5}, "seconds": seconds}
        write(workdir / f"evaluation/teacher_{steps}.json", entry)
    found = status.read(workdir)
    # 12 updates at 2 a second; 2 + 1 sampling steps at a second each.
    assert found.left == {"ladder": 6.0, "evaluation": 3.0}
    assert [r["num_steps"] for r in found.record.rows] == [4, 1]


def test_what_there_is_to_be_warned_of(workdir, capsys):
    save(workdir, "teacher", 20, 10.0, skipped=3)
    save(workdir, "student_2", 6, 6.0, end=6)
    save(workdir, "student_1", 5, 6.0, format=checkpoint.FORMAT + 1)
    write(workdir / "damaged/student_2_7_0/state", "x" * 2000)
    write(workdir / "evaluation/teacher_4.json", '{"mod')
    warnings = "\n".join(status.read(workdir).warnings)
    assert "teacher: 3 updates skipped" in warnings
    assert "student_2 ended early, after 6 of 12" in warnings
    assert "student_1/5: format 3, of another version" in warnings
    assert "damaged: student_2_7_0" in warnings
    assert "evaluation/teacher_4.json cannot be read" in warnings
    printed = told(workdir, capsys)
    assert "damaged 2 kB" in printed
    assert "6/6" in printed
    assert printed.count("warning: ") == 5


def test_a_folder_without_its_config(workdir):
    (workdir / "config.json").unlink()
    save(workdir, "student", 4, 1.0)
    for stage, moment in (("teacher/10", 1e9), ("student/4", 2e9)):
        os.utime(workdir / "checkpoints" / stage, (moment, moment))
    found = status.read(workdir)
    assert [(s.name, s.saved) for s in found.record.stages] == [
        ("teacher", 10),
        ("student", 4),
    ]
    assert any("no config.json there" in warning for warning in found.warnings)
    assert not found.left


def test_a_complete_run_without_its_checkpoints(tmp_path, capsys):
    folder = run_folders.make(tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").unlink()
    printed = told(folder, capsys)
    assert "run: complete" in " ".join(printed.split())
    assert all(done in printed for done in ("20/20", "12/12"))
    assert "warning" not in printed


ENTRY = {"model": "teacher", "sampler": "ddim", "num_steps": 4, "metrics": {"fid": 1.0}}
BROKEN = {
    "an empty config": lambda w: write(w / "config.json", ""),
    "a config that is a list": lambda w: write(w / "config.json", "[]"),
    "a config without sections": lambda w: write(w / "config.json", "{}"),
    "a section that is a number": lambda w: write(w / "config.json", {"ladder": 1}),
    "a ladder without an end": lambda w: write(
        w / "config.json", '{"ladder": {"start": Infinity}, "teacher": {}, "eval": {}}'
    ),
    "no lines": lambda w: (w / "metrics.jsonl").unlink(),
    "lines of nonsense": lambda w: write(
        w / "metrics.jsonl",
        '{"stage": [1], "update": 1}\n{"stage": "teacher", "update": "x"}\n'
        '{"stage": "teacher", "update": 7, "loss": "low", "skipped": NaN}\n\x00[',
    ),
    "facts that are none": lambda w: write(
        w / "checkpoints/teacher/10/facts/metadata",
        '{"format": 1, "seconds": NaN, "end": "x", "skipped": []}',
    ),
    "facts missing": lambda w: (w / "checkpoints/teacher/10/facts/metadata").unlink(),
    "a write cut short": lambda w: write(
        w / "checkpoints/teacher/12.orbax-checkpoint-tmp/x", "x"
    ),
    "no lock": lambda w: (w / ".lock").unlink(),
    "a damaged report": lambda w: write(
        w / "report.json", '{"rows": 3, "warnings": 4}'
    ),
    "seconds of words": lambda w: write(
        w / "report.json",
        {"rows": [ENTRY], "seconds": {"total": "long"}},
    ),
    "rows that are none": lambda w: write(
        w / "report.json", '{"rows": [{"model": 1}], "warnings": [{}]}'
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders(workdir, capsys, case):
    BROKEN[case](workdir)
    found = status.read(workdir)
    assert found.record.stages[0].name == "teacher"
    assert found.record.stages[0].saved == 10
    assert "teacher" in told(workdir, capsys)


def test_ages(workdir, capsys):
    hour = time.time() - 3600.0
    os.utime(workdir / "metrics.jsonl", (hour, hour))
    os.utime(workdir / "checkpoints/teacher/10", (hour - 60, hour - 60))
    printed = told(workdir, capsys)
    assert "last written to 1:00:0" in printed
    assert "1:01:0" in printed


def test_folders_that_are_none(tmp_path):
    with pytest.raises(Refused, match="no such folder"):
        status.read(tmp_path / "nowhere")
    write(tmp_path / "thesis.tex", "x")
    with pytest.raises(Refused, match="no folder of a run"):
        status.read(tmp_path)
    with pytest.raises(Refused, match="no such folder"):
        status.read(tmp_path / "thesis.tex")
