"""The gap of two denoisers, against Gaussians whose divergence is closed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from pd_jax import analytic, schedules, scores
from pd_jax.diffusion import Prediction, alpha_sigma, diffuse

PHI = 0.9
MEAN, STD = 0.3, 0.7  # the generator's
DATA_MEAN, DATA_STD = -0.5, 1.4


def normal_draws(dims, order=4):
    """Gauss-Hermite nodes [N, dims] and weights [N] of a standard normal."""
    node, weight = np.polynomial.hermite_e.hermegauss(order)
    nodes = np.array(list(itertools.product(node, repeat=dims)))
    weights = np.array(list(itertools.product(weight, repeat=dims))).prod(1)
    return nodes, weights / weights.sum()


def divergence(mean, std, data_mean, phi=PHI):
    """KL of the generator's Gaussian to the data's, both with noise."""
    alpha, sigma = np.cos(phi), np.sin(phi)
    q, p = (jnp.square(alpha * s) + sigma**2 for s in (std, DATA_STD))
    shift = jnp.square(alpha * (mean - data_mean))
    return jnp.sum(0.5 * (jnp.log(p / q) + q / p + shift / p - 1.0))


def gradient(mean, data_mean, weight="kl", fake_is_sample=False):
    """By the generator's mean and std: (gradients, per-draw field, weights)."""
    dims = len(mean)
    nodes, of_node = normal_draws(2 * dims, 4 if dims == 1 else 3)
    eps_x, eps = nodes[:, :dims], nodes[:, dims:]
    logsnr = jnp.full(len(nodes), -2.0 * np.log(np.tan(PHI)))
    teacher = analytic.gaussian(data_mean, DATA_STD)
    fields = []

    def loss(mean, std):
        x = mean[None] + std * eps_x
        z = diffuse(x, eps, logsnr)
        fake = analytic.gaussian(jax.lax.stop_gradient(mean), STD)(z, logsnr)
        if fake_is_sample:
            fake = Prediction(x, fake.eps, fake.v)
        field = scores.gap(x, fake, teacher(z, logsnr), logsnr, weight)
        fields.append(field)
        return dims * jnp.sum(of_node * scores.pull(field, x))

    found = jax.grad(loss, (0, 1))(mean, jnp.asarray(STD))
    with_mean = jnp.sum(of_node[:, None] * fields[0], 0)
    variance = of_node @ jnp.square(fields[0] - with_mean[None])
    return found, variance


@pytest.mark.parametrize(
    ("mean", "data_mean"), [([MEAN], [DATA_MEAN]), ([MEAN, -0.1], [DATA_MEAN, 0.6])]
)
def test_the_kl_gap_is_the_gradient_of_the_divergence(mean, data_mean):
    with jax.enable_x64(True):
        mean, data_mean = jnp.asarray(mean), np.array(data_mean)
        found, _ = gradient(mean, data_mean)
        std = jnp.full(len(mean), STD)
        by_mean, by_std = jax.grad(divergence, (0, 1))(mean, std, data_mean)
        np.testing.assert_allclose(found[0], by_mean, atol=1e-13)
        np.testing.assert_allclose(found[1], by_std.sum(), atol=1e-13)


def test_a_gaussians_numbers():
    with jax.enable_x64(True):
        mean, data_mean = jnp.array([MEAN]), np.array([DATA_MEAN])
        (by_mean, by_std), variance = gradient(mean, data_mean)
        assert float(by_mean[0]) == pytest.approx(0.2254792, abs=1e-7)
        assert float(by_std) == pytest.approx(-0.1395683, abs=1e-7)
        assert float(variance[0]) == pytest.approx(0.083, abs=1e-3)
        # The samples themselves for D_q, as in score distillation: no entropy in it.
        (by_mean, by_std), variance = gradient(mean, data_mean, fake_is_sample=True)
        assert float(by_mean[0]) == pytest.approx(0.2254792, abs=1e-7)
        assert float(by_std) == pytest.approx(0.1973, abs=1e-4)
        assert float(variance[0]) == pytest.approx(0.231, abs=1e-3)


def test_the_gap_is_the_difference_of_the_scores():
    with jax.enable_x64(True):
        phi = jnp.asarray([0.02, 0.5, PHI, 1.5, 1.57])
        logsnr = -2.0 * jnp.log(jnp.tan(phi))
        alpha, sigma = alpha_sigma(logsnr)
        z = jnp.asarray([-1.0, 0.3, 0.0, 2.0, 0.4])[:, None]
        fake = analytic.gaussian(MEAN, STD)(z, logsnr)
        teacher = analytic.gaussian(DATA_MEAN, DATA_STD)(z, logsnr)
        field = scores.gap(z, fake, teacher, logsnr, "constant")[:, 0]

        def score(mean, std):
            return -(z[:, 0] - alpha * mean) / (alpha**2 * std**2 + sigma**2)

        difference = score(MEAN, STD) - score(DATA_MEAN, DATA_STD)
        np.testing.assert_allclose(alpha / sigma**2 * field, difference, rtol=1e-9)
        field = scores.gap(z, fake, teacher, logsnr, "kl")[:, 0]
        np.testing.assert_allclose(field, alpha * difference, rtol=1e-9)


def arrays(seed=0, shape=(4, 2, 3)):
    rng = np.random.default_rng(seed)
    x, fake, teacher = rng.standard_normal((3, *shape)).astype(np.float32)
    logsnr = rng.uniform(-4, 4, shape[0]).astype(np.float32)
    return x, fake, teacher, logsnr


def of_x(x):
    """A prediction of which nothing but x may be read."""
    return Prediction(x, None, None)


@pytest.mark.parametrize("weight", scores.WEIGHTS)
def test_weights(weight):
    x, fake, teacher, logsnr = arrays()
    k = {
        "constant": np.ones(4),
        "kl": np.exp(logsnr),
        "dmd": 1.0 / np.abs(x - teacher).reshape(4, 6).mean(1),
    }[weight]
    found = scores.gap(x, of_x(fake), of_x(teacher), logsnr, weight)
    expected = k[:, None, None] * (fake - teacher)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_samples_that_the_teacher_leaves_alone_have_a_finite_weight():
    x, fake, _, logsnr = arrays()
    teacher = x.copy()
    teacher[1] += 2e-5
    found = scores.gap(x, of_x(fake), of_x(teacher), logsnr, "dmd")
    np.testing.assert_allclose(found[0], 1e5 * (fake - x)[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], 5e4 * (fake - teacher)[1], rtol=2e-2)


@pytest.mark.parametrize("weight", scores.WEIGHTS)
def test_no_gradient_flows_through_the_gap(weight):
    x, fake, teacher, logsnr = arrays()

    def total(x, scale):
        field = scores.gap(x, of_x(scale * fake * x), of_x(teacher), logsnr, weight)
        return jnp.sum(field * field)

    for gradient in jax.grad(total, (0, 1))(x, 1.5):
        assert not np.any(gradient)


def test_the_pulls_gradient_is_the_field():
    x, field, _, _ = arrays()
    losses = scores.pull(field, x)
    np.testing.assert_allclose(losses, (field * x).reshape(4, 6).mean(1), rtol=1e-5)
    # Of its samples' own field too: that is held.
    by_x = jax.grad(lambda x: jnp.sum(scores.pull(field * x, x)))(x)
    np.testing.assert_allclose(by_x, field * x / 6, rtol=1e-6)


def test_the_uniform_law_is_the_schedules_time(cosine):
    u = jnp.linspace(0.0, 1.0, 101)
    np.testing.assert_array_equal(scores.logsnr_at("uniform", u, cosine), cosine(u))


def test_the_lognormal_law(cosine):
    u = jnp.asarray([0.5, ndtr(1.0), ndtr(-2.0)], jnp.float32)
    found = scores.logsnr_at("lognormal", u, cosine)
    np.testing.assert_allclose(found, [2.4, 0.0, 7.2], atol=2e-6)
    with jax.enable_x64(True):
        u = (jnp.arange(100_000) + 0.5) / 100_000
        log_tan = -0.5 * scores.logsnr_at("lognormal", u, cosine)
        assert float(log_tan.mean()) == pytest.approx(-1.2, abs=1e-6)
        assert float(log_tan.std()) == pytest.approx(1.2, abs=1e-4)
        assert np.all(np.diff(log_tan) > 0)


@pytest.mark.parametrize("law", scores.LAWS)
def test_levels_end_where_the_schedule_does(law):
    schedule = schedules.cosine(-2.0, 5.0)
    u = jnp.asarray([0.0, 1e-3, 0.3, 0.6, 0.97, 1.0 - 2.0**-24])
    found = scores.logsnr_at(law, u, schedule)
    assert float(found[0]) == pytest.approx(5.0, abs=1e-5)
    assert float(found[-1]) == pytest.approx(-2.0, abs=1e-5)
    assert np.all(np.diff(found) <= 0)
    assert np.all(np.abs(found - 1.5) <= 3.5 + 1e-5)


def test_unknown_names(cosine):
    x, fake, teacher, logsnr = arrays()
    with pytest.raises(ValueError, match=r'gap weight "sds".*constant, dmd, kl'):
        scores.gap(x, of_x(fake), of_x(teacher), logsnr, "sds")
    with pytest.raises(ValueError, match=r'time law "normal".*lognormal, uniform'):
        scores.logsnr_at("normal", logsnr, cosine)
