"""What a network is told beside z: the noise level, a label, further conditioning."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pd_jax.runtime import registry
from pd_jax.runtime.errors import Refused

LOGSNR_INPUTS = ("inv_cos", "linear", "sigmoid")


def time_input(logsnr: jax.Array, kind: str) -> jax.Array:
    """A noise level as a number of about 0 to 1; any shape, any logsnr.

    "inv_cos" is the angle phi as a share of pi/2, which is the time of the cosine
    schedule; "linear" (logsnr + 10) / 20; "sigmoid" alpha^2.

    Raises:
      Refused: for an unknown kind.

    Source: the released networks (field `logsnr_input_type`).
    """
    registry.check(kind, LOGSNR_INPUTS, "model.logsnr_input_type")
    if kind == "inv_cos":
        clipped = jnp.clip(logsnr, -20.0, 20.0)
        # A derivative at the schedule's ends is that within.
        within = logsnr + jax.lax.stop_gradient(clipped - logsnr)
        clipped = jnp.where(jnp.abs(logsnr) < 20.1, within, clipped)
        return jnp.arctan(jnp.exp(-0.5 * clipped)) / (0.5 * math.pi)
    return (logsnr + 10.0) / 20.0 if kind == "linear" else jax.nn.sigmoid(logsnr)


def sinusoidal(u: jax.Array, width: int, scale: float = 1000.0) -> jax.Array:
    """Embedding [B, width] of times u [B], width even and at least 4.

    Sines, then cosines, of scale u times width/2 frequencies from 1 down to 1/10000.
    """
    if not 0.0 < scale < math.inf:
        raise Refused(f"model.time_scale={scale}: must be above 0")
    half = width // 2
    rates = jnp.exp(-math.log(10_000.0) * jnp.arange(half) / (half - 1))
    phase = scale * u[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)


def check_label(label: jax.Array | None, num_classes: int) -> jax.Array:
    """The label, which a class-conditional network cannot do without."""
    if label is None:
        raise ValueError(f"a network of num_classes={num_classes} needs labels")
    return label


EXTRA = "extra_emb"  # its weights' name in a network


def add_extra(embedding: jax.Array, extra: jax.Array | None) -> jax.Array:
    """Adds a linear map of extra conditioning [B, K], 0 at first; nothing where None.

    Called within a module's `__call__`: the map's weights exist where extra is given.
    """
    if extra is None:
        return embedding
    zeros = nn.initializers.zeros
    return embedding + nn.Dense(embedding.shape[-1], kernel_init=zeros, name=EXTRA)(
        extra
    )
