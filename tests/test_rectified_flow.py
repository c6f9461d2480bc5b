"""Rectified flow: its prediction on exact pairs, its times, its rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import api, data, diffusion, methods, models, samplers, schedules
from pd_jax.config import default
from pd_jax.methods import Parts
from pd_jax.models import Model
from pd_jax.runs import loading, record
from pd_jax.runtime import numerics
from pd_jax.training.optimizer import Optimizer

SCHEDULE = schedules.cosine(-80.0, 80.0)
STD = 0.5


def reflowed(params, z, logsnr, label):
    """What N(0, STD^2) comes to after one exact reflow: x = STD z / (...)."""
    alpha, sigma = (diffusion.expand(a, z) for a in diffusion.alpha_sigma(logsnr))
    return params["by"] * STD * z / (STD * alpha + sigma)


def method_of(function, output, schedule=SCHEDULE, **kw):
    model = Model(models.Function(function), output)
    parts = Parts("student", model, schedule, Optimizer(), (2,))
    return methods.get("rectified_flow").Method(parts, updates=10, **kw)


@pytest.mark.parametrize("time_law", ["uniform", "ends"])
def test_after_exact_reflow_of_a_gaussian_the_prediction_is_the_end(time_law):
    with jax.enable_x64(True):
        method = method_of(reflowed, "x", time_law=time_law)
        eps = jnp.asarray(np.random.default_rng(0).standard_normal((64, 2)))
        batch, keys = (
            {"image": STD * eps, "noise": eps},
            jax.random.split(jax.random.key(0), 64),
        )
        weights = {"by": jnp.float64(1.0)}
        begun = {"model": weights, "teacher": weights}
        state = method.begin(begun, method.plan()[-1], jax.random.key(0))
        found = method.losses(state, weights, batch, keys)
        np.testing.assert_allclose(found, 0.0, atol=1e-12)
        off = method.losses(state, {"by": jnp.float64(1.1)}, batch, keys)
        assert np.all(np.asarray(off) > 1e-6)
        # One step of DDIM, of any length, ends at the pair's sample.
        for num_steps in (1, 3):
            denoise = method.parts.model.denoiser(weights)
            x = samplers.sample(denoise, eps, num_steps, SCHEDULE, clip=False)
            np.testing.assert_allclose(x, STD * eps, atol=1e-12)


def test_times_of_the_improved_recipe():
    keys = jax.random.split(jax.random.key(0), 40_000)
    method = method_of(reflowed, "x", schedules.cosine(), time_law="ends")
    phi = np.asarray(method.parts.schedule.angle(method.times(keys)))
    tau = np.sin(phi) / (np.sin(phi) + np.cos(phi))
    edges = np.linspace(0.0, 1.0, 11)
    share = np.histogram(tau, edges)[0] / len(tau)
    # e^(4 tau), mirrored, by its integral.
    whole = np.diff(np.exp(4 * edges) - np.exp(4 * (1 - edges)))
    np.testing.assert_allclose(share, whole / np.sum(whole), atol=0.01)


@pytest.mark.slow
def test_a_round_learns_from_the_samples_of_the_one_before(tmp_path):
    config = default("ring2d", "mlp", student="rectified_flow")
    changes = {
        "teacher.exact": True,
        "model.width": 8,
        "model.num_blocks": 1,
        "student.rounds": 2,
        "student.updates": 6,
        "student.batch": 8,
        "student.pairs": 16,
        "student.teacher_steps": 4,
        "student.steps": (2, 1),
        "eval.teacher_steps": (1,),
        "eval.num_samples": 16,
        "eval.paired_samples": 8,
        "eval.reference_steps": 4,
        "eval.clip": False,
        "run.eval_batch": 16,
    }
    config.update_from_flattened_dict(changes)
    report = api.run(config, tmp_path, "run")
    rows = [(r["stage"], r["num_steps"]) for r in report["rows"]]
    assert rows == [("teacher", 1), ("student", 2), ("student", 1)]
    exact, made = (
        np.load(tmp_path / "pairs" / name / "000000.npz")
        for name in ("student_round1", "student")
    )
    assert not np.array_equal(exact["noise"], made["noise"])
    schedule = schedules.cosine()
    denoise = data.get("ring2d").denoise
    x = samplers.sample(denoise, exact["noise"], 4, schedule, clip=False)
    np.testing.assert_allclose(exact["image"], x, atol=1e-4)
    first = next(s for s in record.look(tmp_path).stages if s.name != "student")
    student = loading.of_stage(tmp_path, config, "student", first.stage)
    assert student.num_steps == 0
    with numerics.pinned():
        denoise = student.model.denoiser(student.params)
        x = samplers.sample(denoise, made["noise"], 4, schedule, clip=False)
    np.testing.assert_allclose(made["image"], x, atol=1e-4)
