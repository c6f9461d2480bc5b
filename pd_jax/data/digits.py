"""Handwritten digits, 8x8: real images that come inside scikit-learn."""

import numpy as np

from pd_jax.data import Dataset, InMemory
from pd_jax.runtime.errors import Refused


def load(num_images: int = 1500) -> Dataset:
    """Grey 8x8 images [N, 8, 8, 1], labels 0 to 9.

    Args:
      num_images: the first so many, of 1797.

    Raises:
      Refused: unless num_images is in 1..1797.
    """
    from sklearn.datasets import load_digits  # takes a second

    images, labels = load_digits(return_X_y=True)
    if not 1 <= num_images <= len(images):
        raise Refused(
            f"data.num_images={num_images}: the digits are {len(images)} images, take "
            f"1 to {len(images)}"
        )
    # Sixteen grey levels above black.
    images = (images.reshape(-1, 8, 8, 1) / 8.0 - 1.0).astype(np.float32)
    return InMemory(images[:num_images], labels[:num_images].astype(np.int32))
