"""pd_jax: turning a slow diffusion sampler into a few-step one.

What is public is listed here, and imported when first used: `import pd_jax` takes no
JAX. `pd_jax.distil` makes students of a model, `pd_jax.load` gives one of a run or a
file; the modules are the maths and the parts that runs are made of.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pd_jax import (
        analytic,
        arcs,
        checkpoint,
        config,
        conventions,
        data,
        diffusion,
        methods,
        metrics,
        models,
        samplers,
        schedules,
        scores,
    )
    from pd_jax.api import distil
    from pd_jax.config import recipes
    from pd_jax.runs.loading import load
    from pd_jax.runtime import registry as names
    from pd_jax.runtime.errors import Refused
    from pd_jax.students.student import Student

__version__ = "0.1.0"

# Public name -> the module that it is, or that has it.
_MODULES = {
    **{
        name: f"pd_jax.{name}"
        for name in (
            *("analytic", "arcs", "checkpoint", "config", "conventions", "data"),
            *("diffusion", "methods", "metrics", "models", "samplers", "schedules"),
            "scores",
        )
    },
    "names": "pd_jax.runtime.registry",  # as config files call it
    "recipes": "pd_jax.config.recipes",
}
_MEMBERS = {
    "Refused": "pd_jax.runtime.errors",
    "Student": "pd_jax.students.student",
    "distil": "pd_jax.api",
    "load": "pd_jax.runs.loading",
}

__all__ = [  # noqa: RUF022 (functions first)
    "distil",
    "load",
    "Refused",
    "Student",
    "analytic",
    "arcs",
    "checkpoint",
    "config",
    "conventions",
    "data",
    "diffusion",
    "methods",
    "metrics",
    "models",
    "names",
    "recipes",
    "samplers",
    "schedules",
    "scores",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _MEMBERS:
        return getattr(importlib.import_module(_MEMBERS[name]), name)
    raise AttributeError(f"module 'pd_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
