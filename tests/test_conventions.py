import functools

import closed_forms
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import analytic, arcs, conventions, samplers, schedules
from pd_jax.diffusion import alpha_sigma
from pd_jax.models import Model

STD = 0.3
MEANS = {"one": np.array([[0.3, -0.2, 0.5]]), "three": np.eye(3) - 0.2}
NAMES = closed_forms.CONVENTIONS
FOREIGN = ("ddpm", "edm", "flow")
NATIVE = tuple(name for name in NAMES if name not in FOREIGN)


def schedule_of(name):
    return schedules.cosine(*((-10.0, 9.0) if name == "ddpm" else (-20.0, 20.0)))


def figures(denoise, schedule, dtype):
    """Predictions, DDIM samples and targets."""
    rng = np.random.default_rng(0)
    z, t = rng.standard_normal((41, 3)), np.linspace(0, 1, 41)
    start = rng.integers(1, 9, 41) / 8

    @jax.jit
    def compute(z, t, start):
        return {
            **denoise(z, schedule(t))._asdict(),
            "sample": samplers.sample(denoise, z, 16, schedule, clip=False),
            "target": arcs.target(denoise, z, start, 8, schedule),
        }

    found = compute(*(jnp.asarray(a, dtype) for a in (z, t, start)))
    return jax.tree.map(np.asarray, found)


@functools.cache
def exact(data, schedule):
    """Of the exact variance-preserving denoiser, in float64."""
    with jax.enable_x64(True):
        return figures(analytic.mixture(MEANS[data], STD), schedule, jnp.float64)


def foreign(name, data, dtype):
    """Of the exact network in a convention."""
    network = closed_forms.network(name, MEANS[data], STD)
    return figures(conventions.adapt(network, name)({}), schedule_of(name), dtype)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((name, "three") for name in FOREIGN),
        *(pytest.param(name, "three", marks=pytest.mark.slow) for name in NATIVE),
        pytest.param("edm", "one", marks=pytest.mark.slow),
    ],
)
def test_an_exact_teacher_is_the_exact_denoiser(name, data):
    with jax.enable_x64(True):
        found = foreign(name, data, jnp.float64)
    for key, value in exact(data, schedule_of(name)).items():
        np.testing.assert_allclose(found[key], value, rtol=1e-10, atol=1e-10)


# float32's 6e-8 over alpha at the schedule's end (6.7e-3 for ddpm), or over sigma.
LOOSE = {"eps": {"x": 1e-2, "sample": 1e-2, "target": 1e-2, "v": 1e-2}}
LOOSE["ddpm"] = dict.fromkeys(("x", "sample", "target", "v"), 2e-4)
LOOSE["x"] = LOOSE["edm"] = {"eps": 1e-2, "v": 1e-2}


@pytest.mark.parametrize(
    "name",
    [*FOREIGN, *(pytest.param(name, marks=pytest.mark.slow) for name in NATIVE)],
)
def test_float32_is_kept_where_the_convention_allows(name):
    found = foreign(name, "three", jnp.float32)
    for key, value in exact("three", schedule_of(name)).items():
        assert found[key].dtype == jnp.float32
        atol = LOOSE.get(name, {}).get(key, 1e-5)
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overflows(name):
    logsnr = jnp.array([-20.0, 0.0, 20.0])
    z = jnp.ones((3, 3))
    given, level = conventions.get(name).inputs(z, logsnr)
    assert np.isfinite(given).all()
    assert np.isfinite(level).all()
    if name != "both":
        views = jax.jit(conventions.get(name).outputs)(jnp.ones_like(z), z, logsnr)
        assert all(np.isfinite(view).all() for view in views)


def test_timesteps_are_the_discrete_ones():
    convention = conventions.get("ddpm")
    low, high = convention.logsnr_range
    # The first and last cumulative products of the betas, as DDPM code prints them.
    assert low == pytest.approx(np.log(4.0358e-5 / (1 - 4.0358e-5)), abs=1e-4)
    assert high == pytest.approx(np.log(0.9999 / 0.0001), abs=1e-8)
    steps = np.array([0, 1, 17, 500, 998, 999])
    levels = closed_forms.LOGSNR.astype(np.float32)
    z, level = convention.inputs(jnp.ones((6, 2)), jnp.asarray(levels[steps]))
    np.testing.assert_allclose(level, steps, atol=1e-3)
    np.testing.assert_array_equal(z, 1.0)
    between = jnp.array([levels[[500, 501]].mean(), -20.0, 20.0])
    _, level = convention.inputs(jnp.ones((3, 2)), between)
    np.testing.assert_allclose(level, [500.5, 999.0, 0.0], atol=1e-3)


def test_levels_and_scales_of_edm_and_flow():
    x, n = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    logsnr = jnp.linspace(-9.0, 9.0, 5)
    alpha, sigma = (a[:, None] for a in alpha_sigma(logsnr))
    z = alpha * x + sigma * n
    given, s = conventions.get("edm").inputs(z, logsnr)
    np.testing.assert_allclose(given, x + s[:, None] * n, rtol=1e-5, atol=1e-5)
    given, s = conventions.get("flow").inputs(z, logsnr)
    s = s[:, None]
    np.testing.assert_allclose(given, (1 - s) * x + s * n, rtol=1e-5, atol=1e-5)
    low, high = conventions.get("edm").logsnr_range
    assert (low, high) == pytest.approx((-2 * np.log(80), -2 * np.log(0.002)))


class Recorder(nn.Module):
    """Outputs what it is given, so that a test sees it."""

    @nn.compact
    def __call__(self, z, level, label=None, train=False):
        self.param("nothing", lambda key: jnp.zeros(()))
        return z * 0 + level[:, None] + (0 if label is None else label[:, None])


@pytest.mark.parametrize("name", FOREIGN)
def test_a_model_calls_its_network_in_its_convention(name):
    model = Model(Recorder(), name)
    params = model.init(jax.random.key(0), (3,))
    z, logsnr, label = jnp.ones((4, 3)), jnp.linspace(-8, 8, 4), jnp.arange(4)
    _, level = conventions.get(name).inputs(z, logsnr)
    raw = z * 0 + (level + label)[:, None]
    true = jax.jit(conventions.get(name).outputs)(raw, z, logsnr)
    found = jax.jit(model.denoiser(params, label))(z, logsnr)
    for got, want in zip(found, true):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_plain_function_keeps_its_params_and_labels():
    def network(params, z, level, label):
        return params["scale"] * z + label[:, None]

    make = conventions.adapt(network, "v")
    z = jnp.ones((2, 3))
    denoise = make({"scale": 2.0}, jnp.arange(2))
    np.testing.assert_allclose(denoise(z, 0.0).v, [[2.0] * 3, [3.0] * 3])
    # Under jit, and with another schedule than the default.
    other = conventions.adapt(network, conventions.ddpm(num_timesteps=100))
    run = jax.jit(lambda p, z, l: other(p, jnp.arange(2))(z, l).eps)
    np.testing.assert_allclose(run({"scale": 2.0}, z, jnp.zeros(2))[1], 3.0)


def test_a_pytree_of_weights_as_a_flax_network():
    """The recipe of docs/foreign_teachers.md."""

    def init(key):
        return {"w": jax.random.normal(key, (3, 3)), "b": jnp.zeros((1, 3))}

    def apply(params, z, level, label):
        return z @ params["w"] + params["b"] + level[:, None]

    class Network(nn.Module):
        dropout: float = 0.0
        out_ch: int = 0

        @nn.compact
        def __call__(self, z, level, label=None, train=False):
            return apply(self.param("theirs", init), z, level, label)

    model = Model(Network(), "flow")
    params = model.init(jax.random.key(0), (3,))
    z, logsnr = jnp.ones((2, 3)), jnp.zeros(2)
    true = conventions.adapt(apply, "flow")(params["theirs"])(z, logsnr)
    np.testing.assert_allclose(model.denoiser(params)(z, logsnr).v, true.v)


def test_another_range_by_rescaling():
    """The recipe of docs/foreign_teachers.md, for a teacher of data in [0, 1]."""

    def rescaled(denoise, scale, offset):
        def wrapped(z, logsnr):
            alpha, sigma = (a[:, None] for a in alpha_sigma(logsnr))
            norm = jnp.sqrt(jnp.square(alpha) + jnp.square(scale * sigma))
            there = (scale * z + offset * alpha) / norm
            x = denoise(there, logsnr - 2.0 * jnp.log(scale)).x
            x = (x - offset) / scale
            return conventions.get("x").outputs(x, z, logsnr)

        return wrapped

    z = jnp.asarray(np.random.default_rng(0).standard_normal((9, 3)), jnp.float32)
    logsnr = jnp.linspace(-6, 6, 9)
    theirs = analytic.mixture(0.5 * MEANS["three"] + 0.5, 0.5 * STD)
    ours = analytic.mixture(MEANS["three"], STD)
    found, true = (
        jax.jit(denoise)(z, logsnr).x for denoise in (rescaled(theirs, 0.5, 0.5), ours)
    )
    np.testing.assert_allclose(found, true, atol=1e-5)


def test_wrong_use():
    with pytest.raises(ValueError, match='Did you mean "ddpm"'):
        conventions.get("dppm")
    with pytest.raises(ValueError, match="known are both, ddpm, edm, eps, flow, v, x"):
        Model(Recorder(), "velocity")
    for name in ("flow", "ddpm"):
        make = conventions.adapt(lambda p, z, s, c: jnp.ones((2, 6)), name)
        with pytest.raises(ValueError, match="shape"):
            make({})(jnp.ones((2, 3)), 0.0)
