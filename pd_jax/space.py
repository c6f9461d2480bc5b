"""What one example is: said once, by the data or by the caller, and asked everywhere.

pictures  [H, W, 1 or 3] in [-1, 1]; samples are clipped, and uint8 for callers
latents   [H, W, C], any channels of any values; samples are float32
points    [2], places in the plane; float32
signals   of any shape and any values; float32, and never drawn
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np

from pd_jax.runtime import registry
from pd_jax.runtime.errors import NotFinite, Refused

Array = TypeVar("Array", np.ndarray, jax.Array)

PICTURES, LATENTS, POINTS, SIGNALS = "pictures", "latents", "points", "signals"
KINDS = (PICTURES, LATENTS, POINTS, SIGNALS)
ROUNDING = 1e-3  # by which pictures may leave [-1, 1]


def kind_of(shape: Sequence[int], dtype: np.dtype | type = np.float32) -> str:
    """The kind that examples of a shape and type most likely are, one of `KINDS`."""
    levels = np.issubdtype(dtype, np.integer) and len(shape) > 1
    if levels or (len(shape) == 3 and shape[-1] in (1, 3)):
        return PICTURES
    if len(shape) == 3:
        return LATENTS
    return POINTS if tuple(shape) == (2,) else SIGNALS


@dataclasses.dataclass(frozen=True)
class Space:
    """What one example is.

    Attributes:
      shape: its shape.
      kind: one of `KINDS`.
      clip: while sampling, predictions of x are clipped to [-1, 1].
    """

    shape: tuple[int, ...]
    kind: str
    clip: bool

    @classmethod
    def of(cls, shape: Sequence[int], kind: str = "", clip: bool = True) -> "Space":
        """The space of examples of a shape.

        Args:
          shape: of one example.
          kind: one of `KINDS`; default what the shape tells (`kind_of`).
          clip: of pictures; other kinds have no bounds and are never clipped.

        Raises:
          Refused: for an unknown kind, or one that the shape is not of.
        """
        shape = tuple(shape)
        kind = registry.check(kind or kind_of(shape), KINDS, "kind of data")
        wanted = {
            PICTURES: ("[H, W, 1] or [H, W, 3]", shape[2:] in ((1,), (3,))),
            LATENTS: ("[H, W, C]", len(shape) == 3),
            POINTS: ("[2]", shape == (2,)),
        }
        form, fits = wanted.get(kind, ("", True))
        if not fits:
            raise Refused(
                f"examples of shape {list(shape)} are no {kind}, which are {form}: say "
                f'what they are, such as kind="{kind_of(shape)}", or change their shape'
            )
        return cls(shape, kind, clip and kind == PICTURES)

    @classmethod
    def stored(cls, shape: Sequence[int], kind: str, clip: bool) -> "Space":
        """The space that a file names.

        Files of versions before there were kinds have "": all of three dimensions were
        pictures to them, and anything could be clipped.

        Raises:
          Refused: as `of`.
        """
        if kind:
            return cls.of(shape, kind, clip)
        shape = tuple(shape)
        return cls(shape, PICTURES if len(shape) == 3 else kind_of(shape), clip)

    @property
    def has_areas(self) -> bool:
        """Whether an example's first two dimensions are an area's, [H, W, C]."""
        return self.kind in (PICTURES, LATENTS)

    def check(self, x: np.ndarray, name: str = "images") -> None:
        """Checks data [B, ...], called `name`.

        Raises:
          Refused: for values that are not finite in float32; for pictures that leave
            [-1, 1].
        """
        most = max(float(x.max()), -float(x.min()))
        if not most <= float(np.finfo(np.float32).max):
            row, value = _first_not_finite(x)
            raise Refused(
                f"{name} are not finite, or beyond float32: example {row} of {len(x)} "
                f"holds {value}; repair it, or leave it out"
            )
        if self.kind == PICTURES and most > 1.0 + ROUNDING:
            raise Refused(
                f"{name} go up to {most:.4g}: scale them to [-1, 1], as pictures are; "
                f'of data that has no such bounds say what it is: kind="{LATENTS}" or '
                f'"{SIGNALS}"'
            )

    def finish(self, x: np.ndarray) -> np.ndarray:
        """Sampled values [B, ...] as callers get them: uint8 of pictures, else float32.

        Raises:
          NotFinite: with the number of the samples that are not.
        """
        num = num_not_finite(x)
        if num:
            raise NotFinite(
                f"{num} of {len(x)} samples are not finite: are the weights whole, and "
                "of this network?"
            )
        return to_uint8(x) if self.kind == PICTURES else x


def _first_not_finite(x: np.ndarray) -> tuple[int, float]:
    """The first value that float32 does not hold as a number, and its example."""
    with np.errstate(over="ignore"):
        place = int(np.argmax(~np.isfinite(x.astype(np.float32))))
    return place // (x.size // len(x)), float(x.flat[place])


def num_not_finite(x: np.ndarray) -> int:
    """How many of some examples [B, ...] hold values that are not finite."""
    return int(np.sum(~np.isfinite(x).reshape(len(x), -1).all(1)))


def to_uint8(x: Array) -> Array:
    """Values in [-1, 1] as the nearest grey levels 0..255; values beyond are clipped.

    Of NumPy and of JAX arrays alike, of any shape, in float32 and float64. Values that
    are not finite have no grey level: `Space.finish` refuses them.
    """
    return ((x.clip(-1.0, 1.0) + 1.0) * 127.5).round().astype(np.uint8)
