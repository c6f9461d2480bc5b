"""What the machine at hand has."""

import contextlib
import os
import pathlib
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
