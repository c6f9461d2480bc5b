"""Every shipped config: that it is sound, and lowers for accelerators."""

import pathlib
import runpy

import numpy as np
import pytest

from pd_jax import config as configs
from pd_jax.config.setup import build, sketch
from pd_jax.costs import count, program
from pd_jax.evaluation.evaluation import Evaluation
from pd_jax.training.method import state_shapes

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
LOWERED = ("digits", "imagenet64", "mixture2d")  # one of a kind
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def module(name):
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def get(name, variant=""):
    return module(name)["get_config"](variant)


AT_SCALE = [(n, m) for n in ("cifar10", "imagenet64") for m in module(n)["METHODS"]]


@pytest.mark.parametrize("name", NAMES)
def test_its_values_make_sense_and_its_docstring_tells_what_to_expect(name):
    for variant in ("", "smoke"):
        config = get(name, variant)
        configs.check(config, 4)
        assert config.is_locked
    with pytest.raises(ValueError, match='Did you mean "smoke"'):
        get(name, "smok")
    text = module(name)["__doc__"]
    assert f"--config=configs/{name}.py" in text
    assert "hours" in text or "minutes" in text


@pytest.mark.parametrize(("name", "method"), AT_SCALE)
def test_a_method_at_its_papers_scale_has_the_ladders_teacher(name, method):
    config, ladder = get(name, method), get(name)
    configs.check(config, 1)
    assert configs.trainings(config) == {"teacher": "standard", "student": method}
    for section in ("data", "model", "teacher", "eval"):
        assert config[section] == ladder[section]
    text = module(name)["__doc__"]
    assert f"`:{method}`" in text
    assert "ever run here" in " ".join(text.split())


@pytest.mark.parametrize(("name", "method"), AT_SCALE)
def test_a_methods_keys_at_its_papers_scale_make_a_step(name, method):
    small = configs.default("digits", "mlp", student=method)
    small.model.width = small.model.emb_ch = 8
    small.model.num_blocks = 1
    small.teacher.updates = 10
    small.student.update(get(name, method).student, batch=4)
    setup = sketch(small, 1)
    student = setup.training("student")
    traced = count.trace(setup, student, student.step, student.batch)
    assert program.matmul_flops(traced.jaxpr.jaxpr) > 0


@pytest.mark.long
@pytest.mark.parametrize(("name", "method"), AT_SCALE)
def test_its_miniature_is_counted_and_lowers_for_accelerators(name, method):
    setup = sketch(get(name, f"{method}:smoke"), 1)
    costs = count.count(setup, 1)
    assert [cost.name for cost in costs.trainings] == ["teacher", "student"]
    assert {stage.updates for stage in costs.trainings[1].stages} == {10}
    student = setup.trainings[1]
    traced = count.trace(setup, student, student.step, student.batch)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "xbf16>" in text


@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "lsun_bedroom128"])
def test_the_papers_ladders(name):
    config = get(name)
    stages = configs.planned(config)["ladder"][1]
    assert stages[0].num_steps == config.ladder.start // 2
    assert [s.updates for s in stages[-3:]] == [50_000, 100_000, 100_000]
    assert configs.differences(config.to_dict(), get(name, "improved").to_dict()) == [
        "ladder.ema: 0.0 -> 0.9995"
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in LOWERED else pytest.mark.long)
        for n in NAMES
    ],
)
def test_its_step_and_sampler_lower_for_accelerators(name, tmp_path):
    config = get(name, "smoke")
    config.precision = "bfloat16"  # as there
    setup = build(config)
    for training in setup.trainings:
        stage = training.stages[0]
        state = state_shapes(training.method, stage, setup.shapes)
        rows = np.arange(training.batch) % len(setup.dataset)
        batch = training.step.share(setup.dataset.take(rows))
        traced = training.step.trace(state, batch, training.key)
        for platform in ("tpu", "cuda"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert "all_reduce" in text
            assert "xbf16>" in text
    evaluation = Evaluation(setup, tmp_path)
    for platform in ("tpu", "cuda"):
        text = evaluation.trace().lower(lowering_platforms=(platform,)).as_text()
        assert "while" in text


def test_substeps_are_the_most_that_divide_the_updates_of_every_stage():
    config = configs.default("digits", "mlp")
    config.model.width, config.model.num_blocks = 8, 1
    config.teacher.updates = 21
    config.ladder.start, config.ladder.updates = 4, (40, 20)
    config.run.substeps = 8
    teacher, ladder = build(config).trainings
    assert (teacher.step.substeps, ladder.step.substeps) == (7, 5)
    config.ladder.check_updates = 4
    assert build(config).trainings[1].step.substeps == 4


def test_own_pictures_are_for_any_machine_and_large_on_request():
    small, large = get("image_folder"), get("image_folder", "large")
    assert configs.planned(small)["ladder"][1][0].num_steps == 8
    assert (small.data.size, large.data.size) == (32, 64)
    assert configs.differences(
        large.to_dict(), get("image_folder", "improved").to_dict()
    ) == ["ladder.ema: 0.0 -> 0.9995"]
