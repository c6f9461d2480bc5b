"""Samplers: from noise to data in a given number of steps.

Every sampler runs on the grid t = 1, (N-1)/N, ..., 1/N, 0. A step asks the denoiser for
x at (z_t, t), clips it, and moves on to z_s; the last step returns x itself. Written
for a traced number of steps, so that one compiled sampler serves all of them.

Sources: DDIM, Song et al. 2021 (2010.02502); ancestral, Ho et al. 2020 (2006.11239);
Heun, Karras et al. 2022 (2206.00364), here in the angle; DPM-Solver++(2M), Lu et al.
2022 (2211.01095).
"""

import jax
import jax.numpy as jnp
import numpy as np

from pd_jax.arcs import Arc, Denoiser, travel
from pd_jax.diffusion import alpha_sigma, posterior, variance_weight
from pd_jax.runtime import registry
from pd_jax.schedules import Schedule

METHODS = ("ddim", "ancestral", "heun", "dpmpp_2m")


def parse(method: str) -> tuple[str, str]:
    """Splits a sampler's name into method and variance ("" but for "ancestral").

    Raises:
      ValueError: for an unknown method or variance, listing the known ones.
    """
    name, _, variance = method.partition(":")
    registry.check(name, METHODS, "sampler")
    if name != "ancestral":
        if variance:
            raise ValueError(f'sampler "{method}": only "ancestral" takes a variance')
        return name, ""
    variance = variance or "large"
    variance_weight(variance)
    return name, variance


def _example_keys(key: jax.Array, num: int) -> jax.Array:
    """One key per example: noise belongs to an example, whatever its batch."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num))


def noise(key: jax.Array, place: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [B, *shape] of places [B]: a function of key and place.

    A set of samples is thereby the same in batches of any size, in any order.
    """

    @jax.vmap
    def draw(place):
        return jax.random.normal(jax.random.fold_in(key, place), shape)

    return draw(place)


def step_keys(key: jax.Array, place: jax.Array) -> jax.Array:
    """Keys [B] for `sample` at places [B], of the same key as `noise`."""
    root = jax.random.fold_in(key, 1)
    return jax.vmap(jax.random.fold_in, (None, 0))(root, place)


def labels(key: jax.Array, place: jax.Array, num_classes: int) -> jax.Array:
    """Labels [B] int32 of places [B], all as likely, of the same key as `noise`."""
    root = jax.random.fold_in(key, 2)

    @jax.vmap
    def draw(place):
        return jax.random.randint(
            jax.random.fold_in(root, place), (), 0, num_classes, jnp.int32
        )

    return draw(place)


def sample(
    denoise: Denoiser,
    z: jax.Array,
    num_steps: jax.Array | int,
    schedule: Schedule,
    method: str = "ddim",
    clip: bool = True,
    key: jax.Array | None = None,
) -> jax.Array:
    """Samples data from noise.

    Args:
      denoise: (z [B, ...], logsnr [B]) -> Prediction.
      z: standard normal noise [B, ...].
      num_steps: number of steps N >= 1; may be traced. Heun asks the denoiser twice a
        step, the others once.
      schedule: the schedule that the denoiser was trained on.
      method: "ddim"; "ancestral" with the larger variance, or "ancestral:VARIANCE" with
        a variance of `diffusion.posterior`; "heun", second order; "dpmpp_2m", second
        order from the step before.
      clip: clip each prediction of x to [-1, 1].
      key: for "ancestral": one key, or one per example [B].

    Returns:
      x [B, ...], in [-1, 1] where clipped.

    Raises:
      ValueError: for an unknown method, fewer than one step, or a missing key.
    """
    name, variance = parse(method)
    z = jnp.asarray(z)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        z = z.astype(float)
    if not isinstance(num_steps, jax.core.Tracer):
        whole = np.ndim(num_steps) == 0 and isinstance(
            np.asarray(num_steps).item(), int
        )
        if not whole or num_steps < 1:
            raise ValueError(
                f"num_steps={num_steps}: a sampler takes a whole number of steps, at "
                "least one"
            )
    if name == "ancestral":
        if key is None:
            raise ValueError('sampler "ancestral" draws noise: it needs a key')
        keys = _example_keys(key, z.shape[0])

    def level(n):
        """Angle and logsnr with n of N steps left."""
        t = jnp.asarray(n, z.dtype) / jnp.asarray(num_steps, z.dtype)
        return schedule.angle(t), schedule(t)

    def towards(x, z, logsnr):
        """The v at z that points at x."""
        alpha, sigma = alpha_sigma(logsnr)
        return (alpha * z - x) / sigma

    def view(z, logsnr):
        """x, clipped, and the v that points at it; logsnr is a scalar."""
        x, _, v = denoise(z, jnp.broadcast_to(logsnr, z.shape[:1]))
        if clip:
            x = jnp.clip(x, -1.0, 1.0)
            v = towards(x, z, logsnr)
        return x, v

    def ddim(n, z, x, v, memory):
        (phi_t, _), (phi_s, _) = level(n), level(n - 1)
        return travel(z, Arc(v, phi_t - phi_s)), memory

    def heun(n, z, x, v, memory):
        (phi_t, _), (phi_s, logsnr_s) = level(n), level(n - 1)
        delta = phi_t - phi_s
        z_s = travel(z, Arc(v, delta))
        _, v_s = view(z_s, logsnr_s)
        # v_s turned back along the arc to its start: there the two are averaged.
        v_back = jnp.cos(delta) * v_s - jnp.sin(delta) * z_s
        return travel(z, Arc(0.5 * (v + v_back), delta)), memory

    def dpm(n, z, x, v, memory):
        x_before, logsnr_before = memory
        (_, logsnr_t), (_, logsnr_s) = level(n), level(n - 1)
        first = n == num_steps
        ratio = (logsnr_s - logsnr_t) / jnp.where(first, 1.0, logsnr_t - logsnr_before)
        x_ahead = x + jnp.where(first, 0.0, 0.5 * ratio) * (x - x_before)
        z_s, _ = ddim(n, z, x, towards(x_ahead, z, logsnr_t), None)
        return z_s, (x, logsnr_t)

    def ancestral(n, z, x, v, memory):
        (_, logsnr_t), (_, logsnr_s) = level(n), level(n - 1)
        mean, std = posterior(x, z, logsnr_s, logsnr_t, variance)

        def draw(key):
            return jax.random.normal(jax.random.fold_in(key, n), z.shape[1:], z.dtype)

        return mean + std * jax.vmap(draw)(keys), memory

    step = {"ddim": ddim, "heun": heun, "dpmpp_2m": dpm, "ancestral": ancestral}[name]

    def body(i, carry):
        z, memory = carry
        n = num_steps - i
        x, v = view(z, level(n)[1])
        z_s, memory = step(n, z, x, v, memory)
        return jnp.where(n == 1, x, z_s), memory

    memory = (z, level(num_steps)[1]) if name == "dpmpp_2m" else ()
    x, _ = jax.lax.fori_loop(0, num_steps, body, (z, memory))
    return x
