"""Random draws per example: each from the example's own key, so that a global batch has
the same noise however it is spread over devices."""

import jax
import jax.numpy as jnp

TIME, NOISE, DROPOUT = range(3)


def _draw(keys, purpose, draw):
    return jax.vmap(lambda key: draw(jax.random.fold_in(key, purpose)))(keys)


def fold(keys: jax.Array, number: int) -> jax.Array:
    """Other keys [B], for further draws of an update; numbers from 0."""
    number += DROPOUT + 1  # below it are the purposes of this module
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def uniform_times(keys: jax.Array) -> jax.Array:
    """t ~ Uniform[0, 1), [B]."""
    return _draw(keys, TIME, jax.random.uniform)


def grid_times(keys: jax.Array, num_steps: jax.Array) -> jax.Array:
    """t = i/N with i uniform in 1..N, [B]; N may be traced, up to 2^23."""
    num_steps = jnp.asarray(num_steps, jnp.float32)
    return (jnp.floor(uniform_times(keys) * num_steps) + 1.0) / num_steps


def normal_like(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Standard normal noise of x's shape [B, ...]."""
    return _draw(keys, NOISE, lambda key: jax.random.normal(key, x.shape[1:], x.dtype))


def dropout_key(keys: jax.Array) -> jax.Array:
    """One key for the device's dropout masks."""
    return jax.random.fold_in(keys[0], DROPOUT)
