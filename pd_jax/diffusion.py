"""The forward process, and the three views of a prediction.

With phi the angle of the noise level (schedules.py), alpha = cos phi, sigma = sin phi:

    z   = alpha x + sigma eps                                                 (1)
    v   = alpha eps - sigma x                                                 (2)
    x   = alpha z - sigma v                                                   (3)
    eps = sigma z + alpha v                                                   (4)

(z, v) is (x, eps) turned by phi, so v is the well-conditioned view at every noise
level, and x and eps follow from it. A network may output any of them, or `both`, x
and eps together; its reconciliation (Salimans & Ho 2022, appendix D)
x = sigma^2 x_head + alpha (z - sigma eps_head) is, by (3), nothing but (2) of the two
heads, with no division by alpha.

Source: Salimans & Ho 2022, arXiv 2202.00512, section 4 and appendix D.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pd_jax.runtime import registry
from pd_jax.runtime.errors import Refused

OUTPUTS = ("x", "eps", "v", "both")
WEIGHTINGS = ("constant", "snr", "truncated_snr", "snr_plus_1")
LOSSES = ("squared", "pseudo_huber")
HUBER = 0.00054  # c / sqrt(d), Song & Dhariwal 2023


class Prediction(NamedTuple):
    """One prediction at a noisy point z, seen three ways; each [B, ...] like z."""

    x: jax.Array
    eps: jax.Array
    v: jax.Array


def expand(a: jax.Array, like: jax.Array) -> jax.Array:
    """Appends unit axes to `a` ([B] or scalar) so that it broadcasts over `like`."""
    a = jnp.asarray(a)
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim)) if a.ndim else a


def alpha_sigma(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Signal and noise scale at a log signal-to-noise ratio; any shape."""
    logsnr = jnp.asarray(logsnr)
    if not jnp.issubdtype(logsnr.dtype, jnp.floating):
        logsnr = logsnr.astype(float)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def _scales(logsnr: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    alpha, sigma = alpha_sigma(logsnr)
    return expand(alpha, z), expand(sigma, z)


def diffuse(x: jax.Array, eps: jax.Array, logsnr: jax.Array) -> jax.Array:
    """z = alpha x + sigma eps: x and eps [B, ...], logsnr [B] (equation 1)."""
    x, eps = jnp.asarray(x), jnp.asarray(eps)
    alpha, sigma = _scales(logsnr, x)
    return alpha * x + sigma * eps


def velocity(x: jax.Array, eps: jax.Array, logsnr: jax.Array) -> jax.Array:
    """v = alpha eps - sigma x: x and eps [B, ...], logsnr [B] (equation 2)."""
    x, eps = jnp.asarray(x), jnp.asarray(eps)
    alpha, sigma = _scales(logsnr, x)
    return alpha * eps - sigma * x


def predict(
    output: jax.Array, z: jax.Array, logsnr: jax.Array, kind: str
) -> Prediction:
    """All three views of a network's raw output.

    Args:
      output: [B, ...] like z; for kind "both" its last axis is doubled, x then eps.
      z: noisy data [B, ...].
      logsnr: [B] (or a scalar).
      kind: what the output means, "x" "eps" "v" or "both".

    Kind "eps" divides by alpha (4.5e-5 at t = 1) and kind "x" by sigma: their other
    views are ill-conditioned there, which is the networks' nature and not hidden.

    Raises:
      Refused: for an unknown kind.
      ValueError: for an output of the wrong shape.
    """
    registry.check(kind, OUTPUTS, "output kind")
    output, z = jnp.asarray(output), jnp.asarray(z)
    wanted = (*z.shape[:-1], 2 * z.shape[-1]) if kind == "both" else z.shape
    if output.shape != wanted:
        raise ValueError(
            f'an output of kind "{kind}" for z of shape {z.shape} has shape {wanted}, '
            f"not {output.shape}"
        )
    alpha, sigma = _scales(logsnr, z)
    if kind == "x":
        v = (alpha * z - output) / sigma
        return Prediction(output, sigma * z + alpha * v, v)
    if kind == "eps":
        v = (output - sigma * z) / alpha
        return Prediction(alpha * z - sigma * v, output, v)
    if kind == "both":
        x_head, eps_head = jnp.split(output, 2, axis=-1)
        v = alpha * eps_head - sigma * x_head
    else:
        v = output
    return Prediction(alpha * z - sigma * v, sigma * z + alpha * v, v)


def weighted_mse(
    prediction: Prediction, target: Prediction, weighting: str
) -> jax.Array:
    """Weighted squared error per example, [B]: mean over all other axes.

    The weights on the x error are functions of the noise level, and each equals an
    error in another view, so no weight is ever multiplied in:

        constant       1                       x error
        snr            alpha^2/sigma^2         eps error
        truncated_snr  max(alpha^2/sigma^2, 1) the larger of the two
        snr_plus_1     1 + alpha^2/sigma^2     v error

    Raises:
      Refused: for an unknown weighting.

    Source: Salimans & Ho 2022, section 4.
    """
    registry.check(weighting, WEIGHTINGS, "loss weighting")

    def mse(a, b):
        return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))

    if weighting == "constant":
        return mse(prediction.x, target.x)
    if weighting == "snr":
        return mse(prediction.eps, target.eps)
    if weighting == "snr_plus_1":
        return mse(prediction.v, target.v)
    return jnp.maximum(mse(prediction.x, target.x), mse(prediction.eps, target.eps))


def robust(mse: jax.Array, size: int, loss: str) -> jax.Array:
    """Losses of mean squared errors [B], each a mean over `size` values d.

    "squared" leaves them; "pseudo_huber" is sqrt(d mse + c^2) - c, c = 0.00054 sqrt(d),
    with a finite gradient where the error is 0.

    Raises:
      Refused: for an unknown loss.

    Source: Charbonnier et al. 1997, as in Song & Dhariwal 2023 (2310.14189).
    """
    if registry.check(loss, LOSSES, "loss") == "squared":
        return mse
    c = HUBER * math.sqrt(size)
    return jnp.sqrt(size * mse + c**2) - c


def variance_weight(variance: str) -> float:
    """Weight of the large log-variance: "small" 0, "large" 1, "medium:f" f.

    Raises:
      ValueError: for anything else.
    """
    if variance in ("small", "large"):
        return float(variance == "large")
    name, _, fraction = variance.partition(":")
    try:
        weight = float(fraction)
        if name == "medium" and 0.0 <= weight <= 1.0:
            return weight
    except ValueError:  # no number
        pass
    raise Refused(
        f'unknown variance "{variance}": known are small, large, and medium:f with f '
        "between 0 (small) and 1 (large)"
    )


def posterior(
    x: jax.Array,
    z: jax.Array,
    logsnr_s: jax.Array,
    logsnr_t: jax.Array,
    variance: str,
) -> tuple[jax.Array, jax.Array]:
    """The ancestral step q(z_s | z_t, x) for s < t: its mean and standard deviation.

    Args:
      x: data (or its prediction) [B, ...].
      z: z_t [B, ...].
      logsnr_s, logsnr_t: [B] or scalar, logsnr_s >= logsnr_t.
      variance: with r = SNR(t)/SNR(s), "small" is (1 - r) sigma_s^2, the posterior's
        own; "large" is (1 - r) sigma_t^2, that of q(z_t | z_s); "medium:f" lies
        between them in log variance, f being the weight of large.

    Returns:
      mean and standard deviation, both [B, ...] like z.

    Raises:
      Refused: for an unknown variance.

    Source: Ho et al. 2020, equations 6-7; Salimans & Ho 2022, section 2.
    """
    weight = variance_weight(variance)
    x, z = jnp.asarray(x), jnp.asarray(z)
    logsnr_s, logsnr_t = expand(logsnr_s, z), expand(logsnr_t, z)
    log_r = logsnr_t - logsnr_s
    one_minus_r = -jnp.expm1(log_r)
    alpha_s, _ = alpha_sigma(logsnr_s)
    # alpha_s / alpha_t in logs: alpha_t itself is 4.5e-5 at t = 1.
    log_ratio = 0.5 * (jax.nn.log_sigmoid(logsnr_s) - jax.nn.log_sigmoid(logsnr_t))
    mean = jnp.exp(log_r + log_ratio) * z + one_minus_r * alpha_s * x
    log_sigma2 = (1.0 - weight) * jax.nn.log_sigmoid(-logsnr_s)
    log_sigma2 += weight * jax.nn.log_sigmoid(-logsnr_t)
    std = jnp.sqrt(one_minus_r) * jnp.exp(0.5 * log_sigma2)
    return mean, jnp.broadcast_to(std, z.shape)
