"""What the version before this one left: a config, a command line, a run's folder.

`former_run.zip` is the folder of the run of `CONFIG`, killed after update 20 of 40 of
its last student; `ROWS` is what that run came to with the version that began it, and
`DIGEST` that of the finished student's weights.
"""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import pd_jax

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = """
from pd_jax import names, recipes
from pd_jax.config import default


def get_config(variant=""):
    names.check(variant, ("",), "variant")
    config = default("ring2d", "mlp")
    recipes.smoke(config)
    config.model.width = config.model.emb_ch = 8
    config.model.num_blocks = 1
    config.teacher.exact = True
    config.ladder.start = 4
    config.ladder.batch = 512
    config.ladder.updates = (40, 40)
    config.ladder.learning_rate = (1e-3,)
    config.ladder.weighting = "snr_plus_1"
    config.ladder.decay = "linear"
    config.eval.teacher_steps = (4, 1)
    config.eval.clip = False
    config.eval.num_samples = 64
    return config
"""
COMMAND = ("--config.eval.paired_samples=8", "--config.ladder.ema=0.9", "--quiet")
# (model, steps): frechet_pixels, rmse_to_teacher, rmse_to_exact.
ROWS = {
    ("teacher", 4): (0.032816692801048264, 0.11063800373450189, 0.11341919724568214),
    ("teacher", 1): (1.0047280413464257, 0.7177130439540829, 0.7265599674042227),
    ("student", 2): (0.0922019372996814, 0.2698646878078246, 0.26396303056553155),
    ("student", 1): (0.7188566497880071, 0.6132870117835149, 0.6220789385121869),
}
DIGEST = "4c219719adc48957065336a95435e2a2a5f308caf8a0724258b0d2fd039398cf"  # SHA-256


@pytest.fixture
def folder(tmp_path):
    zipfile.ZipFile(ROOT / "tests" / "former_run.zip").extractall(tmp_path / "run")
    return tmp_path / "run"


def test_its_students_are_read(folder):
    student = pd_jax.load(folder)
    assert (student.num_steps, student.sampler, student.clip) == (2, "ddim", False)
    assert student.digest == DIGEST
    with pytest.raises(pd_jax.Refused, match="finished student of 1 steps"):
        pd_jax.load(folder, 1)


@pytest.mark.slow
def test_its_run_goes_on_to_the_same_rows_by_its_own_config_and_flags(folder):
    config = folder.parent / "mine.py"
    config.write_text(CONFIG)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "pd_jax.main", f"--config={config}", *COMMAND]
    done = subprocess.run(
        [*command, f"--workdir={folder}"],
        env={**environment, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    report = json.loads((folder / "report.json").read_text())
    rows = {(r["model"], r["num_steps"]): r["metrics"] for r in report["rows"]}
    assert rows.keys() == ROWS.keys()
    for row, expected in ROWS.items():
        names = ("frechet_pixels", "rmse_to_teacher", "rmse_to_exact")
        # Other versions of JAX and other processors round in other ways.
        values = [rows[row][name] for name in names]
        np.testing.assert_allclose(values, expected, rtol=1e-3)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    updates = [(e["stage"], e["update"]) for e in map(json.loads, lines)]
    assert updates[-2:] == [("student_1", 30), ("student_1", 40)]
    for stage in ("student_2/40", "student_1/40"):
        assert (folder / "checkpoints" / stage).is_dir()
