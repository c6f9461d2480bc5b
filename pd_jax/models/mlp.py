"""A residual MLP on flattened data: small images and points in the plane."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def time_embedding(logsnr: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embedding [B, width] of the noise level logsnr [B].

    The input is the angle as a share of pi/2 (the released networks' `inv_cos`), times
    1000: sines, then cosines, of width/2 frequencies from 1 down to 1/10000.
    """
    half = width // 2
    u = jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -20.0, 20.0))) / (0.5 * math.pi)
    rates = jnp.exp(-math.log(10_000.0) * jnp.arange(half) / (half - 1))
    phase = 1000.0 * u[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=1)


class Block(nn.Module):
    """Pre-norm residual block, modulated by the embedding; starts as the identity."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, h: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        """Maps h and embedding, both [B, width], to [B, width]."""
        scale, shift = jnp.split(
            nn.Dense(2 * self.width, name="modulate")(embedding), 2, axis=-1
        )
        r = nn.LayerNorm(name="norm")(h) * (1.0 + scale) + shift
        r = nn.swish(nn.Dense(self.width, name="dense0")(nn.swish(r)))
        r = nn.Dropout(self.dropout, deterministic=not train)(r)
        return h + nn.Dense(
            self.width, kernel_init=nn.initializers.zeros, name="dense1"
        )(r)


class Network(nn.Module):
    """Residual MLP.

    Attributes:
      width: hidden width, even, at least 4.
      num_blocks: residual blocks.
      num_classes: classes of the label; 0 for a network without labels.
      dropout: share of dropped hidden units when training.
      out_ch: width of the output's last axis; that of z where 0.
    """

    width: int = 256
    num_blocks: int = 3
    num_classes: int = 0
    dropout: float = 0.0
    out_ch: int = 0

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        logsnr: jax.Array,
        label: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Maps z [B, ...], logsnr [B] and label [B] int32 to [B, ..., out_ch]."""
        if self.width < 4 or self.width % 2:
            raise ValueError(f"model.width={self.width}: must be even and at least 4")
        for key in ("num_blocks", "num_classes"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.{key}={getattr(self, key)}: at least 0")
        embedding = time_embedding(logsnr, self.width)
        embedding = nn.Dense(self.width, name="embed0")(embedding)
        embedding = nn.Dense(self.width, name="embed1")(nn.swish(embedding))
        if self.num_classes:
            if label is None:
                raise ValueError(
                    f"a network of num_classes={self.num_classes} needs labels"
                )
            embedding += nn.Embed(self.num_classes, self.width, name="label")(label)
        embedding = nn.swish(embedding)

        h = nn.Dense(self.width, name="dense_in")(z.reshape(z.shape[0], -1))
        for i in range(self.num_blocks):
            h = Block(self.width, self.dropout, name=f"block_{i}")(h, embedding, train)
        h = nn.swish(nn.LayerNorm(name="norm_out")(h))
        shape = (*z.shape[:-1], self.out_ch or z.shape[-1])
        out = nn.Dense(
            math.prod(shape[1:]), kernel_init=nn.initializers.zeros, name="dense_out"
        )(h)
        return out.reshape(shape)
