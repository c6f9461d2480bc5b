"""The smoke ladder of the digits over and over, killed at random: does anything grow?

    python -m tests.soak [SECONDS]

For each stage that a process was seen in for `LONG` updates or more, prints how its
resident memory and its open files grew per 1000 updates: a straight line through what
was seen after the first third, in which programs are compiled and pools fill up. After
each process, names the temporary files that it left in the system's folder for them;
after each run that came to its end, those in its own folder.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
ARGUMENTS = [
    f"--config={ROOT}/configs/digits.py:smoke",
    "--config.teacher.updates=30000",
    "--config.ladder.updates=10000",
    "--config.run.checkpoint_updates=500",
    "--config.run.log_updates=50",
]
LIFE = 30.0, 180.0  # seconds, of processes that are killed
EVERY = 0.25  # seconds
LONG = 4000  # updates


class Seen(NamedTuple):
    """A process at one moment."""

    stage: str
    update: int
    megabytes: float
    files: int


def look(pid: int, workdir: pathlib.Path) -> Seen:
    """Looks at a process; OSError or LookupError where it has not begun, or ended."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    size = int(status.partition("VmRSS:")[2].split()[0])
    with open(workdir / "metrics.jsonl", "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 2000, 0))
        *_, last, _ = file.read().split(b"\n")  # what follows the last end is unwritten
    entry = json.loads(last)
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Seen(entry["stage"], entry["update"], size / 1e3, files)


def live(workdir: pathlib.Path, temporary: pathlib.Path, seconds: float):
    """One process: all that was seen of it, and whether it came to its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pd_jax.main", *ARGUMENTS, f"--workdir={workdir}"],
        cwd=ROOT,
        env={
            **os.environ,
            "TMPDIR": str(temporary),
            "JAX_COMPILATION_CACHE_DIR": str(temporary.with_name("compiled")),
        },
        stdout=subprocess.DEVNULL,
    )
    seen, until = [], time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError, LookupError, ValueError):
            seen.append(look(process.pid, workdir))
        time.sleep(EVERY)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    code = process.wait()
    assert code in (0, -signal.SIGKILL), code
    return seen, code == 0


def slopes(seen: list[Seen]) -> np.ndarray | None:
    """Growth of MB and files per 1000 updates, within one stage."""
    seen = seen[len(seen) // 3 :]
    values = np.array([s[1:] for s in seen], float).reshape(-1, 3)
    if len(values) < 8 or np.ptp(values[:, 0]) < LONG * 2 / 3:
        return None
    return 1000.0 * np.polyfit(values[:, 0], values[:, 1:], 1)[0]


def main(seconds: float) -> None:
    rng, until = random.Random(0), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        temporary = pathlib.Path(folder) / "tmp"
        temporary.mkdir()
        run, kills, left_over, found = 0, 0, 0, []
        while (left := until - time.monotonic()) > 0:
            workdir = pathlib.Path(folder) / str(run)
            seen, ended = live(workdir, temporary, min(left, rng.uniform(*LIFE)))
            kills += not ended
            for stage in dict.fromkeys(s.stage for s in seen):
                here = [s for s in seen if s.stage == stage]
                grown = slopes(here)
                if grown is None:
                    continue
                found.append(grown)
                first, last = here[0], here[-1]
                print(
                    f"run {run}, {stage} {first.update} to {last.update}: "
                    f"{last.megabytes:.0f} MB, {grown[0]:+.2f} MB per 1000 updates; "
                    f"{last.files} files, {grown[1]:+.3f} per 1000 updates",
                    flush=True,
                )
            tmp = sorted(p.name for p in temporary.iterdir())
            if ended:
                tmp += [str(p.relative_to(workdir)) for p in workdir.rglob("*tmp*")]
                run += 1
            left_over += len(tmp)
            how = "complete" if ended else "killed"
            print(f"run {workdir.name} {how}; temporary files left: {tmp}", flush=True)
        print(f"{kills} kills, {run} complete runs, {left_over} temporary files left")
        if found:
            memory, files = np.median(found, axis=0)
            print(
                f"median of {len(found)} stages: {memory:+.2f} MB, {files:+.3f} files "
                "per 1000 updates"
            )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3600.0)
