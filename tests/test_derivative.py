"""Methods that learn from a derivative along the path: at exact maps, in networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_consistency_distillation import WHOLE, angle

from pd_jax import analytic, diffusion, methods, models
from pd_jax.methods import Parts
from pd_jax.methods._derivative import adaptive, derivative
from pd_jax.models import Model
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.stage import Stage

MIXTURE = analytic.mixture(np.array([[0.9, 0.1], [-0.5, 0.8], [-0.3, -0.9]]), 0.3)
STEPS = 100  # of Runge and Kutta, along a whole path


class Exact:
    """The exact V of an exact denoiser; its weights: a number that is added to it."""

    def __init__(self, denoise):
        self._denoise = denoise

    def with_second_time(self, params, shape):
        return params

    def denoiser(self, params, label=None, dropout_key=None):
        def velocity(z, phi):
            return self._denoise(z, -2.0 * jnp.log(jnp.tan(phi))).v

        def denoise(z, logsnr, until=None):
            phi = angle(logsnr)
            end = jnp.zeros_like(phi) if until is None else angle(until)
            end = jnp.maximum(end, 1e-9)  # where the tangent is not 0 yet
            h = (end - phi) / STEPS

            def step(carry, _):
                z, phi = carry
                half, by = phi + 0.5 * h, diffusion.expand(h, z)
                k1 = velocity(z, phi)
                k2 = velocity(z + 0.5 * by * k1, half)
                k3 = velocity(z + 0.5 * by * k2, half)
                k4 = velocity(z + by * k3, phi + h)
                return (z + by * (k1 + 2 * k2 + 2 * k3 + k4) / 6, phi + h), None

            (z_s, _), _ = jax.lax.scan(step, (z, phi), None, STEPS)
            delta = diffusion.expand(phi - end, z)
            short = jnp.abs(delta) < 1e-12
            sine = jnp.where(short, 1.0, jnp.sin(delta))
            v = jnp.where(short, velocity(z, phi), (jnp.cos(delta) * z - z_s) / sine)
            return diffusion.predict(v + params["off"], z, logsnr, "v")

        return denoise


def gaussian(z, phi, end, std):
    """The exact V of N(0, std^2 I)."""
    ways = [np.hypot(std * np.cos(a), np.sin(a)) for a in (phi, end)]
    return (np.cos(phi - end) - ways[1] / ways[0]) / np.sin(phi - end) * z


def losses_of(name, exact, num=16, std=0.5, **kw):
    parts = Parts("student", Exact(exact), WHOLE, Optimizer(), (2,), exact)
    method = methods.get(name).Method(parts, **{"power": 0.0} | kw)
    weights = {"off": jnp.float64(0.0)}
    stage = Stage("student", 0, 1, 10, 1e-2)
    begun = {"model": weights, "teacher": weights}
    state = method.begin(begun, stage, jax.random.key(0))
    x = std * np.random.default_rng(0).standard_normal((num, 2))
    keys = jax.random.split(jax.random.key(0), num)

    def losses(weights):
        return method.losses(state, weights, {"image": jnp.asarray(x)}, keys)

    return losses, weights


def test_the_exact_maps_are_those_of_gaussians():
    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2)))
        phi, end = np.float64([0.3, 1.0, 1.5, 1.57]), np.float64([0.1, 0.0, 1.2, 0.0])
        levels = [-2.0 * jnp.log(jnp.tan(jnp.maximum(a, 1e-9))) for a in (phi, end)]
        for std in (0.5, 1.0, 2.0):
            model = Exact(analytic.gaussian(0.0, std))
            found = model.denoiser({"off": 0.0})(z, *levels).v
            expected = gaussian(np.asarray(z), phi[:, None], end[:, None], std)
            np.testing.assert_allclose(found, expected, atol=1e-6)
        # Of N(0, I) it is -tan(delta / 2) z.
        unit = gaussian(np.asarray(z), phi[:, None], end[:, None], 1.0)
        by = -np.tan((phi - end) / 2)[:, None]
        np.testing.assert_allclose(unit, by * z, atol=1e-12)


KINDS = [
    ("mean_flow", {"same": 0.3}),
    ("mean_flow", {"same": 0.3, "own_velocity": True}),
    ("continuous_consistency", {"tangent_warmup": 0, "normalized": False}),
    ("continuous_consistency", {"tangent_warmup": 0, "normalized": True}),
]


@pytest.mark.parametrize(("name", "kw"), KINDS)
@pytest.mark.parametrize("std", [0.5, 1.0, "mixture"])
def test_the_exact_map_has_no_residual(name, kw, std):
    exact = MIXTURE if std == "mixture" else analytic.gaussian(0.0, std)
    with jax.enable_x64(True):
        losses, weights = losses_of(name, exact, velocity="teacher", **kw)
        losses = jax.jit(losses)
        assert np.max(losses(weights)) < 1e-12
        assert np.mean(losses({"off": weights["off"] + 0.1}) > 1e-6) > 0.9


@pytest.mark.parametrize(("name", "kw"), KINDS[:3])
def test_from_data_the_exact_map_is_the_fixed_point_in_the_mean(name, kw):
    exact = analytic.gaussian(0.0, 0.5)
    with jax.enable_x64(True):
        losses, weights = losses_of(name, exact, num=4000, velocity="data", **kw)
        gradients = jax.jit(jax.jacobian(losses))
        at, off = (
            np.asarray(gradients({"off": weights["off"] + by})["off"])
            for by in (0.0, 0.3)
        )
        assert abs(np.mean(at)) < 4 * np.std(at) / np.sqrt(len(at))
        assert abs(np.mean(off)) > 6 * np.std(off) / np.sqrt(len(off))


def test_the_tangent_grows_over_its_warmup():
    """At first the target is V - cos^2(phi) (V - v), a denoiser's."""
    exact = analytic.gaussian(0.0, 0.5)
    kw = {"normalized": False, "velocity": "teacher"}
    with jax.enable_x64(True):
        found = []
        for n in (0, 1, 2, 4):
            given = losses_of("continuous_consistency", exact, tangent_warmup=n, **kw)
            found.append(np.asarray(jax.jit(given[0])(given[1])))
    # At the exact map the rest of equation 1 is what is left out of it.
    np.testing.assert_allclose(found[1], found[0], atol=1e-12)
    np.testing.assert_allclose(found[3], found[2] * (0.75 / 0.5) ** 2, rtol=1e-5)


def test_losses_over_a_power_of_their_own():
    losses = jnp.float32([0.5, 2.0])
    grads = jax.grad(lambda a: jnp.sum(adaptive(a, 3, 1.0, 0.1)))(losses)
    np.testing.assert_allclose(grads, 1 / (3 * losses + 0.1), rtol=1e-6)
    np.testing.assert_array_equal(adaptive(losses, 3, 0.0, 0.1), losses)


NETWORKS = {
    "mlp": dict(width=16, emb_ch=16, num_blocks=1),
    "dit": dict(width=16, depth=1, num_heads=2, patch=2, logsnr_input_type="inv_cos"),
    "unet": dict(
        ch=32,
        emb_ch=16,
        ch_mult=(1,),
        num_res_blocks=1,
        num_heads=1,
        logsnr_input_type="inv_cos",
    ),
}


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dit", "unet"))]
)
def test_a_networks_derivative_is_the_limit_of_differences(name, second, cosine):
    # Norms and attention of the other two are of float32.
    size, bound = (1e-6, 1e-6) if name == "mlp" else (3e-3, 2e-3)
    shape, t = (4, 4, 1), np.float64([0.0, 1e-3, 0.5, 1.0])
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model = Model(models.get(name, **NETWORKS[name], time_scale=2.0), "v")
        weights = model.init(jax.random.key(0), shape)
        if second:
            weights = model.with_second_time(weights, shape)
        weights = jax.tree.map(
            lambda a: 0.1 * jnp.asarray(rng.standard_normal(a.shape)) + a, weights
        )
        z, v = (jnp.asarray(rng.standard_normal((4, *shape))) for _ in range(2))
        phi, end = cosine.angle(jnp.asarray(t)), -2.0 * jnp.log(jnp.tan(0.3))
        until = jnp.full(4, end) if second else None

        def own(phi, z):
            logsnr = -2.0 * jnp.log(jnp.tan(phi))
            return model.denoiser(weights)(z, logsnr, until).v

        # Inwards from the schedule's ends, at which times are clipped.
        h = jnp.asarray([1.0, 1.0, 1.0, -1.0]) * size
        by = diffusion.expand(h, z)
        ahead = (own(phi + k * h, z + k * by * v) for k in (0, 1, 2))
        a, b, c = map(np.asarray, ahead)
        expected = (-3 * a + 4 * b - c) / np.asarray(2 * by)

        def found(*args):
            z, phi, v = args
            scale = jnp.sin(phi) * jnp.cos(phi)
            logsnr = -2.0 * jnp.log(jnp.tan(phi))
            return derivative(model.denoiser(weights), z, logsnr, until, v, scale)

        value, change = found(z, phi, v)
        scale = np.asarray(diffusion.expand(jnp.sin(phi) * jnp.cos(phi), z))
        np.testing.assert_allclose(value, a, atol=1e-6)
        np.testing.assert_allclose(change / scale, expected, rtol=bound, atol=bound)
