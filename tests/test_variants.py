"""Whole runs by other methods than progressive distillation, as a user makes them."""

import json
import multiprocessing
import os
import pathlib
import random
import re
import runpy
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import pd_jax
from pd_jax import config as configs
from pd_jax.config.setup import sketch
from pd_jax.costs import count, estimate
from pd_jax.reports import samples
from tests import killed
from tests.killed import Aim

ROOT = pathlib.Path(__file__).parents[1]
COUNTS = {
    "boot": [1],
    "consistency_distillation": [4, 2, 1],
    "consistency_training": [4, 2, 1],
    "continuous_consistency": [4, 2, 1],
    "diff_instruct": [1],
    "imitation": [4, 2, 1],
    "knowledge_distillation": [1],
    "mean_flow": [4, 2, 1],
    "rectified_flow": [4, 2, 1],
    "shortcut": [4, 2, 1],
    "tract": [2, 1],
    "trajectory": [4, 2, 1],
}
SAMPLERS = dict.fromkeys(COUNTS, "ddim") | {
    "consistency_distillation": "consistency",
    "consistency_training": "consistency",
    "continuous_consistency": "consistency",
    **dict.fromkeys(("boot", "mean_flow", "shortcut", "trajectory"), "path"),
}
TITLES = {
    "boot": "BOOT",
    "consistency_distillation": "Consistency distillation",
    "consistency_training": "Consistency training",
    "continuous_consistency": "Continuous-time consistency",
    "diff_instruct": "Diff-Instruct",
    "imitation": "Imitation",
    "knowledge_distillation": "Knowledge distillation",
    "mean_flow": "MeanFlow",
    "rectified_flow": "Rectified flow",
    "shortcut": "Shortcut models",
    "tract": "TRACT",
    "trajectory": "Consistency trajectory models",
}
IN_STAGES = ("tract",)  # a student a stage, of one step count each
CONFIGS = ("digits", "mixture2d")
ANY = r"open|os\.(mkdir|rename|remove|rmdir)"
KILLS = 2
of_each = pytest.mark.parametrize("method", COUNTS)
of_each_config = pytest.mark.parametrize("name", CONFIGS)


def get(name, variant):
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](variant)


@of_each
@of_each_config
def test_its_values_make_sense(name, method):
    for variant in (method, f"{method}:smoke"):
        config = get(name, variant)
        configs.check(config, 4)
        assert configs.trainings(config) == {"teacher": "standard", "student": method}
        assert configs.title(config) == TITLES[method]
    with pytest.raises(pd_jax.Refused, match=f'Did you mean "{method}'):
        get(name, f"{method}s")


@of_each
@pytest.mark.parametrize(
    "name", ["mixture2d", pytest.param("digits", marks=pytest.mark.slow)]
)
def test_its_cost_is_known_before(name, method, capsys):
    config = get(name, f"{method}:smoke")
    setup = sketch(config, 2)
    costs = count.count(setup, 2)
    cost, student = costs.trainings[-1], setup.trainings[-1].method
    # An exact teacher costs nothing; an input needs no gradient.
    free = getattr(student, "teacher_steps", 1) if name == "mixture2d" else 0
    asked = 2 + free + (method == "diff_instruct")
    passes = cost.flops / cost.batch / costs.forward
    # To a miniature's passes a second time's embedding adds something.
    most = student.forwards * (1.25 if SAMPLERS[method] == "path" else 1.0)
    assert student.forwards - asked < passes <= most
    weights = cost.memory["weights"]
    assert cost.memory["optimizer"] == pytest.approx(2 * weights, rel=0.01)
    estimate.run(config, name)
    assert "student: fits" in capsys.readouterr().out


@pytest.fixture(scope="module")
def fork():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pd_jax.main", "pd_jax.runs.run", "tests.killed"])

    def fork(method, workdir, aim=None):
        config = f"--config={ROOT}/configs/mixture2d.py:{method}:smoke"
        arguments = [config, "--config.run.checkpoint_updates=7"]
        log = workdir.with_suffix(".log")
        process = context.Process(
            target=killed.run, args=(arguments, workdir, aim, log)
        )
        process.start()
        process.join(300)
        return process.exitcode, log.read_text()

    return fork


@pytest.fixture(scope="module", params=COUNTS)
def run(request, fork, tmp_path_factory):
    """A method, and the folder of a run by it that nothing disturbed."""
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    code, printed = fork(request.param, workdir)
    assert code == 0, printed
    return request.param, workdir


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_bits(run, fork, tmp_path):
    method, undisturbed = run
    rng, kills, workdir = random.Random(1), 0, tmp_path / "run"
    while kills < KILLS:
        aim = Aim(ANY, "", rng.randint(5, 60), rng.uniform(0.0, 0.1))
        code, printed = fork(method, workdir, aim)
        assert code in (0, -signal.SIGKILL), printed
        if code == 0:
            break
        kills += 1
    assert kills
    code, printed = fork(method, workdir)
    assert code == 0, printed
    assert "damaged" not in printed
    reports = [
        json.loads((d / "report.json").read_text()) for d in (workdir, undisturbed)
    ]
    assert reports[0]["rows"] == reports[1]["rows"]
    lines = [(d / "metrics.jsonl").read_text() for d in (workdir, undisturbed)]
    assert lines[0] == lines[1]
    one, other = (pd_jax.load(d).params for d in (workdir, undisturbed))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
def test_what_it_leaves(run):
    method, workdir = run
    counts, report = COUNTS[method], json.loads((workdir / "report.json").read_text())
    assert report["traces"] == {"student": 1}
    rows = [
        (r["model"], r["num_steps"], r["stage"], r["sampler"]) for r in report["rows"]
    ]
    assert ("teacher", 1, "teacher", "ddim") in rows
    students = [row for row in rows if row[0] == "student"]
    stages = [f"student_{n}" if method in IN_STAGES else "student" for n in counts]
    expected = [
        ("student", n, stage, SAMPLERS[method])
        for n, stage in zip(counts, stages, strict=True)
    ]
    assert students == expected
    assert all("rmse_to_exact" in row["metrics"] for row in report["rows"])
    page = (workdir / "report.html").read_text()
    assert f'<p class="kind">{TITLES[method]}</p>' in page
    assert ("fake loss" in page) == (method == "diff_instruct")
    assert TITLES[method] in (workdir / "report.md").read_text()


@pytest.mark.slow
def test_its_student(run, tmp_path):
    method, workdir = run
    student = pd_jax.load(workdir)
    counts = COUNTS[method][-1:] if method in IN_STAGES else COUNTS[method]
    assert student.num_steps == 1
    assert student.step_counts == (tuple(counts) if len(counts) > 1 else ())
    assert student.sampler == SAMPLERS[method]
    assert student.metrics["rmse_to_exact"] > 0.0
    *_, path = samples.export(str(workdir))
    bundle = pd_jax.load(path)
    assert (bundle.step_counts, bundle.sampler) == (
        student.step_counts,
        student.sampler,
    )
    key = jax.random.key(0)
    for n in counts:
        x = student.sample(key, 8, num_steps=n)
        np.testing.assert_array_equal(bundle.sample(key, 8, num_steps=n), x)
        np.testing.assert_array_equal(pd_jax.load(workdir, n).sample(key, 8), x)
    with pytest.raises(pd_jax.Refused, match="made for"):
        student.sample(key, 8, num_steps=3)


@pytest.mark.slow
def test_its_status(run):
    method, workdir = run
    command = [sys.executable, "-m", "pd_jax.main", "--mode=status"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout
    last = "student_1" if method in IN_STAGES else "student"
    assert re.search(rf"^{last} +40/40 ", done.stdout, re.MULTILINE)
    num = 4 + len(COUNTS[method])
    assert f"{num} of {num} rows measured" in done.stdout


CHAIN = """
from pd_jax.config import default


def get_config():
    methods = {"ladder": "progressive", "jump": "consistency_distillation"}
    config = default("ring2d", "mlp", **methods, one="diff_instruct")
    config.model.update(width=32, num_blocks=1)
    config.teacher.exact = True
    config.ladder.update(start=8, updates=(20,))
    config.jump.update(updates=20, taught_by="teacher", steps=(2, 1))
    config.one.update(updates=20, init="ladder", taught_by="jump")
    config.eval.update(clip=False, teacher_steps=(8, 1), num_samples=200)
    config.eval.update(paired_samples=50, reference_steps=16)
    return config
"""


@pytest.mark.slow
def test_methods_side_by_side_in_one_run(tmp_path):
    (tmp_path / "chain.py").write_text(CHAIN)
    command = [sys.executable, "-m", "pd_jax.main", f"--workdir={tmp_path / 'run'}"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, f"--config={tmp_path / 'chain.py'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80 + len(str(tmp_path))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["traces"] == {"ladder": 1, "jump": 1, "one": 1}
    rows = [(r["stage"], r["num_steps"]) for r in report["rows"]]
    assert rows == [
        *[("teacher", 8), ("teacher", 1)],
        *[("student_4", 4), ("student_2", 2), ("student_1", 1)],
        *[("jump", 2), ("jump", 1), ("one", 1)],
    ]
    # The last training starts from the ladder's end: a different start is another run.
    assert pd_jax.load(tmp_path / "run").facts["stage"] == "one"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Progressive distillation, then Consistency distillation, then Diff" in page


def test_names_that_would_meet():
    methods = {"ladder": "progressive", "student": "diff_instruct"}
    config = configs.default("ring2d", "mlp", **methods)
    config.teacher.exact = True
    config.ladder.update(start=8, updates=(20,))
    config.student.updates = 20
    with pytest.raises(pd_jax.Refused, match="student cannot stand beside"):
        configs.check(config, 1)
    config = configs.default("ring2d", "mlp", jump_2="diff_instruct")
    config.teacher.exact = True
    config.jump_2.updates = 20
    with pytest.raises(pd_jax.Refused, match="end in _ and a number"):
        configs.check(config, 1)
