"""Damaged folders: what can be used is used, the rest is set aside or named."""

import json
import os
import shutil
import signal

import pytest

from pd_jax import api, checkpoint
from pd_jax.checkpoint import checksum
from pd_jax.reports import status
from pd_jax.runtime.errors import Refused
from pd_jax.runtime.interrupt import Interrupted
from pd_jax.training.loop import Loop
from tests.test_train import tiny

# Where a checkpoint that has no seal cannot be read, tasks of the storage library fail
# behind its back.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STUDENT, TEACHER = "student_2", "teacher"  # stopped at 7 of 12; finished at 20


class Reached(Exception):
    """A run got as far as its next update."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run stopped within its first student; and after its teacher."""
    folder, plain, calls = tmp_path_factory.mktemp("stopped"), Loop.call, [0]

    def call(self, state):
        calls[0] += 1
        if calls[0] == 20 + 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, state)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Loop, "call", call)
        with pytest.raises(Interrupted):
            api.run(tiny(), folder / "student", "tiny")
    shutil.copytree(folder / "student", folder / "teacher")
    shutil.rmtree(folder / "teacher" / "checkpoints" / STUDENT)
    shutil.rmtree(folder / "teacher" / "evaluation")
    return folder


@pytest.fixture
def go_on(stopped, tmp_path, monkeypatch, capsys):
    """Damages a copy of a run and goes on: (stage, update) reached, printed, folder."""

    def reach(self, state):
        raise Reached(self._stage.name, self.done)

    def go_on(damage, which="student"):
        workdir = tmp_path / "run"
        shutil.copytree(stopped / which, workdir)
        damage(workdir)
        monkeypatch.setattr(Loop, "call", reach)
        with pytest.raises(Reached) as reached:
            api.run(tiny(), workdir, "tiny")
        printed = " ".join(capsys.readouterr().out.split())
        return reached.value.args, printed, workdir

    return go_on


def checkpoints(workdir, stage):
    found = (workdir / "checkpoints" / stage).iterdir()
    return sorted((p for p in found if p.name.isdigit()), key=lambda p: int(p.name))


def largest(folder):
    return max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def newest(change, part=None):
    """A damage to the newest checkpoint: its largest file, or a named part."""
    return lambda workdir: change(
        checkpoints(workdir, STUDENT)[-1] / part
        if part
        else largest(checkpoints(workdir, STUDENT)[-1])
    )


def unsealed(change, part):
    """Damage to a checkpoint that was not sealed yet."""

    def damage(workdir):
        folder = checkpoints(workdir, STUDENT)[-1]
        for path in folder.glob(part):
            change(path)
        remove(folder / checksum.NAME)

    return damage


SET_ASIDE = {
    "weights cut short": newest(cut),
    "weights of zeros": newest(zero),
    "weights missing": newest(remove),
    "a bit of the weights flipped": newest(flip),
    "facts cut short": newest(cut, "facts/metadata"),
    "facts of zeros": newest(zero, "facts/metadata"),
    "facts missing": newest(remove, "facts/metadata"),
    "the state's folder missing": newest(remove, "state"),
    "an index cut short": newest(cut, "state/manifest.ocdbt"),
    "an index of zeros": newest(zero, "state/manifest.ocdbt"),
    "metadata missing": newest(remove, "state/_METADATA"),
    "weights cut short, no seal": unsealed(cut, "state/d/*"),
    "weights of zeros, no seal": unsealed(zero, "state/d/*"),
    "facts of zeros, no seal": unsealed(zero, "facts/metadata"),
}


def test_the_status_of_a_stopped_run(stopped):
    found = status.read(stopped / "student")
    assert not found.record.finished
    assert found.in_use is False
    assert [(s.name, s.saved, s.end) for s in found.record.stages] == [
        (TEACHER, 20, 20),
        (STUDENT, 7, 12),
        ("student_1", 0, 12),
    ]
    assert found.record.stages[1].lines[-1].update == 7
    assert found.left["ladder"] > 0.0
    assert found.left["evaluation"] is None
    assert not found.warnings


@pytest.mark.parametrize("case", SET_ASIDE)
def test_the_one_before_is_used(go_on, case):
    reached, printed, workdir = go_on(SET_ASIDE[case])
    assert reached == (STUDENT, 5)
    assert [p.name for p in checkpoints(workdir, STUDENT)] == ["5"]
    assert [p.name for p in (workdir / "damaged").iterdir()] == [f"{STUDENT}_7_0"]
    assert "student_2/7 is damaged" in printed
    assert "goes on from update 5" in printed
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert max(e["update"] for e in lines if e["stage"] == STUDENT) == 5


def both(workdir):
    for folder in checkpoints(workdir, STUDENT):
        cut(largest(folder))


def unfinished(workdir):
    """What a kill within a write leaves."""
    folder = checkpoints(workdir, STUDENT)[-1]
    shutil.copytree(folder, folder.with_name("9.orbax-checkpoint-tmp"))


def garbage(workdir):
    with open(workdir / "metrics.jsonl", "ab") as file:
        file.write(b'[1]\n{"stage"\n\xff\xfe\n{"stage": "student_2", "upd')


OTHERWISE = {
    "nothing is left": (both, "student", (STUDENT, 0), "goes on from its start"),
    "no folder": (
        lambda workdir: remove(workdir / "checkpoints" / STUDENT),
        "student",
        (STUDENT, 0),
        "going on in",
    ),
    "a seal of zeros": (
        newest(zero, checksum.NAME),
        "student",
        (STUDENT, 7),
        "at 7/12",
    ),
    "a write cut short": (unfinished, "student", (STUDENT, 7), "at 7/12"),
    "garbage in the lines": (garbage, "student", (STUDENT, 7), "at 7/12"),
    "no lines": (
        lambda workdir: remove(workdir / "metrics.jsonl"),
        "student",
        (STUDENT, 7),
        "at 7/12",
    ),
    "a finished stage that none has followed": (
        lambda workdir: flip(largest(checkpoints(workdir, TEACHER)[-1])),
        "teacher",
        (TEACHER, 15),
        "goes on from update 15",
    ),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_other_damage_that_can_be_made_good(go_on, case):
    damage, which, where, says = OTHERWISE[case]
    reached, printed, workdir = go_on(damage, which)
    assert reached == where
    assert says in printed
    assert not list(workdir.glob("checkpoints/*/*tmp*"))
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    assert all({"stage", "update", "loss"} <= json.loads(line).keys() for line in lines)


def teacher(change, part=None):
    def damage(workdir):
        folder = checkpoints(workdir, TEACHER)[-1]
        change(folder / part if part else largest(folder))

    return damage


def newer(workdir):
    path = checkpoints(workdir, STUDENT)[-1] / "facts/metadata"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "format": checkpoint.FORMAT + 1}))


REFUSED = {
    "the teacher's weights cut short": (teacher(cut), r"teacher.20 is damaged .* copy"),
    "the teacher's weights flipped": (teacher(flip), r"teacher.20 is damaged .* copy"),
    "the teacher's facts missing": (
        teacher(remove, "facts/metadata"),
        r"teacher.20 is damaged .* copy",
    ),
    "a newer format": (newer, r"student_2.7: checkpoint format 3.*reads 1"),
    "config.json cut short": (
        lambda workdir: cut(workdir / "config.json"),
        "config.json is damaged",
    ),
    "config.json missing": (
        lambda workdir: remove(workdir / "config.json"),
        "not a folder of a run",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_good_is_named(stopped, tmp_path, case):
    damage, says = REFUSED[case]
    workdir = tmp_path / "run"
    shutil.copytree(stopped / "student", workdir)
    damage(workdir)
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(Refused, match=says):
        api.run(tiny(), workdir, "tiny")
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    for kept in ("checkpoints", "metrics.jsonl"):
        for path in (p for p in before if kept in p.parts):
            assert after[path] == before[path]


def test_checkpoints_of_another_network_and_data(stopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped / "student", workdir)
    path = checkpoints(workdir, STUDENT)[-1] / "facts/metadata"
    facts = json.loads(path.read_text())
    facts["model"]["width"], facts["data"]["examples"] = 16, 300
    path.write_text(json.dumps(facts))
    with pytest.raises(Refused, match="belongs to another run") as error:
        api.run(tiny(), workdir, "tiny")
    assert "model.width: 16 -> 8" in str(error.value)
    assert "data.examples: 300 -> 200" in str(error.value)


def test_what_was_set_aside_before_stays(go_on):
    def twice(workdir):
        (workdir / "damaged" / f"{STUDENT}_7_0").mkdir(parents=True)
        newest(cut)(workdir)

    _, _, workdir = go_on(twice)
    assert {p.name for p in (workdir / "damaged").iterdir()} == {
        f"{STUDENT}_7_0",
        f"{STUDENT}_7_1",
    }
