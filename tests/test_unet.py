"""The U-Net against the released one; the data's story is in tests/README.md."""

import json
import pathlib
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import models

HERE = pathlib.Path(__file__).parent
RELEASED = {
    "cifar": dict(
        size=32,
        params=60.0e6,
        fields=dict(
            ch=256,
            emb_ch=1024,
            ch_mult=(1, 1, 1),
            num_res_blocks=3,
            attn_resolutions=(8, 16),
            num_heads=1,
        ),
    ),
    "imagenet64": dict(
        size=64,
        params=295.9e6,
        fields=dict(
            ch=192,
            emb_ch=768,
            ch_mult=(1, 2, 3, 4),
            num_res_blocks=3,
            attn_resolutions=(8, 16, 32),
            head_dim=64,
            num_classes=1000,
            out_ch=6,
        ),
    ),
    "lsun128": dict(
        size=128,
        params=139.6e6,
        fields=dict(
            ch=64,
            emb_ch=768,
            ch_mult=(1, 2, 4, 6, 8),
            num_res_blocks=3,
            attn_resolutions=(8, 16, 32),
            head_dim=64,
            out_ch=6,
        ),
    ),
}


def leaves(params):
    """A parameter tree as {"module/name": leaf}."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(p.key for p in path): leaf for path, leaf in flat}


def shapes(net, size, channels=3):
    z = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(net.init, jax.random.key(0), z, level, label)["params"]


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_are_the_released_ones(name):
    released = RELEASED[name]
    net = models.get("unet", **released["fields"])
    found = {k: list(a.shape) for k, a in leaves(shapes(net, released["size"])).items()}
    assert found == json.loads((HERE / f"params_{name}.json").read_text())
    total = sum(np.prod(shape) for shape in found.values())
    assert total == pytest.approx(released["params"], rel=1e-3)


def test_output_is_the_released_one():
    story = json.loads((HERE / "vectors_unet_small.json").read_text())
    net = models.get(
        "unet", **story["config"], num_classes=story["num_classes"], out_ch=3
    )

    def weight(path, leaf):
        path = "/".join(p.key for p in path)
        a = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(leaf.shape)
        if path.endswith("/kernel"):
            a = a / np.sqrt(np.prod(leaf.shape[:-1]))
        elif path.endswith("/scale"):
            a = 1.0 + 0.1 * a
        else:
            a = 0.1 * a
        return jnp.asarray(a, jnp.float32)

    params = jax.tree_util.tree_map_with_path(weight, shapes(net, story["image_size"]))
    with np.load(HERE / "vectors_unet_small.npz") as file:
        vectors = dict(file)
    out = jax.jit(net.apply)({"params": params}, vectors["z"], vectors["logsnr"])
    chex.assert_equal_shape([out, vectors["output"]])
    error = np.abs(out - vectors["output"]).max() / np.abs(vectors["output"]).max()
    assert error < 1e-5


def test_strided_and_class_conditional_networks():
    fields = dict(ch=32, emb_ch=64, ch_mult=(1, 2), attn_resolutions=(4,))
    net = models.get("unet", **fields, num_classes=10, resblock_resample=False)
    found = {k: a.shape for k, a in leaves(shapes(net, 8)).items()}
    assert found["class_emb/kernel"] == (10, 64)
    assert found["down_0.downsample/kernel"] == (3, 3, 32, 32)
    assert found["up_1.upsample/kernel"] == (3, 3, 64, 64)
    assert not any("upsample/conv1" in path for path in found)


@pytest.mark.parametrize(
    ("fields", "size", "says"),
    [
        (dict(ch=48), 8, "model.ch=48"),
        (dict(ch_mult=(1, 1, 1)), 6, "divisible by 4"),
        (dict(num_heads=3), 8, "num_heads=3"),
        (dict(head_dim=48), 8, "head_dim=48"),
        (dict(logsnr_input_type="inv_cosine"), 8, 'Did you mean "inv_cos"'),
    ],
)
def test_wrong_fields_are_named(fields, size, says):
    with pytest.raises(ValueError, match=says):
        shapes(models.get("unet", **fields), size)


def test_heights_that_no_level_has_are_said():
    network = models.get("unet", ch_mult=(1, 2), attn_resolutions=(8, 14), remat=(7,))
    first, second = models.notes(network, (28, 28, 1))
    assert first.startswith(
        "model.attn_resolutions=(8, 14): at 8 there is no attention"
    )
    assert first.endswith("examples of shape [28, 28, 1] have heights 28, 14")
    assert second.startswith("model.remat=(7,): at 7 there is no remat")
    fits = models.get("unet", ch_mult=(1, 2), attn_resolutions=(8,))
    assert not models.notes(fits, (16, 14, 1))
    assert not models.notes(models.get("mlp"), (28, 28, 1))
