"""Diff-Instruct of generators with a mean and a std, against Gaussians."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pd_jax import analytic, diffusion, scores
from pd_jax.methods import Parts, _draws
from pd_jax.methods.diff_instruct import FAKE, Method
from pd_jax.models import Model
from pd_jax.models._model import Function
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.stage import Stage
from pd_jax.training.step import Step

SHAPE = (3,)
DATA_MEAN, DATA_STD = 0.3, 0.7
DATA = analytic.gaussian(DATA_MEAN, DATA_STD)


def weights_of(mean, std):
    return {"mean": jnp.float32(mean), "std": jnp.float32(std)}


def gaussian(params, z, logsnr, label):
    """x of a generator at t = 1, and of its samples' exact denoiser elsewhere."""
    at_end = diffusion.expand(logsnr < -19.99, z)
    x = analytic.gaussian(params["mean"], params["std"])(z, logsnr).x
    return jnp.where(at_end, params["mean"] + params["std"] * z, x)


START = weights_of(-0.5, 1.4)
TEACHER = weights_of(DATA_MEAN, DATA_STD)


def method_of(cosine, exact=None, optimizer=None, kind=Method, **kw):
    model = Model(Function(gaussian), "x")
    return kind(
        Parts("ladder", model, cosine, optimizer or Optimizer(), SHAPE, exact),
        **{"weighting": "constant", **kw},
    )


def begun(method, student=START, teacher=TEACHER, **kw):
    (stage,) = dataclasses.replace(method, **kw).plan()
    handed_over = {"model": student, "teacher": teacher}
    return method.begin(handed_over, stage, jax.random.key(0))


def keys_of(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


@jax.jit
def normal(keys):
    return _draws.normal_like(keys, jnp.zeros((len(keys), *SHAPE)))


@jax.jit
def normal_of_samples(keys):
    return normal(_draws.fold(keys, 0))


def noised(method, x, keys, cosine):
    """Samples with noise, in NumPy: alpha, sigma, z, eps."""
    u = _draws.uniform_times(keys)
    logsnr = np.asarray(scores.logsnr_at(method.time_law, u, cosine), np.float64)
    phi = np.arctan(np.exp(-0.5 * logsnr))[:, None]
    eps = np.asarray(normal(keys), np.float64)
    return np.cos(phi), np.sin(phi), np.cos(phi) * x + np.sin(phi) * eps, eps


def posterior_mean(z, alpha, sigma, mean, std):
    var = (alpha * std) ** 2 + sigma**2
    return (sigma**2 * mean + std**2 * alpha * z) / var


@pytest.mark.parametrize(
    ("weight", "law"),
    [
        pytest.param("constant", "lognormal", marks=pytest.mark.slow),
        ("kl", "lognormal"),
        ("dmd", "lognormal"),
        ("constant", "uniform"),
    ],
)
def test_the_students_gradient_is_the_gap_times_its_own(weight, law, cosine):
    method = method_of(cosine, DATA, gap_weight=weight, time_law=law)
    state = begun(method, teacher=weights_of(0.1, 1.1))
    keys = keys_of(64)
    eps_x = np.asarray(normal_of_samples(keys))
    x = -0.5 + 1.4 * eps_x.astype(np.float64)
    alpha, sigma, z, _ = noised(method, x, keys, cosine)
    fake = posterior_mean(z, alpha, sigma, 0.1, 1.1)
    teacher = posterior_mean(z, alpha, sigma, DATA_MEAN, DATA_STD)
    k = {
        "constant": 1.0,
        "kl": (alpha / sigma) ** 2,
        "dmd": 1.0 / np.abs(x - teacher).mean(1, keepdims=True),
    }[weight]
    field = k * (fake - teacher)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.mean(method.losses(state, params, {}, keys))

    found = gradient(START)
    assert float(found["mean"]) == pytest.approx(field.mean(), rel=1e-4)
    assert float(found["std"]) == pytest.approx((field * eps_x).mean(), rel=1e-4)


def test_the_generator_is_the_model_at_pure_noise(cosine):
    keys = keys_of(8)
    made = method_of(cosine).generate(START, None, keys)
    np.testing.assert_allclose(made, -0.5 + 1.4 * normal(keys), rtol=1e-6)


def test_no_gap_is_no_gradient(cosine):
    methods = [method_of(cosine, gap_weight=weight) for weight in scores.WEIGHTS]
    state = begun(methods[0])  # the second network starts as the teacher

    @jax.jit
    @jax.jacobian
    def gradients(params):
        keys = keys_of(16)
        return [jnp.mean(m.losses(state, params, {}, keys)) for m in methods]

    assert all(float(g) == 0.0 for g in jax.tree.leaves(gradients(START)))


def test_a_network_teaches_as_its_exact_denoiser_does(cosine):
    taught = method_of(cosine, gap_weight="kl")
    exact = method_of(cosine, DATA, gap_weight="kl")
    found = []
    for method in (taught, exact):
        state = begun(method).with_network(FAKE, begun(method).model)
        found.append(jax.jit(method.losses)(state, START, {}, keys_of(16)))
    assert begun(taught).frozen["teacher"]["mean"] == np.float32(DATA_MEAN)
    assert begun(exact).frozen == {}
    np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.parametrize(
    "weighting", ["constant", pytest.param("snr", marks=pytest.mark.slow)]
)
def test_the_second_networks_loss_is_that_of_denoising_the_samples(weighting, cosine):
    method = method_of(cosine, weighting=weighting)
    state = begun(method)
    # The samples are of the weights themselves, not of their average.
    averages = {"sampling": weights_of(5.0, 0.1)}
    state = state.with_network("model", state.model.replace(averages=averages))
    keys = keys_of(32)
    eps_x = np.asarray(normal_of_samples(keys))
    x = -0.5 + 1.4 * eps_x.astype(np.float64)
    alpha, sigma, z, eps = noised(method, x, keys, cosine)
    error = posterior_mean(z, alpha, sigma, 0.1, 1.1) - x
    if weighting == "snr":
        error = (z - alpha * (error + x)) / sigma - eps
    loss = jax.jit(method.fake_loss)
    found = loss(state, weights_of(0.1, 1.1), {}, keys)
    np.testing.assert_allclose(found, (error**2).mean(1), rtol=2e-3)
    # Of these losses, the samples' own denoiser has the least.
    best = float(np.mean(loss(state, START, {}, keys_of(4096))))
    for mean, std in ((-0.2, 1.4), (-0.8, 1.4), (-0.5, 1.8), (-0.5, 1.0)):
        other = loss(state, weights_of(mean, std), {}, keys_of(4096))
        assert best < float(np.mean(other))


def test_neither_loss_moves_what_is_not_its_own(cosine):
    method = method_of(cosine)
    state, keys = begun(method, teacher=weights_of(0.2, 0.5)), keys_of(16)
    state = state.with_network(FAKE, begun(method).networks[FAKE])
    own = weights_of(0.1, 1.1)

    def mean(loss):
        @jax.jit
        def gradients(state):
            def total(networks, frozen, params):
                given = state.replace(networks=networks, frozen=frozen)
                return jnp.mean(loss(given, params, {}, keys))

            networks = {
                name: trained.replace(opt_state=())
                for name, trained in state.networks.items()
            }
            return jax.grad(total, (0, 1, 2))(networks, state.frozen, own)

        return gradients(state)

    for loss in (method.fake_loss, method.losses):
        networks, frozen, params = mean(loss)
        assert not any(float(g) for g in jax.tree.leaves((networks, frozen)))
        assert all(float(g) for g in jax.tree.leaves(params))


def count(state, name):
    return int(optax.tree_utils.tree_get(state.networks[name].opt_state, "count"))


def places(size):
    return {"place": np.arange(size, dtype=np.int32)}


def run(method, updates, size=16, devices=1, **kw):
    """States, as NumPy, after each of the updates, their metrics, and traces."""
    step = Step(method.update, jax.devices()[:devices])
    state, key = step.place(begun(method, **kw)), step.place(jax.random.key(3))
    states, found = [jax.tree.map(np.array, state)], []
    for _ in range(updates):
        state, metrics = step(state, step.share(places(size)), key)
        states.append(jax.tree.map(np.array, state))
        found.append(jax.device_get(metrics))
    return states, found, step.traces


@pytest.mark.parametrize("fake_updates", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_updates_of_both_networks(fake_updates, cosine):
    method = method_of(
        cosine,
        optimizer=Optimizer(ema=0.9),
        fake_updates=fake_updates,
        learning_rate=1e-3,
        fake_learning_rate=4e-3,
        updates=10,
    )
    states, metrics, traces = run(method, 2)
    assert traces == 1
    assert [int(s.step) for s in states] == [0, 1, 2]
    assert [count(s, FAKE) for s in states] == [0, fake_updates, 2 * fake_updates]
    assert [count(s, "model") for s in states] == [0, 1, 2]
    assert [int(m["skipped"]) for m in metrics] == [0, 0]
    assert states[-1].networks[FAKE].averages == {}
    assert set(states[-1].model.averages) == {"sampling"}
    chex.assert_trees_all_equal(states[-1].frozen, states[0].frozen)
    first, after = states[:2]
    # Adam's first step is the learning rate itself, each network's own.
    moved = jax.tree.map(np.subtract, after.model.params, first.model.params)
    np.testing.assert_allclose(np.abs(list(moved.values())), 1e-3, rtol=1e-2)
    fake = jax.tree.map(
        np.subtract, after.networks[FAKE].params, first.networks[FAKE].params
    )
    np.testing.assert_allclose(
        np.abs(list(fake.values())), 4e-3 * fake_updates, rtol=0.05
    )
    for name in ("loss", "grad_norm", "fake_loss"):
        assert np.isfinite(metrics[0][name])
    assert float(metrics[0]["learning_rate"]) == pytest.approx(1e-3)
    assert method.forwards == 4 * fake_updates + 5


def test_every_update_of_the_second_network_has_draws_of_its_own(cosine):
    seen = []

    def note(keys):
        for drawn in (normal(keys), normal_of_samples(keys)):
            jax.debug.callback(seen.append, drawn)

    @dataclasses.dataclass(frozen=True)
    class Seen(Method):
        def fake_loss(self, state, params, batch, keys):
            note(keys)
            return super().fake_loss(state, params, batch, keys)

        def losses(self, state, params, batch, keys, dropout_key=None):
            note(keys)
            return super().losses(state, params, batch, keys, dropout_key)

    run(method_of(cosine, kind=Seen, fake_updates=2, updates=10), 1)
    jax.effects_barrier()
    assert len({np.asarray(drawn).tobytes() for drawn in seen}) == len(seen) == 6


def test_a_second_networks_loss_that_is_not_finite_counts(cosine):
    """The student goes on, with the second network as it was."""

    @dataclasses.dataclass(frozen=True)
    class Broken(Method):
        def fake_loss(self, state, params, batch, keys):
            losses = super().fake_loss(state, params, batch, keys)
            # In update number 1, its last move alone.
            moves = optax.tree_utils.tree_get(state.networks[FAKE].opt_state, "count")
            return jnp.where(moves == 3, jnp.nan, losses)

    method = method_of(cosine, kind=Broken, fake_updates=2, updates=10)
    states, metrics, _ = run(method, 2, devices=2)
    assert [int(m["skipped"]) for m in metrics] == [0, 1]
    assert [int(s.step) for s in states] == [0, 1, 2]
    assert [count(s, FAKE) for s in states] == [0, 2, 3]
    assert [count(s, "model") for s in states] == [0, 1, 2]
    chex.assert_tree_all_finite(states[-1].networks)
    assert states[2].model.params["mean"] != states[1].model.params["mean"]


def test_a_students_loss_that_is_not_finite_counts(cosine):
    @dataclasses.dataclass(frozen=True)
    class Broken(Method):
        def losses(self, state, params, batch, keys, dropout_key=None):
            losses = super().losses(state, params, batch, keys, dropout_key)
            return jnp.where(state.step == 1, jnp.inf, losses)

    states, metrics, _ = run(method_of(cosine, kind=Broken, updates=10), 3)
    assert [int(m["skipped"]) for m in metrics] == [0, 1, 0]
    assert [int(s.step) for s in states] == [0, 1, 2, 3]
    assert [count(s, FAKE) for s in states] == [0, 1, 2, 3]
    assert [count(s, "model") for s in states] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("weight", "law", "exact"),
    [
        ("constant", "lognormal", None),
        pytest.param("kl", "uniform", DATA, marks=pytest.mark.slow),
        pytest.param("dmd", "lognormal", DATA, marks=pytest.mark.slow),
    ],
)
def test_training_finds_the_datas_mean_and_std(weight, law, exact, cosine):
    """No data is given; the second network learns the samples' law along the way."""
    method = method_of(
        cosine,
        exact,
        Optimizer(decay="cosine", ema=0.9),
        updates=300,
        learning_rate=0.02,
        fake_learning_rate=0.05,
        fake_updates=2,
        gap_weight=weight,
        time_law=law,
    )
    step = Step(method.update, jax.devices()[:1])
    state, key = step.place(begun(method)), step.place(jax.random.key(3))
    for _ in range(300):
        state, _ = step(state, step.share(places(256)), key)
    assert step.traces == 1
    found = method.result(state)["model"]
    assert float(found["mean"]) == pytest.approx(DATA_MEAN, abs=0.03)
    assert float(found["std"]) == pytest.approx(DATA_STD, abs=0.03)
    fake = state.networks[FAKE].params
    assert float(fake["mean"]) == pytest.approx(float(found["mean"]), abs=0.05)
    assert float(fake["std"]) == pytest.approx(float(found["std"]), abs=0.05)


def test_labels_and_masks_reach_the_networks(cosine):
    asked = []

    class Asked:
        cast = staticmethod(lambda params: params)

        def denoiser(self, params, label=None, dropout_key=None):
            asked.append((*params, label, dropout_key))
            return DATA

    parts = Parts("ladder", Asked(), cosine, Optimizer(), SHAPE)
    method = Method(parts, updates=1)
    state = begun(method, {"student": np.ones(1)}, {"teacher": np.ones(1)})
    label, keys, key = np.arange(4), keys_of(4), jax.random.key(9)
    state = state.with_network(FAKE, state.model.replace(params={"fake": np.ones(1)}))
    batch = {"label": label}
    jax.eval_shape(lambda: method.losses(state, {"new": np.ones(1)}, batch, keys, key))
    # The student with dropout; the second network and the teacher without.
    assert [name for name, _, _ in asked] == ["new", "fake", "teacher"]
    assert [mask for _, _, mask in asked] == [key, None, None]
    jax.eval_shape(lambda: method.fake_loss(state, {"new": np.ones(1)}, batch, keys))
    assert [name for name, _, _ in asked[3:]] == ["student", "new"]
    assert [mask is None for _, _, mask in asked[3:]] == [True, False]
    assert all(given is label for _, given, _ in asked)


def test_plan(cosine):
    method = method_of(cosine, updates=7, learning_rate=0.5, fake_learning_rate=0.25)
    (stage,) = method.plan()
    assert stage == Stage("student", 0, 1, 7, 0.5, {"fake_learning_rate": 0.25})
    assert float(stage.values()["fake_learning_rate"]) == 0.25
    assert method.step_counts(stage) == (1,)
    assert Method.data == "places"
