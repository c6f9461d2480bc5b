import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from pd_jax import data


def levels(batch):
    return np.rint((batch["image"] + 1.0) * 127.5).astype(np.uint8)


def test_every_position_is_a_crop():
    photos = data.get("photos", size=32, flip=False)
    rows_and_columns = (427 - 31) * (640 - 128 - 31)
    assert photos.shape == (32, 32, 3)
    assert len(photos) == photos.images.shape[0] == 2 * rows_and_columns
    china, flower = load_sample_images().images
    across = 640 - 128 - 31
    rows = np.array([0, 5 * across + 7, rows_and_columns - 1, rows_and_columns])
    np.testing.assert_array_equal(
        levels(photos.take(rows)),
        [
            china[:32, :32],
            china[5:37, 7:39],
            china[395:, 480:512],
            flower[:32, :32],
        ],
    )
    np.testing.assert_array_equal(photos.images[2:4], photos.images[np.array([2, 3])])


def test_held_back_pixels_are_in_no_training_crop():
    photos = data.get("photos", size=16)
    held_back = photos.reference
    assert held_back.shape == photos.shape
    assert len(held_back) == 2 * (427 - 15) * (128 - 15)
    china = load_sample_images().images[0]
    np.testing.assert_array_equal(
        levels(held_back.take(np.array([0])))[0], china[:16, 512:528]
    )


def test_batches():
    batch = next(data.get("photos").batches(0, 64, (0,)))
    assert batch["image"].shape == (64, 32, 32, 3)
    assert batch["image"].dtype == np.float32
    assert "label" not in batch


@pytest.mark.parametrize("size", [0, 129])
def test_wrong_size(size):
    with pytest.raises(ValueError, match=r"data\.size"):
        data.get("photos", size=size)
