import collections

import numpy as np
import pytest

from pd_jax import data
from pd_jax.data import Dataset

SMALL = Dataset(np.arange(10, dtype=np.float32)[:, None], np.arange(10, dtype=np.int32))


def test_order_is_a_function_of_place_and_visits_all():
    whole = SMALL.batch(0, 30, (1,))
    for first, size in [(0, 7), (7, 16), (23, 7)]:
        part = SMALL.batch(first, size, (1,))
        np.testing.assert_array_equal(
            part["image"], whole["image"][first : first + size]
        )
    epochs = whole["label"].reshape(3, 10)
    for epoch in epochs:
        assert collections.Counter(epoch.tolist()) == collections.Counter(range(10))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(whole["label"], SMALL.batch(0, 30, (2,))["label"])
    np.testing.assert_array_equal(whole["image"][:, 0], whole["label"])


def test_batches_larger_than_the_data():
    assert SMALL.batch(3, 100, (0,))["image"].shape == (100, 1)


@pytest.mark.parametrize("name", sorted(set(data.known()) - {"npz"}))
def test_contract(name):
    dataset = data.get(name)
    assert dataset.images.dtype == np.float32
    assert dataset.shape == dataset.images.shape[1:]
    if len(dataset.shape) == 3:
        assert dataset.images.min() >= -1.0
        assert dataset.images.max() <= 1.0
    if dataset.labels is not None:
        assert dataset.labels.dtype == np.int32
        assert dataset.labels.min() == 0
    assert set(data.options(name))


def test_digits_are_the_digits():
    digits = data.get("digits", num_images=1797)
    assert digits.shape == (8, 8, 1)
    assert digits.num_classes == 10
    assert np.all(np.unique(digits.images * 8) == np.arange(-8, 9))


def test_ring_has_its_modes():
    ring = data.get("ring2d", modes=4, radius=2.0, std=0.1, num_points=4000)
    radius = np.linalg.norm(ring.images, axis=1)
    assert np.mean(radius) == pytest.approx(2.0, abs=0.01)
    angle = np.round(np.arctan2(*ring.images.T[::-1]) / (np.pi / 2)) % 4
    assert np.all(np.bincount(angle.astype(int), minlength=4) > 800)


def test_npz_of_ones_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, y=np.array([0, 1, 2, 1, 0]))
    path = str(tmp_path / "a.npz")
    dataset = data.get("npz", path=path, label_key="y")
    levels = np.round((dataset.images + 1) * 127.5)
    np.testing.assert_array_equal(levels, images)
    assert dataset.num_classes == 3
    assert data.get("npz", path=path).labels is None


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_npz_that_cannot_be_used(tmp_path):
    good = np.zeros((5, 4, 4, 1), np.float32)
    cases = {
        "no array of that name": (dict(other=good), "the file has: other"),
        "flat": (dict(images=good[..., 0]), "N, H, W, C"),
        "empty": (dict(images=good[:0]), "N, H, W, C"),
        "int64": (dict(images=good.astype(int)), "uint8"),
        "too large": (dict(images=good + 2), "leaves"),
        "not a number": (dict(images=good * np.nan), "leaves"),
        "short labels": (dict(images=good, y=np.zeros(4, int)), "one for each"),
        "negative labels": (dict(images=good, y=np.full(5, -1)), "negative"),
        "float labels": (dict(images=good, y=np.zeros(5)), "integers"),
        "objects": (
            dict(images=np.array([Trap(tmp_path / "trap")], object)),
            "not a readable",
        ),
    }
    for name, (arrays, says) in cases.items():
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=says):
            data.get("npz", path=str(path), label_key="y" if "y" in arrays else "")
    assert not (tmp_path / "trap").exists()
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match="not a readable"):
        data.get("npz", path=str(tmp_path / "text.npz"))
    whole = (tmp_path / "flat.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable"):
        data.get("npz", path=str(tmp_path / "cut.npz"))
    with pytest.raises(ValueError, match="no such file"):
        data.get("npz", path=str(tmp_path / "none.npz"))


@pytest.mark.parametrize(
    ("name", "kw", "says"),
    [
        ("digit", {}, 'Did you mean "digits"'),
        ("digits", {"num_image": 3}, 'Did you mean "num_images"'),
        ("digits", {"num_images": 2000}, "1797"),
        ("ring2d", {"std": 0.0}, "positive"),
    ],
)
def test_wrong_use(name, kw, says):
    with pytest.raises(ValueError, match=says):
        data.get(name, **kw)
