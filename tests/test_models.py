import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import models
from pd_jax.models import Model

Z = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
LOGSNR = jnp.array([-20.0, 0.0, 20.0])


def weights(net, *inputs):
    """Weights away from the initial zeros, for inputs after z and logsnr."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), Z, LOGSNR, *inputs)["params"]
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1], dtype=int)
        return jnp.float32(rng.standard_normal(leaf.shape) / np.sqrt(fan_in))

    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("name", models.known())
def test_contract(name):
    net = models.get(name, num_classes=4, dropout=0.5, out_ch=4)
    label = jnp.array([0, 1, 3])
    params = weights(net, label)
    apply = jax.jit(net.apply)
    out = apply({"params": params}, Z, LOGSNR, label)
    chex.assert_shape(out, (3, 8, 8, 4))
    for changed in [
        (Z + 1, LOGSNR, label),
        (Z, LOGSNR + 1, label),
        (Z, LOGSNR, label * 0),
    ]:
        assert not np.allclose(apply({"params": params}, *changed), out)

    @jax.jit
    def apply(params, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return net.apply({"params": params}, Z, LOGSNR, label, train=True, rngs=rngs)

    def dropped(seed):
        return apply(params, seed)

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert not np.allclose(dropped(0), dropped(1))
    assert not np.allclose(dropped(0), out)
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="extra_emb"):
        net.apply({"params": params}, Z, LOGSNR, label, jnp.ones((3, 5)))


@pytest.mark.parametrize("name", models.known())
def test_extra_conditioning_is_there_where_asked_for(name):
    net, extra = models.get(name), jnp.ones((3, 5))
    told, plain = weights(net, None, extra), weights(net)
    assert told.keys() - plain.keys() == {"extra_emb"}
    apply = jax.jit(net.apply)
    once, twice = (
        apply({"params": told}, Z, LOGSNR, None, times * extra) for times in (1, 2)
    )
    assert not np.allclose(once, twice)


@pytest.mark.parametrize("name", models.known())
def test_examples_do_not_mix(name):
    model = Model(models.get(name), "v")
    params = weights(model.network)

    @jax.jit
    def denoise(params, z):
        return model.denoiser(params)(z, LOGSNR).v

    whole, other = denoise(params, Z), denoise(params, Z.at[0].add(1.0))
    np.testing.assert_array_equal(whole[1:], other[1:])
    assert not np.allclose(whole[0], other[0])


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


@pytest.mark.parametrize("kind", ["inv_cos", "linear"])
def test_time_embedding_tells_levels_apart(kind):
    from pd_jax.models._embedding import sinusoidal, time_input

    found = sinusoidal(time_input(jnp.linspace(-20, 20, 41), kind), 32)
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
