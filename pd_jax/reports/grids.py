"""Grids of samples as PNG: pictures as they are, latents a channel at a time."""

import base64
import io

import numpy as np
from PIL import Image

from pd_jax.space import PICTURES, Space, to_uint8

SHOWN = 320  # pixels of a grid's side, at most
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


def mosaic(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Pictures [N, H, W, 1 or 3] in [-1, 1] side by side, uint8, with an alpha channel.

    Gaps between them are white, and clear.
    """
    num, height, width, shown = images.shape
    lines = -(-num // columns)
    size = lines * (height + gap) - gap, columns * (width + gap) - gap
    grid = np.full((*size, shown + 1), 255, np.uint8)
    grid[..., shown] = 0
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        y, x = row * (height + gap), column * (width + gap)
        grid[y : y + height, x : x + width, :shown] = to_uint8(image)
        grid[y : y + height, x : x + width, shown] = 255
    return grid


def tiles(images: np.ndarray, columns: int) -> str:
    """Pictures as for `mosaic` as one PNG in a data URI, with clear gaps."""
    grid, buffer = mosaic(images, columns, max(1, images.shape[1] // 16)), io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG", optimize=True)
    return uri(buffer.getvalue())


def image_grid(images: np.ndarray, side: int = 8, pixels: int = 512) -> bytes:
    """The first side x side pictures, as for `mosaic`, as one PNG of some size."""
    scale = max(1, pixels // (side * max(images.shape[1:3])))
    grid = mosaic(images[: side * side], side)[..., :-1]
    grid = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(
        buffer, format="PNG"
    )
    return buffer.getvalue()


def uri(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def grid(images: np.ndarray) -> str:
    """As many of the first pictures as a grid shows well, up to 8 x 8."""
    side = min(max(SHOWN // max(images.shape[1:3]), 3), 8)
    return tiles(images[: side * side], side)
