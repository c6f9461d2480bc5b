"""Finding things by name: one rule for models, methods, data sets and schedules."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from pd_jax.runtime.errors import Refused


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' where a known name is close, else the empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""


def check(name: str, known: Iterable[str], what: str) -> str:
    """Returns `name`, or raises ValueError that lists the known names."""
    known = sorted(known)
    if name not in known:
        raise Refused(
            f'unknown {what} "{name}": known are '
            f"{', '.join(k or '(none)' for k in known)}." + suggest(name, known)
        )
    return name


def members(package: ModuleType) -> list[str]:
    """The names that a package offers: its modules, one thing a file."""
    return sorted(
        m.name
        for m in pkgutil.iter_modules(package.__path__)
        if not m.name.startswith("_")
    )


def member(package: ModuleType, name: str, what: str) -> ModuleType:
    """Imports the module `name` of `package`; ValueError lists the known ones."""
    check(name, members(package), what)
    return importlib.import_module(f"{package.__name__}.{name}")
