"""Two real processes train one model, as one process with two devices does."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.test_kills import EARLY_ENDS, weights

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = [
    sys.executable,
    "-m",
    "pd_jax.main",
    "--config=configs/digits.py:smoke",
    "--config.run.checkpoint_updates=10",
    *EARLY_ENDS,
]

pytestmark = pytest.mark.slow


def start(workdir, processes, devices=1):
    """Starts the command in `processes` processes of `devices` fake devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = dict(
        os.environ, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}"
    )
    started = []
    for i in range(processes):
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(i),
            }
        with open(workdir.with_name(f"{workdir.name}_{i}.log"), "a") as log:
            started.append(
                subprocess.Popen(
                    [*COMMAND, f"--workdir={workdir}"],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def finish(workdir, processes):
    codes = [process.wait(timeout=240) for process in processes]
    logs = [
        workdir.with_name(f"{workdir.name}_{i}.log").read_text()
        for i in range(len(processes))
    ]
    return codes, logs


def wait_for(workdir, pattern, processes):
    """Waits until a checkpoint of that pattern is there."""
    for _ in range(2400):
        if any((workdir / "checkpoints").glob(pattern)):
            return
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    raise AssertionError(f"no {pattern}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with two devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    codes, logs = finish(workdir, start(workdir, 1, devices=2))
    assert codes == [0], logs
    return workdir


def same_end(workdir, alone):
    mine, theirs = weights(workdir), weights(alone)
    assert (
        set(mine) == set(theirs) == {"teacher", "student_4", "student_2", "student_1"}
    )
    for stage, arrays in theirs.items():
        for a, b in zip(mine[stage], arrays):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    reports = [json.loads((d / "report.json").read_text()) for d in (workdir, alone)]
    assert reports[0]["updates"] == reports[1]["updates"]
    for mine, theirs in zip(*(report["rows"] for report in reports)):
        assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-4)


def stop(workdir, how, pattern):
    """Starts two processes, and stops them once a checkpoint is there."""
    processes = start(workdir, 2)
    wait_for(workdir, pattern, processes)
    processes[1].send_signal(how)  # told to one, heard by both
    codes, logs = finish(workdir, processes)
    assert codes == [143, 143], logs
    assert "stopped and saved at update" in logs[0]


def test_two_processes_stop_go_on_and_end_alike(alone, tmp_path):
    workdir = tmp_path / "run"
    for how, pattern in (
        (signal.SIGTERM, "teacher/[1-9]*"),
        (signal.SIGINT, "student_4/[1-9]*"),
    ):
        stop(workdir, how, pattern)
    codes, logs = finish(workdir, start(workdir, 2))
    assert codes == [0, 0], logs
    assert "going on in" in logs[0]
    assert "student_1" not in logs[1]  # the first speaks for all
    same_end(workdir, alone)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    updates = [(e["stage"], e["update"]) for e in map(json.loads, lines)]
    assert len(updates) == len(set(updates))


def test_one_process_killed_and_both_started_again(alone, tmp_path):
    workdir = tmp_path / "run"
    processes = start(workdir, 2)
    wait_for(workdir, "student_4/[1-9]*", processes)
    processes[1].kill()
    began = time.monotonic()
    codes, _ = finish(workdir, processes)  # the other one ends by itself
    assert codes[0] != 0
    assert time.monotonic() - began < 180
    codes, logs = finish(workdir, start(workdir, 2))
    assert codes == [0, 0], logs
    same_end(workdir, alone)


def test_a_folder_of_another_run_is_refused_by_all(alone, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "thesis.tex").write_text("x")
    codes, logs = finish(workdir, start(workdir, 2))
    assert codes == [2, 2], logs
    assert all("not a folder of a run" in log for log in logs)
    assert not any("Traceback" in log for log in logs)
    assert [path.name for path in workdir.iterdir()] == ["thesis.tex"]
