"""Consistency distillation against Gaussians, where every arc is closed."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import analytic, arcs, diffusion, schedules
from pd_jax.methods import Parts, _draws
from pd_jax.methods._joined import SOLVERS, TARGET
from pd_jax.methods.consistency_distillation import Method
from pd_jax.models import Model
from pd_jax.models._model import Function
from pd_jax.runtime.errors import Refused
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.stage import Stage
from pd_jax.training.step import Step

MEAN, STD = 0.3, 0.5
# From pure data to pure noise, in float64: the angle is pi/2 t.
WHOLE = schedules.cosine(-80.0, 80.0)
GAUSSIAN = analytic.gaussian(MEAN, STD)


def angle(logsnr):
    return jnp.arctan(jnp.exp(-0.5 * logsnr))


def jump(mean, factor, z, logsnr):
    """The v that points at x = mean + factor (z - alpha mean)."""
    alpha, sigma = (diffusion.expand(a, z) for a in diffusion.alpha_sigma(logsnr))
    x = mean + diffusion.expand(factor, z) * (z - alpha * mean)
    return (alpha * z - x) / sigma


def table(params, z, logsnr, label):
    """Jumps by a factor of each grid time's own, as `products` lists them."""
    num = len(params["factor"]) - 1
    i = jnp.round(angle(logsnr) / (0.5 * jnp.pi) * num).astype(int)
    return jump(params["mean"], params["factor"][i], z, logsnr)


def flow(params, z, logsnr, label):
    """The exact jump, down the probability flow."""
    alpha, sigma = diffusion.alpha_sigma(logsnr)
    factor = STD / jnp.sqrt(jnp.square(alpha * STD) + jnp.square(sigma))
    return jump(MEAN, factor, z, logsnr)


def affine(params, z, logsnr, label):
    return params["w"] * z + params["b"]


def slope(phi, std):
    """v = slope (z - alpha mean) - sigma mean of the exact denoiser."""
    var = (std * np.cos(phi)) ** 2 + np.sin(phi) ** 2
    return (1 - std**2) * np.sin(phi) * np.cos(phi) / var


def ddim_factor(phi, s, std=STD):
    """By how much one step takes a state closer to the mean's own."""
    var = (std * np.cos(phi)) ** 2 + np.sin(phi) ** 2
    return (std**2 * np.cos(phi) * np.cos(s) + np.sin(phi) * np.sin(s)) / var


def heun_factor(phi, s, std=STD):
    cos, sin = np.cos(phi - s), np.sin(phi - s)
    first = slope(phi, std)
    back = (cos * slope(s, std) - sin) * (cos - sin * first)
    return cos - sin * 0.5 * (first + back)


FACTORS = {"ddim": ddim_factor, "heun": heun_factor}


def products(num, factor, std=STD):
    """[num + 1]: the factors from each grid time down to 0, multiplied."""
    phi = np.linspace(0.0, 0.5 * np.pi, num + 1)
    steps = [factor(b, a, std) for a, b in itertools.pairwise(phi)]
    return np.cumprod([1.0, *steps])


def method_of(function, exact=GAUSSIAN, schedule=WHOLE, optimizer=None, **kw):
    model = Model(Function(function), "v")
    parts = Parts("ladder", model, schedule, optimizer or Optimizer(), (2,), exact)
    return Method(parts, **kw)


def begun(method, weights, updates=10):
    handed_over = {"model": weights, "teacher": weights}
    stage = Stage("student_1", 0, 1, updates, 1e-2)
    return method.begin(handed_over, stage, jax.random.key(0))


def draws(num=64, seed=0):
    """Examples of the Gaussian, and keys."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(MEAN + STD * rng.standard_normal((num, 2)))
    return {"image": x}, jax.random.split(jax.random.key(seed), num)


grid_times = jax.jit(_draws.grid_times)


@functools.partial(jax.jit, static_argnums=3)
def noised(keys, x, t, schedule):
    return diffusion.diffuse(x, _draws.normal_like(keys, x), schedule(t))


def places(keys, num):
    """Which grid times, 1 .. num, the keys draw."""
    return np.round(np.asarray(grid_times(keys, num)) * num).astype(int)


@pytest.mark.parametrize(
    ("std", "expected"),
    [
        (0.5, {1: 0.0, 2: 0.2, 4: 0.33344, 8: 0.41138, 16: 0.45393, 128: 0.49401}),
        (1.0, {1: 0.0, 2: 0.5, 4: 0.72855, 8: 0.85623, 16: 0.92568, 128: 0.99041}),
        (2.0, {1: 0.0, 2: 0.8, 4: 1.33376, 8: 1.64550, 16: 1.81571, 128: 1.97605}),
    ],
)
def test_products_are_what_is_known_of_them(std, expected):
    found = {num: products(num, ddim_factor, std)[-1] for num in expected}
    assert found == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_the_fixed_point_is_the_product_of_the_teachers_steps(solver, grid):
    with jax.enable_x64(True):
        method = method_of(table, grid=grid, solver=solver, weighting="snr_plus_1")
        batch, keys = draws()
        loss = jax.jit(
            lambda state: method.losses(state, state.model.params, batch, keys)
        )
        factor = products(grid, FACTORS[solver])
        weights = {"mean": np.float64(MEAN), "factor": factor}
        place = places(keys, grid)
        assert set(place) == set(range(1, grid + 1))
        assert np.max(loss(begun(method, weights))) < 1e-12
        for i in range(1, grid + 1):
            # One that is off misses its own target, and is the next one's.
            other = {**weights, "factor": factor + 0.1 * (np.arange(grid + 1) == i)}
            found = np.asarray(loss(begun(method, other)))
            off = (place == i) | (place == i + 1)
            assert np.min(found[off]) > 1e-7
            assert np.all(found[~off] < 1e-12)


def test_heuns_factor_is_what_is_known_of_it():
    assert heun_factor(1.5, 1.2, 0.5) == pytest.approx(0.95125, abs=5e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_jump_of_no_length_adds_nothing(solver, cosine):
    """At the first grid time the target is the teacher's arc, whatever the average."""
    method = method_of(affine, schedule=cosine, grid=4, solver=solver)
    weights = {"w": jnp.float32(0.4), "b": jnp.float32(-0.2)}
    state = begun(method, weights)
    batch, keys = draws()
    first = places(keys, 4) == 1
    assert 0 < first.sum() < len(first)

    @jax.jit
    def losses(b):
        averages = {TARGET: {"w": jnp.float32(-7.0), "b": b}}
        trained = state.model.replace(averages=averages)
        given = state.with_network("model", trained)
        return method.losses(given, weights, batch, keys)

    one, other = losses(0.3), losses(40.0)
    np.testing.assert_array_equal(one[first], other[first])
    assert np.all(one[~first] != other[~first])
    t = jnp.full(64, 0.25)
    z = noised(keys, batch["image"], t, cosine)
    arc = SOLVERS[solver](GAUSSIAN, cosine)(z, t, jnp.zeros_like(t))
    distance = jnp.mean((affine(weights, z, None, None) - arc.v) ** 2, 1)
    np.testing.assert_allclose(one[first], distance[first], rtol=1e-4)
    if solver == "ddim":
        np.testing.assert_array_equal(arc.v, GAUSSIAN(z, cosine(t)).v)


def test_orders_of_the_teachers_step():
    """Of an exact student, half the interval leaves 1/4 or 1/8 of the distance."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 1024)
        middle = (places(keys, 32) == 16) & (places(keys, 64) == 32)
        assert sum(middle) > 8
        batch, _ = draws(1024)
        distance = {}
        for solver, grid in itertools.product(SOLVERS, (32, 64)):
            method = method_of(flow, grid=grid, solver=solver)
            losses = jax.jit(method.losses)(begun(method, {}), {}, batch, keys)
            distance[solver, grid] = np.sqrt(np.mean(np.asarray(losses)[middle]))
        for solver, order in (("ddim", 1), ("heun", 2)):
            ratio = np.log2(distance[solver, 32] / distance[solver, 64])
            assert ratio == pytest.approx(order + 1, abs=0.2)
        assert distance["heun", 32] < 0.05 * distance["ddim", 32]


@pytest.mark.parametrize("average", [0.0, pytest.param(0.9, marks=pytest.mark.slow)])
def test_no_gradient_flows_through_the_target(average, cosine):
    method = method_of(affine, schedule=cosine, grid=6, average=average)
    weights = {"w": jnp.float32(0.4), "b": jnp.float32(-0.2)}
    state = begun(method, weights)
    batch, keys = draws()
    t = grid_times(keys, 6)
    z = noised(keys, batch["image"], t, cosine)
    denoise = method.parts.model.denoiser(weights)
    movers = [arcs.heun(GAUSSIAN, cosine), arcs.ddim(denoise, cosine)]
    times = [*arcs.grid_below(t, 1.0 / 6, 1), jnp.zeros_like(t)]
    fixed = jax.jit(lambda z, times: arcs.chain(z, times, movers).v)(z, times)

    def plain(params):
        return jnp.mean(jnp.square(affine(params, z, None, None) - fixed))

    def loss(params):
        return jnp.mean(method.losses(state, params, batch, keys))

    found, expected = (jax.jit(jax.value_and_grad(f))(weights) for f in (loss, plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
    )
    assert abs(float(found[1]["w"])) > 0.05


def test_both_halves_are_one_network_with_one_mask(cosine):
    asked = []

    class Asked:
        def denoiser(self, params, label=None, dropout_key=None):
            asked.append((*params, label, dropout_key))
            return lambda z, logsnr, until=None: GAUSSIAN(z, logsnr)

    parts = Parts("ladder", Asked(), cosine, Optimizer(), (2,), GAUSSIAN)
    method = Method(parts, average=0.5)
    state = begun(method, {"average": np.ones(1)})
    x, keys = draws(4)
    label, key = np.arange(4), jax.random.key(9)
    batch, params = {**x, "label": label}, {"new": np.ones(1)}
    jax.eval_shape(lambda: method.losses(state, params, batch, keys, key))
    assert [name for name, _, _ in asked] == ["average", "new"]
    assert all(given is label and mask is key for _, given, mask in asked)


@pytest.mark.parametrize(
    ("kw", "names"),
    [
        ({}, {"target"}),
        ({"average": 0.0}, set()),
        ({"optimizer": Optimizer(ema=0.9)}, {"target", "sampling"}),
        ({"optimizer": Optimizer(ema=0.9), "average": 0.0}, {"sampling"}),
    ],
)
def test_averages(kw, names, cosine):
    method = method_of(affine, schedule=cosine, **kw)
    weights = {"w": jnp.float32(0.4), "b": jnp.float32(-0.2)}
    state = begun(method, weights)
    assert set(state.model.averages) == names
    batch, keys = draws(8)
    update = jax.jit(jax.vmap(method.update, axis_name="batch", in_axes=(None, 0, 0)))
    state, _ = update(state, jax.tree.map(lambda a: a[None], batch), keys[None])
    state = jax.tree.map(lambda a: a[0], state)
    assert set(state.model.averages) == names
    for tree in state.model.averages.values():
        # After the first update a tenth of it is old.
        expected = 0.1 * 0.4 + 0.9 * state.model.params["w"]
        assert float(tree["w"]) == pytest.approx(float(expected), rel=1e-6)
        assert float(tree["w"]) != float(state.model.params["w"])
    result = method.result(state)["model"]["w"]
    average = state.model.averages.get("sampling", state.model.params)["w"]
    assert float(result) == float(average)


@pytest.mark.parametrize(
    ("grid", "doublings", "updates", "expected"),
    [
        (18, 0, 3, [18] * 3),
        (16, 3, 8, [2, 2, 4, 4, 8, 8, 16, 16]),
        (12, 2, 10, [3, 3, 3, 3, 6, 6, 6, 12, 12, 12]),
        (4, 2, 2, [1, 2]),
    ],
)
def test_the_grid_doubles(grid, doublings, updates, expected):
    method = method_of(affine, grid=grid, doublings=doublings)
    state = begun(method, {"w": jnp.float32(0.0)}, updates)
    found = [
        float(method.grid_and_segments(state.replace(step=jnp.int32(i)))[0])
        for i in range(updates + 1)
    ]
    # A measurement after the last update is on the last grid.
    assert found == [*expected, grid]


def test_an_update_uses_the_grid_of_its_time(cosine):
    weights = {"w": jnp.float32(0.4), "b": jnp.float32(-0.2)}
    batch, keys = draws(16)

    def losses(step, **kw):
        method = method_of(affine, schedule=cosine, **kw)
        state = begun(method, weights, 3).replace(step=np.int32(step))
        return jax.jit(method.losses)(state, weights, batch, keys)

    for step, grid in ((0, 1), (1, 2)):
        found = losses(step, grid=4, doublings=2)
        np.testing.assert_allclose(found, losses(0, grid=grid), rtol=1e-4)


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        ({"steps": ()}, r"ladder.steps=\(\): at least one, each once"),
        ({"steps": (2, 1, 2)}, r"ladder.steps=\(2, 1, 2\)"),
        ({"doublings": 2}, r"ladder.grid=18 .* ladder.doublings=2 .* multiple of 4"),
    ],
)
def test_refusals(kw, says):
    with pytest.raises(Refused, match=says):
        method_of(affine, **kw).plan()


def test_plan():
    method = method_of(affine, steps=(1, 8, 2), updates=7, learning_rate=0.5)
    (stage,) = method.plan()
    assert (stage.name, stage.index, stage.updates) == ("student", 0, 7)
    assert stage.learning_rate == 0.5
    assert stage.num_steps == 1
    assert method.step_counts(stage) == (8, 2, 1)
    assert method.forwards == 6
    assert method_of(affine, solver="ddim").forwards == 5


def test_training_finds_the_products(cosine):
    """From the identity, with an average that lags: a network of one number a time."""
    grid = 4
    expected = products(grid, ddim_factor)
    method = method_of(
        table,
        grid=grid,
        solver="ddim",
        schedule=cosine,
        optimizer=Optimizer(decay="cosine"),
    )
    step = Step(method.update, jax.devices()[:1])
    weights = {"mean": jnp.float32(0.0), "factor": jnp.ones(grid + 1)}
    state = step.place(begun(method, weights, 400))
    state = state.replace(stage={**state.stage, "learning_rate": jnp.float32(0.02)})
    state, key = step.place(state), step.place(jax.random.key(0))
    for i in range(400):
        batch, _ = draws(128, i)
        state, _ = step(state, step.share(jax.device_get(batch)), key)
    found = method.result(state)["model"]
    assert step.traces == 1
    np.testing.assert_allclose(found["mean"], MEAN, atol=0.02)
    np.testing.assert_allclose(found["factor"][1:], expected[1:], atol=0.02)
