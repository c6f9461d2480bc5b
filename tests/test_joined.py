"""Methods that join arcs, against Gaussians, where every arc is closed."""

import itertools
import math
import pathlib
import re
import runpy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm
from test_consistency_distillation import (
    GAUSSIAN,
    MEAN,
    STD,
    WHOLE,
    affine,
    angle,
    ddim_factor,
    draws,
    places,
)

from pd_jax import diffusion, methods
from pd_jax.methods import Parts
from pd_jax.methods._joined import TARGET, segment_end
from pd_jax.models import Model
from pd_jax.models._model import Function
from pd_jax.runtime.errors import Refused
from pd_jax.training.optimizer import Optimizer, average
from pd_jax.training.stage import Stage

IMITATION = pathlib.Path(__file__).parents[1] / "docs" / "imitation.py"


def method_of(name, function, exact=GAUSSIAN, schedule=WHOLE, **kw):
    model = Model(Function(function), "v")
    parts = Parts("ladder", model, schedule, Optimizer(), (2,), exact)
    return methods.get(name).Method(parts, **kw)


def begun(method, weights, **numbers):
    handed_over = {"model": weights, "teacher": weights}
    stage = Stage("student_1", 0, 1, 10, 1e-2, numbers)
    state = method.begin(handed_over, stage, jax.random.key(0))
    # Of tables, the exact denoiser alone teaches.
    return state.replace(frozen={})


def at_update(state, step, updates):
    stage = {**state.stage, "updates": jnp.int32(updates)}
    return state.replace(step=jnp.int32(step), stage=stage)


def to_ends(num, segments):
    """[num + 1]: DDIM's factors from each grid time to its segment's end."""
    phi = np.linspace(0.0, 0.5 * np.pi, num + 1)
    factors = [1.0]
    for i in range(1, num + 1):
        first = (i - 1) % (num // segments) == 0
        factors.append(ddim_factor(phi[i], phi[i - 1]) * (1 if first else factors[-1]))
    return np.array(factors)


def steps_to_ends(num, segments):
    """A network whose arc from every grid time multiplies by a factor of its own."""

    def table(params, z, logsnr, label):
        phi = angle(logsnr)
        i = jnp.round(phi / (0.5 * jnp.pi) * num)
        end = (jnp.ceil(i / (num // segments)) - 1.0) / segments * 0.5 * jnp.pi
        factor = params["factor"][i.astype(int)]
        phi, end, factor = (diffusion.expand(a, z) for a in (phi, end, factor))
        landed = params["mean"] * jnp.cos(end)
        landed = landed + factor * (z - params["mean"] * jnp.cos(phi))
        delta = phi - end
        return (jnp.cos(delta) * z - landed) / jnp.sin(delta)

    return table


@pytest.mark.parametrize("grid", [1, 2, 12, 1024, 4096, 3 * 2**20])
def test_ends_of_segments(grid):
    for segments in (s for s in (1, 2, 4, 12, 32) if grid % s == 0):
        i = np.unique(np.geomspace(1, grid, 300).round().astype(int))
        t = jnp.float32(i) / jnp.float32(grid)
        number = (i - 1) // (grid // segments)
        expected = np.float32(number) / np.float32(segments)
        np.testing.assert_allclose(segment_end(t, grid, segments), expected, rtol=2e-7)


@pytest.mark.parametrize(
    ("name", "grid", "segments"),
    [
        ("tract", 8, 2),
        ("tract", 8, 1),
        ("tract", 6, 3),
        ("consistency_distillation", 8, 4),
        ("consistency_distillation", 6, 6),
    ],
)
def test_the_fixed_point_is_the_product_of_a_segments_steps(name, grid, segments):
    with jax.enable_x64(True):
        kw = {"start": grid, "steps": (segments,), "weighting": "snr_plus_1"}
        if name != "tract":
            kw = {"grid": grid, "segments": segments}
        method = method_of(name, steps_to_ends(grid, segments), solver="ddim", **kw)
        factor = to_ends(grid, segments)
        weights = {"mean": np.float64(MEAN), "factor": factor}
        batch, keys = draws()
        place = places(keys, grid)

        @jax.jit
        def losses(weights):
            state = begun(method, weights, grid=grid, num_steps=segments)
            return method.losses(state, weights, batch, keys)

        assert np.max(losses(weights)) < 1e-12
        for i in range(1, grid + 1):
            other = {**weights, "factor": factor + 0.1 * (np.arange(grid + 1) == i)}
            found = np.asarray(losses(other))
            # Off itself, and the target of the next one within the segment.
            off = (place == i) | ((place == i + 1) & (i % (grid // segments) != 0))
            assert np.min(found[off]) > 1e-7
            assert np.all(found[~off] < 1e-12)


def test_consistency_training_teaches_the_products_too():
    """In the mean over (x, eps) its line is the exact denoiser's step."""
    grid = 4
    with jax.enable_x64(True):
        method = method_of("consistency_training", steps_to_ends(grid, 1), grid=grid)
        batch, keys = draws(40_000)
        place = places(keys, grid)
        factor = to_ends(grid, 1)

        @jax.jit
        def slopes(factor):
            """By how much each example's loss grows with the factor of its time."""
            weights = {"mean": jnp.float64(MEAN), "factor": factor}
            state = begun(method, weights)

            def losses(shift):
                own = {**weights, "factor": factor + shift}
                return method.losses(state, own, batch, keys)

            return jax.jvp(losses, (0.0,), (1.0,))[1]

        found = np.asarray(slopes(factor))
        off = np.asarray(slopes(factor + 0.05))
        for i in range(1, grid + 1):
            own = place == i
            error = np.std(found[own]) / math.sqrt(own.sum())
            assert abs(np.mean(found[own])) < 4 * error
        assert abs(np.mean(off[place == 1])) > 10 * error


def test_pseudo_huber():
    with jax.enable_x64(True):
        mse, size = np.array([0.0, 1e-8, 0.3, 20.0]), 192
        c = 0.00054 * math.sqrt(size)
        expected = np.sqrt(size * mse + c**2) - c
        found = diffusion.robust(mse, size, "pseudo_huber")
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
        slope = jax.grad(lambda a: diffusion.robust(a**2, size, "pseudo_huber"))
        assert float(slope(0.0)) == 0.0
        assert float(slope(1e3)) == pytest.approx(math.sqrt(size), rel=1e-9)
    np.testing.assert_array_equal(diffusion.robust(mse, size, "squared"), mse)
    with pytest.raises(Refused, match="pseudo_huber, squared"):
        diffusion.robust(mse, size, "cubic")


def test_the_loss_is_of_the_weighted_error(cosine):
    weights = {"w": jnp.float32(0.4), "b": jnp.float32(-0.2)}
    batch, keys = draws()
    found = {}
    for loss in diffusion.LOSSES:
        method = method_of(
            "consistency_training",
            affine,
            schedule=cosine,
            loss=loss,
            weighting="constant",
        )
        state = begun(method, weights)
        found[loss] = jax.jit(method.losses)(state, weights, batch, keys)
    expected = diffusion.robust(found["squared"], 2, "pseudo_huber")
    np.testing.assert_allclose(found["pseudo_huber"], expected, rtol=1e-6)


def test_the_average_of_tract_has_no_bias():
    method = method_of("tract", affine, average=0.5)
    state = begun(method, {"w": jnp.float32(0.4), "b": jnp.float32(-0.2)})
    decay, kept, seen = method.averages[TARGET], jnp.float32(9.0), []
    for n in range(12):
        seen.append(math.sin(n + 1.0))
        now = state.replace(step=jnp.int32(n))
        kept = average(kept, jnp.float32(seen[-1]), decay, now)
        shares = 0.5 ** np.arange(n, -1, -1)
        expected = np.sum(shares * seen) / np.sum(shares)
        assert float(kept) == pytest.approx(expected, rel=1e-5)
    assert method_of("tract", affine, average=0.0).averages == {}


def test_phases_of_tract():
    method = method_of("tract", affine, start=64, steps=(8, 1), updates=(5, 7))
    stages = method.plan()
    assert [(s.name, s.num_steps, s.updates, s.numbers["grid"]) for s in stages] == [
        ("student_8", 8, 5, 64),
        ("student_1", 1, 7, 8),
    ]
    assert method.asks_steps == 64
    # A phase's end: what was averaged teaches, what was trained goes on.
    own, kept = ({"w": jnp.float32(w), "b": jnp.float32(0.0)} for w in (0.1, 0.2))
    given = {"model": kept, "own": own, "teacher": kept}
    state = method.begin(given, stages[1], jax.random.key(0))
    assert float(state.model.params["w"]) == pytest.approx(0.1)
    assert float(state.frozen["teacher"]["w"]) == pytest.approx(0.2)
    assert set(method.result(state)) == {"model", "own"}


def test_growing_grids_and_averages():
    """Song et al. 2023: 2 to 150 points in 800k updates, here of intervals."""
    kw = dict(grid=128, doublings=6, growth="sqrt", average=0.9, average_grows=True)
    method = method_of("consistency_training", affine, **kw)
    state = begun(method, {"w": jnp.float32(0.4), "b": jnp.float32(-0.2)})
    for done in (0.0, 0.125, 0.25, 0.5, 1.0):
        now = at_update(state, int(done * 800), 800)
        grid, _ = method.grid_and_segments(now)
        expected = round(math.sqrt(done * (128**2 - 2**2) + 2**2))
        assert float(grid) == expected
        decay = float(method.averages[TARGET](now))
        assert decay == pytest.approx(0.9 ** (2 / expected), rel=1e-5)


def test_lognormal_times_fall_on_the_grid_by_the_laws_mass(cosine):
    grid = 8
    method = method_of(
        "consistency_training",
        affine,
        schedule=cosine,
        grid=grid,
        time_law="lognormal",
    )
    state = begun(method, {"w": jnp.float32(0.4), "b": jnp.float32(-0.2)})
    keys = jax.random.split(jax.random.key(0), 20_000)
    t, u, s = jax.jit(method.times)(state, keys)
    i = np.round(np.asarray(t) * grid).astype(int)
    np.testing.assert_allclose(np.asarray(t) * grid, i, atol=1e-5)
    np.testing.assert_allclose(np.asarray(u) * grid, i - 1, atol=1e-5)
    assert np.all(np.asarray(s) == 0.0)
    ends = -0.5 * np.asarray(cosine(jnp.linspace(0.0, 1.0, grid + 1)), np.float64)
    mass = np.diff(norm.cdf((ends + 1.1) / 2.0))
    found = np.bincount(i, minlength=grid + 1)[1:] / len(i)
    np.testing.assert_allclose(found, mass / mass.sum(), atol=0.012)


def test_ratio_times(cosine):
    """At first u = 0, as in standard training; then ever nearer to t."""
    method = method_of(
        "consistency_training",
        affine,
        schedule=cosine,
        grid=256,
        doublings=8,
        time_law="ratio",
    )
    state = begun(method, {"w": jnp.float32(0.4), "b": jnp.float32(-0.2)})
    keys = jax.random.split(jax.random.key(0), 20_000)
    shares = []
    for stage in range(9):
        now = at_update(state, stage, 9)
        t, u, s = map(np.asarray, jax.jit(method.times)(now, keys))
        assert np.all((u <= t) & (u >= s) & (s == 0.0))
        phi, below = (np.asarray(cosine.angle(a)) for a in (t, u))
        noise = np.tan(phi)
        inside = (noise > 0.01) & (noise < 100) & (u > 0.01)
        expected = 1 - (1 + 8 * (1 - expit(noise))) / 2 ** (stage + 1)
        found = np.tan(below) / noise
        np.testing.assert_allclose(found[inside], expected[inside], atol=2e-3)
        shares.append(np.mean(u))
    assert np.log(np.tan(phi)).mean() == pytest.approx(-1.1, abs=0.05)
    assert np.log(np.tan(phi)).std() == pytest.approx(2.0, abs=0.05)
    assert all(a < b for a, b in itertools.pairwise(shares))


def test_interval_weights():
    with jax.enable_x64(True):
        method = method_of("consistency_training", affine, interval_weight=True)
        t, u = jnp.array([0.25, 0.7, 0.125]), jnp.array([0.125, 0.69, 0.0])
        below = np.tan(0.5 * np.pi * np.asarray(u))
        expected = 1 / (np.tan(0.5 * np.pi * np.asarray(t)) - below)
        np.testing.assert_allclose(method.weight(t, u), expected, rtol=1e-9)


def test_imitation_has_no_variance():
    with jax.enable_x64(True):

        def exact(params, z, logsnr, label):
            return GAUSSIAN(z, logsnr).v + params["shift"]

        batch, keys = draws()
        for name, least, most in (("imitation", 0.0, 1e-12), ("standard", 0.1, 9.0)):
            method = method_of(name, exact, weighting="snr_plus_1")
            weights = {"shift": jnp.float64(0.0)}
            losses = jax.jit(method.losses)(
                begun(method, weights), weights, batch, keys
            )
            assert least <= float(jnp.mean(losses)) <= most
        method = method_of("imitation", exact)
        weights = {"shift": jnp.float64(0.3)}
        losses = jax.jit(method.losses)(begun(method, weights), weights, batch, keys)
        np.testing.assert_allclose(losses, 0.09, rtol=1e-9)


def test_imitation_has_the_gradient_of_training_on_data_without_its_variance():
    # The exact v, and a shift c in both values: g = 2 (c - mean of v - E[v | z]), of
    # mean 2 c. Var[v | z] = s^2 / (s^2 cos^2 phi + sin^2 phi), on average over phi s.
    shift, num = 0.5, 20_000
    noise = runpy.run_path(str(IMITATION))["gradient_noise"]

    def shifted(params, z, logsnr, label):
        return GAUSSIAN(z, logsnr).v + params["shift"]

    def of(name):
        method = method_of(name, shifted, weighting="snr_plus_1")
        state = begun(method, weights)
        return jax.jit(lambda *given: noise(partial(method.losses, state), *given))

    with jax.enable_x64(True):
        weights = {"shift": jnp.float64(shift)}
        found, variance = of("standard")(weights, *draws(num))
        assert variance == pytest.approx(2.0 * STD, rel=0.05)
        # The signal is within four standard errors of its mean.
        error = 4.0 * np.sqrt(variance / num) / shift
        assert variance / found == pytest.approx((2.0 * shift) ** 2, rel=error)
        found, variance = of("imitation")(weights, *draws(num))
        assert variance == pytest.approx(0.0, abs=1e-10)
        assert found == pytest.approx(0.0, abs=1e-10)


@pytest.mark.long
def test_imitation_beside_training_on_data_on_the_digits(capsys):
    runpy.run_path(str(IMITATION))["main"](0, 160, 200, 512)
    lines = [
        re.findall(r"[\d.e+-]+", row) for row in capsys.readouterr().out.splitlines()
    ]
    losses = {int(r[0]): list(map(float, r[1:])) for r in lines[3:12]}
    start, end = losses[0], losses[160]
    assert start[:2] == start[2:]
    assert end[0] < 0.1 * start[0]
    assert end[0] < end[2]
    assert end[3] < start[3]
    noise = [list(map(float, r[1:])) for r in lines[15:18]]
    assert all(row[2] < row[3] for row in noise)
    assert all(row[0] < row[1] for row in noise[:2])  # then the signal has gone


@pytest.mark.parametrize(
    ("name", "kw", "says"),
    [
        ("tract", {"start": 8, "steps": ()}, r"start=8, ladder.steps=\(\): each"),
        ("tract", {"start": 8, "steps": (3,)}, "divides the one before"),
        ("tract", {"start": 8, "steps": (8,)}, "divides the one before"),
        (
            "tract",
            {"start": 8, "steps": (4, 1), "updates": (1, 2, 3)},
            "or 2, one for each",
        ),
        ("consistency_training", {"grid": 6, "segments": 4}, "a multiple of 4"),
        (
            "consistency_training",
            {"grid": 8, "segments": 2, "growth": "sqrt"},
            'give "doubling"',
        ),
        (
            "consistency_training",
            {"grid": 8, "segments": 2, "time_law": "ratio"},
            "give ladder.segments=1",
        ),
    ],
)
def test_refusals(name, kw, says):
    with pytest.raises(Refused, match=says):
        method_of(name, affine, **kw).plan()


def test_samplers():
    assert method_of("consistency_training", affine).sampler == "consistency"
    segmented = method_of("consistency_distillation", affine, grid=8, segments=4)
    assert segmented.sampler == "ddim"
    (stage,) = segmented.plan()
    assert (stage.num_steps, segmented.step_counts(stage)) == (4, (4,))
