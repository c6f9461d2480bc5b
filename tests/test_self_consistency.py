"""Where models say that the teacher's path ends, against closed forms."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pd_jax import analytic, methods, schedules
from pd_jax.config import default
from pd_jax.config.setup import build
from pd_jax.diffusion import Prediction
from pd_jax.evaluation import self_consistency
from pd_jax.evaluation.evaluation import Evaluation
from pd_jax.evaluation.self_consistency import SelfConsistency
from pd_jax.models import Function, Model
from pd_jax.students import Student
from pd_jax.training.method import Parts, on_grid
from pd_jax.training.stage import Stage

MEAN, STD = np.array([0.3, -0.2], np.float32), 0.4


def flow(params, z, logsnr, label):
    """The exact consistency function of the Gaussian."""
    phi = jnp.arctan(jnp.exp(-0.5 * logsnr))
    return analytic.gaussian_map(z, MEAN, STD, phi)


def of_gaussian(workdir, denoise=None, **changes):
    """The self-consistency of a run whose teacher is exact, and students' flow."""
    workdir = epath.Path(workdir)
    config = default("ring2d", "mlp", student="consistency_distillation")
    config.teacher.exact = True
    config.student.update(updates=1, grid=8, batch=8)
    config.eval.update(sampler="heun", clip=False, num_samples=70, paired_samples=50)
    config.eval.update(changes)
    config.run.eval_batch = 16
    setup = build(config)
    denoise = denoise or analytic.gaussian(MEAN, STD)
    setup.datasets = {"data": dataclasses.replace(setup.dataset, denoise=denoise)}
    setup.model = Model(Function(flow), "x")
    return SelfConsistency(setup, workdir, Evaluation(setup, workdir)), setup


def weights_of(name):
    return None if name == "teacher" else {}


def test_closed_forms_of_a_gaussian(tmp_path):
    consistency, setup = of_gaussian(tmp_path)
    work = []
    consistency.measure(weights_of, lambda amount, text: work.append(amount))
    assert sum(work) == consistency.path_work + 2 * consistency.work
    found = consistency.entry()
    assert self_consistency.check(json.loads(json.dumps(found))) == found
    assert found["times"] == [i / 16 for i in range(16, 0, -1)]
    assert found["steps"] == 256
    # w = (z - alpha mu) / sqrt(D) is constant on a path, which ends at mu + s w; the
    # mean of the data at z is mu + s^2 alpha w / sqrt(D).
    phi = np.asarray(setup.schedule.angle(jnp.asarray([*found["times"]])), np.float64)
    spread = np.sqrt((STD * np.cos(phi)) ** 2 + np.sin(phi) ** 2)
    noise = Evaluation(setup, epath.Path(tmp_path)).noise(50)
    w = (noise - np.cos(phi[0]) * MEAN) / spread[0]
    off = STD * (1.0 - STD * np.cos(phi) / spread) * np.sqrt(np.mean(w**2))
    np.testing.assert_allclose(found["rmse"]["teacher"], off, atol=2e-4)
    student = found["rmse"]["student"]
    assert [value is not None for value in student] == [True, False] * 8
    np.testing.assert_allclose(student[::2], 0.0, atol=2e-4)
    assert "1, 0.875, 0.75, 0.625, 0.5" in found["left_out"]["student"]


def test_models_are_asked_once_and_damage_is_made_good(tmp_path):
    asked = []

    def weights(name):
        asked.append(name)
        return weights_of(name)

    small = dict(reference_steps=4)
    consistency, _ = of_gaussian(tmp_path, **small)
    consistency.measure(weights, lambda *_: None)
    assert asked == ["teacher", "teacher", "student"]  # the first for the path
    again, _ = of_gaussian(tmp_path, **small)
    again.measure(weights, lambda *_: None)
    assert len(asked) == 3
    assert again.entry() == consistency.entry()
    file = tmp_path / "evaluation" / self_consistency.FILE
    found = json.loads(file.read_text())
    del found["rmse"]["student"]
    file.write_text(json.dumps(found))
    again, _ = of_gaussian(tmp_path, **small)
    assert again.missing == ["student"]
    again.measure(weights, lambda *_: None)
    assert again.entry() == consistency.entry()
    file.write_text(file.read_text().replace("0.75", '"0.75"'))
    assert of_gaussian(tmp_path, **small)[0].missing == ["teacher", "student"]


def test_what_does_not_apply_is_said(tmp_path):
    consistency, _ = of_gaussian(tmp_path, sampler="ancestral")
    assert not consistency.models
    consistency.measure(weights_of, None)
    found = consistency.entry()
    assert not found["rmse"]
    assert 'eval.sampler="ancestral" draws noise' in found["left_out"]["all"]

    def broken(z, logsnr):
        return Prediction(*[jnp.nan * z] * 3)

    consistency, _ = of_gaussian(tmp_path, broken, reference_steps=4)
    consistency.measure(weights_of, lambda *_: None)
    found = consistency.entry()
    assert found["rmse"]["student"] == [None] * 4
    assert "not finite" in found["left_out"]["student"]


def test_a_model_of_two_times_is_asked_for_its_jump_to_the_data():
    class TwoTimes:
        def cast(self, params):
            return params

        def denoiser(self, params, label=None):
            def denoise(z, logsnr, until=None):
                x = jnp.stack([logsnr, until], 1)
                return Prediction(x, x, x)

            return denoise

    schedule = schedules.get("cosine")
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    times, path = np.float32([1.0, 0.5]), np.zeros((2, 8, 2), np.float32)
    student = Student(TwoTimes(), {}, 0, schedule, (2,))
    x = np.asarray(student.data_from(path, times, None, split))
    assert x.shape == path.shape
    levels = [[schedule(t), schedule(0.0)] for t in times]
    np.testing.assert_allclose(x[:, 5], levels, rtol=1e-5)


@pytest.mark.parametrize(
    ("grid", "times"),
    [
        (0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (9, [1, 2, 3, 4, 5, 6, 7, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (6, [4, 8]),
        (4, [2, 4, 6, 8]),
        (3, [8]),
        (1, [8]),
    ],
)
def test_times_of_a_grid(grid, times):
    assert on_grid(8, grid) == times


@pytest.mark.parametrize(
    ("name", "fields", "times"),
    [
        ("standard", {}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ("imitation", {}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ("progressive", {}, [4, 8]),
        ("consistency_training", {"grid": 4}, [2, 4, 6, 8]),
        ("tract", {}, [2, 4, 6, 8]),
        ("knowledge_distillation", {"steps": (2,)}, [4, 8]),
        ("trajectory", {"grid": 4}, [2, 4, 6, 8]),
        ("shortcut", {"grid": 4}, [2, 4, 8]),
        ("shortcut", {"grid": 128}, [1, 2, 4, 8]),
        ("boot", {}, [8]),
        ("diff_instruct", {}, [8]),
    ],
)
def test_times_that_a_method_trains_at(name, fields, times):
    method = methods.get(name).Method(Parts(), **fields)
    num_steps = 2 * (name == "progressive")
    stage = Stage("student", 0, num_steps, 1, 1e-3, {"grid": 4})
    assert method.points_from(stage, 8) == times
