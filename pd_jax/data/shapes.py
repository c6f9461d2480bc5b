"""Made pictures: a coloured disc or square on a shaded ground.

For miniatures of configs whose real data must be fetched first.
"""

import numpy as np

from pd_jax.data import Dataset, InMemory
from pd_jax.runtime.errors import Refused


def load(
    size: int = 16, num_images: int = 512, num_classes: int = 0, flip: bool = False
) -> Dataset:
    """Images [N, size, size, 3], each a function of its number; labels by hue.

    Args:
      size: side in pixels.
      num_images: how many.
      num_classes: shapes of label k have one of so many hues; 0: any, without labels.
      flip: mirrors half of the training images left to right.

    Raises:
      Refused: unless size >= 4, num_images >= 2, num_classes >= 0.
    """
    least = {"size": 4, "num_images": 2, "num_classes": 0}
    for key, value in dict(
        size=size, num_images=num_images, num_classes=num_classes
    ).items():
        if value < least[key]:
            raise Refused(f"data.{key}={value}: must be at least {least[key]}")
    rng = np.random.default_rng(0)
    labels = rng.integers(max(num_classes, 1), size=num_images).astype(np.int32)
    hue = labels / num_classes if num_classes else rng.random(num_images)
    centre = rng.uniform(0.3, 0.7, (2, num_images, 1, 1))
    radius = rng.uniform(0.15, 0.3, (num_images, 1, 1))
    square = rng.random((num_images, 1, 1)) < 0.5
    shade = rng.uniform(-0.5, 0.5, (num_images, 1, 1, 3))

    y, x = (np.indices((size, size)) + 0.5) / size
    away = np.abs(y - centre[0]), np.abs(x - centre[1])
    inside = np.where(square, np.maximum(*away), np.hypot(*away)) < radius
    ground = 0.5 + shade * (y + x - 1.0)[None, :, :, None]
    phase = hue[:, None] + np.arange(3) / 3.0
    colour = 0.5 + 0.5 * np.cos(2.0 * np.pi * phase)[:, None, None, :]
    images = np.where(inside[..., None], colour, ground)
    levels = np.round(255.0 * np.clip(images, 0.0, 1.0)).astype(np.uint8)
    return InMemory(levels, labels if num_classes else None, flip=flip)
