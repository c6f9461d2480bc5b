import numpy as np
import pytest
import scipy.linalg

from pd_jax.metrics import Moments, frechet_distance, rmse


def literal(a, b):
    """The formula with SciPy's square root of the product of covariances."""
    a, b = (x.reshape(len(x), -1) for x in (a, b))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    shift = np.sum((a.mean(0) - b.mean(0)) ** 2)
    return shift + np.trace(cov_a + cov_b - 2 * root)


def sets(dimensions=6):
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((dimensions, dimensions))
    return rng.standard_normal((400, dimensions)) @ mix, rng.uniform(
        0, 2, (300, dimensions)
    )


def test_frechet_is_the_formula():
    a, b = sets()
    assert frechet_distance(a, b) == pytest.approx(literal(a, b), rel=1e-6)
    images = frechet_distance(a.reshape(-1, 3, 2, 1), b.reshape(-1, 3, 2, 1))
    assert images == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert frechet_distance(Moments.of(a), b) == frechet_distance(a, b)


def test_frechet_on_the_line_is_closed():
    rng = np.random.default_rng(0)
    a, b = 1 + 2 * rng.standard_normal((500, 1)), 3 * rng.standard_normal((700, 1))
    true = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(true, rel=1e-9)


def test_frechet_of_singular_covariances():
    a, b = sets()
    wide = [np.concatenate([x, np.zeros((len(x), 40))], 1) for x in (a, b)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    few = a[:4]  # fewer examples than dimensions
    assert np.isfinite(frechet_distance(few, b))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-7)


def test_rmse():
    assert rmse(np.zeros((2, 2)), np.full((2, 2), 3.0)) == 3.0


def test_wrong_shapes():
    with pytest.raises(ValueError, match="dimensions"):
        frechet_distance(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(np.zeros((1, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="shapes"):
        rmse(np.zeros(2), np.zeros(3))
