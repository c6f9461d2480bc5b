import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import models
from pd_jax.denoisers import Model

Z = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
LOGSNR = jnp.array([-20.0, 0.0, 20.0])


@pytest.mark.parametrize("name", models.known())
def test_contract(name):
    net = models.get(name, num_classes=4, dropout=0.5, out_ch=4)
    label = jnp.array([0, 1, 3])
    params = net.init(jax.random.key(1), Z, LOGSNR, label)["params"]
    chex.assert_shape(net.apply({"params": params}, Z, LOGSNR, label), (3, 8, 8, 4))
    # Moved off its initial zeros, the output depends on each input, and on dropout.
    params = jax.tree.map(
        lambda p: (
            p + 0.05 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)
        ),
        params,
    )
    out = net.apply({"params": params}, Z, LOGSNR, label)
    for changed in [
        (Z + 1, LOGSNR, label),
        (Z, LOGSNR + 1, label),
        (Z, LOGSNR, label * 0),
    ]:
        assert not np.allclose(net.apply({"params": params}, *changed), out)

    def dropped(seed):
        return net.apply(
            {"params": params},
            Z,
            LOGSNR,
            label,
            train=True,
            rngs={"dropout": jax.random.key(seed)},
        )

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert not np.allclose(dropped(0), dropped(1))
    assert not np.allclose(dropped(0), out)


@pytest.mark.parametrize("name", models.known())
def test_examples_do_not_mix(name):
    model = Model(models.get(name), "v")
    params = model.init(jax.random.key(0), Z.shape[1:])
    params = jax.tree.map(
        lambda p: (
            p + 0.05 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)
        ),
        params,
    )
    whole = model.denoiser(params)(Z, LOGSNR).v
    alone = model.denoiser(params)(Z[1:2], LOGSNR[1:2]).v
    np.testing.assert_allclose(whole[1:2], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output", ["x", "eps", "v", "both"])
def test_a_network_becomes_a_denoiser(output):
    net = models.get("mlp", width=16, num_blocks=1, out_ch=4 if output == "both" else 2)
    model = Model(net, output)
    params = model.init(jax.random.key(0), Z.shape[1:])
    params = jax.tree.map(lambda p: p + 0.02, params)
    raw = net.apply({"params": params}, Z, LOGSNR)
    prediction = model.denoiser(params)(Z, LOGSNR)
    chex.assert_equal_shape([Z, *prediction])
    if output != "both":
        np.testing.assert_allclose(getattr(prediction, output), raw, atol=1e-6)


def test_time_embedding_tells_levels_apart():
    from pd_jax.models.mlp import time_embedding

    found = time_embedding(jnp.linspace(-20, 20, 41), 32)
    chex.assert_shape(found, (41, 32))
    distance = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert np.min(distance + 10 * np.eye(41)) > 1e-3


def test_wrong_use():
    with pytest.raises(ValueError, match='Did you mean "mlp"'):
        models.get("mpl")
    with pytest.raises(ValueError, match='Did you mean "width"'):
        models.get("mlp", widht=3)
    with pytest.raises(ValueError, match="output kind"):
        Model(models.get("mlp"), "w")
    net = models.get("mlp", num_classes=3)
    with pytest.raises(ValueError, match="needs labels"):
        net.init(jax.random.key(0), Z, LOGSNR)
