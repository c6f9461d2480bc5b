import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import analytic, arcs, diffusion, samplers
from pd_jax.arcs import Arc
from pd_jax.diffusion import alpha_sigma, expand, predict


def formula(f):
    """A denoiser whose network is a formula with output v."""
    return lambda z, logsnr: predict(f(z, expand(logsnr, z)), z, logsnr, "v")


TEACHER = formula(lambda z, l: 0.4 * z + 0.3 * jnp.sin(2 * z + 0.1 * l))
STUDENT = formula(lambda z, l: 0.2 * z - 0.5 * jnp.cos(z + 0.07 * l))


def quotient(denoise, z, t, num_steps, schedule, teacher_steps=2):
    """Appendix G to the letter: DDIM steps through x and eps, then the quotient."""
    z_s = z
    for j in range(teacher_steps):
        now, after = (t - k / (teacher_steps * num_steps) for k in (j, j + 1))
        x = denoise(z_s, schedule(now)).x
        alpha, sigma = (expand(a, z) for a in alpha_sigma(schedule(now)))
        eps = (z_s - alpha * x) / sigma
        alpha, sigma = (expand(a, z) for a in alpha_sigma(schedule(after)))
        z_s = alpha * x + sigma * eps
    alpha_t, sigma_t = (expand(a, z) for a in alpha_sigma(schedule(t)))
    ratio = sigma / sigma_t
    found = (z_s - ratio * z) / (alpha - ratio * alpha_t)
    # The last step of a sampler returns its prediction.
    return jnp.where(expand(t, z) * num_steps < 1.5, x, found)


def noisy(num_steps, schedule, shape=(8,), mean=0.0, std=1.0):
    """Data, all grid times, and z at them, in the dtype in force."""
    rng = np.random.default_rng(0)
    t = jnp.asarray(np.arange(1, num_steps + 1) / num_steps)
    x = jnp.asarray(mean + std * rng.standard_normal((num_steps, *shape)), t.dtype)
    eps = jnp.asarray(rng.standard_normal((num_steps, *shape)), t.dtype)
    return diffusion.diffuse(x, eps, schedule(t)), t


def test_joined_arc_lands_where_the_chain_lands():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        z = jnp.asarray(rng.standard_normal((5, 3, 2)))
        chain = [
            Arc(jnp.asarray(rng.standard_normal(z.shape)), jnp.asarray(d))
            for d in rng.uniform(0.01, 0.2, (6, 5))
        ]
        end, whole = arcs.travel(z, chain[0]), chain[0]
        for arc in chain[1:]:
            end, whole = arcs.travel(end, arc), arcs.join(z, whole, arc)
        np.testing.assert_allclose(arcs.travel(z, whole), end, atol=1e-14)
        np.testing.assert_allclose(whole.delta, sum(a.delta for a in chain), rtol=1e-14)


def test_joining_does_not_depend_on_grouping():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        z = jnp.asarray(rng.standard_normal((4, 3)))
        a, b, c = (Arc(jnp.asarray(rng.standard_normal((4, 3))), 0.3) for _ in range(3))
        left = arcs.join(z, arcs.join(z, a, b), c)
        right = arcs.join(z, a, arcs.join(arcs.travel(z, a), b, c))
        np.testing.assert_allclose(left.v, right.v, atol=1e-14)


def test_an_arc_of_no_length_changes_nothing():
    z, v = jnp.ones((2, 3)), jnp.full((2, 3), 0.5)
    arc = Arc(v, jnp.float32(0.1))
    still = Arc(jnp.full((2, 3), 7.0), jnp.float32(0.0))
    np.testing.assert_allclose(arcs.join(z, arc, still).v, v, atol=1e-6)
    np.testing.assert_allclose(arcs.join(z, still, arc).v, v, atol=1e-6)


@pytest.mark.parametrize("teacher_steps", [1, 2, 3, 8])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 64])
def test_target_is_the_quotient_in_float64(cosine, num_steps, teacher_steps):
    with jax.enable_x64(True):
        z, t = noisy(num_steps, cosine, (2, 3))
        args = (TEACHER, z, t, num_steps, cosine, teacher_steps)
        np.testing.assert_allclose(arcs.target(*args), quotient(*args), atol=3e-9)


@pytest.mark.parametrize("teacher_steps", [2, 4])
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_a_student_that_hits_its_target_samples_like_its_teacher(
    cosine, num_steps, teacher_steps
):
    def student(z, logsnr):
        # The time of a noise level, from the cosine schedule's angle.
        phi = jnp.arctan(jnp.exp(-0.5 * logsnr))
        first, last = cosine.angle(jnp.zeros(())), cosine.angle(jnp.ones(()))
        t = (phi - first) / (last - first)
        arc = arcs.follow(TEACHER, z, t, num_steps, cosine, teacher_steps)
        return predict(arc.v, z, logsnr, "v")

    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(0).standard_normal((6, 5)))
        mine = samplers.sample(student, z, num_steps, cosine, clip=False)
        teacher_steps = teacher_steps * num_steps
        theirs = samplers.sample(TEACHER, z, teacher_steps, cosine, clip=False)
        np.testing.assert_allclose(mine, theirs, atol=1e-8)


@pytest.mark.parametrize(
    ("num_steps", "teacher_steps"),
    [(n, 2) for n in (1, 4, 64, 512, 1024, 4096, 8192)]
    + [(n, 4) for n in (1, 64, 2048)],
)
def test_float32_target_keeps_its_digits_for_short_steps(
    cosine, num_steps, teacher_steps
):
    # Five distributions, eight draws of each, at every time of the grid.
    mean = np.repeat([0.0, 0.3, -0.9, 0.7, 0.5], 8)
    std = np.repeat([1.0, 0.5, 0.01, 0.05, 2.0], 8)
    denoise = analytic.gaussian(mean, std)
    target = jax.jit(arcs.target, static_argnums=(0, 4, 5))
    with jax.enable_x64(True):
        z, t = noisy(num_steps, cosine, mean.shape, mean, std)
        z = z.astype(jnp.float32).astype(jnp.float64)
        exact = np.asarray(target(denoise, z, t, num_steps, cosine, teacher_steps))
    assert exact.dtype == np.float64
    z, t = np.asarray(z, np.float32), np.asarray(t, np.float32)
    found = target(denoise, z, t, num_steps, cosine, teacher_steps)
    assert found.dtype == jnp.float32
    assert np.max(np.abs(found - exact)) <= 1e-6


def test_traced_steps_share_one_trace(cosine):
    traces = []

    @jax.jit
    def target(z, t, num_steps):
        traces.append(num_steps)
        return arcs.target(TEACHER, z, t, num_steps, cosine)

    for num_steps in (1, 2, 4, 1000):
        z, t = noisy(num_steps, cosine)
        z, t = z[:1], t[:1]
        found = target(z, t, num_steps)
        expected = arcs.target(TEACHER, z, t, num_steps, cosine)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("weighting", "name", "rtol"),
    [
        ("constant", "constant", 1e-4),
        ("snr", "snr", 2e-3),
        ("truncated_snr", "snr_trunc", 1e-4),
        ("snr_plus_1", "v_mse", 1e-4),
    ],
)
def test_released_losses(cosine, vectors, weighting, name, rtol):
    t = vectors["t_N4"]
    logsnr = cosine(t)
    z = diffusion.diffuse(vectors["x"], vectors["eps"], logsnr)
    arc = arcs.follow(TEACHER, z, t, 4, cosine)
    x = arcs.target(TEACHER, z, t, 4, cosine)
    for truth in (predict(arc.v, z, logsnr, "v"), predict(x, z, logsnr, "x")):
        loss = diffusion.weighted_mse(STUDENT(z, logsnr), truth, weighting)
        np.testing.assert_allclose(loss, vectors[f"loss_N4_v_{name}"], rtol=rtol)


@pytest.mark.parametrize("clip", [True, False])
def test_released_samples(cosine, vectors, clip):
    found = samplers.sample(TEACHER, vectors["z1"], 4, cosine, clip=clip)
    expected = vectors[f"ddim_v_N4_clip{int(clip)}"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_wrong_teacher_steps(cosine):
    with pytest.raises(ValueError, match="at least 1"):
        arcs.target(TEACHER, jnp.ones((1, 2)), jnp.ones(1), 4, cosine, 0)
