"""A run's config: its keys, what they may be, and the parts that they name.

Imported when first used: the command line looks at its flags before it takes JAX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pd_jax.config.keys import (
        FREE,
        GIVEN,
        MOST,
        MOST_STEPS,
        PRECISIONS,
        REGRESSIONS,
        check,
        check_keys,
        default,
        differences,
        flatten,
        stored,
        student_stages,
        teacher_stage,
    )

__all__ = [
    "FREE",
    "GIVEN",
    "MOST",
    "MOST_STEPS",
    "PRECISIONS",
    "REGRESSIONS",
    "check",
    "check_keys",
    "default",
    "differences",
    "flatten",
    "stored",
    "student_stages",
    "teacher_stage",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from pd_jax.config import keys

        return getattr(keys, name)
    raise AttributeError(f"module 'pd_jax.config' has no attribute {name!r}")
