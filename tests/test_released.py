"""Released checkpoints: files of that format, made here, with random weights."""

import pathlib
import pickle
import runpy

import flax.serialization
import jax
import numpy as np
import pytest

from pd_jax import api, models
from pd_jax.checkpoint.released import load_released
from pd_jax.config import default
from pd_jax.models import Model
from tests.test_unet import RELEASED, leaves, shapes

FIELDS = dict(ch=32, emb_ch=64, ch_mult=(1, 1), attn_resolutions=(4,))
LIKE = shapes(models.get("unet", **FIELDS), 8)


def filled(like, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: (0.05 * rng.standard_normal(a.shape)).astype(a.dtype), like
    )


def write(path, params, **more):
    content = {"step": np.int32(7), "ema_params": params, "optimizer_state": {}, **more}
    path.write_bytes(flax.serialization.msgpack_serialize(content))
    return str(path)


def changed(params, path, leaf):
    """The tree with another leaf at a path; without it where None."""
    tree = jax.tree.map(lambda a: a, params)
    *modules, last = path.split("/")
    inner = tree
    for module in modules:
        inner = inner.setdefault(module, {})
    inner.pop(last, None)
    if leaf is not None:
        inner[last] = leaf
    return tree


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({}, None),
        ({"num_sample_steps": 0}, None),
        ({"num_sample_steps": 64}, 64),
        ({"num_sample_steps": np.int32(8)}, 8),
    ],
)
def test_weights_and_step_count_come_back(tmp_path, more, steps):
    params = filled(LIKE)
    path = write(tmp_path / "file", params, **more)
    for place in (path, f"file://{path}"):  # by a path, and by TensorStore
        found, num_steps = load_released(place, LIKE)
        assert num_steps == steps
        jax.tree.map(np.testing.assert_array_equal, found, params)
        assert jax.tree.structure(found) == jax.tree.structure(LIKE)
    assert load_released(path, found)[1] == steps  # arrays serve as `like` too


def test_unit_axes_are_fixed(tmp_path):
    params = filled(LIKE)
    older = jax.tree.map(lambda a: a[None] if a.ndim == 1 else a, params)
    older["conv_in"]["kernel"] = older["conv_in"]["kernel"][:, :, :, None]
    assert older["down_1.attn_0"]["q"]["bias"].shape == (1, 32)
    older["down_1.attn_0"]["q"]["bias"] = older["down_1.attn_0"]["q"]["bias"][0]
    found, _ = load_released(write(tmp_path / "file", older), LIKE)
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    ("path", "leaf", "says"),
    [
        ("mid.block_1/conv1/kernel", None, r"missing mid.block_1/conv1/kernel \(3, 3,"),
        ("mid.block_9/conv1/kernel", np.zeros(3), "extra mid.block_9/conv1/kernel"),
        ("conv_in/bias", np.zeros(31), r"conv_in/bias is \(31,\), not \(32,\)"),
        ("conv_in/bias", "text", "conv_in/bias is None"),
    ],
)
def test_another_network_is_refused_by_name(tmp_path, path, leaf, says):
    file = write(tmp_path / "file", changed(filled(LIKE), path, leaf))
    with pytest.raises(ValueError, match=says):
        load_released(file, LIKE)


def test_all_differences_come_in_one_error(tmp_path):
    params = changed(filled(LIKE), "conv_in/bias", None)
    params = changed(params, "more/bias", np.zeros(2))
    with pytest.raises(ValueError, match=r"extra more/bias; missing conv_in/bias"):
        load_released(write(tmp_path / "file", params), LIKE)


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_none(tmp_path):
    whole = pathlib.Path(write(tmp_path / "whole", filled(LIKE))).read_bytes()
    cases = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not msgpack at all",
        "pickle": pickle.dumps({"ema_params": Trap(tmp_path / "trap")}),
        "other": flax.serialization.msgpack_serialize({"params": {}}),
        "list": flax.serialization.msgpack_serialize([1, 2]),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a released checkpoint"):
            load_released(str(tmp_path / name), LIKE)
    assert not (tmp_path / "trap").exists()
    for missing in (f"{tmp_path}/none", f"file://{tmp_path}/none", str(tmp_path)):
        with pytest.raises(ValueError, match=r"none|directory"):
            load_released(missing, LIKE)


def tiny(released, **changes):
    config = default("npz", "unet")
    config.update_from_flattened_dict(
        {
            "model.ch": 32,
            "model.emb_ch": 32,
            "model.ch_mult": (1,),
            "model.attn_resolutions": (),
            "model.output": "x",
            "teacher.released": str(released),
            "ladder.start": 16,
            "ladder.end": 1,
            "ladder.batch": 8,
            "ladder.updates": (3, 3, 2, 2),
            "eval.teacher_steps": (4, 1),
            "eval.num_samples": 8,
            "eval.paired_samples": 4,
            "eval.reference_steps": 4,
            "run.preflight": False,
            **changes,
        }
    )
    return config


@pytest.mark.slow
def test_a_released_student_decides_where_the_ladder_starts(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    config = tiny(tmp_path / "file", **{"data.path": str(tmp_path / "images.npz")})
    fields = dict(ch=32, emb_ch=32, ch_mult=(1,), attn_resolutions=())
    model = Model(models.get("unet", **fields), "x")
    params = jax.device_get(model.init(jax.random.key(5), (8, 8, 3)))
    params = jax.tree.map(lambda a: a + np.float32(0.01), params)

    write(tmp_path / "file", params, num_sample_steps=4)
    report = api.run(config, tmp_path / "student", "student")
    rows = [(r["model"], r["num_steps"]) for r in report["rows"]]
    assert rows == [("teacher", 4), ("student", 2), ("student", 1)]
    assert report["traces"] == {"ladder": 1}
    # The teacher's row is sampled from the file's weights as its own best is.
    assert report["rows"][0]["metrics"]["rmse_to_teacher"] == 0.0

    write(tmp_path / "file", params, num_sample_steps=3)
    with pytest.raises(ValueError, match="student of 3 steps"):
        api.run(config, tmp_path / "other", "other")
    assert not (tmp_path / "other").exists()


def test_the_released_cifar_network_fits_its_config():
    root = pathlib.Path(__file__).parents[1]
    config = runpy.run_path(str(root / "configs" / "cifar10.py"))["get_config"]()
    fields = {k: v for k, v in config.model.items() if k not in ("name", "output")}
    found = leaves(shapes(models.get("unet", **fields), 32))
    released = leaves(shapes(models.get("unet", **RELEASED["cifar"]["fields"]), 32))
    assert {k: a.shape for k, a in found.items()} == {
        k: a.shape for k, a in released.items()
    }
    assert config.model.output == "x"
