"""A residual MLP on flattened data: small images and points in the plane."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pd_jax.models._embedding import add_extra, check_label, sinusoidal, time_input
from pd_jax.runtime.errors import Refused


class Block(nn.Module):
    """Pre-norm residual block, modulated by the embedding; starts as the identity."""

    width: int
    dropout: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, h: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        """Maps h [B, width] and embedding [B, emb_ch] to [B, width]."""
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        modulation = dense(2 * self.width, name="modulate")(embedding)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        r = nn.LayerNorm(dtype=self.dtype, name="norm")(h) * (1.0 + scale) + shift
        r = nn.swish(dense(self.width, name="dense0")(nn.swish(r)))
        r = nn.Dropout(self.dropout, deterministic=not train)(r)
        zeros = nn.initializers.zeros
        return h + dense(self.width, kernel_init=zeros, name="dense1")(r)


class Network(nn.Module):
    """Residual MLP.

    Attributes:
      width: hidden width.
      emb_ch: width of the embedding of noise level and label, even, at least 4.
      num_blocks: residual blocks.
      time_scale: of the noise level in its sinusoidal embedding; a derivative by time
        is as large as it.
      num_classes: classes of the label; 0 or 1 for a network without labels.
      dropout: share of dropped hidden units when training.
      out_ch: width of the output's last axis; that of z where 0.
      dtype: of the arithmetic in the blocks; that of z where None.
    """

    width: int = 256
    emb_ch: int = 64
    num_blocks: int = 3
    time_scale: float = 1000.0
    num_classes: int = 0
    dropout: float = 0.0
    out_ch: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        logsnr: jax.Array,
        label: jax.Array | None = None,
        extra: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Maps z [B, ...], logsnr [B], label [B] int32, extra [B, K] or None.

        Returns:
          Raw output [B, ..., out_ch].
        """
        if self.emb_ch < 4 or self.emb_ch % 2:
            raise Refused(f"model.emb_ch={self.emb_ch}: must be even and at least 4")
        for key, least in dict(width=1, num_blocks=0, num_classes=0).items():
            if getattr(self, key) < least:
                raise Refused(f"model.{key}={getattr(self, key)}: at least {least}")
        u = time_input(logsnr, "inv_cos")
        embedding = sinusoidal(u, self.emb_ch, self.time_scale)
        embedding = nn.Dense(self.emb_ch, name="embed0")(embedding)
        embedding = nn.Dense(self.emb_ch, name="embed1")(nn.swish(embedding))
        if self.num_classes > 1:
            label = check_label(label, self.num_classes)
            embedding += nn.Embed(self.num_classes, self.emb_ch, name="label")(label)
        embedding = nn.swish(add_extra(embedding, extra))

        h = nn.Dense(self.width, name="dense_in")(z.reshape(z.shape[0], -1))
        h = h.astype(self.dtype or h.dtype)
        fields = self.width, self.dropout, self.dtype
        for i in range(self.num_blocks):
            h = Block(*fields, name=f"block_{i}")(h, embedding, train)
        h = nn.swish(nn.LayerNorm(name="norm_out")(h.astype(z.dtype)))
        shape = (*z.shape[:-1], self.out_ch or z.shape[-1])
        out = nn.Dense(
            math.prod(shape[1:]), kernel_init=nn.initializers.zeros, name="dense_out"
        )(h)
        return out.reshape(shape)
