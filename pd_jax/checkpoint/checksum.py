"""Seals: sizes and checksums of a folder's files, to tell later that they are the same.

The storage library's own checksums are of its indices: it reads a weight with a bit
flipped as it is. A seal is one file in the folder. Without it, or with one that is cut
short, nothing is known.
"""

import json
import zlib

from etils import epath

from pd_jax.storage import files

NAME = "sums.json"
CHUNK = 2**24  # bytes


def make(folder: epath.Path) -> None:
    """Seals all files below a folder."""
    sums = {name: _sum(folder / name) for name in _names(folder)}
    # No temporary file, which a kill could leave: half a seal counts as none.
    (folder / NAME).write_text(json.dumps(sums))


def made(folder: epath.Path) -> bool:
    """Whether there is a seal that can be read."""
    return _sums(folder) is not None


def damage(folder: epath.Path) -> str | None:
    """What is not as it was sealed; None where all is, or no seal is to be read."""
    for name, sealed in (_sums(folder) or {}).items():
        try:
            actual = _sum(folder / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if actual != sealed:
            return f"{name}: {actual[0]} bytes, not the {sealed[0]} that were written"
    return None


def _sums(folder: epath.Path) -> dict | None:
    try:
        return files.read_json(folder / NAME)
    except (ValueError, OSError):
        return None


def _names(folder: epath.Path) -> list[str]:
    """Files below a folder, as paths within it, without the seal."""
    names = []
    for path in folder.iterdir():
        if path.is_dir():
            names += [f"{path.name}/{name}" for name in _names(path)]
        elif path.name != NAME:
            names.append(path.name)
    return sorted(names)


def _sum(path: epath.Path) -> list[int]:
    """[bytes, CRC-32]."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]
