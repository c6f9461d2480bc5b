import pytest

from pd_jax.methods.progressive import step_counts
from pd_jax.training.plateau import Plateau


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


@pytest.mark.parametrize(
    ("improvement", "losses", "ends_after"),
    [
        (0.1, [1.0, 0.8, 0.7, 0.65, 0.6], 4),  # 0.65 is lower by 7%
        (0.01, [1.0, 0.8, 0.7, 0.65, 0.6], None),
        (0.01, [1.0, 0.5, 0.6], 3),  # it grows
        (0.5, [1.0], None),  # nothing to compare it with
        (0.0, [1.0, 1.0, 2.0], None),  # the rule is off
    ],
)
def test_a_stage_ends_where_its_loss_stops_improving(improvement, losses, ends_after):
    rule = Plateau(50, improvement)
    counts = range(1, len(losses) + 1)
    found = [n for n in counts if rule.reached(losses[:n])]
    assert next(iter(found), None) == ends_after


def test_checks_and_where_they_may_end_a_stage():
    rule = Plateau(50, 0.01)
    assert [done for done in range(160) if rule.due(done)] == [50, 100, 150]
    assert not any(Plateau().due(done) for done in range(100))
    assert rule.end(200, 1000) == 200
    assert rule.end(200, 1000, cooldown=0.2) == 250  # a fifth of it is left
    assert rule.end(210, 1000, cooldown=0.2) == 310  # in whole checks
    assert rule.end(950, 1000, cooldown=0.2) == 1000  # as planned
