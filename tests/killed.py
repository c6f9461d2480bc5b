"""A run in a process that ends itself at a chosen moment; see test_kills.py."""

import os
import re
import signal
import sys
import threading
from typing import NamedTuple


class Aim(NamedTuple):
    """The moment of a kill: before a file operation that Python makes, or soon after.

    Attributes:
      operation: an audit event that changes files: open (to write), os.mkdir, ...
      pattern: of a path of it, within the run's folder.
      count: how many of these.
      delay: seconds from there to the kill, which then can fall anywhere.
    """

    operation: str
    pattern: str
    count: int = 1
    delay: float = 0.0


def run(argv, workdir, aim, log):
    """Runs the command line, printing into a file; dies where `aim` says."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.pop("XLA_FLAGS", None)
    if aim is not None:
        _watch(os.fspath(workdir), aim)
    from pd_jax import main

    sys.argv = ["main", *argv, f"--workdir={workdir}"]
    code = main.main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _watch(workdir, aim):
    left = aim.count

    def hook(event, arguments):
        nonlocal left
        if left <= 0 or not re.fullmatch(aim.operation, event):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return  # to read
        paths = [os.fsdecode(a) for a in arguments[:2] if isinstance(a, str | bytes)]
        if not any(p.startswith(workdir) and re.search(aim.pattern, p) for p in paths):
            return
        left -= 1
        if not left:
            threading.Timer(aim.delay, _kill).start() if aim.delay else _kill()

    sys.addaudithook(hook)
