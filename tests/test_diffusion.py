import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import diffusion
from pd_jax.diffusion import OUTPUTS, WEIGHTINGS, Prediction

LEVELS = (-20.0, -8.0, -1.0, 0.0, 1.0, 8.0, 20.0)


def case(logsnr, dtype=np.float64, seed=0):
    """Clean data, noise, and z = alpha x + sigma eps, all in float64."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (6, 4, 4, 3))
    eps = rng.standard_normal(x.shape)
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-logsnr)), 1 / np.sqrt(1 + np.exp(logsnr))
    z, v = alpha * x + sigma * eps, alpha * eps - sigma * x
    return tuple(a.astype(dtype) for a in (x, eps, z, v)), (alpha, sigma)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_scales_and_forward_process(logsnr):
    (x, eps, z, v), scales = case(logsnr, np.float32)
    np.testing.assert_allclose(diffusion.alpha_sigma(logsnr), scales, rtol=1e-6)
    level = jnp.full(6, logsnr)
    np.testing.assert_allclose(diffusion.diffuse(x, eps, level), z, atol=1e-6)
    np.testing.assert_allclose(diffusion.velocity(x, eps, level), v, atol=1e-6)


@pytest.mark.parametrize("logsnr", LEVELS)
@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_kind_gives_back_all_views(kind, logsnr):
    with jax.enable_x64(True):
        (x, eps, z, v), _ = case(logsnr)
        output = {"x": x, "eps": eps, "v": v, "both": np.concatenate([x, eps], -1)}
        found = diffusion.predict(output[kind], z, jnp.full(6, logsnr), kind)
        # x and eps divide by sigma or alpha, down to 4.5e-5: four digits go.
        for got, true in zip(found, (x, eps, v)):
            np.testing.assert_allclose(got, true, atol=1e-10)


@pytest.mark.parametrize("logsnr", LEVELS)
def test_both_is_the_papers_reconciliation(logsnr):
    with jax.enable_x64(True):
        (x, eps, z, _), (alpha, sigma) = case(logsnr)
        rng = np.random.default_rng(1)
        x_head, eps_head = x + rng.normal(size=x.shape), eps + rng.normal(size=x.shape)
        mixed = sigma**2 * x_head
        mixed = mixed + (1 - sigma**2) * (z - sigma * eps_head) / alpha
        output = np.concatenate([x_head, eps_head], -1)
        found = diffusion.predict(output, z, jnp.full(6, logsnr), "both")
        np.testing.assert_allclose(found.x, mixed, atol=1e-9)
        from_x = diffusion.predict(mixed, z, jnp.full(6, logsnr), "x")
        np.testing.assert_allclose(found.v, from_x.v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["v", "both"])
def test_v_and_both_stay_sharp_in_float32_at_the_ends(kind):
    for logsnr in (-20.0, 20.0):
        (x, eps, z, v), _ = case(logsnr, np.float32)
        output = v if kind == "v" else np.concatenate([x, eps], -1)
        found = diffusion.predict(output, z, jnp.full(6, logsnr), kind)
        chex.assert_tree_all_finite(found)
        for got, true in zip(found, (x, eps, v)):
            np.testing.assert_allclose(got, true, atol=2e-6)


@pytest.mark.parametrize("logsnr", [-8.0, -1.0, 0.0, 3.0, 8.0])
def test_weights_are_the_tables_weights(logsnr):
    with jax.enable_x64(True):
        (x, eps, z, v), (alpha, sigma) = case(logsnr)
        rng = np.random.default_rng(2)
        wrong = x + rng.standard_normal(x.shape)
        level = jnp.full(6, logsnr)
        prediction = diffusion.predict(wrong, z, level, "x")
        snr = alpha**2 / sigma**2
        weight = {
            "constant": 1.0,
            "snr": snr,
            "truncated_snr": max(snr, 1.0),
            "snr_plus_1": 1.0 + snr,
        }
        assert set(weight) == set(WEIGHTINGS)
        for name, w in weight.items():
            found = diffusion.weighted_mse(prediction, Prediction(x, eps, v), name)
            chex.assert_shape(found, (6,))
            mse = np.mean((wrong - x) ** 2, axis=(1, 2, 3))
            np.testing.assert_allclose(found, w * mse, rtol=1e-9)


def brute_posterior(x, z, s, t):
    """q(z_s | z_t, x) from Bayes' rule on the two Gaussians, in float64."""
    alpha = lambda l: np.sqrt(1 / (1 + np.exp(-l)))  # noqa: E731
    var = lambda l: 1 / (1 + np.exp(l))  # noqa: E731
    a = alpha(t) / alpha(s)
    forward = var(t) - a**2 * var(s)
    precision = 1 / var(s) + a**2 / forward
    mean = (alpha(s) * x / var(s) + a * z / forward) / precision
    return mean, 1 / precision, forward


@pytest.mark.parametrize(
    ("s", "t"), [(-1.0, -3.0), (4.0, 3.9), (10.0, 2.0), (-9.0, -20.0)]
)
def test_posterior_against_bayes(s, t):
    (x, _, z, _), _ = case(t)
    mean, small, large = brute_posterior(x, z, s, t)
    expected = {
        "small": small,
        "large": large,
        "medium:0.3": small**0.7 * large**0.3,
        "medium:0": small,
        "medium:1": large,
    }
    with jax.enable_x64(True):
        for name, var in expected.items():
            found, std = diffusion.posterior(x, z, jnp.full(6, s), jnp.full(6, t), name)
            np.testing.assert_allclose(found, mean, rtol=1e-6, atol=1e-9)
            chex.assert_equal_shape([x, found, std])
            np.testing.assert_allclose(std, np.sqrt(var), rtol=1e-6)
    f32 = [a.astype(np.float32) for a in (x, z)]
    found, std = diffusion.posterior(*f32, jnp.float32(s), jnp.float32(t), "small")
    np.testing.assert_allclose(found, mean, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(std, np.sqrt(small), rtol=2e-5)


def test_lists_integers_and_numpy_are_arrays(cosine):
    np.testing.assert_allclose(diffusion.alpha_sigma(0), np.sqrt(0.5), rtol=1e-6)
    found = diffusion.predict([[1.0, 2.0]], [[0.0, 0.0]], 0, "v")
    np.testing.assert_allclose(found.x, -np.sqrt(0.5) * np.array([[1.0, 2.0]]), 1e-6)
    with jax.enable_x64(True):
        assert cosine(1).dtype == jnp.float64
    z = np.zeros((2, 3))  # float64 in a float32 world: no warning
    assert diffusion.diffuse(z, z, [0.0, 1.0]).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda z, p: diffusion.predict(z, z, jnp.zeros(2), "w"), "known are"),
        (lambda z, p: diffusion.predict(z, z, jnp.zeros(2), "both"), r"\(2, 6\)"),
        (lambda z, p: diffusion.weighted_mse(p, p, "snr+1"), "snr_plus_1"),
        (lambda z, p: diffusion.posterior(z, z, 1.0, 0.0, "medium:2"), "between 0"),
        (lambda z, p: diffusion.posterior(z, z, 1.0, 0.0, "tiny"), "small, large"),
    ],
)
def test_wrong_use(call, says):
    z = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=says):
        call(z, Prediction(z, z, z))
