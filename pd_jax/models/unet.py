"""The U-Net of the paper, with the parameter names of the released checkpoints.

A module's name is the released one, dots included: `down_0.block_1`, `mid.attn_1`. A
released file's weights therefore fit as they are.

Source: Salimans & Ho 2022 (2202.00512), appendix E; Ho et al. 2020 and Nichol and
Dhariwal 2021 for its blocks; the released checkpoints for names and shapes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from pd_jax.models._attention import attend
from pd_jax.models._embedding import add_extra, check_label, sinusoidal, time_input
from pd_jax.runtime.errors import Refused

_zeros = nn.initializers.zeros


def _norm(name: str, dtype: jnp.dtype | None) -> nn.GroupNorm:
    # Statistics are float32. The one-pass variance, mean(h^2) - mean(h)^2, cancels
    # where the mean is large: by less than the rounding of a bfloat16 h.
    return nn.GroupNorm(
        num_groups=32,
        epsilon=1e-6,
        use_fast_variance=dtype == jnp.bfloat16,
        dtype=dtype,
        name=name,
    )


def _half(h: jax.Array) -> jax.Array:
    """Mean over 2x2 pixels: [B, H, W, C] to [B, H/2, W/2, C]."""
    batch, height, width, channels = h.shape
    return h.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _double(h: jax.Array) -> jax.Array:
    """Nearest pixel: [B, H, W, C] to [B, 2H, 2W, C]."""
    return h.repeat(2, axis=1).repeat(2, axis=2)


class ResnetBlock(nn.Module):
    """Two convolutions, the second's input modulated by the embedding; a residual.

    Attributes:
      out_ch: channels of the output; those of the input where 0.
      dropout: share of dropped activations when training.
      resample: "down" halves, "up" doubles height and width inside the block.
      dtype: of the arithmetic; that of the input where None.
    """

    out_ch: int = 0
    dropout: float = 0.0
    resample: str = ""
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
        """Maps h [B, H, W, C] and the embedding [B, E]."""
        out_ch = self.out_ch or h.shape[-1]
        dtype = self.dtype
        shortcut, h = h, nn.swish(_norm("norm1", dtype)(h))
        if self.resample:
            sized = _half if self.resample == "down" else _double
            shortcut, h = sized(shortcut), sized(h)
        h = nn.Conv(out_ch, (3, 3), dtype=dtype, name="conv1")(h)
        emb = nn.Dense(2 * out_ch, dtype=dtype, name="temb_proj")(nn.swish(emb))
        scale, shift = jnp.split(emb[:, None, None, :], 2, axis=-1)
        h = nn.swish(_norm("norm2", dtype)(h) * (1.0 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = nn.Conv(out_ch, (3, 3), kernel_init=_zeros, dtype=dtype, name="conv2")(h)
        if shortcut.shape[-1] != out_ch:
            shortcut = nn.Dense(out_ch, dtype=dtype, name="nin_shortcut")(shortcut)
        return shortcut + h


class _Heads(nn.Module):
    """The weights of one of q, k and v, as `nn.DenseGeneral` would have them."""

    heads: int
    head_dim: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """The kernel [channels, heads, head_dim] and the bias [heads, head_dim]."""
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        shape = (self.heads, self.head_dim)
        return self.param("kernel", init, (channels, *shape)), self.param(
            "bias", _zeros, shape
        )


class AttnBlock(nn.Module):
    """Self-attention over all pixels; a residual.

    Attributes:
      num_heads: heads, each of channels / num_heads; used where head_dim is 0.
      head_dim: channels of a head, or 0.
      kind: of `_attention.attend`.
      dtype: of the arithmetic; that of the input where None.
    """

    num_heads: int
    head_dim: int
    kind: str = "auto"
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps h [B, H, W, C] to its own shape."""
        batch, height, width, channels = h.shape
        heads = channels // self.head_dim if self.head_dim else self.num_heads
        head_dim = self.head_dim or channels // max(heads, 1)
        if heads * head_dim != channels:
            raise Refused(
                f"attention over {channels} channels cannot have model.num_heads="
                f"{self.num_heads} or model.head_dim={self.head_dim}: give divisors"
            )
        normed = _norm("norm", self.dtype)(h).reshape(batch, height * width, channels)
        parts = [_Heads(heads, head_dim, name=name)(channels) for name in "qkv"]
        # One product for all three: the input is read once.
        kernel, bias = (jnp.stack(a, axis=-3).astype(normed.dtype) for a in zip(*parts))
        qkv = jnp.tensordot(normed, kernel, 1) + bias[None, None]
        q, k, v = (qkv[:, :, i] for i in range(3))
        out = nn.DenseGeneral(
            channels,
            axis=(-2, -1),
            kernel_init=_zeros,
            dtype=self.dtype,
            name="proj_out",
        )(attend(q, k, v, self.kind))
        return h + out.reshape(h.shape)


class Network(nn.Module):
    """U-Net on square images.

    Attributes:
      ch: base width, a multiple of 32.
      emb_ch: width of the embedding of noise level and label.
      ch_mult: width of each level, in units of ch; each level has half the size.
      num_res_blocks: residual blocks a level.
      attn_resolutions: heights at which there is attention, beside the middle.
      num_heads: attention heads, where head_dim is 0.
      head_dim: channels of an attention head; 0 for num_heads of them.
      logsnr_input_type: how the network is told the level; `_embedding.time_input`.
      time_scale: of the noise level in its sinusoidal embedding; a derivative by time
        is as large as it.
      resblock_resample: halves and doubles inside residual blocks, not by convolutions.
      num_classes: classes of the label; 0 or 1 for a network without labels.
      attention: implementation of attention, see `_attention.attend`.
      remat: heights at which the backward pass computes a block's inside again, which
        saves its memory for one more forward pass there.
      dropout: share of dropped activations when training.
      out_ch: channels of the output; those of z where 0.
      dtype: of the arithmetic between the first and the last convolution; that of z
        where None.
    """

    ch: int = 64
    emb_ch: int = 256
    ch_mult: tuple[int, ...] = (1, 2)
    num_res_blocks: int = 1
    attn_resolutions: tuple[int, ...] = (8,)
    num_heads: int = 1
    head_dim: int | None = 0
    logsnr_input_type: str = "inv_cos"
    time_scale: float = 1000.0
    resblock_resample: bool = True
    num_classes: int = 0
    attention: str = "auto"
    remat: tuple[int, ...] = ()
    dropout: float = 0.0
    out_ch: int = 0
    dtype: jnp.dtype | None = None

    def _check(self, z: jax.Array) -> None:
        parts = 2 ** (len(self.ch_mult) - 1)
        if z.ndim != 4 or z.shape[1] % parts or z.shape[2] % parts:
            raise Refused(
                f"model.ch_mult={self.ch_mult} halves images {len(self.ch_mult) - 1} "
                f"times, but examples have shape {z.shape[1:]}: give [H, W, C] with H "
                f"and W divisible by {parts}, or fewer levels"
            )
        if min(self.num_res_blocks, self.emb_ch) < 1:
            raise Refused(
                f"model.num_res_blocks={self.num_res_blocks}, model.emb_ch="
                f"{self.emb_ch}: must be at least 1"
            )
        if self.ch < 32 or self.ch % 32 or min(self.ch_mult, default=0) < 1:
            raise Refused(
                f"model.ch={self.ch}, model.ch_mult={self.ch_mult}: ch is a multiple "
                "of 32 (the groups of group norm), each of ch_mult at least 1"
            )

    def notes(self, shape: tuple[int, ...]) -> list[str]:
        """Heights in the fields that are not those of any level, in words."""
        there = [shape[0] // 2**i for i in range(len(self.ch_mult))]
        asked = {"attn_resolutions": "attention", "remat": "remat"}
        return [
            f"model.{key}={getattr(self, key)}: at {', '.join(map(str, absent))} there "
            f"is no {what}, as the levels of examples of shape {list(shape)} have "
            f"heights {', '.join(map(str, there))}"
            for key, what in asked.items()
            if (absent := [n for n in getattr(self, key) if n not in there])
        ]

    def _embed(self, logsnr, label, extra) -> jax.Array:
        u = time_input(logsnr, self.logsnr_input_type)
        emb = sinusoidal(u, self.ch, self.time_scale)
        emb = nn.Dense(self.emb_ch, name="dense0")(emb)
        emb = nn.Dense(self.emb_ch, name="dense1")(nn.swish(emb))
        if self.num_classes > 1:
            label = check_label(label, self.num_classes)
            one_hot = jax.nn.one_hot(label, self.num_classes, dtype=emb.dtype)
            emb += nn.Dense(self.emb_ch, name="class_emb")(one_hot)
        return add_extra(emb, extra)

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
        emb = self._embed(logsnr, label, extra)

        def kind(module, h, static=()):
            again = h.shape[1] in self.remat
            return nn.remat(module, static_argnums=static) if again else module

        def block(h, name, **fields):
            made = kind(ResnetBlock, h, (3,))  # the third argument is `train`
            fields = {"dropout": self.dropout, "dtype": self.dtype, **fields}
            return made(**fields, name=name)(h, emb, train)

        def attention(h, name):
            fields = self.num_heads, self.head_dim or 0, self.attention, self.dtype
            return kind(AttnBlock, h)(*fields, name=name)(h)

        def resample(h, name, direction):
            if self.resblock_resample:
                return block(h, name, resample=direction)
            conv = functools.partial(
                nn.Conv, h.shape[-1], (3, 3), dtype=self.dtype, name=name
            )
            if direction == "down":
                return conv(strides=(2, 2))(h)
            return conv()(_double(h))

        widths = [self.ch * mult for mult in self.ch_mult]
        h = nn.Conv(self.ch, (3, 3), name="conv_in")(z)
        h = h.astype(self.dtype or h.dtype)
        skips = [h]
        for i, width in enumerate(widths):
            for j in range(self.num_res_blocks):
                h = block(h, f"down_{i}.block_{j}", out_ch=width)
                if h.shape[1] in self.attn_resolutions:
                    h = attention(h, f"down_{i}.attn_{j}")
                skips.append(h)
            if i < len(widths) - 1:
                h = resample(h, f"down_{i}.downsample", "down")
                skips.append(h)

        h = block(h, "mid.block_1")
        h = attention(h, "mid.attn_1")
        h = block(h, "mid.block_2")

        for i, width in reversed(list(enumerate(widths))):
            for j in range(self.num_res_blocks + 1):
                joined = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(joined, f"up_{i}.block_{j}", out_ch=width)
                if h.shape[1] in self.attn_resolutions:
                    h = attention(h, f"up_{i}.attn_{j}")
            if i:
                h = resample(h, f"up_{i}.upsample", "up")

        h = nn.swish(_norm("norm_out", None)(h.astype(z.dtype)))
        out_ch = self.out_ch or z.shape[-1]
        return nn.Conv(out_ch, (3, 3), kernel_init=_zeros, name="conv_out")(h)
