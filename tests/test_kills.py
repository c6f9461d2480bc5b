"""Real processes, killed at random moments: nothing is lost, no bit is different."""

import json
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from pd_jax.checkpoint import checksum
from tests import killed
from tests.killed import Aim

ROOT = pathlib.Path(__file__).parents[1]
# Every stage finds a plateau at update 20, and ends at 30 of its 40 updates.
EARLY_ENDS = [
    "--config.ladder.decay=cooldown",
    "--config.ladder.check_updates=10",
    "--config.ladder.plateau=0.9",
]
ARGUMENTS = [
    f"--config={ROOT}/configs/digits.py:smoke",
    "--config.run.checkpoint_updates=7",
    *EARLY_ENDS,
]
KILLS = 25
ANY = r"open|os\.(mkdir|rename|remove|rmdir)"
AIMS = {
    "the folder is taken": Aim("open", r"\.config\.json"),
    "a checkpoint begins": Aim("os.mkdir", r"teacher/\d+\.[^/]*tmp$", 3),
    "its facts are written": Aim("open", r"teacher/.*/metadata", 2),
    "its weights are on their way": Aim("open", r"teacher/.*/_METADATA", 1, 0.002),
    "a part of it is whole": Aim("os.rename", r"teacher/.*tmp/state", 2),
    "it is about to count": Aim("os.rename", r"teacher/\d+\.[^/]*tmp$", 2),
    "it is sealed": Aim("open", r"teacher/\d+/sums.json", 2),
    "the one before the last goes": Aim("os.rmdir|os.rename", r"teacher/\d+", 5),
    "the teacher's last is about to count": Aim("os.rename", r"teacher/100\..*tmp$"),
    "the teacher's last is sealed": Aim("open", r"teacher/100/sums.json"),
    "references are kept": Aim("os.rename", r"\.reference_teacher"),
    "a student begins": Aim("open", r"\.metrics\.jsonl"),
    "its first checkpoint begins": Aim("os.mkdir", r"student_4/7\.[^/]*tmp$"),
    "an early end is about to count": Aim("os.rename", r"student_4/30\..*tmp$"),
    "another is handed over to": Aim("os.mkdir", r"student_2/7\.[^/]*tmp/state"),
    "the last one ends": Aim("os.rename", r"student_1/30\..*tmp$"),
    "a row is measured": Aim("open", r"\.student_4\.json"),
    "the report begins": Aim("open", r"\.quality\.png"),
    "the report is about to count": Aim("os.rename", r"\.report\.json"),
}

pytestmark = pytest.mark.slow


def start(workdir):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", "pd_jax.main", *ARGUMENTS, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def newest(stage):
    found = (p for p in stage.iterdir() if p.name.isdigit())
    return max(found, key=lambda p: int(p.name))


def weights(workdir):
    """The last checkpoint of every stage, as saved: {stage: [arrays]}."""
    import jax
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def shape(kept):
        return jax.ShapeDtypeStruct(kept.shape, kept.dtype, sharding=here)

    found = {}
    for stage in sorted((workdir / "checkpoints").iterdir()):
        last = newest(stage)
        with ocp.StandardCheckpointer() as reader:
            kept = reader.metadata(last / "state").item_metadata
            state = reader.restore(last / "state", jax.tree.map(shape, kept))
        found[stage.name] = [np.asarray(a) for a in jax.tree.leaves(state)]
    return found


@pytest.fixture(scope="module")
def fork():
    """Starts the command in a process of its own, forked from one that has imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pd_jax.main", "pd_jax.runs.run", "tests.killed"])

    def fork(workdir, aim=None):
        log = workdir.with_suffix(".log")
        arguments = (ARGUMENTS, workdir, aim, log)
        process = context.Process(target=killed.run, args=arguments)
        process.start()
        process.join(300)
        return process.exitcode, log.read_text()

    return fork


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, fork):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    code, printed = fork(workdir)
    assert code == 0, printed
    assert "1 cpu device(s)" in printed
    return workdir


def check(workdir, undisturbed):
    mine, theirs = weights(workdir), weights(undisturbed)
    assert set(mine) == {"teacher", "student_4", "student_2", "student_1"}
    for stage, arrays in theirs.items():
        assert len(mine[stage]) == len(arrays) > 10
        for a, b in zip(mine[stage], arrays):
            assert a.tobytes() == b.tobytes(), stage
    reports = [
        json.loads((d / "report.json").read_text()) for d in (workdir, undisturbed)
    ]
    assert reports[0]["rows"] == reports[1]["rows"]
    assert reports[0]["updates"] == reports[1]["updates"]
    assert reports[0]["updates"]["student_4"] == {"done": 30, "planned": 40}
    lines = [
        [json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()]
        for d in (workdir, undisturbed)
    ]
    assert lines[0] == lines[1]


def ends_alike(fork, workdir, undisturbed):
    code, printed = fork(workdir)
    assert code == 0, printed
    assert "damaged" not in printed
    assert "Traceback" not in printed
    check(workdir, undisturbed)
    assert not list(workdir.rglob("*tmp*"))
    for last in map(newest, (workdir / "checkpoints").iterdir()):
        assert checksum.made(epath.Path(last))
        assert checksum.damage(epath.Path(last)) is None
    assert "nothing to do" in fork(workdir)[1]


def test_twice_the_same_bits(tmp_path, undisturbed, fork):
    code, printed = fork(tmp_path / "run")
    assert code == 0, printed
    check(tmp_path / "run", undisturbed)


def test_killed_at_random_moments(tmp_path, undisturbed, fork):
    rng, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        workdir = tmp_path / f"run_{runs}"
        aim = Aim(ANY, "", rng.randint(5, 60), rng.uniform(0.0, 0.1))
        code, printed = fork(workdir, aim)
        assert code in (0, -signal.SIGKILL), printed
        kills += code != 0
        runs += code == 0  # it got to its end: the next one is another
    for workdir in tmp_path.glob("run_[0-9]"):
        ends_alike(fork, workdir, undisturbed)


def test_killed_where_it_hurts(tmp_path, undisturbed, fork):
    workdir = tmp_path / "run"
    for moment, aim in AIMS.items():
        code, printed = fork(workdir, aim)
        assert code == -signal.SIGKILL, (moment, code, printed)
    ends_alike(fork, workdir, undisturbed)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(tmp_path, undisturbed, signum):
    workdir = tmp_path / "run"
    process = start(workdir)
    while not list(workdir.glob("checkpoints/teacher/[0-9]*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signum)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert "stopped and saved at update" in printed
    assert "Traceback" not in printed
    process = start(workdir)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "going on in" in printed
    mine, theirs = weights(workdir), weights(undisturbed)
    for stage in theirs:
        for a, b in zip(mine[stage], theirs[stage]):
            assert a.tobytes() == b.tobytes(), stage


def test_told_to_stop_twice(tmp_path, undisturbed):
    workdir = tmp_path / "run"
    moments = ("teacher/[0-9]*", signal.SIGTERM), ("student_4/[0-9]*", signal.SIGINT)
    for pattern, signum in moments:
        process = start(workdir)
        while not list((workdir / "checkpoints").glob(pattern)):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signum)
        time.sleep(0.05)  # the last checkpoint is being written, or about to be
        process.send_signal(signum)
        began = time.monotonic()
        printed, _ = process.communicate(timeout=30)
        assert time.monotonic() - began < 5.0
        # By the signal itself where it was not caught any more.
        assert process.returncode in (128 + signum, -signum), printed
        assert "Traceback" not in printed
    process = start(workdir)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert "damaged" not in printed
    mine, theirs = weights(workdir), weights(undisturbed)
    for stage in theirs:
        for a, b in zip(mine[stage], theirs[stage]):
            assert a.tobytes() == b.tobytes(), stage
