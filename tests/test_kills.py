"""Real processes, killed at random moments: nothing is lost, no bit is different."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Every stage finds a plateau at update 20, and ends at 30 of its 40 updates.
EARLY_ENDS = [
    "--config.ladder.decay=cooldown",
    "--config.ladder.check_updates=10",
    "--config.ladder.plateau=0.9",
]
COMMAND = [
    sys.executable,
    "-m",
    "pd_jax.main",
    "--config=configs/digits.py:smoke",
    "--config.run.checkpoint_updates=7",
    *EARLY_ENDS,
]
KILLS = 6

pytestmark = pytest.mark.slow


def start(workdir):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights(workdir):
    """The last checkpoint of every stage, as saved: {stage: [arrays]}."""
    import jax
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def shape(kept):
        return jax.ShapeDtypeStruct(kept.shape, kept.dtype, sharding=here)

    found = {}
    for stage in sorted((workdir / "checkpoints").iterdir()):
        last = max(
            (p for p in stage.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
        )
        with ocp.StandardCheckpointer() as reader:
            kept = reader.metadata(last / "state").item_metadata
            state = reader.restore(last / "state", jax.tree.map(shape, kept))
        found[stage.name] = [np.asarray(a) for a in jax.tree.leaves(state)]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(workdir)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
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


def test_killed_at_random_moments(tmp_path, undisturbed):
    rng, workdir = random.Random(0), tmp_path / "run"
    moments = []
    for _ in range(KILLS):
        process = start(workdir)
        time.sleep(rng.uniform(1.0, 14.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = sorted(p.name for p in workdir.glob("checkpoints/*/[0-9]*"))
        moments.append((process.returncode, len(kept)))
    process = start(workdir)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    killed = [m for m in moments if m[0] == -signal.SIGKILL]
    assert len(killed) >= KILLS // 2, moments
    check(workdir, undisturbed)
    assert not list(workdir.rglob("*tmp*"))
    again = start(workdir)
    printed, _ = again.communicate(timeout=100)
    assert "nothing to do" in printed


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
