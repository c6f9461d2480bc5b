"""Gap: at one noised output, the difference between what two denoisers say of it.

A generator's samples x have some density q; D_p and D_q are the denoisers of the data
and of q. Noised to z = alpha x + sigma eps, the densities' scores differ by

    s_q - s_p = (alpha / sigma^2) (D_q - D_p)                                 (1)

and the gradient of KL(q_t || p_t) by x, with dz/dx = alpha, is

    (alpha / sigma)^2 (D_q - D_p)                                             (2)

Every method of this kind (score distillation, Diff-Instruct, distribution matching)
pulls some k (D_q - D_p) back through the generator; they differ in k and in the law of
the noise levels.

Sources: Luo et al. 2023 (2305.18455, Diff-Instruct); Yin et al. 2024 (2311.18828, DMD).
"""

import jax
import jax.numpy as jnp

from pd_jax.diffusion import Prediction, expand
from pd_jax.runtime import registry
from pd_jax.schedules import Schedule

WEIGHTS = ("constant", "kl", "dmd")
LAWS = ("uniform", "lognormal")
LOG_TAN_MEAN, LOG_TAN_STD = -1.2, 1.2  # of ln tan phi (Karras et al. 2022, 2206.00364)


def logsnr_at(law: str, u: jax.Array, schedule: Schedule) -> jax.Array:
    """Noise levels [B] of a law, at quantiles u in [0, 1).

    Args:
      law: "uniform" in the schedule's time; or "lognormal", with ln tan phi normal of
        mean -1.2 and standard deviation 1.2.
      u: uniform draws, [B].
      schedule: the levels end where its own do.
    """
    registry.check(law, LAWS, "time law")
    if law == "uniform":
        return schedule(u)
    u = jnp.clip(u, 1e-6, 1.0 - 1e-6)
    log_tan = LOG_TAN_MEAN + LOG_TAN_STD * jax.scipy.special.ndtri(u)
    ends = schedule(jnp.ones_like(u)), schedule(jnp.zeros_like(u))
    return jnp.clip(-2.0 * log_tan, *ends)


def gap(
    x: jax.Array, fake: Prediction, teacher: Prediction, logsnr: jax.Array, weight: str
) -> jax.Array:
    """The field k (D_q - D_p) at samples x, [B, ...]; no gradient flows through it.

    Args:
      x: the samples, [B, ...], before noise.
      fake, teacher: what the denoisers of the samples and of the data say of them, with
        noise.
      logsnr: their noise levels, [B].
      weight: k: "constant", 1; "kl", of equation 2; or "dmd", 1 over the mean absolute
        difference of x and D_p, an example's own.
    """
    registry.check(weight, WEIGHTS, "gap weight")
    k = jnp.ones_like(logsnr)
    if weight == "kl":
        k = jnp.exp(logsnr)
    elif weight == "dmd":
        axes = tuple(range(1, x.ndim))
        k = 1.0 / jnp.maximum(jnp.mean(jnp.abs(x - teacher.x), axes), 1e-5)
    return jax.lax.stop_gradient(expand(k, x) * (fake.x - teacher.x))


def pull(field: jax.Array, x: jax.Array) -> jax.Array:
    """Losses [B] whose gradient by x is the field, over the number of x's values."""
    return jnp.mean(jax.lax.stop_gradient(field) * x, tuple(range(1, x.ndim)))
