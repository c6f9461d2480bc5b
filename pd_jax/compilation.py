"""Compiled programs, kept from one process to the next."""

import pathlib

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
