"""What is learnt: one training objective a file, found by name.

A method's file defines `Method`, a `pd_jax.training.method.Method`: a frozen dataclass
of its config keys. It composes the state of `pd_jax.training.state` and the functions
of `pd_jax.training.optimizer`: a method with a second network adds it to the state's
`networks` and moves it within its update. Numbers that change from stage to stage come
from `state.stage`, traced, never from Python: that is what makes one compiled update
serve a whole ladder.
"""

import dataclasses
import sys
from types import ModuleType

from pd_jax.runtime import registry
from pd_jax.training.method import Method, Parts, setting

__all__ = ["Method", "Parts", "fields", "get", "known", "setting"]


def known(distils: bool | None = None) -> list[str]:
    """The methods' names: all, or those that make students, or teachers."""
    names = registry.members(sys.modules[__name__])
    if distils is None:
        return names
    return [name for name in names if get(name).Method.distils == distils]


def label(name: str) -> str:
    """A method's name for people, with which its file's docstring begins."""
    return get(name).__doc__.partition(":")[0]


def get(name: str) -> ModuleType:
    """The module of the method called `name`, with its class `Method`.

    Raises:
      Refused: for an unknown name, listing the known ones.
    """
    return registry.member(sys.modules[__name__], name, "method")


def fields(name: str) -> dict[str, dataclasses.Field]:
    """The config keys that are a method's own, with their defaults and limits."""
    fields = dataclasses.fields(get(name).Method)
    return {field.name: field for field in fields if field.name != "parts"}
