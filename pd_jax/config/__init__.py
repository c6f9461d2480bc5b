"""A run's config: its keys, what they may be, and the parts that they name.

Imported when first used: the command line looks at its flags before it takes JAX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pd_jax.config.keys import (
        CHAIN,
        FREE,
        GIVEN,
        MAX,
        MAX_STEPS,
        PRECISIONS,
        check,
        check_keys,
        data_sets,
        default,
        differences,
        flatten,
        planned,
        planned_names,
        stages,
        stored,
        title,
        trainings,
    )

__all__ = [
    "CHAIN",
    "FREE",
    "GIVEN",
    "MAX",
    "MAX_STEPS",
    "PRECISIONS",
    "check",
    "check_keys",
    "data_sets",
    "default",
    "differences",
    "flatten",
    "planned",
    "planned_names",
    "stages",
    "stored",
    "title",
    "trainings",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from pd_jax.config import keys

        return getattr(keys, name)
    raise AttributeError(f"module 'pd_jax.config' has no attribute {name!r}")
