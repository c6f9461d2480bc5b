"""Self-attention, by the implementation that suits the device."""

import functools

import jax
import jax.numpy as jnp

from pd_jax.runtime import registry

KINDS = ("auto", "xla", "cudnn")


def attend(q: jax.Array, k: jax.Array, v: jax.Array, kind: str) -> jax.Array:
    """softmax(q k / sqrt(head_dim)) v, the softmax in float32.

    Args:
      q, k, v: [B, T, heads, head_dim].
      kind: "xla"; "cudnn", NVIDIA's fused kernel, which keeps no [T, T] array; or
        "auto": "cudnn" where it is there and takes these shapes, else "xla".

    Returns:
      [B, T, heads, head_dim], of q's type.

    Raises:
      Refused: for an unknown kind.
    """
    registry.check(kind, KINDS, "model.attention")
    if kind == "auto":
        kind = "cudnn" if _has_cudnn(q.shape[1:], q.dtype) else "xla"
    return jax.nn.dot_product_attention(q, k, v, implementation=kind)


@functools.lru_cache
def _has_cudnn(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether cuDNN's kernel and its gradient compile here for [B, *shape]."""
    if jax.default_backend() != "gpu" or dtype == jnp.float32:
        return False

    def total(*qkv):
        return jnp.sum(attend(*qkv, "cudnn").astype(jnp.float32))

    given = [jax.ShapeDtypeStruct((2, *shape), dtype)] * 3
    try:
        jax.jit(jax.grad(total, (0, 1, 2))).lower(*given).compile()
    except Exception:  # its limits differ by version and chip: asking is the only test
        return False
    return True
