import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import analytic
from pd_jax.diffusion import alpha_sigma

LEVELS = jnp.array([-20.0, -6.0, 0.0, 6.0, 20.0])


def posterior_mean(z, alpha, sigma, means, std, weights):
    """E[x | z] of a mixture on the line by quadrature, float64."""
    x = np.linspace(-4, 4, 400_001)
    prior = sum(w * np.exp(-0.5 * ((x - m) / std) ** 2) for m, w in zip(means, weights))
    log_p = -0.5 * ((z - alpha * x) / sigma) ** 2
    p = prior * np.exp(log_p - log_p.max())
    return np.sum(p * x) / np.sum(p)


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3]])
def test_mixture_against_quadrature(weights):
    means, std = np.array([-1.0, 0.2, 1.5]), 0.3
    with jax.enable_x64(True):
        denoise = analytic.mixture(means[:, None], std, weights)
        for logsnr in (-6.0, -1.0, 0.0, 2.0, 5.0):
            z = np.linspace(-2.0, 2.0, 7)
            alpha, sigma = (float(a) for a in alpha_sigma(logsnr))
            found = denoise(jnp.asarray(z)[:, None], jnp.full(7, logsnr))
            for got, z_i in zip(found.x[:, 0], z):
                true = posterior_mean(z_i, alpha, sigma, means, std, weights or [1] * 3)
                assert float(got) == pytest.approx(true, abs=1e-7)


@pytest.mark.parametrize(
    "denoise",
    [
        analytic.gaussian(np.array([0.3, -0.7]), 0.2),
        analytic.gaussian(0.1, np.array([0.5, 2.0])),
        analytic.mixture(np.array([[1.0, 0.0], [0.0, -1.0]]), 0.05),
    ],
)
def test_views_are_one_prediction_and_float32_keeps_up_at_both_ends(denoise):
    z32 = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    with jax.enable_x64(True):
        z, logsnr = jnp.asarray(z32, jnp.float64), LEVELS.astype(jnp.float64)
        x, eps, v = denoise(z, logsnr)
        alpha, sigma = (a[:, None] for a in alpha_sigma(logsnr))
        np.testing.assert_allclose(alpha * x + sigma * eps, z, atol=1e-12)
        np.testing.assert_allclose(alpha * eps - sigma * x, v, atol=1e-12)
    for got, true in zip(denoise(z32, LEVELS), (x, eps, v)):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, true, rtol=2e-5, atol=2e-6)


def test_gaussian_is_a_mixture_of_itself():
    z = jax.random.normal(jax.random.key(0), (5, 2, 3))
    mean = np.full((2, 3), 0.3)
    one = analytic.gaussian(mean, 0.4)(z, LEVELS)
    many = analytic.mixture(np.stack([mean, mean]), 0.4)(z, LEVELS)
    for a, b in zip(one, many):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_gaussian_map_ends_in_the_distribution(cosine):
    z = jax.random.normal(jax.random.key(0), (50_000, 2))
    x = analytic.gaussian_map(z, np.array([0.5, -1.0]), 0.3, cosine.angle(1.0))
    np.testing.assert_allclose(np.mean(x, 0), [0.5, -1.0], atol=0.01)
    np.testing.assert_allclose(np.std(x, 0), 0.3, rtol=0.02)
