"""pd_jax: turning a slow diffusion sampler into a few-step one.

`pd_jax.schedules`, `pd_jax.arcs` and the other modules are imported when first used;
`pd_jax.load` gives a student of a run or a bundle.
"""

import importlib
import types
from collections.abc import Callable

__version__ = "0.1.0"


def __getattr__(name: str) -> types.ModuleType | Callable:
    if name.startswith("_"):
        raise AttributeError(name)
    if name == "load":
        return importlib.import_module("pd_jax.loading").load
    try:
        return importlib.import_module(f"pd_jax.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"pd_jax.{name}":
            raise
        raise AttributeError(f"module 'pd_jax' has no attribute {name!r}") from None
