"""Stand-ins for the programs that the launchers call, and what was asked of them."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
CONFIG = "--config=configs/digits.py"
AWKWARD = ["--config.a=(1, 2)", "--config.b=$HOME `id`", '--config.c=it\'s "x" \\ *;&']


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


class Stage:
    """A folder of stand-ins, and what was asked of them."""

    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PD_JAX_")}
        self.environment = kept | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "STAGE": str(folder),
            "PD_JAX_POLL": "0",
        }
        self.started = []

    def stand_in(self, name, body=""):
        """A program that records its arguments, then does `body`."""
        head = f"#!{sys.executable} -IS\nimport json, os, sys\n"
        record = (
            "with open(os.environ['STAGE'] + '/calls', 'a') as file:\n"
            f"    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"
        )
        program(self.bin / name, head + record + body)

    def calls(self, *words):
        """What was called, as lists of words; those that have all of `words`."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        found = [json.loads(line) for line in lines]
        return [call for call in found if all(w in call for w in words)]

    def start(self, script, *arguments, **extra):
        process = subprocess.Popen(
            [LAUNCH / script, *arguments],
            cwd=self.folder,
            env=self.environment | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, script, *arguments, **extra):
        process = self.start(script, *arguments, **extra)
        process.out, process.err = process.communicate(timeout=30)
        return process


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    for process in stage.started:
        kill_group(process.pid)
        process.communicate(timeout=10)
    for file in tmp_path.glob("*/pd_jax_run/pid"):
        kill_group(int(file.read_text()))


def kill_group(pid):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def until(true, what, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)
