"""Compiling: less time for it, and programs kept from one process to the next."""

import contextlib
import functools
import gc
import os
import pathlib
from collections.abc import Iterator

import jax

from pd_jax.runtime import console

FOLDER = "~/.cache/pd_jax/compiled"
LEAST_SECONDS = 0.2  # of a compilation that is worth keeping
BACKEND = "/jax/core/compile/backend_compile_duration"
STEPS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    BACKEND,
)


def keep() -> None:
    """Turns JAX's persistent compilation cache on, in the user's cache folder.

    A folder that JAX was told already (JAX_COMPILATION_CACHE_DIR) stays, and
    JAX_ENABLE_COMPILATION_CACHE=false turns it off. Nothing in it is ever deleted here.
    Where the folder cannot be written, that is said, and nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = pathlib.Path(FOLDER)
    with contextlib.suppress(OSError, RuntimeError):  # a user without a home
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        console.warn(
            f"{folder} cannot be written: compiled programs are not kept for the next "
            "time. JAX_COMPILATION_CACHE_DIR=FOLDER keeps them elsewhere"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Switches Python's garbage collector off: tracing takes a fifth less time.

    Tracing makes objects by the million, which the collector looks through again and
    again, and hardly any that it could free. Measured: the traces of --mode=estimate
    with cifar10 take 25 s of a CPU core without it, 31 s with it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@functools.cache
def _spent() -> list[float]:
    """Seconds spent compiling since the first call, one number."""
    spent = [0.0]

    def done(event: str, seconds: float, **kw) -> None:
        if event in STEPS:
            spent[0] += seconds

    jax.monitoring.register_event_duration_secs_listener(done)
    return spent


def seconds() -> float:
    """Seconds of tracing and compiling in this process since it first asked."""
    return _spent()[0]


def tell() -> None:
    """Says, as a detail, what was compiled or read from the cache, and how long."""
    hits = []

    def note(event: str, **kw) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    def done(event: str, seconds: float, **kw) -> None:
        if event == BACKEND:
            what = "read from the cache" if hits else "compiled"
            hits.clear()
            if seconds > LEAST_SECONDS:
                name = kw.get("fun_name", "a program")
                console.detail(f"{what}: {name}, {seconds:.1f} s")

    jax.monitoring.register_event_listener(note)
    jax.monitoring.register_event_duration_secs_listener(done)
