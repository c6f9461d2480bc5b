"""The user's own pictures: a folder of PNG, JPEG, WebP and other common files.

The first start decodes all of them into a cache, one ArrayRecord file of uint8 squares;
later ones read that. A cache belongs to the exact files, their sizes and times: another
picture, or another size of the squares, makes another cache. Old ones can be deleted.
"""

import dataclasses
import pathlib
import sys

import numpy as np

from pd_jax.data import Dataset, Description, InMemory, _folder_cache
from pd_jax.data._records import Records
from pd_jax.runtime.errors import Refused

IN_MEMORY_BYTES = 2**30  # up to here a cache is read whole


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures(InMemory):
    """Pictures in memory.

    Attributes:
      label_names: the classes' names, where there are labels.
    """

    label_names: tuple[str, ...] = ()


def describe(size: int, labels: bool, **options) -> Description:
    """What `load` would give."""
    return Description((size, size, 3), None if labels else 0)


def load(
    path: str = "",
    size: int = 64,
    labels: bool = False,
    flip: bool = False,
    max_bad: float = 0.01,
    cache: str = "~/.cache/pd_jax",
) -> Dataset:
    """All pictures below a folder, [N, size, size, 3]: RGB, central square, resized.

    Turned as EXIF says, transparent parts on white, of animations the first frame.
    Names that begin with a dot are passed over; files that are no pictures by the ends
    of their names are left out, counted and named.

    Args:
      path: the folder.
      size: height and width.
      labels: folders directly below `path` are classes, numbered in the order of their
        names; what is deeper belongs to them.
      flip: mirrors half of the training images left to right.
      max_bad: share of files that may be unreadable; up to ten always may, unless it
        is 0. They are named, and left out.
      cache: folder of the caches.

    Raises:
      Refused: for a folder without pictures, with too many that cannot be read, or
        without classes where there should be.
    """
    root = pathlib.Path(path).expanduser()
    if not path or not root.is_dir():
        raise Refused(f'data.path="{path}": no such folder; give one of pictures')
    if size < 1:
        raise Refused(f"data.size={size}: must be at least 1")
    if not 0.0 <= max_bad <= 1.0:
        raise Refused(f"data.max_bad={max_bad}: a share of files, from 0 to 1")
    files, others = _folder_cache.listing(root)
    _say_others(root, others)
    if not files:
        raise Refused(
            f'data.path="{path}": no pictures in this folder; they end in '
            + ", ".join(_folder_cache.SUFFIXES)
        )
    if labels and any("/" not in file.name for file in files):
        raise Refused(
            f'data.labels=True, but files lie directly in data.path="{path}": each '
            "class is a folder, with its pictures in it"
        )
    allowed = max(10, int(max_bad * len(files))) if max_bad else 0
    cached = _folder_cache.get(root, files, size, allowed, cache)
    _say(root, cached, len(files), size)
    classes, numbers = (), None
    if not labels and all("/" in file.name for file in files):
        num = len({file.name.partition("/")[0] for file in files})
        if num > 1:
            print(
                f"{root}: its {num} folders are not used as classes; data.labels=True "
                f"and model.num_classes={num} train on them",
                file=sys.stderr,
            )
    if labels:
        names = [files[i].name.partition("/")[0] for i in cached.places]
        known, place = np.unique(names, return_inverse=True)
        classes, numbers = tuple(known.tolist()), place.astype(np.int32)
        folders = {path.name for path in root.iterdir() if path.is_dir()}
        empty = sorted(n for n in folders - {*classes} if not n.startswith("."))
        if empty:
            _print(f"{root}: {_few(empty)}: no class, as no picture is in it")
    records = _folder_cache.Squares(cached.file, size, numbers)
    if len(records) * size * size * 3 <= IN_MEMORY_BYTES:
        return Pictures(records.all(), numbers, flip=flip, label_names=classes)
    return Records(records, (size, size, 3), len(classes), flip, classes)


def _print(text: str) -> None:
    print(text, file=sys.stderr)


def _few(names: list[str]) -> str:
    """Names as text; the first of many."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _say_others(root: pathlib.Path, others: list[str]) -> None:
    """One line for each kind of file that is left out by its name."""
    kinds = {}
    for name in others:
        kinds.setdefault(pathlib.PurePath(name).suffix.lower(), []).append(name)
    if kinds:
        lines = [f"  {len(n)} {s or 'without'}: {_few(n)}" for s, n in kinds.items()]
        _print("\n".join([f"{root}: {len(others)} other files are left out:", *lines]))


def _say(root: pathlib.Path, cached, num: int, size: int) -> None:
    """One note each of what is left out, and of what was enlarged."""
    if cached.bad:
        shown = [f"  {name}: {cause}" for name, cause in cached.bad[:20]]
        more = len(cached.bad) - len(shown)
        shown += [f"  ... and {more} more, listed in {cached.notes}"] if more else []
        print(
            f"{root}: {len(cached.bad)} of {num} files cannot be read and are left "
            "out:",
            *shown,
            sep="\n",
            file=sys.stderr,
        )
    if cached.enlarged:
        print(
            f"{root}: {cached.enlarged} of {num} pictures are smaller than data.size="
            f"{size} and were enlarged",
            file=sys.stderr,
        )
