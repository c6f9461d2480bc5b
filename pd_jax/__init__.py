"""pd_jax: turning a slow diffusion sampler into a few-step one.

`pd_jax.schedules`, `pd_jax.arcs` and the other modules are imported when first used;
`pd_jax.distil` makes students of a model, `pd_jax.load` gives one of a run or a file.
"""

import importlib
import types
from collections.abc import Callable

__version__ = "0.1.0"

_FUNCTIONS = {"distil": "pd_jax.api", "load": "pd_jax.loading"}


def __getattr__(name: str) -> types.ModuleType | Callable:
    if name.startswith("_"):
        raise AttributeError(name)
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    try:
        return importlib.import_module(f"pd_jax.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"pd_jax.{name}":
            raise
        raise AttributeError(f"module 'pd_jax' has no attribute {name!r}") from None
