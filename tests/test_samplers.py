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


RUN = jax.jit(sample, static_argnums=(0, 3, 4, 5), static_argnames="counted")


def error(cosine, method, num_steps):
    """RMS distance to the exact flow of a Gaussian, in float64."""
    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)))
        phi = cosine.angle(jnp.ones((), z.dtype))
        exact = analytic.gaussian_map(z, MEAN, STD, phi)
        found = RUN(GAUSSIAN, z, num_steps, cosine, method, False)
        return float(np.sqrt(np.mean((found - exact) ** 2)))


@pytest.mark.parametrize(
    ("method", "order", "steps"),
    [
        ("ddim", 1, 128),
        ("heun", 2, 64),
        ("dpmpp_2m", 2, 512),
        ("pndm", 2, 64),
        ("deis", 2, 64),  # its first steps are of lower orders
        ("ddim@quadratic", 1, 128),
        ("heun@quadratic", 2, 64),
        ("heun@1,0.6,0.3", 2, 64),
    ],
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


RING = np.stack([f(np.arange(8) * np.pi / 4) for f in (np.cos, np.sin)], 1)
RING_DENOISER = analytic.mixture(RING, 0.05)


def asked_at(cosine, method, num_steps):
    """The angles at which a sampler asks its denoiser, in float64."""
    found = []

    def denoise(z, logsnr):
        jax.debug.callback(lambda n: found.append(float(n[0])), logsnr, ordered=True)
        return GAUSSIAN(z, logsnr)

    with jax.enable_x64(True):
        sample(denoise, jnp.ones((1, 3), jnp.float64), num_steps, cosine, method)
        jax.effects_barrier()
    return np.arctan(np.exp(-0.5 * np.array(found)))


@pytest.mark.parametrize(
    ("spacing", "num_steps", "times"),
    [
        ("uniform", 4, [1, 0.75, 0.5, 0.25]),
        ("quadratic", 4, [1, 0.5625, 0.25, 0.0625]),
        ("0.9,0.5,0.1", 3, [0.9, 0.5, 0.1]),
        ("0.9,0.5,0.1", 6, [0.9, 0.7, 0.5, 0.3, 0.1, 0.05]),
        ("0.9", 1, [0.9]),
    ],
)
def test_spacings_in_time(cosine, spacing, num_steps, times):
    found = asked_at(cosine, f"ddim@{spacing}", num_steps)
    with jax.enable_x64(True):
        np.testing.assert_allclose(found, cosine.angle(np.array(times)), rtol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 18])
def test_spacing_of_karras(cosine, num_steps):
    """Equation 5 of the paper, written as there."""
    i, last = np.arange(num_steps), max(num_steps - 1, 1)
    roots = 80 ** (1 / 7) + i / last * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    found = np.tan(asked_at(cosine, "ddim@karras", num_steps))
    np.testing.assert_allclose(found, roots**7, rtol=1e-9)


def test_times_are_searched_one_after_the_other():
    asked = []

    def score(spacing):
        asked.append(spacing)
        samplers.get(f"consistency@{spacing}")
        times = [float(t) for t in spacing.split(",")]
        return sum((t - best) ** 2 for t, best in zip(times[1:], (0.37, 0.12)))

    assert samplers.search(score, 1) == ("1", 0.0)
    spacing, found = samplers.search(score, 3, rounds=10)
    first, second, third = (float(t) for t in spacing.split(","))
    assert first == 1.0
    assert second == pytest.approx(0.37, abs=0.02)
    assert third == pytest.approx(0.12, abs=0.01)
    assert found == min(score(s) for s in [*asked] if s.count(",") == 2)
    assert len(set(asked)) <= 1 + 2 * 20
    with pytest.raises(ValueError, match="at least 1"):
        samplers.search(score, 0)


def test_one_step_of_deis_is_of_ddim_and_its_first_order_is_closed(cosine):
    """Of a denoiser whose eps is linear in the angle, order 1 and up are exact."""
    slope = np.array([[0.3, -1.0, 0.5]])

    def denoise(z, logsnr):
        phi = jnp.arctan(jnp.exp(-0.5 * logsnr))[:, None]
        return diffusion.predict(phi * slope + 0.1, z, logsnr, "eps")

    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
        found = {
            m: sample(denoise, z, 8, cosine, m, clip=False)
            for m in ("ddim", "deis:0", "deis:1", "deis:2", "deis:3")
        }
        np.testing.assert_allclose(found["deis:0"], found["ddim"], atol=1e-9)
        # After the first step, of DDIM, the integral of (a phi + b) / cos(phi)^2.
        phi = np.asarray(cosine.angle(np.arange(8, 0, -1) / 8))
        eps = phi[:, None, None] * slope + 0.1
        start = np.asarray(z) / np.cos(phi[0]) + eps[0] * np.tan(phi[1])
        start = start - eps[0] * np.tan(phi[0])
        whole = [
            slope * (p * np.tan(p) + np.log(np.cos(p))) + 0.1 * np.tan(p) for p in phi
        ]
        data = start + whole[-1] - whole[1] - eps[-1] * np.tan(phi[-1])
        for order in (1, 2, 3):
            np.testing.assert_allclose(found[f"deis:{order}"], data, atol=1e-6)


def test_pndm_is_the_papers_formula(cosine):
    """Equations 11 and 12 with alpha-bar, step by step, in float64."""
    num, weights = 9, {0: [1], 1: [1.5, -0.5], 2: [23 / 12, -16 / 12, 5 / 12]}
    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
        found = sample(GAUSSIAN, z, num, cosine, "pndm", clip=False)
        z, before = np.asarray(z), []
        for i in range(num):
            now, then = (np.asarray(cosine((num - j) / num)) for j in (i, i + 1))
            a, a_s = (1 / (1 + np.exp(-n)) for n in (now, then))
            view = GAUSSIAN(jnp.asarray(z), jnp.full(4, now))
            before = [np.asarray(view.eps), *before][:4]
            w = weights.get(i, np.array([55, -59, 37, -9]) / 24)
            eps = sum(wi * e for wi, e in zip(w, before))
            down = np.sqrt(a) * (np.sqrt((1 - a_s) * a) + np.sqrt((1 - a) * a_s))
            z = np.sqrt(a_s / a) * z - (a_s - a) / down * eps
        np.testing.assert_allclose(found, view.x, atol=1e-6)


def test_churn_of_0_is_heun_and_more_washes_out_errors(cosine):
    z = jax.random.normal(jax.random.key(0), (20_000, 3))

    def wrong(z, logsnr):  # one level's prediction is off
        x = GAUSSIAN(z, logsnr).x
        near = jnp.exp(-jnp.square(logsnr - 0.5))[:, None]
        return diffusion.predict(x + 0.5 * near, z, logsnr, "x")

    run = RUN
    for key in (jax.random.key(1), jax.random.key(2)):
        still = run(GAUSSIAN, z, 32, cosine, "churn:0", False, key)
        heun = run(GAUSSIAN, z, 32, cosine, "heun", False)
        np.testing.assert_array_equal(still, heun)
    churned = run(GAUSSIAN, z, 256, cosine, "churn:40", False, key)
    np.testing.assert_allclose(np.mean(churned, 0), MEAN, atol=0.01)
    np.testing.assert_allclose(np.std(churned, 0), STD, rtol=0.02)
    off = [
        float(np.mean(np.asarray(run(wrong, z, 64, cosine, m, False, key)) - MEAN))
        for m in ("churn:0", "churn:20", "churn:80")
    ]
    assert off[0] > 1.2 * off[1] > 1.2 * off[2] > 0


@pytest.mark.parametrize("tolerance", [0.1, 0.01])
def test_adaptive_keeps_its_tolerance_and_counts(cosine, tolerance):
    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(0).standard_normal((256, 2)))
        exact = RUN(RING_DENOISER, z, 2048, cosine, "heun", False)
        given = cosine, f"adaptive:{tolerance}", False
        found, asked = RUN(RING_DENOISER, z, 1, *given, counted=True)
        alone, count = RUN(RING_DENOISER, z[:3], 1, *given, counted=True)
        # A path that is one arc, to one place, takes next to nothing.
        place = analytic.gaussian(np.ones(2), 0.0)
        few = RUN(place, z[:3], 1, *given, counted=True)[1]
        found, asked, exact, alone, count = map(
            np.asarray, (found, asked, exact, alone, count)
        )
    assert np.sqrt(np.mean(np.square(found - exact))) <= 3 * tolerance
    # Of each example its own, whatever its batch.
    np.testing.assert_allclose(alone, found[:3], atol=1e-9)
    np.testing.assert_array_equal(count, asked[:3])
    assert np.max(asked) > np.min(asked) > 3
    assert np.max(few) <= 11


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


@pytest.mark.parametrize(
    "method", [n for n in OF_DENOISERS if not samplers.get(n).arrives]
)
def test_one_step_returns_the_prediction_and_stays_in_range(cosine, method):
    z = 3 * jax.random.normal(jax.random.key(0), (16, 3))
    wide = analytic.gaussian(np.full(3, 2.0), 0.1)
    key = jax.random.key(1)
    np.testing.assert_allclose(
        sample(wide, z, 1, cosine, method, False, key),
        wide(z, jnp.broadcast_to(cosine(1.0), (16,))).x,
    )
    for num_steps in (1, 2, 7):
        x = RUN(wide, z, num_steps, cosine, method, True, key)
        assert float(jnp.max(jnp.abs(x))) <= 1.0


@pytest.mark.parametrize("method", OF_DENOISERS)
def test_traced_step_counts_share_one_trace_and_equal_static_ones(cosine, method):
    z, key, traces = jnp.ones((2, 3)), jax.random.key(1), []

    @jax.jit
    def traced(num_steps):
        traces.append(num_steps)
        return sample(GAUSSIAN, z, num_steps, cosine, method, True, key)

    for num_steps in (1, 5, 33):
        static = sample(GAUSSIAN, z, num_steps, cosine, method, True, key)
        np.testing.assert_allclose(traced(num_steps), static, atol=2e-5)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        ({"method": "dim"}, "known are adaptive, ancestral"),
        ({"method": "heun:small"}, ".heun. takes no variance"),
        ({"method": "ancestral"}, "needs a key"),
        ({"method": "churn:-1"}, "a number from 0"),
        ({"method": "deis:4"}, "order is 0 to 3"),
        ({"method": "adaptive:0"}, "a number above 0"),
        ({"method": "ddim@even"}, "give uniform, quadratic, karras, or falling times"),
        ({"method": "ddim@0.3,0.6"}, "falling times"),
        ({"method": "ddim@1,0"}, "above 0"),
        ({"method": "ddim@2,1"}, "at most 1"),
        ({"method": "ddim@nan"}, "falling times"),
        ({"method": "ddim@"}, "falling times"),
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

    key = jax.random.key(1)
    _, asked = sample(denoise, z, 3, cosine, method, key=key, counted=True)
    jax.effects_barrier()
    assert len(calls) == np.max(asked)
    if method == "adaptive":
        assert len(calls) > 3 * samplers.get(method).evaluations
    else:
        assert asked.tolist() == [3 * samplers.get(method).evaluations] * 2


def test_names_are_parsed():
    assert samplers.parse("ddim") == ("ddim", "")
    assert samplers.parse("ancestral") == ("ancestral", "large")
    assert samplers.parse("ancestral:medium:0.3") == ("ancestral", "medium:0.3")
    assert samplers.get("ancestral:small") != samplers.get("ancestral")
    assert samplers.parse("ddim@uniform") == ("ddim", "")
    assert samplers.parse("ddim@karras") == ("ddim", "@karras")
    assert samplers.parse("ancestral:small@1,0.3") == ("ancestral", "small@1,0.3")
    assert samplers.label("ddim@uniform") == "DDIM"
    assert samplers.label("heun@karras") == "Heun, karras steps"


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
