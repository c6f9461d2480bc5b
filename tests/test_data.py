import collections

import chex
import numpy as np
import pytest

from pd_jax import data
from pd_jax.data import InMemory

ROWS = np.arange(10)
SMALL = InMemory(ROWS[:, None].astype(np.float32), ROWS.astype(np.int32))


FILES = {"npz", "tfds", "image_folder"}  # these need files, and have their own tests


def batch(dataset, first, size, seed, **kw):
    return next(dataset.batches(first, size, seed, **kw))


def test_order_is_a_function_of_place_and_visits_all():
    whole = batch(SMALL, 0, 30, (1,))
    for first, size in [(0, 7), (7, 16), (23, 7)]:
        part = batch(SMALL, first, size, (1,))
        np.testing.assert_array_equal(
            part["image"], whole["image"][first : first + size]
        )
    epochs = whole["label"].reshape(3, 10)
    for epoch in epochs:
        assert collections.Counter(epoch.tolist()) == collections.Counter(range(10))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(whole["label"], batch(SMALL, 0, 30, (2,))["label"])
    np.testing.assert_array_equal(whole["image"][:, 0], whole["label"])


def test_batches_go_on_and_parts_make_a_whole():
    batches = SMALL.batches(4, 6, (1,))
    for first in (4, 10, 16):
        whole = next(batches)["label"]
        np.testing.assert_array_equal(whole, batch(SMALL, first, 6, (1,))["label"])
        parts = [batch(SMALL, first, 6, (1,), part=(i, 3))["label"] for i in range(3)]
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_batches_larger_than_the_data():
    assert batch(SMALL, 3, 100, (0,))["image"].shape == (100, 1)


def test_flips_are_a_function_of_place_and_half():
    images = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None] * 85, (500, 2, 4, 1))
    dataset = InMemory(images, flip=True)
    whole = batch(dataset, 0, 1000, (3,))["image"]
    assert whole.dtype == np.float32
    assert len(np.unique(whole)) == 4
    flipped = whole[:, 0, 0, 0] > 0
    np.testing.assert_array_equal(flipped, whole[:, 1, 3, 0] < 0)
    assert 400 < flipped.sum() < 600
    part = batch(dataset, 600, 100, (3,))["image"]
    np.testing.assert_array_equal(part, whole[600:700])
    assert np.all(dataset.take(np.arange(500))["image"][:, 0, 0, 0] == -1.0)


@pytest.mark.parametrize("name", sorted(set(data.known()) - FILES))
def test_contract(name):
    dataset = data.get(name)
    taken = dataset.take(np.array([0, len(dataset) - 1]))
    for found in (taken, batch(dataset, 5, 2, (0,))):
        chex.assert_shape(found["image"], (2, *dataset.shape))
        assert found["image"].dtype == np.float32
        if len(dataset.shape) == 3:
            assert np.all(np.abs(found["image"]) <= 1.0)
        assert ("label" in found) == bool(dataset.num_classes)
        if dataset.num_classes:
            assert found["label"].dtype == np.int32
            assert np.all(
                (found["label"] >= 0) & (found["label"] < dataset.num_classes)
            )
    drawn = dataset.draw_labels(np.random.default_rng(0), 5)
    assert (drawn is None) == (not dataset.num_classes)
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


class Lazy:
    """An array that is read when it is indexed."""

    def __init__(self, images):
        self._images, self.shape, self.dtype = images, images.shape, images.dtype

    def __len__(self):
        return len(self._images)

    def __getitem__(self, rows):
        return self._images[rows]


def test_what_is_read_later_is_checked_then():
    images = np.zeros((8, 2, 2, 1), np.float32)
    images[5] = np.nan
    dataset = InMemory(Lazy(images))
    assert dataset.take(np.arange(5))["image"].shape == (5, 2, 2, 1)
    with pytest.raises(ValueError, match=r"not finite.*example 1 of 2 holds nan"):
        dataset.take(np.arange(4, 6))


def test_npz_of_ones_own(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, y=np.array([0, 1, 2, 1, 0]))
    path = str(tmp_path / "a.npz")
    dataset = data.get("npz", path=path, label_key="y")
    levels = np.round((dataset.take(np.arange(5))["image"] + 1) * 127.5)
    np.testing.assert_array_equal(levels, images)
    assert dataset.num_classes == 3
    assert "left out" not in capsys.readouterr().out
    assert data.get("npz", path=path).labels is None
    assert "of its arrays these are left out: y" in " ".join(
        capsys.readouterr().out.split()
    )


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_npz_at_home(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", images=np.zeros((3, 4, 4, 1), np.uint8))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(data.get("npz", path="~/mine.npz")) == 3


def test_npz_that_cannot_be_used(tmp_path):
    good = np.zeros((5, 4, 4, 1), np.float32)
    cases = {
        "no array of that name": (dict(other=good), "the file has: other"),
        "flat": (dict(images=good[..., 0]), "N, H, W, C"),
        "empty": (dict(images=good[:0]), "N, H, W, C"),
        "int64": (dict(images=good.astype(int)), "uint8"),
        "too large": (dict(images=good + 2), "go up to 2: scale"),
        "not a number": (dict(images=good * np.nan), "not finite"),
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
