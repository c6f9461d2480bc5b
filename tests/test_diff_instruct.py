"""Diff-Instruct with Gaussians: generators and denoisers that are closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import analytic, models, schedules, scores
from pd_jax.methods import Parts, _draws
from pd_jax.methods.diff_instruct import FAKE, Method
from pd_jax.models import Model
from pd_jax.models._model import Function
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.stage import Stage
from pd_jax.training.step import Step

MEAN, STD = 0.3, 0.5
SHAPE = (1,)
SCHEDULE = schedules.cosine()
DATA = analytic.gaussian(MEAN, STD)


def denoised(params, z, level, label):
    """The exact denoiser of a Gaussian; at t = 1 a generator, mean + std z."""
    mean, std = params["mean"], jnp.exp(params["log_std"])
    alpha, sigma = jax.nn.sigmoid(level) ** 0.5, jax.nn.sigmoid(-level) ** 0.5
    alpha, sigma = (a.reshape(-1, 1) for a in (alpha, sigma))
    share = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
    x = mean + share * (z - alpha * mean)
    return jnp.where(level.reshape(-1, 1) < -19.0, mean + std * z, x)


def gaussian(mean, std):
    log_std = jnp.log(jnp.float32(std))
    return {"mean": jnp.float32(mean), "log_std": log_std}


def method_of(optimizer=None, **kw):
    model = Model(Function(denoised), "x")
    parts = Parts("student", model, SCHEDULE, optimizer or Optimizer(), SHAPE, DATA)
    return Method(parts, **{"updates": 10, "time_law": "uniform", **kw})


def begun(method, params):
    given = {"model": params, "teacher": params}
    return method.begin(given, method.plan()[0], jax.random.key(0))


def batch_and_keys(size, seed=0):
    keys = jax.random.split(jax.random.key(seed), size)
    return {"place": jnp.arange(size, dtype=jnp.int32)}, keys


def test_plan():
    method = method_of(fake_learning_rate=3e-4)
    (stage,) = method.plan()
    assert stage == Stage("student", 0, 1, 10, 1e-3, {"fake_learning_rate": 3e-4})
    assert method.step_counts(stage) == (1,)
    assert method_of(fake_updates=5).forwards == 25


@pytest.mark.parametrize("weight", scores.WEIGHTS)
def test_the_students_gradient_is_the_gap_through_the_generator(weight):
    method = method_of(gap_weight=weight)
    student, fake = gaussian(-0.5, 1.4), gaussian(-0.2, 0.9)
    state = begun(method, student)
    state = state.with_network(FAKE, state.networks[FAKE].replace(params=fake))
    batch, keys = batch_and_keys(64)

    def loss(params):
        return jnp.mean(method.loss(state, params, batch, keys))

    gradient = jax.grad(loss)(student)
    # By hand: x = mean + std eps, so dx/dmean = 1 and dx/dlog_std = std eps.
    eps = _draws.normal_like(_draws.fold(keys, 0), jnp.zeros((64, 1)))
    x = -0.5 + 1.4 * eps
    logsnr = SCHEDULE(_draws.uniform_times(keys))
    alpha, sigma = jax.nn.sigmoid(logsnr) ** 0.5, jax.nn.sigmoid(-logsnr) ** 0.5
    alpha, sigma = alpha[:, None], sigma[:, None]
    z = alpha * x + sigma * _draws.normal_like(keys, x)
    of_fake = denoised(fake, z, logsnr, None)
    of_data = DATA(z, logsnr).x
    k = {
        "constant": jnp.ones_like(x),
        "kl": (alpha / sigma) ** 2,
        "dmd": 1.0 / jnp.maximum(jnp.abs(x - of_data), 1e-5),
    }[weight]
    field = k * (of_fake - of_data)
    np.testing.assert_allclose(gradient["mean"], jnp.mean(field), rtol=2e-3)
    log_std = jnp.mean(field * 1.4 * eps)
    np.testing.assert_allclose(gradient["log_std"], log_std, rtol=2e-3)


def test_where_both_denoisers_agree_nothing_moves():
    method = method_of()
    state = begun(method, gaussian(MEAN, STD))
    batch, keys = batch_and_keys(32)

    def loss(params):
        return jnp.mean(method.loss(state, params, batch, keys))

    for value in jax.tree.leaves(jax.grad(loss)(state.model.params)):
        np.testing.assert_allclose(value, 0.0, atol=1e-6)


def test_the_second_network_alone_learns_from_its_loss():
    method = method_of()
    state = begun(method, gaussian(-0.5, 1.4))
    batch, keys = batch_and_keys(32)

    def loss(student, fake):
        model = state.model.replace(params=student)
        of = state.with_network("model", model)
        return jnp.mean(method.fake_loss(of, fake, batch, keys))

    student, fake = state.model.params, gaussian(0.0, 1.0)
    by_student, by_fake = jax.grad(loss, (0, 1))(student, fake)
    assert all(float(g) == 0.0 for g in jax.tree.leaves(by_student))
    assert all(float(g) != 0.0 for g in jax.tree.leaves(by_fake))
    # The samples' own denoiser is the best one.
    assert loss(student, student) < loss(student, fake)


def trained(method, updates, size=64, params=None):
    step = Step(method.update, jax.devices()[:1])
    state = step.place(begun(method, params or gaussian(-0.5, 1.4)))
    key, metrics = step.place(jax.random.key(3)), None
    for i in range(updates):
        place = np.arange(i * size, (i + 1) * size, dtype=np.int32)
        state, metrics = step(state, step.share({"place": place}), key)
    return state, metrics, step


@pytest.mark.parametrize("fake_updates", [1, 3])
def test_updates_of_both_networks(fake_updates):
    method = method_of(Optimizer(ema=0.9), fake_updates=fake_updates)
    state, metrics, step = trained(method, 2)
    assert step.traces == 1
    assert int(state.step) == 2
    counts = {
        name: int(network.opt_state[1].count)
        for name, network in state.networks.items()
    }
    assert counts == {"model": 2, FAKE: 2 * fake_updates}
    assert set(state.model.averages) == {"sampling"}
    assert not state.networks[FAKE].averages
    assert {"loss", "fake_loss", "grad_norm", "skipped"} <= set(metrics)


def test_each_network_has_its_own_learning_rate():
    still = method_of(Optimizer(), fake_learning_rate=0.0)
    state, _, _ = trained(still, 2)
    start = gaussian(-0.5, 1.4)
    assert state.networks[FAKE].params == start
    moved = method_of(Optimizer(), learning_rate=0.0)
    state, _, _ = trained(moved, 2)
    assert state.model.params == start
    assert state.networks[FAKE].params["log_std"] != start["log_std"]


def test_a_second_network_that_is_not_finite_is_left_as_it_was():
    method = method_of()
    params = gaussian(-0.5, 1.4)
    step = Step(method.update, jax.devices()[:1])
    state = begun(method, params)
    fake = state.networks[FAKE].replace(params=gaussian(jnp.nan, 1.0))
    state = step.place(state.with_network(FAKE, fake))
    batch = step.share({"place": np.arange(8, dtype=np.int32)})
    state, metrics = step(state, batch, step.place(jax.random.key(0)))
    assert int(np.max(metrics["skipped"])) == 1
    assert int(state.networks[FAKE].opt_state[1].count) == 0
    assert state.model.params == params


@pytest.mark.parametrize("weight", ["constant", "dmd"])
def test_training_finds_the_data(weight):
    optimizer = Optimizer(decay="linear", ema=0.9)
    method = method_of(
        optimizer,
        updates=400,
        learning_rate=0.02,
        fake_updates=3,
        fake_learning_rate=0.04,
        gap_weight=weight,
    )
    state, _, _ = trained(method, 400, size=512)
    params = method.result(state)["model"]
    np.testing.assert_allclose(params["mean"], MEAN, atol=0.02)
    np.testing.assert_allclose(jnp.exp(params["log_std"]), STD, atol=0.03)


def test_samples_are_the_networks_at_pure_noise(cosine):
    net = models.get("mlp", width=8, emb_ch=8, num_blocks=1)
    model = Model(net, "v")
    params = model.init(jax.random.key(0), (4, 4, 1))
    method = Method(Parts("student", model, cosine, Optimizer(), (4, 4, 1)))
    keys = jax.random.split(jax.random.key(1), 3)
    x = method.generate(params, None, keys)
    eps = _draws.normal_like(keys, jnp.zeros((3, 4, 4, 1)))
    expected = model.denoiser(params)(eps, cosine(jnp.ones(3))).x
    np.testing.assert_array_equal(x, expected)
