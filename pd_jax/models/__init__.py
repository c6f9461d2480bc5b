"""Networks, one a file, found by name.

A network's file defines `Network`, a Flax module called with

    (z [B, ...], logsnr [B], label [B] int32 or None, train=False) -> output [B, ...]

Its output is raw, of z's shape but for the last axis, which is `out_ch` wide. Dropout
draws from the rng collection "dropout" when `train` is true. What the output means is
said in one place, `pd_jax.denoisers`.
"""

import sys

import flax.linen as nn

from pd_jax import names


def known() -> list[str]:
    """The networks' names."""
    return names.members(sys.modules[__name__])


def get(name: str, **fields) -> nn.Module:
    """The network called `name`, built with its own fields.

    Raises:
      ValueError: for an unknown name or field, listing the known ones.
    """
    network = names.member(sys.modules[__name__], name, "network").Network
    allowed = [f for f in network.__dataclass_fields__ if f not in ("parent", "name")]
    for field in fields:
        names.check(field, allowed, f'field of network "{name}"')
    return network(**fields)
