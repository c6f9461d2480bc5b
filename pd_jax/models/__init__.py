"""Networks, one a file, found by name.

A network's file defines `Network`, a Flax module called with

    (z [B, ...], logsnr [B], label [B] int32, extra [B, K], train=False) -> [B, ...]

with label and extra None where there are none; `extra` is any further conditioning,
whose weights exist only where a network is initialised with it.

The output is raw, of z's shape but for the last axis, which is `out_ch` wide. The field
`dropout` is set for each training; it draws from the rng collection "dropout" when
`train` is true. What the output means is said in one place, `pd_jax.denoisers`.

The field `dtype`, where a network has one, follows the config's `precision`: the type
of the arithmetic between the first and the last layer. Those two, the statistics of
norms and the softmax stay in z's type, which the output is of.
"""

import dataclasses
import sys

import flax.linen as nn

from pd_jax.runtime import registry

_SET_BY_USE = ("out_ch", "dropout", "dtype")


def known() -> list[str]:
    """The networks' names."""
    return registry.members(sys.modules[__name__])


def _network(name: str) -> type[nn.Module]:
    return registry.member(sys.modules[__name__], name, "network").Network


def fields(name: str) -> dict:
    """The fields of a network that a config sets, with their defaults.

    Three more are set where the network is used: `out_ch` by the data and the output
    kind, `dropout` by each training, `dtype` by the precision.
    """
    return {
        f.name: f.default
        for f in dataclasses.fields(_network(name))
        if f.name not in ("parent", "name", *_SET_BY_USE)
    }


def has_dtype(name: str) -> bool:
    """Whether a network can be told the type of its arithmetic."""
    return "dtype" in {f.name for f in dataclasses.fields(_network(name))}


def get(name: str, **kw) -> nn.Module:
    """The network called `name`, built with its own fields.

    Raises:
      ValueError: for an unknown name or field, listing the known ones.
    """
    for key in kw:
        allowed = [*fields(name), *_SET_BY_USE]
        registry.check(key, allowed, f'field of network "{name}"')
    # As JSON gives them; a module must be hashable.
    kw = {k: tuple(v) if isinstance(v, list) else v for k, v in kw.items()}
    return _network(name)(**kw)
