"""Networks, one a file, found by name.

A network's file defines `Network`, a Flax module called with

    (z [B, ...], logsnr [B], label [B] int32, extra [B, K], train=False) -> [B, ...]

with label and extra None where there are none; `extra` is any further conditioning,
whose weights exist only where a network is initialised with it.

The output is raw, of z's shape but for the last axis, which is `out_ch` wide. The field
`dropout` is set for each training; it draws from the rng collection "dropout" when
`train` is true. What the output means says `Model`.

A method `notes(shape)`, where a network has one, gives in words what its fields ask for
that examples of this shape have not.

The field `dtype`, where a network has one, follows the config's `precision`: the type
of the arithmetic between the first and the last layer. Those two, the statistics of
norms and the softmax stay in z's type, which the output is of.
"""

import dataclasses
import sys

import flax.linen as nn
import jax.numpy as jnp

from pd_jax.models._model import Function, Model
from pd_jax.runtime import registry

__all__ = [
    "Function",
    "Model",
    "build",
    "describe",
    "fields",
    "get",
    "has_dtype",
    "known",
    "notes",
]

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


def notes(network: object, shape: tuple[int, ...]) -> list[str]:
    """What a network's fields ask for that examples of a shape have not, in words."""
    ask = getattr(network, "notes", None)
    return ask(shape) if ask else []


def get(name: str, **kw) -> nn.Module:
    """The network called `name`, built with its own fields.

    Raises:
      Refused: for an unknown name or field, listing the known ones.
    """
    for key in kw:
        allowed = [*fields(name), *_SET_BY_USE]
        registry.check(key, allowed, f'field of network "{name}"')
    # As JSON gives them; a module must be hashable.
    kw = {k: tuple(v) if isinstance(v, list) else v for k, v in kw.items()}
    return _network(name)(**kw)


DTYPES = ("float32", "bfloat16")


def build(section: dict, channels: int, dtype: str = "float32") -> Model:
    """The model that a config's section `model` names.

    Args:
      section: the network's `name` and fields, and `output`.
      channels: width of the data's last axis.
      dtype: that the network multiplies in; one of `DTYPES`.

    Raises:
      Refused: for an unknown name or field, or a type that the network lacks.
    """
    given = dict(section)
    name, output = given.pop("name", None), given.pop("output", None)
    if registry.check(dtype, DTYPES, "precision") != "float32":
        given["dtype"] = getattr(jnp, dtype)
    out_ch = 2 * channels if output == "both" else channels
    return Model(get(name, **given, out_ch=out_ch), output)


def describe(model: object) -> dict | None:
    """The `section` of `build` that gives this model; None for another's network."""
    network = getattr(model, "network", None)
    package, _, name = type(network).__module__.rpartition(".")
    named = package == __name__ and name in known()
    if not isinstance(model, Model) or not named:
        return None
    values = {field: getattr(network, field) for field in fields(name)}
    return {"name": name, "output": model.output, **values}
