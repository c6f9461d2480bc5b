"""Pairs of noise and a teacher's samples: the same bits however they are made."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pd_jax import analytic, data, methods, models, samplers, schedules
from pd_jax.arcs import follow
from pd_jax.data import InMemory, Pairs
from pd_jax.evaluation.evaluation import Exact
from pd_jax.methods import Parts
from pd_jax.models import Model
from pd_jax.runs import pairs
from pd_jax.runtime import numerics
from pd_jax.runtime.errors import Refused
from pd_jax.students import Student
from pd_jax.training.optimizer import Optimizer

SCHEDULE = schedules.cosine()
KEY = numerics.key(3)
EXACT = Exact(analytic.gaussian(0.1, 0.5))
DATASET = InMemory(np.zeros((9, 2), np.float32))


class Stopped(Exception):
    pass


def make(folder, num=700, teacher=None, dataset=DATASET, stop_at=None, stops=1):
    said = []

    def advance(text):
        if len(said) == stop_at:
            raise Stopped
        said.append(text)

    teacher = teacher or Student(EXACT, None, 0, SCHEDULE, (2,), "heun")
    made = pairs.make(epath.Path(folder), teacher, dataset, num, 8, KEY, advance, stops)
    return made, said


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(pairs, "PART", 300)


def test_pairs_are_the_teachers_samples_of_their_noise(tmp_path):
    made, _ = make(tmp_path)
    assert isinstance(made, Pairs)
    assert made.images.shape == made.noise.shape == (700, 2)
    assert abs(np.mean(made.noise)) < 0.1
    assert np.std(made.noise) == pytest.approx(1.0, abs=0.05)
    x = samplers.sample(EXACT.denoise, made.noise, 8, SCHEDULE, "heun", clip=False)
    np.testing.assert_allclose(made.images, x, atol=1e-5)


def test_the_same_bits_however_made(tmp_path):
    whole, said = make(tmp_path / "whole")
    with pytest.raises(Stopped):
        make(tmp_path / "stopped", stop_at=3)
    assert len(list((tmp_path / "stopped").iterdir())) == 1
    # A part that is damaged is made again, one that is there is not.
    after, said_after = make(tmp_path / "stopped")
    assert len(said_after) < len(said)
    part = tmp_path / "whole" / "000001.npz"
    part.write_bytes(part.read_bytes()[:-200])
    again, _ = make(tmp_path / "whole")
    # The first ones of more are those of fewer.
    fewer, _ = make(tmp_path / "fewer", num=310)
    for other in (after, again):
        np.testing.assert_array_equal(other.images, whole.images)
        np.testing.assert_array_equal(other.noise, whole.noise)
    np.testing.assert_array_equal(fewer.images, whole.images[:310])


@pytest.mark.parametrize("stops", [1, 2])
def test_all_are_in_memory_once(tmp_path, stops):
    make(tmp_path, num=6000, stops=stops)
    tracemalloc.start()
    made, _ = make(tmp_path, num=6000, stops=stops)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = made.images.nbytes + made.noise.nbytes + made.step.nbytes
    assert size <= peak < 1.5 * size + 100_000


def test_processes_share_them_out(tmp_path, monkeypatch):
    whole, _ = make(tmp_path / "whole")
    met = []
    monkeypatch.setattr(
        pairs.multihost_utils, "sync_global_devices", lambda name: met.append(name)
    )
    monkeypatch.setattr(pairs.processes, "part", lambda: (1, 2))
    with pytest.raises(OSError, match="a part is not there"):
        make(tmp_path / "shared")
    assert [p.name for p in (tmp_path / "shared").iterdir()] == ["000001.npz"]
    monkeypatch.setattr(pairs.processes, "part", lambda: (0, 2))
    made, _ = make(tmp_path / "shared")
    assert len(met) == 2
    np.testing.assert_array_equal(made.images, whole.images)


def test_labels_are_as_often_as_the_datas(tmp_path):
    labels = np.repeat(np.arange(3, dtype=np.int32), (80, 15, 5))
    dataset = InMemory(np.zeros((100, 2), np.float32), labels)
    model = Model(models.get("mlp", width=8, num_blocks=1, num_classes=3), "v")
    params = model.init(jax.random.key(0), (2,))
    teacher = Student(model, params, 0, SCHEDULE, (2,), "ddim", 3)
    made, _ = make(tmp_path / "a", 1000, teacher, dataset)
    shares = np.bincount(made.labels, minlength=3) / 1000
    np.testing.assert_allclose(shares, (0.8, 0.15, 0.05), atol=0.05)
    batch = next(made.batches(0, 16, (0,)))
    assert {name: a.shape for name, a in batch.items()} == {
        "image": (16, 2),
        "noise": (16, 2),
        "step": (16,),
        "label": (16,),
    }
    row = np.flatnonzero((made.noise == batch["noise"][5]).all(1))
    assert made.labels[row] == batch["label"][5]
    np.testing.assert_array_equal(made.images[row[0]], batch["image"][5])


def test_a_student_that_maps_noise_as_the_teacher_does_has_no_loss():
    with jax.enable_x64(True):
        schedule = schedules.cosine(-80.0, 80.0)

        def exact(params, z, logsnr, label):
            return -(0.1 + params["std"] * z)

        parts = Parts(
            "ladder", Model(models.Function(exact), "v"), schedule, Optimizer(), (2,)
        )
        method = methods.get("knowledge_distillation").Method(parts)
        noise = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)))
        batch = {"image": 0.1 + 0.5 * noise, "noise": noise, "step": np.ones(8)}
        keys = jax.random.split(jax.random.key(0), 8)
        for std, expected in ((0.5, 0.0), (0.7, 0.04 * np.mean(noise**2, 1))):
            weights = {"std": jnp.float64(std)}
            given = {"model": weights, "teacher": weights}
            state = method.begin(given, method.plan()[0], jax.random.key(0))
            losses = method.losses(state, weights, batch, keys)
            np.testing.assert_allclose(losses, expected, atol=1e-12)


def test_paths_of_several_steps(tmp_path):
    one, _ = make(tmp_path / "one", 400)
    made, said = make(tmp_path / "run", 400, stops=4)
    assert len(made) == 4 * 400
    np.testing.assert_array_equal(made.step, np.repeat([4, 3, 2, 1], 400))
    # Every step begins where the one before ends; the ends are those of one step.
    np.testing.assert_array_equal(made.images[:-400], made.noise[400:])
    np.testing.assert_array_equal(made.noise[:400], one.noise)
    np.testing.assert_array_equal(made.images[-400:], one.images)
    again, said_again = make(tmp_path / "run", 400, stops=4)
    np.testing.assert_array_equal(again.images, made.images)
    assert len(said_again) < len(said)
    # Those of another number of steps are made anew.
    two, _ = make(tmp_path / "run", 400, stops=2)
    np.testing.assert_array_equal(two.images[:400], made.images[400:800])


def test_several_steps_are_the_joined_arcs_of_the_teachers():
    """A student of 2 steps that predicts 4 arcs of its teacher's as one has no loss."""
    with jax.enable_x64(True):
        teacher = analytic.mixture(np.array([[0.5, 0.0], [-0.5, 0.3]]), 0.2)
        noise = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)))
        middle, end = samplers.sample(teacher, noise, 8, SCHEDULE, clip=False, stops=2)

        def exact(params, z, logsnr, label):
            t = jnp.where(logsnr < 0.5 * SCHEDULE(0.5) - 5.0, 1.0, 0.5)
            return params["scale"] * follow(teacher, z, t, 2, SCHEDULE, 4).v

        model = Model(models.Function(exact), "v")
        parts = Parts("ladder", model, SCHEDULE, Optimizer(), (2,))
        kind = methods.get("knowledge_distillation").Method
        method = kind(parts, steps=(2,), teacher_steps=8)
        batch = {
            "image": jnp.concatenate([middle, end]),
            "noise": jnp.concatenate([noise, middle]),
            "step": np.repeat([2, 1], 8),
        }
        keys = jax.random.split(jax.random.key(0), 16)
        weights = {"scale": jnp.ones(())}
        given = {"model": weights, "teacher": weights}
        state = method.begin(given, method.plan()[0], jax.random.key(0))
        np.testing.assert_allclose(
            method.losses(state, weights, batch, keys), 0.0, atol=1e-12
        )
        off = {"scale": 1.1 * jnp.ones(())}
        assert np.all(method.losses(state, off, batch, keys) > 1e-6)
        with pytest.raises(Refused, match=r"steps=\(3,\): .*teacher_steps=8 is a mult"):
            kind(parts, steps=(3,), teacher_steps=8).plan()
        with pytest.raises(Refused, match="one number of steps"):
            kind(parts, steps=(2, 1), teacher_steps=8).plan()


def test_what_stands_in_their_place_until_they_are_made():
    stand_in = data.source(DATASET, "pairs")
    assert len(stand_in) == 1
    batch = next(stand_in.batches(0, 4, (0,)))
    assert {name: a.shape for name, a in batch.items()} == {
        "image": (4, 2),
        "noise": (4, 2),
        "step": (4,),
    }


def test_refusals():
    parts = Parts("student")
    kind = methods.get("knowledge_distillation").Method
    with pytest.raises(Refused, match="check_updates=5: no pairs"):
        kind(parts, check_updates=5).plan()
    with pytest.raises(Refused, match="unknown sampler"):
        kind(parts, teacher_sampler="hoin").plan()
