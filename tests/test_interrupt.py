"""Signals while the main thread is in one long call, as in a compilation."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import hashlib, signal, sys
from pd_jax import __main__ as main
from pd_jax.runtime import interrupt
interrupt.PATIENCE_SECONDS = float(sys.argv[1])
signal.signal(signal.SIGINT, main._stop_at_once)
with interrupt.Interrupt():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def start(patience):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(patience)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_a_first_one_in_time(signum):
    insisted, patient = start(60.0), start(1.0)
    try:
        for process in (insisted, patient):
            process.send_signal(signum)
        time.sleep(0.3)
        assert insisted.poll() is patient.poll() is None
        insisted.send_signal(signum)
        assert insisted.wait(timeout=5) == 128 + signum
        assert "Traceback" not in insisted.stderr.read()
        assert patient.wait(timeout=10) == 128 + signum
        assert "no safe place to stop at" in patient.stderr.read()
    finally:
        for process in (insisted, patient):
            process.kill()
            process.communicate()
