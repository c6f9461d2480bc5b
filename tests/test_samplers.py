import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from pd_jax import analytic, diffusion, samplers
from pd_jax.samplers import sample

MEAN, STD = np.array([0.3, -0.2, 0.0]), 0.4
GAUSSIAN = analytic.gaussian(MEAN, STD)
# The others ask with a second level: tests/test_two_times.py.
OF_DENOISERS = [n for n in samplers.known() if not samplers.get(n).jumps]


def error(cosine, method, num_steps):
    """RMS distance to the exact flow of a Gaussian, in float64."""
    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)))
        phi = cosine.angle(jnp.ones((), z.dtype))
        exact = analytic.gaussian_map(z, MEAN, STD, phi)
        found = sample(GAUSSIAN, z, num_steps, cosine, method, clip=False)
        return float(np.sqrt(np.mean((found - exact) ** 2)))


@pytest.mark.parametrize(
    ("method", "order", "steps"),
    [("ddim", 1, 128), ("heun", 2, 64), ("dpmpp_2m", 2, 512)],
)
def test_order_of_convergence(cosine, method, order, steps):
    coarse, fine = error(cosine, method, steps), error(cosine, method, 4 * steps)
    assert np.log(coarse / fine) / np.log(4) == pytest.approx(order, abs=0.3)


def test_second_order_beats_first(cosine):
    first = error(cosine, "ddim", 32)
    assert error(cosine, "heun", 16) < 0.5 * first
    assert error(cosine, "dpmpp_2m", 32) < 0.25 * first


def test_heun_reaches_an_independent_solvers_answer(cosine):
    """The ring's flow, against SciPy's eighth-order Runge-Kutta on dz/dphi = v."""
    angles = np.arange(8) * np.pi / 4
    denoise = analytic.mixture(np.stack([np.cos(angles), np.sin(angles)], 1), 0.05)
    with jax.enable_x64(True):
        z = np.random.default_rng(0).standard_normal((50, 2))
        velocity = jax.jit(lambda z, logsnr: denoise(z, logsnr).v)

        def rate(phi, flat):
            logsnr = np.full(50, -2.0 * np.log(np.tan(phi)))
            return np.asarray(velocity(flat.reshape(50, 2), logsnr)).ravel()

        span = (float(cosine.angle(1.0)), 1e-9)
        solved = solve_ivp(rate, span, z.ravel(), "DOP853", rtol=1e-8, atol=1e-8)
        heun = sample(denoise, jnp.asarray(z), 4096, cosine, "heun", clip=False)
        np.testing.assert_allclose(heun.ravel(), solved.y[:, -1], atol=1e-5)


@pytest.mark.parametrize("variance", ["small", "large", "medium:0.5"])
def test_ancestral_draws_the_distribution(cosine, variance):
    z = jax.random.normal(jax.random.key(0), (20_000, 3))
    f = jax.jit(
        functools.partial(
            sample,
            GAUSSIAN,
            schedule=cosine,
            method=f"ancestral:{variance}",
            clip=False,
        )
    )
    x = f(z, 256, key=jax.random.key(1))
    np.testing.assert_allclose(np.mean(x, 0), MEAN, atol=0.02)
    np.testing.assert_allclose(np.std(x, 0), STD, rtol=0.03)


@pytest.mark.parametrize("method", ["ancestral", "consistency"])
def test_noise_belongs_to_the_example(method, cosine):
    z = jax.random.normal(jax.random.key(0), (8, 3))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(8))
    run = functools.partial(
        sample, GAUSSIAN, num_steps=5, schedule=cosine, method=method
    )
    whole = run(z=z, key=jax.random.key(1))
    np.testing.assert_array_equal(whole, run(z=z, key=keys))
    np.testing.assert_allclose(whole[3:], run(z=z[3:], key=keys[3:]), atol=1e-6)
    np.testing.assert_array_equal(whole, run(z=z, key=jax.random.PRNGKey(1)))
    assert not np.array_equal(whole, run(z=z, key=jax.random.key(2)))


@pytest.mark.parametrize("method", OF_DENOISERS)
def test_one_step_returns_the_prediction_and_stays_in_range(cosine, method):
    z = 3 * jax.random.normal(jax.random.key(0), (16, 3))
    wide = analytic.gaussian(np.full(3, 2.0), 0.1)
    key = jax.random.key(1)
    np.testing.assert_allclose(
        sample(wide, z, 1, cosine, method, False, key),
        wide(z, jnp.broadcast_to(cosine(1.0), (16,))).x,
    )
    for num_steps in (1, 2, 7):
        x = sample(wide, z, num_steps, cosine, method, True, key)
        assert float(jnp.max(jnp.abs(x))) <= 1.0


@pytest.mark.parametrize("method", OF_DENOISERS)
def test_traced_step_counts_share_one_trace_and_equal_static_ones(cosine, method):
    z, key, traces = jnp.ones((2, 3)), jax.random.key(1), []

    @jax.jit
    def traced(num_steps):
        traces.append(num_steps)
        return sample(GAUSSIAN, z, num_steps, cosine, method, True, key)

    for num_steps in (1, 2, 5, 33):
        static = sample(GAUSSIAN, z, num_steps, cosine, method, True, key)
        np.testing.assert_allclose(traced(num_steps), static, atol=2e-5)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        ({"method": "dim"}, "known are ancestral, consistency, ddim"),
        ({"method": "heun:small"}, ".heun. takes no variance"),
        ({"method": "ancestral"}, "needs a key"),
        ({"method": "ancestral:huge", "key": jax.random.key(0)}, "unknown variance"),
        ({"num_steps": 0}, "at least one"),
        ({"num_steps": np.int64(0)}, "at least one"),
        ({"num_steps": jnp.int32(0)}, "at least one"),
        ({"num_steps": 2.5}, "whole number"),
        ({"num_steps": "4"}, "whole number"),
    ],
)
def test_wrong_use(cosine, kw, says):
    with pytest.raises(ValueError, match=says):
        sample(GAUSSIAN, jnp.ones((2, 3)), **{"num_steps": 2, "schedule": cosine, **kw})


@pytest.mark.parametrize("method", OF_DENOISERS)
def test_a_sampler_says_how_often_it_asks_the_denoiser(cosine, method):
    z, calls = jnp.ones((2, 3)), []

    def denoise(z, logsnr):
        jax.debug.callback(calls.append, logsnr)
        return GAUSSIAN(z, logsnr)

    sample(denoise, z, 3, cosine, method, key=jax.random.key(1))
    jax.effects_barrier()
    assert len(calls) == 3 * samplers.get(method).evaluations


def test_names_are_parsed():
    assert samplers.parse("ddim") == ("ddim", "")
    assert samplers.parse("ancestral") == ("ancestral", "large")
    assert samplers.parse("ancestral:medium:0.3") == ("ancestral", "medium:0.3")
    assert samplers.get("ancestral:small") != samplers.get("ancestral")


def exact_jump(z, logsnr):
    """Down the flow to the data, from any level."""
    phi = jnp.arctan(jnp.exp(-0.5 * logsnr))
    x = analytic.gaussian_map(z, MEAN, STD, phi)
    return diffusion.predict(x, z, logsnr, "x")


def test_consistency_of_an_exact_jump_draws_the_distribution(cosine):
    z = jax.random.normal(jax.random.key(0), (20_000, 3))
    draw = jax.jit(
        functools.partial(
            sample, exact_jump, schedule=cosine, method="consistency", clip=False
        )
    )
    found = {n: draw(z, n, key=jax.random.key(1)) for n in (1, 2, 5, 20)}
    for x in found.values():
        np.testing.assert_allclose(np.mean(x, 0), MEAN, atol=0.015)
        np.testing.assert_allclose(np.std(x, 0), STD, rtol=0.02)
    np.testing.assert_allclose(found[1], MEAN + STD * np.asarray(z), atol=1e-3)
    # With its noise drawn anew in between, less and less is left of the first.
    kept = [np.corrcoef(x[:, 0], z[:, 0])[0, 1] for x in found.values()]
    assert kept[0] > 0.999
    assert kept[1] == pytest.approx(STD / np.sqrt(STD**2 + 1.0), abs=0.03)
    assert kept[3] < 0.03


@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_consistency_of_a_jump_to_one_place_stays_there(num_steps, cosine):
    place = jnp.array([[0.3, 1.5, -0.7]])

    def denoise(z, logsnr):
        x = jnp.broadcast_to(place, z.shape)
        return diffusion.predict(x, z, logsnr, "x")

    z = jax.random.normal(jax.random.key(0), (4, 3))
    for clip, expected in ((False, place), (True, jnp.clip(place, -1.0, 1.0))):
        key = jax.random.key(1)
        x = sample(denoise, z, num_steps, cosine, "consistency", clip, key)
        np.testing.assert_array_equal(x, jnp.broadcast_to(expected, z.shape))


JUMP = """
import dataclasses
import jax
from pd_jax import samplers
from pd_jax.diffusion import diffuse

@dataclasses.dataclass(frozen=True)
class Sampler(samplers.Sampler):
    label = "jump to the data and back"
    draws = True

    def step(self, level, following, z, x, v, view, keys, memory):
        eps = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:], z.dtype))(keys)
        return diffuse(x, eps, following.logsnr), memory
"""


def test_a_sampler_is_added_as_one_file(cosine, tmp_path, monkeypatch):
    (tmp_path / "jump.py").write_text(JUMP)
    monkeypatch.setattr(samplers, "__path__", [*samplers.__path__, str(tmp_path)])
    assert "jump" in samplers.known()
    z = jax.random.normal(jax.random.key(0), (20_000, 3))
    # A Gaussian's mean as the prediction: jumps leave what the last level knows.
    x = sample(GAUSSIAN, z, 64, cosine, "jump", clip=False, key=jax.random.key(1))
    np.testing.assert_allclose(np.mean(x, 0), MEAN, atol=0.02)
    one = sample(GAUSSIAN, z, 1, cosine, "jump", key=jax.random.key(1))
    np.testing.assert_array_equal(one, sample(GAUSSIAN, z, 1, cosine))
    with pytest.raises(ValueError, match="needs a key"):
        sample(GAUSSIAN, z, 2, cosine, "jump")
