"""What the machine at hand has, and what was started on it."""

import contextlib
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterator


def memory_bytes(root: str = "/") -> int | None:
    """Memory that this process may have, swap space included; None if unknown.

    Args:
      root: of the file system where Linux says what a machine and its control groups
        (of a container, a job) have.
    """
    limits = list(_group_limits(pathlib.Path(root)))
    try:
        lines = (pathlib.Path(root) / "proc/meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) for name, rest in _split(lines)}
        limits.append(1024 * (sizes["MemTotal"] + sizes.get("SwapTotal", 0)))
    except (OSError, ValueError, LookupError):  # not Linux: what POSIX offers
        with contextlib.suppress(OSError, ValueError):
            limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def command() -> str:
    """How this process was started, as for a shell."""
    words = list(sys.orig_argv)
    script = os.path.basename(words[1]) if words[1:] else ""
    if script == "pd-jax":  # a script that pip made
        words = words[1:]
    return shlex.join([os.path.basename(words[0]), *words[1:]]) if words else ""


def processor(root: str = "/") -> str:
    """The processor's name and how many cores of it this process may use.

    Args:
      root: of the file system where Linux says what a machine has.
    """
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # not Linux
        lines = (pathlib.Path(root) / "proc/cpuinfo").read_text().splitlines()
        found = {key.strip(): value.strip() for key, value in _split(lines)}
        name = found.get("model name", name)
    cores = _cores()
    return f"{cores} core{'s' * (cores > 1)} of {name}"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _split(lines: list[str]) -> Iterator[list[str]]:
    return (line.split(":", 1) for line in lines if ":" in line)


def _group_limits(root: pathlib.Path) -> Iterator[int]:
    """Limits of the control groups that this process is in, of versions 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        group = top / path.strip("/")
        # Of the group and all above it; in a container the path may be the host's.
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # of "max" among them
                yield int((folder / name).read_text())
            if folder == top:
                break
