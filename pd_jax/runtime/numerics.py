"""Numerics that JAX's global settings do not reach: keys, types, random bits.

A user's environment may say JAX_DEFAULT_PRNG_IMPL=rbg, JAX_ENABLE_X64=1 and more, each
of which makes other numbers of the same program. Here keys are made of one generator,
and `pinned` holds what else decides on bits at JAX's own defaults. Settings of the
hardware's arithmetic, such as JAX_DEFAULT_MATMUL_PRECISION, stay the user's.
"""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pd_jax.runtime.errors import Refused

IMPL = "threefry2x32"


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """JAX's settings that decide on bits, for this thread; also a decorator.

    Every public function that trains, samples, loads or exports runs within. Rank
    promotion is not among them: it is never asked for, so no setting of it matters.
    """
    with (
        jax.enable_x64(False),
        jax.default_prng_impl(IMPL),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.softmax_custom_jvp(False),
    ):
        yield


def key(seed: int) -> jax.Array:
    """The key that `jax.random.key(seed)` is by JAX's defaults; seed any integer."""
    # Of its bits: jax.random.key would add JAX_RANDOM_SEED_OFFSET.
    bits = np.array([0, seed & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(bits, impl=IMPL)


def threefry(key: jax.Array) -> jax.Array:
    """A caller's key or keys as those of the one generator that is used here.

    A key of "rbg", which `jax.random.key` makes where that is the default, is two
    threefry keys of its seed, side by side: the first one is taken.

    Args:
      key: [...] from `jax.random.key`, or [..., 2] uint32 from `jax.random.PRNGKey`.

    Raises:
      Refused: for anything else.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if jax.random.key_impl(key) == IMPL:
            return key
        key = jax.random.key_data(key)
    elif dtype != jnp.uint32:
        raise Refused(f"key is {key!r:.100}: give jax.random.key(seed)")
    if key.shape[-1:] not in ((2,), (4,)):
        raise Refused(f"key has data of shape {key.shape}: give jax.random.key(seed)")
    return jax.random.wrap_key_data(key[..., :2], impl=IMPL)
