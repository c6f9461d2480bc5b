"""Folders as runs leave them, made without training."""

import json

import numpy as np

from tests.test_train import tiny

STAGES = {"teacher": 20, "student_2": 12, "student_1": 12}
ROWS = [("teacher", 4), ("teacher", 1), ("student", 2), ("student", 1)]
SAMPLES = 12


def entry(model, steps, **metrics):
    metrics = {"frechet_pixels": 1.0 + 1 / steps, "rmse_to_teacher": 0.1 / steps}
    return {"model": model, "sampler": "ddim", "num_steps": steps, "metrics": metrics}


def report(rows=ROWS, **more):
    return {
        "config": "tiny",
        "rows": [entry(*row) for row in rows],
        "seconds": {"teacher": 9.0, "ladder": 6.0, "evaluation": 4.0, "total": 21.0},
        "updates": {
            name: {"done": num, "planned": num} for name, num in STAGES.items()
        },
        "warnings": [],
        "precision": "float32",
        "protocol": {"samples": "70 a row", "frechet_pixels": "of 70 samples"},
        "versions": {"pd_jax": "0.1.0", "jax": "0.10.2"},
        "self_consistency": {
            "times": [1.0, 0.75, 0.5, 0.25],
            "steps": 8,
            "sampler": "ddim",
            "rmse": {
                "teacher": [0.6, 0.4, 0.25, 0.1875],
                "student_2": [0.5, None, 0.0625, None],
                "student_1": [0.03, None, None, None],
            },
            "left_out": {"student_1": "trained at t = 1 alone of the times"},
        },
        **more,
    }


def make(folder, shape=(8, 8, 1), updates=STAGES, rows=ROWS, done=True, config=None):
    """A run's folder.

    Args:
      folder: where.
      shape: of an example.
      updates: those saved, of each stage that has begun.
      rows: those measured.
      done: whether there is a report.
      config: changes to the config.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    config = tiny(**(config or {}))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    lines = []
    for stage, num in updates.items():
        for update in range(4, num + 1, 4):
            loss = float(np.exp(-update / 10 + 0.1 * rng.standard_normal()))
            line = {"stage": stage, "update": update, "loss": loss, "skipped": 0}
            lines.append(json.dumps(line | {"grad_norm": 0.2 * loss}))
        facts = folder / "checkpoints" / stage / str(num) / "facts"
        facts.mkdir(parents=True)
        found = {"seconds": 3.0, "end": STAGES[stage], "devices": "4 x cpu"}
        (facts / "metadata").write_text(json.dumps(found))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    kept = folder / "evaluation"
    kept.mkdir()
    best = rng.uniform(-1, 1, (SAMPLES, *shape)).astype(np.float32)
    np.save(kept / "reference_teacher.npy", best)
    for model, steps in rows:
        text = json.dumps(entry(model, steps) | {"seconds": 1.0})
        (kept / f"{model}_{steps}.json").write_text(text)
        off = 0.1 / steps * rng.standard_normal(best.shape)
        np.save(kept / f"{model}_{steps}.npy", (best + off).astype(np.float32))
    if done:
        (folder / "report.json").write_text(json.dumps(report(rows)))
    return folder
