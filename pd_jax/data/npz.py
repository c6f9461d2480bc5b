"""The user's own images, as one NumPy archive that fits in memory."""

import os
import pathlib

import numpy as np

from pd_jax.data import Dataset, InMemory
from pd_jax.runtime.errors import Refused
from pd_jax.storage import files


def load(
    path: str = "", image_key: str = "images", label_key: str = "", flip: bool = False
) -> Dataset:
    """Images [N, H, W, C] from a .npz file; uint8 in 0..255 or float in [-1, 1].

    Args:
      path: the file.
      image_key: name of the array of images in it.
      label_key: name of the array of labels; empty for none.
      flip: mirrors half of the training images left to right.

    Raises:
      Refused: for a file, array, shape, type or range that is not as above.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise Refused(f'data.path="{path}": no such file; give a .npz archive')
    wanted = [key for key in (image_key, label_key) if key]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    arrays = files.read_npz(file, wanted, memory)
    for key in wanted:
        if key not in arrays:
            inside = ", ".join(files.npz_names(file)) or "nothing"
            raise Refused(f'{path}: no array "{key}"; the file has: {inside}')
    images = arrays[image_key]
    if images.ndim != 4 or not images.size:
        raise Refused(
            f'{path}: "{image_key}" has shape {images.shape}; images are [N, H, W, C]'
        )
    if np.issubdtype(images.dtype, np.floating):
        if not np.all(np.abs(images) <= 1.0):
            raise Refused(
                f'{path}: "{image_key}" leaves [-1, 1] (or is not finite); scale it'
            )
        images = images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise Refused(
            f'{path}: "{image_key}" is {images.dtype}; give uint8 or floating point'
        )
    if not label_key:
        return InMemory(images, flip=flip)
    labels = arrays[label_key]
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise Refused(
            f'{path}: "{label_key}" is {labels.dtype} {labels.shape}; labels are '
            f"integers, one for each of {len(images)} images"
        )
    if labels.min() < 0:
        raise Refused(f'{path}: "{label_key}" has negative labels; count from 0')
    if labels.max() >= 2**31:
        raise Refused(f'{path}: "{label_key}" has labels of 2^31 or above')
    return InMemory(images, labels.astype(np.int32), flip=flip)
