"""Four fake devices, and no silent broadcasting, in every test."""

import atexit
import os
import shutil
import signal
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["COLUMNS"] = "80"  # whatever the terminal has
flags = os.environ.get("XLA_FLAGS", "")
if "device_count" not in flags:
    if "slow" not in " ".join(sys.argv):
        # The programs of short tests are compiled for longer than they run.
        flags += " --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=4"

# A job in the background has SIGINT ignored, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# What two tests compile alike, they compile once, and the processes that they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    made = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(
        prefix="pd_jax_tests_"
    )
    atexit.register(shutil.rmtree, made, ignore_errors=True)
CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def cosine():
    from pd_jax import schedules

    return schedules.get("cosine")


@pytest.fixture(scope="session")
def vectors():
    """Outputs of the released reference implementation; their story is in README.md."""
    import pathlib

    import numpy as np

    with np.load(pathlib.Path(__file__).parent / "vectors_maths_v.npz") as file:
        return dict(file)
