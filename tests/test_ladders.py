"""The shipped configs, whole, as a user runs them: figures that the README promises."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
SLOW = ("imagenet64",)  # with labels; the others are alike


def run(config, workdir):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "pd_jax.main", f"--config={ROOT}/configs/{config}"]
    subprocess.run(
        [*command, f"--workdir={workdir}"], cwd=ROOT, env=environment, check=True
    )
    report = json.loads((workdir / "report.json").read_text())
    rows = {(r["model"], r["num_steps"]): r["metrics"] for r in report["rows"]}
    return report, rows


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(c, marks=pytest.mark.slow if c in SLOW else pytest.mark.long)
        for c in CONFIGS
    ],
)
def test_miniatures_leave_everything(config, tmp_path):
    report, _ = run(f"{config}.py:smoke", tmp_path / "run")
    assert report["config"] == f"{config}:smoke"
    assert set(report["traces"].values()) == {1}
    for name in ("report.md", "quality.png", "metrics.jsonl", "config.json"):
        assert (tmp_path / "run" / name).stat().st_size > 100


@pytest.mark.long
def test_digits(tmp_path):
    report, rows = run("digits.py", tmp_path / "run")
    best = rows["teacher", 256]["frechet_pixels"]
    one = rows["student", 1]
    assert best <= 0.70
    assert rows["student", 4]["frechet_pixels"] <= 1.25 * best
    assert one["frechet_pixels"] <= 1.6 * best
    assert rows["teacher", 1]["frechet_pixels"] >= 10 * one["frechet_pixels"]
    assert one["rmse_to_teacher"] <= 0.11
    assert report["traces"] == {"teacher": 1, "ladder": 1}


@pytest.mark.long
def test_mixture2d(tmp_path):
    report, rows = run("mixture2d.py", tmp_path / "run")
    student = rows["student", 1]["rmse_to_exact"]
    assert student <= 0.08 * rows["teacher", 1]["rmse_to_exact"]
    assert report["traces"] == {"ladder": 1}
