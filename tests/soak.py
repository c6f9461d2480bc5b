"""The smoke ladder of the digits over and over, killed at random: does anything grow?

    python -m tests.soak [SECONDS]

For each process, prints how its resident memory and its open files grew per 1000
updates (a straight line through what was seen after its first quarter), and for each
run that came to its end, the temporary files that are left in its folder.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
ARGUMENTS = [
    f"--config={ROOT}/configs/digits.py:smoke",
    "--config.teacher.updates=4000",
    "--config.ladder.updates=2000",
    "--config.run.checkpoint_updates=200",
    "--config.run.log_updates=50",
]
LIFE = 20.0, 60.0  # seconds, of processes that are killed
EVERY = 0.25  # seconds


def done(workdir: pathlib.Path) -> int:
    """Updates done, of all stages."""
    reached = {}
    path = workdir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # being written
            continue
        reached[entry["stage"]] = entry["update"]
    return sum(reached.values())


def look(pid: int) -> tuple[float, int]:
    """A process's resident memory in MB, and its open files."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    size = int(status.partition("VmRSS:")[2].split()[0])
    return size / 1e3, len(os.listdir(f"/proc/{pid}/fd"))


def live(workdir: pathlib.Path, seconds: float) -> tuple[np.ndarray, bool]:
    """One process: [n, 3] of updates, MB and files; and whether it came to its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pd_jax.main", *ARGUMENTS, f"--workdir={workdir}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    seen, until = [], time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        try:
            seen.append((done(workdir), *look(process.pid)))
        except (OSError, IndexError):  # it has just ended
            break
        time.sleep(EVERY)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    code = process.wait()
    assert code in (0, -signal.SIGKILL), code
    return np.array(seen, float), code == 0


def slopes(seen: np.ndarray) -> np.ndarray | None:
    """Growth of MB and files per 1000 updates."""
    seen = seen[len(seen) // 4 :]
    if len(seen) < 8 or np.ptp(seen[:, 0]) < 500:
        return None
    return 1000.0 * np.polyfit(seen[:, 0], seen[:, 1:], 1)[0]


def main(seconds: float) -> None:
    rng, until = random.Random(0), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        run, found = 0, []
        while (left := until - time.monotonic()) > 0:
            workdir = pathlib.Path(folder) / str(run)
            seen, ended = live(workdir, min(left, rng.uniform(*LIFE)))
            grown = slopes(seen)
            if grown is not None:
                found.append(grown)
                print(
                    f"run {run}, {np.ptp(seen[:, 0]):.0f} updates seen: "
                    f"{seen[-1, 1]:.0f} MB, {grown[0]:+.2f} MB per 1000 updates; "
                    f"{seen[-1, 2]:.0f} files, {grown[1]:+.3f} per 1000 updates",
                    flush=True,
                )
            if ended:
                tmp = [str(p.relative_to(workdir)) for p in workdir.rglob("*tmp*")]
                print(f"run {run} complete; temporary files left: {tmp}", flush=True)
                run += 1
        if found:
            memory, files = np.median(found, axis=0)
            print(f"median: {memory:+.2f} MB, {files:+.3f} files per 1000 updates")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3600.0)
