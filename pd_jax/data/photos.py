"""Crops of the two photographs inside scikit-learn: natural images, no download."""

import dataclasses

import numpy as np

from pd_jax.data import Dataset, InMemory
from pd_jax.runtime.errors import Refused

HELD_BACK_COLUMNS = 128  # of each photograph's 640, at its right


@dataclasses.dataclass(frozen=True)
class Crops:
    """All square crops of some images, indexed by rows like an array of them.

    Attributes:
      windows: [photos, top, left, channels, size, size], a view of the photographs.
    """

    windows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, size, size, channels)."""
        *places, channels, size, _ = self.windows.shape
        return int(np.prod(places)), size, size, channels

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return self.windows.dtype

    def __len__(self) -> int:
        """Number of crops."""
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The crops [..., size, size, channels] of rows: integers, or a slice."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        places = np.unravel_index(rows, self.windows.shape[:3])
        return np.moveaxis(self.windows[places], -3, -1)


def load(size: int = 32, flip: bool = True) -> Dataset:
    """Crops [N, size, size, 3] at every position of two photographs, 427 x 640 each.

    Each photograph's right-most 128 columns are held back for comparison: crops of
    them, which share no pixel with the others, are `reference`.

    Args:
      size: height and width.
      flip: mirrors half of the training images left to right.

    Raises:
      Refused: unless size is in 1..128.
    """
    if not 1 <= size <= HELD_BACK_COLUMNS:
        raise Refused(
            f"data.size={size}: take 1 to {HELD_BACK_COLUMNS}, the width of the strip "
            "that is held back"
        )
    from sklearn.datasets import load_sample_images  # takes a second

    photos = np.stack(load_sample_images().images)

    def crops(part):
        view = np.lib.stride_tricks.sliding_window_view(part, (size, size), (1, 2))
        return Crops(view)

    held_back = InMemory(crops(photos[:, :, -HELD_BACK_COLUMNS:]))
    return InMemory(
        crops(photos[:, :, :-HELD_BACK_COLUMNS]), flip=flip, held_back=held_back
    )
