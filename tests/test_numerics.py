"""The same bits under any of JAX's global settings."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax.runtime import numerics
from pd_jax.runtime.errors import Refused

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = {
    "rbg": {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
    "x64": {"JAX_ENABLE_X64": "1"},
    "others": {
        "JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",  # without effect on CPU
        "JAX_ENABLE_CUSTOM_PRNG": "1",
        "JAX_LEGACY_PRNG_KEY": "error",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_SOFTMAX_CUSTOM_JVP": "1",
        "JAX_THREEFRY_PARTITIONABLE": "0",
    },
}
# A run with a teacher and dropout, a caller's own model, and both in files.
PROGRAM = """
import hashlib, json, runpy, sys
import jax, numpy as np, pd_jax
from pd_jax import api
from tests import test_api
from tests.test_train import tiny

bundle_alone, folder = sys.argv[1:]
few = {"teacher.updates": 3, "teacher.dropout": 0.1, "ladder.updates": (3,)}
api.run(tiny(**few), f"{folder}/run", "run")
students = {"run": pd_jax.load(f"{folder}/run")}
mine = test_api.KEYS | dict(updates=2)
given = test_api.apply, test_api.weights(), test_api.batches, f"{folder}/mine"
students["mine"] = pd_jax.distil(*given, **mine)[1]
bits = {}
for name, student in students.items():
    images = student.sample(jax.random.key(0), 64)
    file = f"{folder}/{name}.safetensors"
    student.save(file)
    sys.argv = [bundle_alone, file]
    runpy.run_path(bundle_alone)
    alone = np.load("samples.npy")
    sums = [hashlib.sha256(a.tobytes()).hexdigest() for a in (images, alone)]
    bits[name] = [student.metrics, student.digest, *sums, images.dtype.name]
print(json.dumps(bits))
"""


def bits(folder, settings):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ROOT / "docs" / "bundle_alone.py", folder],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""} | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return bits(tmp_path_factory.mktemp("expected"), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_weights_samples_and_bundles_are_the_same_bits(name, expected, tmp_path):
    assert bits(tmp_path, SETTINGS[name]) == expected


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**32 + 5])
def test_a_key_is_that_of_jax_by_default(seed):
    expected = jax.random.key_data(jax.random.key(seed % 2**32))
    with jax.default_prng_impl("rbg"), jax.enable_x64(True):
        own = numerics.threefry(jax.random.key(seed % 2**32))
        jax.config.update("jax_random_seed_offset", 7)
        try:
            key = numerics.key(seed)
        finally:
            jax.config.update("jax_random_seed_offset", 0)
    for one in (key, own):
        assert jax.random.key_impl(one) == "threefry2x32"
        np.testing.assert_array_equal(jax.random.key_data(one), expected)


def test_keys_of_callers():
    key = jax.random.fold_in(jax.random.key(3), 5)
    assert numerics.threefry(key) is key
    raw = numerics.threefry(jax.random.key_data(key))
    np.testing.assert_array_equal(jax.random.bits(raw), jax.random.bits(key))
    assert numerics.threefry(jax.random.split(key, 4)).shape == (4,)
    for wrong in (3, None, np.zeros(2, np.int32), jnp.zeros(3, jnp.uint32)):
        with pytest.raises(Refused, match=r"give jax\.random\.key\(seed\)"):
            numerics.threefry(wrong)
