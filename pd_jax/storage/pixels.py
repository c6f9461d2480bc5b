"""Pixels: floats in [-1, 1] and grey levels 0..255."""

from typing import TypeVar

import jax
import numpy as np

Array = TypeVar("Array", np.ndarray, jax.Array)


def to_uint8(x: Array) -> Array:
    """Values in [-1, 1] as the nearest grey levels 0..255; values beyond are clipped.

    Of NumPy and of JAX arrays alike, of any shape, in float32 and float64.
    """
    return ((x.clip(-1.0, 1.0) + 1.0) * 127.5).round().astype(np.uint8)
