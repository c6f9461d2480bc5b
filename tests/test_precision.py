"""What is computed in bfloat16, and what is not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import config as configs
from pd_jax import models
from pd_jax.config import setup
from pd_jax.costs.program import peak_bytes
from pd_jax.models import Model, _attention
from pd_jax.training.method import state_shapes
from pd_jax.training.stage import Stage

SMALL = {
    "mlp": dict(width=32, num_blocks=2),
    "dit": dict(width=32, depth=2),
    "unet": dict(ch=32, emb_ch=32, ch_mult=(1,), attn_resolutions=()),
}
Z = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
LOGSNR = jnp.array([-15.0, -1.0, 1.0, 15.0])


def model(name, dtype=None, **fields):
    net = models.get(name, **SMALL[name], **fields, out_ch=3, dtype=dtype)
    return Model(net, "v")


def weights(name):
    """Weights away from the initial zeros."""
    shapes = jax.eval_shape(lambda key: model(name).init(key, Z.shape[1:]), KEY)
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 1.0 / np.sqrt(np.prod(leaf.shape[:-1], dtype=int))
        return jnp.float32(scale * rng.standard_normal(leaf.shape))

    return jax.tree.map(draw, shapes)


def types(tree, matrices):
    return {a.dtype.name for a in jax.tree.leaves(tree) if (a.ndim > 1) == matrices}


KEY = jax.random.key(1)
NETWORKS = [name for name in models.known() if models.has_dtype(name)]


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_close_and_comes_back_as_float32(name):
    params = weights(name)

    def denoise(dtype, params):
        there = model(name, dtype)
        return jax.jit(lambda p: there.denoiser(p)(Z, LOGSNR).v)(params)

    exact, rounded = denoise(None, params), denoise(jnp.bfloat16, params)
    assert rounded.dtype == jnp.float32
    error = np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.02  # bfloat16 rounds by 2e-3
    # Nothing but float32 comes after the last layer: else values would be multiples.
    assert np.any(rounded != rounded.astype(jnp.bfloat16).astype(jnp.float32))

    # Cast once for all, the same bits.
    cast = model(name, jnp.bfloat16).cast(params)
    assert types(cast, matrices=True) == {"bfloat16"}
    assert types(cast, matrices=False) == {"float32"}
    np.testing.assert_array_equal(denoise(jnp.bfloat16, cast), rounded)
    chex.assert_trees_all_equal(model(name).cast(params), params)


def test_every_network_can_be_told_its_type():
    assert models.known() == NETWORKS


def described(**changes):
    config = configs.default("digits", "mlp")
    config.model.width = 16
    config.teacher.updates = 4
    config.ladder.start = 4
    config.ladder.updates = (4,)
    config.update(changes)
    return config


def test_a_state_keeps_float32_but_for_the_teacher():
    made = setup.sketch(described(precision="bfloat16"), 1)
    training = made.trainings[-1]
    state = state_shapes(training.method, training.stages[0], made.shapes)
    assert types(state.networks, matrices=True) == {"float32"}
    assert types(state.frozen, matrices=True) == {"bfloat16"}

    def update(state, batch, keys):
        return training.method.update(state, batch, keys)

    batch = {"image": jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)}
    keys = jax.eval_shape(lambda: jax.random.split(KEY, 4))
    after, metrics = jax.eval_shape(
        jax.vmap(update, axis_name="batch", in_axes=(None, 0, 0), out_axes=None),
        state,
        *jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), (batch, keys)
        ),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert metrics["loss"].dtype == metrics["grad_norm"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("precision", "platform", "found"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "gpu", "bfloat16"),
        ("auto", "tpu", "bfloat16"),
        ("bfloat16", "cpu", "bfloat16"),
        ("float32", "gpu", "float32"),
    ],
)
def test_auto_goes_by_the_device(precision, platform, found):
    config = described(precision=precision)
    dataset = setup.data.describe("digits")
    assert setup._model(config, {"data": dataset}, platform).dtype == found


def test_unknown_precision_and_attention_are_refused():
    with pytest.raises(ValueError, match='Did you mean "bfloat16"'):
        setup.sketch(described(precision="bfloat61"), 1)
    with pytest.raises(ValueError, match='Did you mean "cudnn"'):
        jax.eval_shape(lambda: model("unet", attention="cuddn").init(KEY, Z.shape[1:]))


def gradient(there, params):
    def loss(params):
        return jnp.mean(there.denoiser(params)(Z, LOGSNR).v ** 2)

    return loss, jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize(("name", "all_of"), [("unet", (8,)), ("dit", True)])
def test_remat_changes_memory_and_nothing_else(name, all_of):
    params = weights(name)
    found = {}
    for remat in (type(all_of)(), all_of):
        there = model(name, remat=remat)
        made = jax.eval_shape(lambda there=there: there.init(KEY, Z.shape[1:]))
        chex.assert_trees_all_equal_shapes(made, params)
        loss, grads = gradient(there, params)
        traced = jax.make_jaxpr(jax.grad(loss))(params)
        found[bool(remat)] = peak_bytes(traced.jaxpr), grads
    (most, plain), (least, again) = found[False], found[True]
    assert least < 0.8 * most  # the gradients are in both
    chex.assert_trees_all_close(again, plain, rtol=1e-4, atol=1e-6)


def test_attention_takes_cudnn_only_where_it_is(monkeypatch):
    q = jax.random.normal(KEY, (2, 16, 2, 8))
    assert not _attention._has_cudnn(q.shape[1:], jnp.dtype("bfloat16"))  # no GPU here
    plain = _attention.attend(q, q, q, "auto")
    logits = np.einsum("btnh,bsnh->bnts", q, q) / np.sqrt(8)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        plain, np.einsum("bnts,bsnh->btnh", share, q), rtol=1e-5, atol=1e-5
    )
    asked = []
    monkeypatch.setattr(_attention, "_has_cudnn", lambda *a: True)
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda q, k, v, implementation: asked.append(implementation) or q,
    )
    _attention.attend(q, q, q, "auto")
    _attention.attend(q, q, q, "xla")
    assert asked == ["cudnn", "xla"]


def test_a_stage_is_the_same_stage():
    """A teacher put back on resuming has the weights that the stage began with."""
    there = setup.sketch(described(precision="bfloat16"), 1).trainings[-1].method
    params = jax.jit(lambda: there.parts.model.init(KEY, (8, 8, 1)))()
    stage = Stage("student_2", 0, 2, 4, 1e-3)
    given = {"model": params, "teacher": params}
    whole = jax.jit(lambda given: there.begin(given, stage, KEY))(given).frozen
    again = jax.jit(lambda given: there.begin(given, stage, KEY).frozen)(given)
    chex.assert_trees_all_equal(whole, again)
