"""The script and the notebook that distil a small model of their own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from notebook import NOTEBOOK, SCRIPT, cells, notebook
from PIL import Image

MOST_LINES = 25  # of the user's own code, for the distillation


def test_the_notebook_is_the_script():
    assert NOTEBOOK.read_text() == notebook(SCRIPT.read_text()), (
        "python tests/notebook.py writes it anew"
    )


def test_distilling_takes_few_lines():
    code = [source for kind, source in cells(SCRIPT.read_text()) if kind == "code"]
    own = "\n".join(code[-2:])  # the call, and what is done with the students
    assert "pd_jax.distil(" in own
    assert len(own.splitlines()) <= MOST_LINES


@pytest.mark.slow
def test_the_script_and_then_the_notebook(tmp_path):
    def run(*command):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        return done.stdout

    run(SCRIPT)
    folder = tmp_path / "runs" / "distil_your_own"
    rows = json.loads((folder / "report.json").read_text())["rows"]
    found = {(r["model"], r["num_steps"]): r["metrics"] for r in rows}
    for steps in (4, 2, 1):
        teacher, student = (found[model, steps] for model in ("teacher", "student"))
        assert student["frechet_pixels"] < 0.5 * teacher["frechet_pixels"]
        assert student["rmse_to_teacher"] < 0.5 * teacher["rmse_to_teacher"]
    picture = np.asarray(Image.open(folder / "students.png"))
    assert picture.shape == (5 * 32, 16 * 32)
    assert picture.std() > 20.0
    # The notebook's cells, one after the other, as a kernel runs them; the students
    # are there already.
    code = [
        c["source"]
        for c in json.loads(NOTEBOOK.read_text())["cells"]
        if c["cell_type"] == "code"
    ]
    (tmp_path / "cells.json").write_text(json.dumps(["".join(lines) for lines in code]))
    program = (
        "import json; space = {}\n"
        "for cell in json.load(open('cells.json')): exec(cell, space)"
    )
    assert "nothing to do" in run("-c", program)
