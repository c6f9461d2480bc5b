"""The command `pd-jax`, or `python -m pd_jax`: the command line as a process."""

import os
import signal
import sys


def _stop_at_once(signum, frame) -> None:
    """Ctrl-C where nothing needs saving, or for the second time."""
    # Past all clean-up, which threads still at work would turn into noise; what is on
    # disk is whole at any moment.
    print("stopped; the same command goes on", file=sys.stderr, flush=True)
    os._exit(128 + signum)


def _pass_over_tasks(report) -> None:
    """The hook of errors that nobody can catch; some stem from reads that failed."""
    said = str(report.exc_value)
    if not said.startswith(("Event loop is closed", "Encountered error while reading")):
        sys.__unraisablehook__(report)


def entry() -> None:
    """Runs the command line; ends the process where the exit code is not 0."""
    signal.signal(signal.SIGINT, _stop_at_once)  # ahead of imports that take a while
    sys.unraisablehook = _pass_over_tasks
    from pd_jax.runtime import console

    console.outlive_readers()
    from pd_jax import main

    exit_code = main.main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code:
        os._exit(exit_code)  # all is said: see _stop_at_once


if __name__ == "__main__":
    entry()
