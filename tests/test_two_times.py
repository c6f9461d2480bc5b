"""Methods and samplers of two times, against Gaussians, where every arc is closed."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_consistency_distillation import WHOLE, angle, ddim_factor, heun_factor, slope

from pd_jax import analytic, arcs, data, diffusion, methods, models, samplers
from pd_jax.methods import Parts
from pd_jax.models import Model
from pd_jax.models._embedding import EXTRA
from pd_jax.models._model import Function
from pd_jax.runtime.errors import Refused
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.stage import Stage

FACTORS = {"ddim": ddim_factor, "heun": heun_factor}


class Flow:
    """A model that goes from grid time i to j by a factor of its own.

    Its weights: "factor" [K + 1], of the ways from each grid time down to 0; and "v",
    added to every v.
    """

    def __init__(self, num, std):
        self._num, self._std = num, std

    def with_second_time(self, params, shape):
        return params

    def denoiser(self, params, label=None, dropout_key=None):
        def denoise(z, logsnr, until=None):
            phi, end = angle(logsnr), angle(logsnr if until is None else until)
            i, j = (jnp.round(a / (0.5 * jnp.pi) * self._num) for a in (phi, end))
            ratio = params["factor"][i.astype(int)] / params["factor"][j.astype(int)]
            delta = phi - end
            var = (self._std * jnp.cos(phi)) ** 2 + jnp.sin(phi) ** 2
            short = (1 - self._std**2) * jnp.sin(phi) * jnp.cos(phi) / var
            by = (jnp.cos(delta) - ratio) / jnp.sin(delta)
            by = jnp.where(jnp.abs(delta) < 1e-9, short, by) + params["v"]
            v = diffusion.expand(by, z) * z
            return diffusion.predict(v, z, logsnr, "v")

        return denoise


def products(num, factor, std):
    phi = np.linspace(0.0, 0.5 * np.pi, num + 1)
    steps = [factor(b, a, std) for a, b in itertools.pairwise(phi)]
    return np.cumprod([1.0, *steps])


def method_of(name, num, std=0.5, **kw):
    exact = analytic.gaussian(0.0, std)
    parts = Parts("ladder", Flow(num, std), WHOLE, Optimizer(), (2,), exact)
    return methods.get(name).Method(parts, grid=num, **kw)


def losses_of(method, factor, v=0.0, std=0.5, num=256):
    """Losses of a model whose average is itself, and its keys."""
    weights = {"factor": jnp.asarray(factor), "v": jnp.float64(v)}
    handed_over = {"model": weights, "teacher": weights}
    stage = Stage("student", 0, 1, 10, 1e-2)
    state = method.begin(handed_over, stage, jax.random.key(0))
    x = std * np.random.default_rng(0).standard_normal((num, 2))
    keys = jax.random.split(jax.random.key(0), num)
    losses = jax.jit(method.losses)(state, weights, {"image": jnp.asarray(x)}, keys)
    return np.asarray(losses), state, keys


@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize(
    ("name", "kw"),
    [
        ("boot", {}),
        ("trajectory", {"compare": "arc", "denoising": 0.0}),
        ("trajectory", {"compare": "data", "denoising": 0.0}),
        ("trajectory", {"teacher_steps": 3, "denoising": 0.0}),
    ],
)
def test_the_fixed_point_is_the_product_of_the_teachers_steps(name, kw, solver):
    with jax.enable_x64(True):
        method = method_of(name, 8, solver=solver, **kw)
        factor = products(8, FACTORS[solver], 0.5)
        found, _, _ = losses_of(method, factor)
        assert np.max(found) < 1e-12
        # Any other one is not.
        other = factor * (1 + 0.05 * (np.arange(9) == 5))
        found, state, keys = losses_of(method, other)
        t, u, s = (np.round(np.asarray(a) * 8) for a in method.times(state, keys))
        # The way from 5, and whichever the teacher's steps bring there or part from it.
        at = (t == 5) | (u == 5) if name == "trajectory" else (u == 5) | (s == 5)
        assert np.max(found[~at]) < 1e-12
        assert np.mean(found[at] > 1e-9) > 0.9


def test_what_boot_learns_at_the_start():
    with jax.enable_x64(True):
        factor = products(8, ddim_factor, 1.0)
        method = method_of("boot", 8, 1.0, boundary=0.5)
        # Of N(0, I), v = 0; the same is added to all others, too.
        plain, _, _ = losses_of(method_of("boot", 8, 1.0, boundary=0.0), factor, 0.1)
        found, state, keys = losses_of(method, factor, 0.1)
        eps, _ = method.noised({}, keys, None)
        expected = 0.5 * np.mean(np.square(0.1 * np.asarray(eps)), 1)
        np.testing.assert_allclose(found - plain, expected, rtol=1e-9)
        t, u, _ = method.times(state, keys)
        assert np.all(np.asarray(t) == 1.0)
        assert np.any(np.asarray(u) == 1.0)


def test_shortcuts_are_joins_of_shorter_ones():
    """From the data's line only in the mean; from the average exactly."""
    grid, num = 8, 40_000
    with jax.enable_x64(True):
        method = method_of("shortcut", grid, bootstrap=0.5)
        factor = products(grid, ddim_factor, 0.5)
        found, state, keys = losses_of(method, factor, num=num)
        t, u, s = (np.round(np.asarray(a) * grid, 9) for a in method.times(state, keys))
        data_taught = u == s
        np.testing.assert_array_equal(data_taught, t - s == 1)
        assert np.mean(data_taught) == pytest.approx(0.5, abs=0.02)
        assert set(t - s) == {1.0, 2.0, 4.0, 8.0}
        assert np.all(t % (t - s) == 0)
        assert np.max(found[~data_taught]) < 1e-12

        def shifted(shift):
            weights = {"factor": jnp.asarray(factor), "v": shift}
            batch = {"image": jnp.asarray(x)}
            own = state.model.params
            averages = {"target": own}
            moved = state.with_network("model", state.model.replace(averages=averages))
            return method.losses(moved, weights, batch, keys)

        x = 0.5 * np.random.default_rng(0).standard_normal((num, 2))
        slopes = np.asarray(jax.jit(lambda: jax.jvp(shifted, (0.0,), (1.0,))[1])())
        error = np.std(slopes[data_taught]) / np.sqrt(data_taught.sum())
        assert abs(np.mean(slopes[data_taught])) < 4 * error
        assert error < 0.01


def test_exact_arcs_of_a_unit_gaussian():
    """V = -tan(delta / 2) z of any two joined; a DDIM step first differs, by 7.5e-3."""

    def exact(z, logsnr, until=None):
        delta = angle(logsnr) - angle(until)
        return diffusion.predict(
            -jnp.tan(diffusion.expand(delta, z) / 2) * z, z, logsnr, "v"
        )

    with jax.enable_x64(True):
        z = jax.random.normal(jax.random.key(0), (64, 2))
        t, u, s = jnp.sort(jax.random.uniform(jax.random.key(1), (3, 64)), 0)[::-1]
        jump = arcs.jump(exact, WHOLE)
        arc = arcs.chain(z, (t, u, s), (jump, jump))
        expected = -jnp.tan(diffusion.expand(arc.delta, z) / 2) * z
        np.testing.assert_allclose(arc.v, expected, atol=1e-12)
        teacher = arcs.ddim(analytic.gaussian(0.0, 1.0), WHOLE)
        ones = jnp.ones(64)
        times = (ones, ones - 1 / 16, 0 * ones)
        arc = arcs.chain(z, times, (teacher, jump))
        factor = np.cos(np.pi / 32)
        np.testing.assert_allclose(arc.v, -factor * z, rtol=1e-9)
        np.testing.assert_allclose(1 - factor, 4.8e-3, atol=1e-4)


def test_a_denoiser_at_no_length():
    with jax.enable_x64(True):
        factor = products(8, ddim_factor, 0.5)
        kw = {"solver": "ddim", "compare": "arc"}
        plain, _, _ = losses_of(method_of("trajectory", 8, **kw), factor)
        none, _, _ = losses_of(method_of("trajectory", 8, denoising=0.0, **kw), factor)
        assert np.max(none) < 1e-12
        # What is left is the posterior's variance of v, at times drawn evenly.
        phi = np.linspace(0, np.pi / 2, 2001)
        var = (0.5 * np.cos(phi)) ** 2 + np.sin(phi) ** 2
        expected = np.mean(np.cos(phi) ** 2 + 0.25 * np.sin(phi) ** 2) - np.mean(
            slope(phi, 0.5) ** 2 * var
        )
        assert np.mean(plain) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_samplers_of_jumps(num_steps):
    num, std = 40, 0.5
    with jax.enable_x64(True):
        factor = [
            std / np.sqrt((std * np.cos(a)) ** 2 + np.sin(a) ** 2)
            for a in np.linspace(0, np.pi / 2, num + 1)
        ]
        weights = {"factor": jnp.asarray(factor), "v": 0.0}
        denoise = Flow(num, std).denoiser(weights)
        z = jax.random.normal(jax.random.key(0), (4000, 2), jnp.float64)

        def sample(method):
            key = jax.random.key(1)
            return samplers.sample(denoise, z, num_steps, WHOLE, method, False, key)

        path = sample("path")
        np.testing.assert_allclose(path, std * z, atol=1e-9)
        np.testing.assert_allclose(sample("gamma:0"), path, atol=1e-12)
        again = np.asarray(sample("gamma:1"))
        assert np.std(again) == pytest.approx(std, rel=0.03)
        phi = np.arange(1, num_steps) / num_steps * np.pi / 2
        var = (std * np.cos(phi)) ** 2 + np.sin(phi) ** 2
        expected = np.prod(std * np.cos(phi) / np.sqrt(var))
        found = np.corrcoef(again.ravel(), np.asarray(path).ravel())[0, 1]
        assert found == pytest.approx(expected, abs=0.03)


def test_gamma_keeps_the_levels_distribution():
    """The jump beyond and the noise back: exact of a model of any times."""

    def exact(z, logsnr, until=None):
        phi, end = angle(logsnr), angle(logsnr if until is None else until)
        ratio = jnp.sqrt(
            ((0.5 * jnp.cos(end)) ** 2 + jnp.sin(end) ** 2)
            / ((0.5 * jnp.cos(phi)) ** 2 + jnp.sin(phi) ** 2)
        )
        delta = phi - end
        by = (jnp.cos(delta) - ratio) / jnp.sin(delta)
        return diffusion.predict(diffusion.expand(by, z) * z, z, logsnr, "v")

    with jax.enable_x64(True):
        z = jax.random.normal(jax.random.key(0), (20_000, 2), jnp.float64)
        key = jax.random.key(1)
        for gamma in ("0.3", "0.9"):
            x = samplers.sample(exact, z, 4, WHOLE, f"gamma:{gamma}", False, key)
            assert np.std(x) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("gamma", ["-0.1", "1.1", "nan", "x"])
def test_gammas_that_are_none(gamma):
    with pytest.raises(Refused, match="a number from 0 to 1"):
        samplers.get(f"gamma:{gamma}")


def test_only_the_last_prediction_of_jumps_is_clipped(cosine):
    seen = []

    def denoise(z, logsnr, until=None):
        seen.append(until)
        return diffusion.predict(-3.0 * z, z, logsnr, "v")

    z = jnp.full((2, 2), 0.9)
    x = samplers.sample(denoise, z, 3, cosine, "path")
    assert np.max(np.abs(x)) <= 1.0
    expected, phi = np.float64(0.9), np.asarray(cosine.angle(jnp.arange(4) / 3))
    for i in (3, 2):
        delta = phi[i] - phi[i - 1]
        expected = np.cos(delta) * expected + np.sin(delta) * 3.0 * expected
    assert expected > 1.0
    free = samplers.sample(denoise, z, 3, cosine, "path", clip=False)
    np.testing.assert_allclose(
        free, expected * (np.cos(phi[1]) + 3 * np.sin(phi[1])), rtol=1e-4
    )
    assert all(until is not None for until in seen)


@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dit", "unet"))]
)
def test_weights_that_know_a_second_time(name):
    model, shape = Model(models.get(name), "v"), (8, 8, 3)
    plain = jax.jit(model.init, static_argnums=1)(jax.random.key(0), shape)
    rng = np.random.default_rng(0)

    def shaken(p):  # a last layer of zeros says nothing
        return p + 0.05 * jnp.asarray(rng.standard_normal(p.shape), p.dtype)

    plain = jax.tree.map(shaken, plain)
    told = model.with_second_time(plain, shape)
    assert told.keys() - plain.keys() == {EXTRA}
    assert model.with_second_time(told, shape) is told
    z = jax.random.normal(jax.random.key(1), (3, *shape))
    logsnr, until = jnp.array([-1.0, 0.0, 1.0]), jnp.array([2.0, 3.0, 20.0])

    @jax.jit
    def v(params, until):
        return model.denoiser(params)(z, logsnr, until).v

    np.testing.assert_array_equal(v(told, until), v(plain, until))
    moved = {**told, EXTRA: jax.tree.map(shaken, told[EXTRA])}
    assert not np.allclose(v(moved, until), v(moved, logsnr))
    alone = jax.jit(lambda p: model.denoiser(p)(z, logsnr).v)(moved)
    np.testing.assert_allclose(alone, v(moved, logsnr), atol=1e-4)


def test_a_function_cannot_know_a_second_time():
    model = Model(Function(lambda params, z, level, label: z), "v")
    with pytest.raises(Refused, match="needs a network of"):
        model.with_second_time({"w": jnp.ones(1)}, (2,))


def test_boot_never_reads_the_data(cosine):
    class Unread(data.InMemory):
        def take(self, rows):
            raise AssertionError("read")

        def batches(self, *args, **kw):
            raise AssertionError("read")

    source = data.source(Unread(np.zeros((9, 2), np.float32)), "places")
    assert methods.get("boot").Method.data == "places"
    batch = next(source.batches(0, 4, (0,)))
    model = Model(models.get("mlp", width=8, num_blocks=1), "v")
    exact = analytic.gaussian(0.0, 0.5)
    parts = Parts("ladder", model, cosine, Optimizer(), (2,), exact)
    method = methods.get("boot").Method(parts)
    weights = model.init(jax.random.key(0), (2,))
    given = {"model": weights, "teacher": weights}
    state = method.begin(given, method.plan()[0], jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), 4)
    losses = jax.jit(method.losses)(state, state.model.params, batch, keys)
    assert losses.shape == (4,)
    assert np.all(np.isfinite(losses))


@pytest.mark.parametrize("kw", [{"grid": 12}, {"grid": 8, "steps": (16, 1)}])
def test_shortcuts_are_of_powers_of_two(kw):
    method = methods.get("shortcut").Method(types.SimpleNamespace(name="jump"), **kw)
    with pytest.raises(Refused, match="give powers of 2, no step count above"):
        method.plan()
