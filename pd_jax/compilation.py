"""Compiling: less time for it, and programs kept from one process to the next."""

import contextlib
import gc
import pathlib
from collections.abc import Iterator

import jax

FOLDER = "~/.cache/pd_jax/compiled"


def keep() -> None:
    """Turns JAX's persistent compilation cache on, in the user's cache folder.

    A folder that JAX was told already (JAX_COMPILATION_CACHE_DIR) stays, and
    JAX_ENABLE_COMPILATION_CACHE=false turns it off. Nothing in it is ever deleted here.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = str(pathlib.Path(FOLDER).expanduser())
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Without Python's collector, which takes a fifth of a first call's time.

    Tracing makes objects by the million, and hardly any that could be collected.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
