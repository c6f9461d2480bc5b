import pytest

from pd_jax.ladder import step_counts


@pytest.mark.parametrize(
    ("start", "end", "factor", "counts"),
    [
        (32, 1, 2, (16, 8, 4, 2, 1)),
        (8192, 4, 2, (4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4)),
        (64, 1, 4, (16, 4, 1)),
        (12, 3, 2, (6, 3)),
        (2, 1, 2, (1,)),
    ],
)
def test_step_counts(start, end, factor, counts):
    assert step_counts(start, end, factor) == counts


@pytest.mark.parametrize(
    ("start", "end", "factor"), [(24, 1, 2), (1, 1, 2), (4, 8, 2), (0, 1, 2), (8, 1, 4)]
)
def test_impossible_ladders_say_what_is_possible(start, end, factor):
    with pytest.raises(ValueError, match="power of factor") as error:
        step_counts(start, end, factor)
    nearest = int(str(error.value).rsplit(" ", 1)[1])
    assert step_counts(nearest, end, factor)


@pytest.mark.parametrize(("end", "factor"), [(0, 2), (1, 1), (-1, 2)])
def test_nonsense(end, factor):
    with pytest.raises(ValueError, match="at least"):
        step_counts(8, end, factor)
