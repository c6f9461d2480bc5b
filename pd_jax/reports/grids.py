"""Grids of samples as PNG: pictures as they are, latents a channel at a time."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pd_jax.space import PICTURES, Space, to_uint8

SHOWN = 320  # pixels of a grid's side, at most
MAX_CLASSES = 10  # that a grid has rows for
MAX_CHANNELS = 4  # of latents that are shown, the first ones


def pictures(
    x: np.ndarray, space: Space, best: np.ndarray | None = None
) -> np.ndarray | None:
    """Samples as pictures, if they can be shown so.

    Args:
      x: samples [N, ...] of a space, unclipped.
      space: the space.
      best: of latents, samples whose range is shown; default these.

    Returns:
      [N, H, W, 1 or 3] in [-1, 1]: of latents the first `MAX_CHANNELS` channels side by
      side in grey, each from its least value in `best` (black) to its largest (white).
      None for other kinds, and for samples that are not finite.
    """
    if not space.has_areas or not np.all(np.isfinite(x)):
        return None
    if space.kind == PICTURES:
        return x
    if best is None or not np.all(np.isfinite(best)):
        best = x
    best = best[..., :MAX_CHANNELS]
    low, high = best.min((0, 1, 2)), best.max((0, 1, 2))
    scaled = (x[..., :MAX_CHANNELS] - low) / np.maximum(high - low, 1e-30) * 2.0 - 1.0
    # A white line between two channels.
    apart = np.pad(scaled, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=1.0)
    num, height = x.shape[:2]
    return apart.transpose(0, 1, 3, 2).reshape(num, height, -1, 1)[:, :, :-1]


def classes(labels: np.ndarray) -> list[int]:
    """The classes, in order, that a grid has rows for: the most frequent ones."""
    found, counts = np.unique(labels, return_counts=True)
    return np.sort(found[np.argsort(-counts, kind="stable")[:MAX_CLASSES]]).tolist()


def arranged(
    num: int,
    side: int,
    labels: np.ndarray | None = None,
    like: Sequence[int] = (),
) -> tuple[list[int], np.ndarray]:
    """Which samples a grid shows, and where.

    Args:
      num: samples that there are.
      side: those of a row, at most.
      labels: [num] at least, for a row of each class; None for the first side x side.
      like: the classes to show, if there are samples of all of them; default `classes`.

    Returns:
      (classes, places [R, C]): each row's class, or [], and which samples stand in it,
      -1 for none.
    """
    if labels is None:
        num = min(num, side * side)
        places = np.full((-(-num // side), min(side, num)), -1)
        places.flat[:num] = np.arange(num)
        return [], places
    labels = labels[:num]
    shown = list(like) if len(like) and np.isin(like, labels).all() else classes(labels)
    rows = [np.flatnonzero(labels == c)[:side] for c in shown]
    places = np.full((len(rows), max(map(len, rows))), -1)
    for line, row in zip(places, rows):
        line[: len(row)] = row
    return shown, places


def mosaic(images: np.ndarray, places: np.ndarray, gap: int = 1) -> np.ndarray:
    """Pictures [N, H, W, 1 or 3] in [-1, 1] side by side, uint8, with an alpha channel.

    Those of `places` [R, C], where -1 is none; that and the gaps are white, and clear.
    """
    _, height, width, shown = images.shape
    lines, columns = places.shape
    size = lines * (height + gap) - gap, columns * (width + gap) - gap
    grid = np.full((*size, shown + 1), 255, np.uint8)
    grid[..., shown] = 0
    for (row, column), place in np.ndenumerate(places):
        if place < 0:
            continue
        y, x = row * (height + gap), column * (width + gap)
        grid[y : y + height, x : x + width, :shown] = to_uint8(images[place])
        grid[y : y + height, x : x + width, shown] = 255
    return grid


def tiles(images: np.ndarray, places: np.ndarray) -> str:
    """Pictures as for `mosaic` as one PNG in a data URI, with clear gaps."""
    grid, buffer = mosaic(images, places, max(1, images.shape[1] // 16)), io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG", optimize=True)
    return uri(buffer.getvalue())


def image_grid(images: np.ndarray, places: np.ndarray, pixels: int = 512) -> bytes:
    """Pictures as for `mosaic`, as one PNG of some size."""
    scale = max(1, pixels // (max(places.shape) * max(images.shape[1:3])))
    grid = mosaic(images, places)[..., :-1]
    grid = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(
        buffer, format="PNG"
    )
    return buffer.getvalue()


def uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def side(images: np.ndarray) -> int:
    """How many pictures a grid on a page shows well in a row."""
    return min(max(SHOWN // max(images.shape[1:3]), 3), 8)
