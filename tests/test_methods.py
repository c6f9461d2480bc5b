"""Methods and the step that runs them, on several fake devices."""

import dataclasses
import functools
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pd_jax import analytic, methods, models
from pd_jax import config as configs
from pd_jax.methods import Parts, _draws
from pd_jax.models import Model
from pd_jax.models._embedding import EXTRA
from pd_jax.runtime.errors import Refused
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.stage import Stage
from pd_jax.training.step import Measure, Step

RNG = np.random.default_rng(0)
SHAPE = (4, 4, 1)
STAGE = Stage("student_4", 1, 4, 20, 1e-3, {"fake_learning_rate": 1e-3, "grid": 8})


OWN = '''"""Mine: of one key."""

import dataclasses

from pd_jax.methods.consistency_training import Method as Base
from pd_jax.training.method import setting


@dataclasses.dataclass(frozen=True)
class Method(Base):
    """As its base.

    Attributes:
      patience: a key of its own.
    """

    patience: int = setting(3, least=1)
'''


def batch(size, substeps=1, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.uniform(-1, 1, (size * substeps, *SHAPE)).astype(np.float32),
        "label": rng.integers(0, 3, size * substeps).astype(np.int32),
        "place": np.arange(size * substeps, dtype=np.int32),
        "noise": rng.standard_normal((size * substeps, *SHAPE)).astype(np.float32),
        "step": np.ones(size * substeps, np.int32),
    }


def method_of(name, cosine, optimizer=None, exact=None, **kw):
    net = models.get("mlp", width=16, emb_ch=16, num_blocks=1, num_classes=3)
    model = Model(net, "v")
    parts = Parts("ladder", model, cosine, optimizer or Optimizer(), SHAPE, exact)
    return methods.get(name).Method(parts, **kw)


def of_each_kind():
    """All methods; one of each kind is a short test or a slow one, others long."""
    short = ("standard", "progressive", "consistency_distillation")
    slow = ("boot", "diff_instruct", "knowledge_distillation", "mean_flow")

    def marks(name):
        return pytest.mark.slow if name in slow else pytest.mark.long

    return [
        pytest.param(name, marks=() if name in short else marks(name))
        for name in methods.known()
    ]


def begun(method, weights, stage, taught=1.1):
    """A method's first state, of a teacher so many times the weights."""
    teacher = jax.tree.map(lambda p: taught * p, known(weights))
    handed_over = {"model": weights, "teacher": teacher}
    return method.begin(handed_over, stage, jax.random.key(0))


def known(weights):
    """The weights of the model without what knows a second time."""
    return {name: weights[name] for name in weights if name != EXTRA}


def weights_of(method, seed=0):
    params = method.parts.model.init(jax.random.key(seed), SHAPE)
    return jax.tree.map(
        lambda p: p + 0.1 * jnp.asarray(RNG.standard_normal(p.shape), p.dtype), params
    )


def train(method, weights, devices, updates=20, size=16, substeps=1, taught=1.1):
    step = Step(method.update, devices, substeps)
    state = step.place(begun(method, weights, STAGE, taught))
    key = step.place(jax.random.key(3))
    for i in range(0, updates, substeps):
        parts = [batch(size, seed=i + j) for j in range(substeps)]
        whole = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        state, metrics = step(state, step.share(whole), key)
    return state, metrics, step


def test_a_method_is_added_as_one_file_whose_fields_are_config_keys(
    tmp_path, monkeypatch
):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "mine" in methods.known()
    try:
        config = configs.default("digits", "mlp", student="mine")
        assert config.student.patience == 3
        config.update_from_flattened_dict(
            {"teacher.updates": 1, "student.updates": 1, "student.patience": 0}
        )
        with pytest.raises(Refused, match=r"student\.patience"):
            configs.check(config, 1)
    finally:
        sys.modules.pop("pd_jax.methods.mine", None)


@pytest.mark.parametrize("name", methods.known())
def test_contract(name, cosine):
    method = method_of(name, cosine, Optimizer(ema=0.9))
    weights = weights_of(method)
    state, metrics, step = train(method, weights, jax.devices(), updates=3)
    assert int(state.step) == 3
    assert step.traces == 1
    chex.assert_tree_all_finite(metrics)
    assert {"loss", "grad_norm", "learning_rate", "skipped"} <= set(metrics)
    result = method.result(state)["model"]
    chex.assert_trees_all_equal_shapes_and_dtypes(known(result), weights)
    # The hand-over: a new stage starts from the result, with all else fresh.
    after = begun(method, result, STAGE)
    chex.assert_trees_all_equal(after.model.params, result)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert int(after.step) == 0
    moments = jax.tree.leaves(after.model.opt_state)
    assert all(not np.any(np.asarray(a)) for a in moments)
    assert method.forwards >= 3


@pytest.mark.parametrize("name", of_each_kind())
def test_devices_microbatches_and_substeps_change_nothing(name, cosine):
    method = method_of(name, cosine)
    weights = weights_of(method)
    one, metrics_one, _ = train(method, weights, jax.devices()[:1])
    moved = jax.tree.map(
        lambda a, b: np.max(np.abs(a - b)), known(one.model.params), weights
    )
    assert max(jax.tree.leaves(moved)) > 1e-3
    four, metrics_four, _ = train(method, weights, jax.devices())
    assert float(metrics_one["loss"]) == pytest.approx(
        float(metrics_four["loss"]), rel=1e-4
    )
    method = method_of(name, cosine, Optimizer(microbatches=4))
    other, _, step = train(method, weights, jax.devices()[:2], substeps=5)
    assert step.traces <= 2  # a scan traces its body once more
    assert int(other.step) == 20
    for state in (four, other):
        for a, b in zip(
            *(jax.tree.leaves(jax.device_get(s.model.params)) for s in (one, state))
        ):
            np.testing.assert_allclose(a, b, atol=5e-5)


@pytest.mark.parametrize(
    "name",
    [name for name in methods.known() if methods.get(name).Method.data == "images"],
)
def test_an_update_that_is_not_finite_is_left_out_on_all_devices(name, cosine):
    method = method_of(name, cosine, Optimizer(ema=0.9))
    step = Step(method.update, jax.devices())
    state = step.place(begun(method, weights_of(method), STAGE))
    key = step.place(jax.random.key(3))
    bad = batch(16, seed=1)
    bad["image"][13, 2, 2] = np.nan  # on the last device alone
    found, states = [], []
    for examples in (batch(16), bad, batch(16, seed=2)):
        state, metrics = step(state, step.share(examples), key)
        found.append(jax.device_get(metrics))
        states.append(jax.tree.map(np.array, state))
    assert [int(m["skipped"]) for m in found] == [0, 1, 0]
    assert [bool(np.isfinite(m["loss"])) for m in found] == [True, False, True]
    assert [int(s.step) for s in states] == [1, 2, 3]
    chex.assert_trees_all_equal(states[1].replace(step=states[0].step), states[0])
    moved = jax.tree.map(
        lambda a, b: np.any(a != b), states[2].model.averages, states[1].model.averages
    )
    assert any(jax.tree.leaves(moved))
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, leaf)
    assert step.traces == 1


def test_a_gradient_that_is_not_finite_is_enough_and_substeps_are_told_apart():
    optimizer = Optimizer()

    def loss(params, batch, keys):  # 0, with a gradient of 0/0, where its weight is 0
        return batch["image"] + jnp.sqrt(jnp.square(params["w"]))

    def update(state, batch, keys):
        return optimizer.update(state, loss, batch, keys)

    step = Step(update, jax.devices()[:1], substeps=2)
    for start, skipped in ((0.0, [1, 1]), (1.0, [0, 0])):
        state = step.place(optimizer.start({"w": jnp.full((), start)}, STAGE))
        images = step.share({"image": np.zeros(4, np.float32)})
        state, metrics = step(state, images, step.place(jax.random.key(0)))
        assert metrics["skipped"].tolist() == skipped
        assert np.isfinite(metrics["loss"]).all()
        assert bool(state.model.params["w"] == start) == bool(skipped[0])


def compiles():
    """A list that grows with every compilation from now on."""
    found = []

    def listen(event, seconds, **kw):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(kw)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


@pytest.mark.parametrize("exact", [None, analytic.gaussian(0.0, 0.5)])
def test_a_ladder_traces_and_compiles_once(exact, cosine):
    method = method_of(
        "progressive", cosine, Optimizer(ema=0.9, decay="linear"), exact=exact
    )
    step = Step(method.update)
    key = step.place(jax.random.key(0))
    weights, counted, batches = weights_of(method), [], batch(16)
    found = compiles()
    for index, num_steps in enumerate((8, 4, 2, 1)):
        stage = Stage("s", index, num_steps, 10 + index, 1e-3 / num_steps)
        state = step.place(begun(method, weights, stage))
        jax.block_until_ready(state)
        before = len(found)
        for _ in range(3):
            state, metrics = step(state, step.share(batches), key)
            jax.block_until_ready(metrics)
        counted.append(len(found) - before)
        weights = method.result(state)["model"]
    assert step.traces == 1
    assert counted == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "name", ["progressive", pytest.param("standard", marks=pytest.mark.slow)]
)
def test_a_measure_is_the_same_on_any_devices_and_changes_nothing(name, cosine):
    method = method_of(name, cosine, Optimizer(ema=0.9))
    weights, examples = weights_of(method), batch(16, 2)

    def loss(state, batch, keys):
        return method.losses(state, method.result(state)["model"], batch, keys)

    found = {}
    for devices in (jax.devices()[:1], jax.devices()):
        step = Step(method.update, devices)
        measure = Measure(loss, step, jax.random.key(1))
        state = step.place(begun(method, weights, STAGE))
        shared, key = step.share(examples, 2), step.place(jax.random.key(0))
        first = measure(state, shared)
        assert measure(state, shared) == first
        for i in range(3):
            state, _ = step(state, step.share(batch(16, seed=i)), key)
        # A stage that ends earlier, and the next one, are measured by the same code.
        sooner = {"updates": step.place(jnp.int32(4))}
        state = state.replace(stage=state.stage | sooner)
        after = measure(state, shared)
        state, _ = step(state, step.share(batch(16)), key)
        other = dataclasses.replace(STAGE, index=2, num_steps=2)
        last = measure(step.place(begun(method, weights, other)), shared)
        assert measure.traces == step.traces == 1
        assert len({first, after, last}) == 3
        found[len(devices)] = first, after, last
    assert found[1] == pytest.approx(found[4], rel=1e-4)


def test_exact_teacher_teaches_the_first_stage_only(cosine):
    """Far from the teacher's weights the two kinds of teacher give different losses."""
    plain = method_of("progressive", cosine)
    taught = method_of("progressive", cosine, exact=analytic.gaussian(0.0, 0.5))
    weights, losses = weights_of(plain), {}
    for name, method in (("plain", plain), ("taught", taught)):
        step = Step(method.update, jax.devices()[:1])
        for index in (0, 1):
            stage = Stage("s", index, 4, 10, 1e-3)
            state = step.place(begun(method, weights, stage))
            _, metrics = step(
                state, step.share(batch(16)), step.place(jax.random.key(0))
            )
            losses[name, index] = float(metrics["loss"])
    assert losses["plain", 1] == pytest.approx(losses["taught", 1], rel=1e-5)
    assert abs(losses["plain", 0] - losses["taught", 0]) > 1e-3


def test_a_student_of_itself_at_no_distance_has_no_loss(cosine):
    """One teacher step a student step: the student, a copy of it, is perfect."""
    method = method_of("progressive", cosine, factor=1, weighting="snr_plus_1")
    _, metrics, _ = train(
        method, weights_of(method), jax.devices(), updates=1, taught=1
    )
    assert float(metrics["loss"]) < 1e-9


def test_distilling_a_gaussian_finds_the_closed_form(cosine):
    """One student step that equals the exact teacher's eight, joined."""
    from pd_jax import arcs

    teacher = analytic.gaussian(0.2, 0.4)
    model = Model(models.get("mlp", width=64, num_blocks=2), "v")
    parts = Parts("ladder", model, cosine, Optimizer(decay="cosine"), (1,), teacher)
    method = methods.get("progressive").Method(parts, factor=8, weighting="snr_plus_1")
    step = Step(method.update, jax.devices()[:1])
    stage = Stage("student_1", 0, 1, 400, 3e-3)
    state = step.place(begun(method, model.init(jax.random.key(0), (1,)), stage))
    key = step.place(jax.random.key(0))
    rng = np.random.default_rng(0)
    for _ in range(stage.updates):
        x = (0.2 + 0.4 * rng.standard_normal((256, 1))).astype(np.float32)
        state, _ = step(state, step.share({"image": x}), key)
    z = jnp.linspace(-2, 2, 41)[:, None]
    t = jnp.ones(41)
    truth = arcs.target(teacher, z, t, 1, cosine, 8)
    found = model.denoiser(method.result(state)["model"])(z, cosine(t)).x
    assert float(jnp.sqrt(jnp.mean((found - truth) ** 2))) < 0.02


def test_draws_are_the_examples_own(cosine):
    keys = jax.random.split(jax.random.key(0), 4000)
    x = jnp.zeros((4000, 3))
    noise = _draws.normal_like(keys, x)
    np.testing.assert_array_equal(noise[10:20], _draws.normal_like(keys[10:20], x[:10]))
    assert abs(float(noise.mean())) < 0.03
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)
    t = _draws.uniform_times(keys)
    assert float(t.min()) >= 0.0
    assert float(t.max()) < 1.0
    assert float(t.mean()) == pytest.approx(0.5, abs=0.02)
    i = np.asarray(_draws.grid_times(keys, jnp.int32(5)) * 5)
    np.testing.assert_allclose(i, np.round(i), atol=1e-6)
    assert np.all(np.bincount(np.round(i).astype(int), minlength=6)[1:] > 700)
    assert i.min() >= 0.9


def test_learning_rate_and_average():
    stage = Stage("s", 0, 1, 100, 2.0)
    state = Optimizer(ema=0.5).start({"w": jnp.zeros(2)}, stage)

    def rate(step, **kw):
        return float(Optimizer(**kw).learning_rate(jnp.int32(step), state.stage, None))

    assert rate(99) == 2.0
    assert rate(0, decay="linear") == 2.0
    assert rate(75, decay="linear") == pytest.approx(0.5)
    assert rate(50, decay="cosine") == pytest.approx(1.0, abs=1e-5)
    assert rate(80, decay="cooldown") == pytest.approx(2.0)
    assert rate(90, decay="cooldown") == pytest.approx(1.0)
    assert rate(0, warmup_updates=4) == pytest.approx(0.5)
    assert rate(3, warmup_updates=4) == 2.0
    # Both are factors from the first update on: the peak is not reached with both.
    assert rate(25, warmup_updates=25, decay="linear") == pytest.approx(1.5)
    assert state.model.weights is state.model.averages["sampling"]
    with pytest.raises(ValueError, match="constant, cooldown, cosine"):
        Optimizer(decay="steep")


@pytest.mark.parametrize(
    ("slopes", "clip", "used"),
    [
        ((6.0, 2.0), 0.0, 4.0),
        ((6.0, 2.0), 1.0, 1.0),
        ((6.0, 2.0), 9.0, 4.0),
        # Clipped device by device, these would cancel.
        ((1000.0, -999.0), 1.0, 0.5),
    ],
)
def test_the_gradient_is_averaged_and_then_clipped(slopes, clip, used):
    optimizer = Optimizer(clip_norm=clip)

    def loss(params, batch, keys):
        return batch["slope"] * params["w"]

    step = Step(
        lambda state, batch, keys: optimizer.update(state, loss, batch, keys),
        jax.devices()[:2],
    )
    stage = Stage("s", 0, 1, 10, 1.0)
    state = step.place(optimizer.start({"w": jnp.float32(0.0)}, stage))
    batch = {"slope": np.array(slopes, np.float32)}
    state, metrics = step(state, step.share(batch), step.place(jax.random.key(0)))
    assert float(metrics["grad_norm"]) == pytest.approx(np.mean(slopes), rel=1e-5)
    moment = optax.tree_utils.tree_get(state.model.opt_state, "mu")["w"]
    assert float(moment) == pytest.approx(0.1 * used, rel=1e-5)


@pytest.mark.parametrize("substeps", [1, 3])
def test_the_feed_is_two_calls_ahead_and_in_order(substeps):
    step = Step(lambda state, batch, keys: (state, {}), jax.devices()[:2], substeps)
    given = []

    def batches():
        while True:
            given.append(batch(4, seed=len(given)))
            yield given[-1]

    feed = step.feed(batches())
    for call in range(3):
        found = jax.device_get(next(feed))
        assert len(given) == (call + 3) * substeps
        for i in range(substeps):
            for name, whole in given[call * substeps + i].items():
                # [devices, substeps, B / devices, ...]
                np.testing.assert_array_equal(np.concatenate(found[name][:, i]), whole)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", methods.known())
def test_the_step_lowers_for_accelerators(name, platform, cosine):
    method = method_of(name, cosine)
    step = Step(method.update, substeps=2)
    state = step.place(begun(method, weights_of(method), STAGE))
    batches = step.share(batch(8, substeps=2))
    traced = step.trace(state, batches, step.place(jax.random.key(0)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "all_reduce" in text


PROGRAM = """
import hashlib, jax
from tests.test_methods import *
from pd_jax import schedules
method = method_of("progressive", schedules.cosine())
weights = method.parts.model.init(jax.random.key(0), SHAPE)
state, _, _ = train(method, weights, jax.devices())
leaves = jax.tree.leaves(jax.device_get(state.model.params))
print(hashlib.sha256(b"".join(a.tobytes() for a in leaves)).hexdigest())
"""


@pytest.mark.slow
def test_same_bits_in_another_process():
    run = functools.partial(
        subprocess.run, [sys.executable, "-c", PROGRAM], capture_output=True, text=True
    )
    found = {run(env=dict(os.environ), check=True).stdout for _ in range(2)}
    assert len(found) == 1
