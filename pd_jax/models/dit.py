"""A diffusion transformer: patches, and blocks modulated by adaLN-zero.

Source: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers" (2212.09748).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from pd_jax.models._attention import attend
from pd_jax.models._embedding import add_extra, check_label, sinusoidal, time_input
from pd_jax.runtime.errors import Refused

_zeros = nn.initializers.zeros
_xavier = nn.initializers.xavier_uniform()


def _norm(name: str, dtype: jnp.dtype | None) -> nn.LayerNorm:
    return nn.LayerNorm(  # the statistics are float32
        epsilon=1e-6,
        use_scale=False,
        use_bias=False,
        use_fast_variance=dtype == jnp.bfloat16,
        dtype=dtype,
        name=name,
    )


def _modulation(
    emb: jax.Array, width: int, parts: int, dtype: jnp.dtype | None
) -> list[jax.Array]:
    """`parts` vectors [B, 1, width] from the embedding [B, E], all 0 at first."""
    dense = nn.Dense(parts * width, kernel_init=_zeros, dtype=dtype, name="modulate")
    return jnp.split(dense(nn.swish(emb))[:, None, :], parts, axis=-1)


def place_embedding(height: int, width: int, channels: int) -> jax.Array:
    """Fixed embedding [height * width, channels] of the patches' rows and columns."""

    def along(places):
        quarter = channels // 4
        rates = 10_000.0 ** (-jnp.arange(quarter) / quarter)
        phase = places.reshape(-1, 1) * rates[None]
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)

    rows, columns = jnp.indices((height, width), jnp.float32)
    return jnp.concatenate([along(rows), along(columns)], axis=1)


class Block(nn.Module):
    """Attention, then an MLP; both modulated and gated, so that a block starts as 0.

    Attributes:
      num_heads: attention heads.
      dropout: share of dropped hidden units of the MLP when training.
      kind: of `_attention.attend`.
      dtype: of the arithmetic; that of h where None.
    """

    num_heads: int
    dropout: float
    kind: str = "auto"
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
        """Maps tokens h [B, T, D] and the embedding [B, E]."""
        width, dtype = h.shape[-1], self.dtype
        shift0, scale0, gate0, shift1, scale1, gate1 = _modulation(emb, width, 6, dtype)
        dense = functools.partial(nn.DenseGeneral, kernel_init=_xavier, dtype=dtype)

        r = _norm("norm0", dtype)(h) * (1.0 + scale0) + shift0
        qkv = dense((3, self.num_heads, width // self.num_heads), name="qkv")(r)
        r = attend(*(qkv[:, :, i] for i in range(3)), self.kind)
        h = h + gate0 * dense(width, axis=(-2, -1), name="proj")(r)

        r = _norm("norm1", dtype)(h) * (1.0 + scale1) + shift1
        r = nn.gelu(dense(4 * width, name="dense0")(r))
        r = nn.Dropout(self.dropout, deterministic=not train)(r)
        return h + gate1 * dense(width, name="dense1")(r)


class Network(nn.Module):
    """Diffusion transformer.

    Attributes:
      patch: side of a patch, in pixels.
      width: width of a token, a multiple of 4 and of num_heads.
      depth: blocks.
      num_heads: attention heads.
      logsnr_input_type: how the network is told the level; `_embedding.time_input`.
      time_scale: of the noise level in its sinusoidal embedding; a derivative by time
        is as large as it.
      num_classes: classes of the label; 0 or 1 for a network without labels.
      attention: implementation of attention, see `_attention.attend`.
      remat: whether the backward pass computes a block's inside again, which saves its
        memory for one more forward pass.
      dropout: share of dropped hidden units when training.
      out_ch: channels of the output; those of z where 0.
      dtype: of the arithmetic in the blocks; that of z where None.
    """

    patch: int = 2
    width: int = 64
    depth: int = 2
    num_heads: int = 2
    logsnr_input_type: str = "inv_cos"
    time_scale: float = 1000.0
    num_classes: int = 0
    attention: str = "auto"
    remat: bool = False
    dropout: float = 0.0
    out_ch: int = 0
    dtype: jnp.dtype | None = None

    def _check(self, z: jax.Array) -> None:
        if z.ndim != 4 or z.shape[1] % self.patch or z.shape[2] % self.patch:
            raise Refused(
                f"model.patch={self.patch}: examples have shape {z.shape[1:]}; give "
                "[H, W, C] with H and W divisible by the patch"
            )
        if self.width < 8 or self.width % 4 or self.width % self.num_heads:
            raise Refused(
                f"model.width={self.width}: must be at least 8 and a multiple of 4 and "
                f"of model.num_heads={self.num_heads}"
            )

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        logsnr: jax.Array,
        label: jax.Array | None = None,
        extra: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Maps z [B, H, W, C], logsnr [B], label [B] int32, extra [B, K] or None.

        Returns:
          Raw output [B, H, W, out_ch].
        """
        self._check(z)
        u = time_input(logsnr, self.logsnr_input_type)
        emb = sinusoidal(u, self.width, self.time_scale)
        emb = nn.Dense(self.width, name="embed0")(emb)
        emb = nn.Dense(self.width, name="embed1")(nn.swish(emb))
        if self.num_classes > 1:
            label = check_label(label, self.num_classes)
            emb += nn.Embed(self.num_classes, self.width, name="label")(label)
        emb = add_extra(emb, extra)

        batch, height, width, channels = z.shape
        rows, columns = height // self.patch, width // self.patch
        h = z.reshape(batch, rows, self.patch, columns, self.patch, channels)
        h = h.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
        h = nn.Dense(self.width, kernel_init=_xavier, name="patch_in")(h)
        h += place_embedding(rows, columns, self.width)[None].astype(h.dtype)
        h = h.astype(self.dtype or h.dtype)
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        fields = self.num_heads, self.dropout, self.attention, self.dtype
        for i in range(self.depth):
            h = block(*fields, name=f"block_{i}")(h, emb, train)

        shift, scale = _modulation(emb, self.width, 2, None)
        h = _norm("norm_out", None)(h.astype(z.dtype)) * (1.0 + scale) + shift
        out_ch = self.out_ch or channels
        h = nn.Dense(self.patch**2 * out_ch, kernel_init=_zeros, name="patch_out")(h)
        h = h.reshape(batch, rows, columns, self.patch, self.patch, out_ch)
        return h.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, out_ch)
