"""The user's own images, as one NumPy archive that fits in memory."""

import os
import pathlib

from pd_jax.data import Dataset, InMemory
from pd_jax.runtime import console
from pd_jax.runtime.errors import Refused
from pd_jax.storage import files


def load(
    path: str = "",
    image_key: str = "images",
    label_key: str = "",
    flip: bool = False,
    kind: str = "",
) -> Dataset:
    """Images [N, H, W, C] from a .npz file; uint8 in 0..255 or float in [-1, 1].

    Other data are floating point of any shape [N, ...] and range; `kind` names them.

    Args:
      path: the file.
      image_key: name of the array of images in it.
      label_key: name of the array of labels; empty for none.
      flip: mirrors half of the training images left to right.
      kind: what the images are: pictures [H, W, 1 or 3], latents [H, W, C], points [2]
        or signals; empty for what type and shape tell.

    Raises:
      Refused: for a file, array, shape, type or range that is not as above.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise Refused(f'data.path="{path}": no such file; give a .npz archive')
    wanted = [key for key in (image_key, label_key) if key]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    arrays = files.read_npz(file, wanted, memory)
    for key in wanted:
        if key not in arrays:
            inside = ", ".join(files.npz_names(file)) or "nothing"
            raise Refused(f'{path}: no array "{key}"; the file has: {inside}')
    others = [name for name in files.npz_names(file) if name not in wanted]
    if others:
        console.say(f"{path}: of its arrays these are left out: {', '.join(others)}")
    images = arrays[image_key]
    if images.ndim < 2 or (images.ndim != 4 and not kind) or not images.size:
        raise Refused(
            f'{path}: "{image_key}" has shape {images.shape}; images are [N, H, W, C], '
            "and other data need data.kind to say what they are"
        )
    try:
        return InMemory(images, arrays.get(label_key), flip=flip, kind=kind)
    except Refused as error:
        raise Refused(f"{path}: {error}") from error
