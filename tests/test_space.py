"""What an example is: told by shape and type, checked, asked when samples are made."""

import numpy as np
import pytest

from pd_jax.data import InMemory
from pd_jax.runtime.errors import NotFinite, Refused
from pd_jax.space import KINDS, Space, kind_of


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((8, 8, 1), np.float32, "pictures"),
        ((8, 8, 3), np.float64, "pictures"),
        ((8, 8, 4), np.float32, "latents"),
        ((8, 8, 2), np.float32, "latents"),
        ((8, 8, 4), np.uint8, "pictures"),
        ((8, 8), np.uint8, "pictures"),
        ((8, 8), np.float32, "signals"),
        ((2,), np.float32, "points"),
        ((3,), np.float32, "signals"),
        ((100,), np.uint8, "signals"),
        ((2, 8, 8, 3), np.float32, "signals"),
    ],
)
def test_the_kind_that_shape_and_type_tell(shape, dtype, kind):
    assert kind_of(shape, dtype) == kind


def test_pictures_alone_are_clipped():
    for kind, shape in zip(KINDS, [(8, 8, 3), (8, 8, 3), (2,), (8, 8, 3)], strict=True):
        assert Space.of(shape, kind) == Space(shape, kind, kind == "pictures")
        assert Space.of(shape, kind, clip=False) == Space(shape, kind, False)
    # As earlier versions took what a file does not name.
    assert Space.stored([8, 8, 4], "", True) == Space((8, 8, 4), "pictures", True)
    assert Space.stored([2], "", True) == Space((2,), "points", True)
    assert Space.stored([8, 8, 4], "latents", True) == Space.of((8, 8, 4))


@pytest.mark.parametrize(
    ("shape", "kind", "says"),
    [
        ((8, 8, 4), "pictures", r"\[8, 8, 4\] are no pictures.*kind=\"latents\""),
        ((8, 8, 2), "pictures", r"\[H, W, 1\] or \[H, W, 3\]"),
        ((8, 8), "latents", r"no latents, which are \[H, W, C\].*kind=\"signals\""),
        ((3,), "points", r"no points, which are \[2\]"),
        ((8, 8, 3), "picture", 'Did you mean "pictures"'),
    ],
)
def test_a_shape_that_is_not_of_the_kind(shape, kind, says):
    with pytest.raises(Refused, match=says):
        Space.of(shape, kind)


def test_samples_of_pictures_are_grey_levels_and_all_others_floats():
    x = np.float32([-3.0, -1.0, 0.0, 1.0, 3.0]).reshape(5, 1, 1, 1)
    levels = Space.of((1, 1, 1)).finish(x)
    assert levels.dtype == np.uint8
    assert levels.ravel().tolist() == [0, 0, 128, 255, 255]
    np.testing.assert_array_equal(Space.of((1, 1, 1), "latents").finish(x), x)
    x[1], x[3] = np.nan, np.inf
    for kind in ("pictures", "latents"):
        with pytest.raises(NotFinite, match="2 of 5 samples are not finite"):
            Space.of((1, 1, 1), kind).finish(x)


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (np.full((4, 2, 2, 3), -9.0), None, "go up to 9: scale them"),
        (np.full((4, 2, 2, 4), np.nan), None, "not finite"),
        (np.full((4, 2, 2, 4), 1e39), None, "beyond float32"),
        (np.zeros((4, 2, 2, 3), np.int64), None, "images are int64"),
        (np.zeros((4, 2, 2, 4), np.uint8), None, "are no pictures"),
        (np.zeros((4, 2)), np.full(4, 2**32 + 1), r"4294967297: 2\^31 - 1 is"),
        (np.zeros((4, 2)), np.full(4, 0.5), "labels are float64"),
    ],
)
def test_arrays_that_no_cast_would_keep(images, labels, says):
    with pytest.raises(Refused, match=says):
        InMemory(images, labels)


def test_arrays_are_cast_once():
    batch = InMemory(np.full((4, 2), 9.0), np.arange(4)).take(np.arange(2))
    assert {name: a.dtype.name for name, a in batch.items()} == {
        "image": "float32",
        "label": "int32",
    }
