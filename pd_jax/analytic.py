"""Data with an exact denoiser: teachers without training, and truth to test against.

For x ~ Normal(mu, s^2 I), the posterior mean of x given z at angle phi is closed:

    D = alpha^2 s^2 + sigma^2                       variance of z             (1)
    x = (sigma^2 mu + s^2 alpha z) / D                                        (2)
    eps = sigma (z - alpha mu) / D                                            (3)
    v = sigma (alpha (1 - s^2) z - mu) / D                                    (4)

A mixture averages these over its components with the posterior's weights. Written out
per view, so that none is a difference of nearly equal numbers at either end of time.
"""

import jax
import jax.numpy as jnp

from pd_jax.arcs import Denoiser
from pd_jax.diffusion import Prediction, alpha_sigma, expand


def gaussian(mean: jax.Array, std: jax.Array | float) -> Denoiser:
    """The exact denoiser of Normal(mean, std^2): mean and std broadcast over z[0]."""

    def denoise(z, logsnr):
        mu, s = _like_example(mean, z), _like_example(std, z)
        alpha, sigma = (expand(a, z) for a in alpha_sigma(logsnr))
        return _posterior_mean(z, alpha, sigma, mu, s)

    return denoise


def gaussian_map(
    z: jax.Array, mean: jax.Array, std: jax.Array | float, phi: jax.Array
) -> jax.Array:
    """Where the exact probability flow takes z at angle phi: data [B, ...].

    (z - alpha mu) / sqrt(D) is constant along the flow, and D = s^2 at angle 0.
    """
    mu, s = _like_example(mean, z), _like_example(std, z)
    alpha, sigma = expand(jnp.cos(phi), z), expand(jnp.sin(phi), z)
    return mu + s * (z - alpha * mu) / jnp.sqrt(_variance(alpha, sigma, s))


def mixture(means: jax.Array, std: float, weights: jax.Array | None = None) -> Denoiser:
    """The exact denoiser of a mixture of round Gaussians.

    Args:
      means: [K, ...], each like one example of z.
      std: the components' common standard deviation.
      weights: [K], positive; uniform where None.
    """
    num = len(means)
    weights = [1.0 / num] * num if weights is None else weights

    def denoise(z, logsnr):
        mu = jnp.asarray(means, z.dtype)[None]  # [1, K, ...]
        log_w = jnp.log(jnp.asarray(weights, z.dtype))[None]  # [1, K]
        z_k = z[:, None]  # [B, 1, ...]
        alpha, sigma = (expand(a, z_k) for a in alpha_sigma(logsnr))
        s = jnp.asarray(std, z.dtype)
        square = jnp.square(z_k - alpha * mu) / _variance(alpha, sigma, s)
        log_p = log_w - 0.5 * jnp.sum(square, axis=tuple(range(2, z.ndim + 1)))
        resp = expand(jax.nn.softmax(log_p, axis=1), z_k)  # [B, K, 1, ...]
        views = _posterior_mean(z_k, alpha, sigma, mu, s)
        return Prediction(*(jnp.sum(resp * view, axis=1) for view in views))

    return denoise


def _like_example(a, z):
    """A parameter that broadcasts over one example, as [1, ...] of z's rank."""
    return jnp.broadcast_to(jnp.asarray(a, z.dtype), z.shape[1:])[None]


def _variance(alpha, sigma, s):
    """Equation 1."""
    return jnp.square(alpha * s) + jnp.square(sigma)


def _posterior_mean(z, alpha, sigma, mu, s) -> Prediction:
    """Equations 2 to 4, every argument broadcastable against z."""
    s2, var = jnp.square(s), _variance(alpha, sigma, s)
    return Prediction(
        x=(jnp.square(sigma) * mu + s2 * alpha * z) / var,
        eps=sigma * (z - alpha * mu) / var,
        v=sigma * (alpha * (1.0 - s2) * z - mu) / var,
    )
