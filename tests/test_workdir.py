"""Whose a run's folder is."""

import contextlib
import json

import pytest

from pd_jax.config import default
from pd_jax.runs import workdir as workdirs
from pd_jax.runtime.errors import Refused


def take(folder, batch):
    config = default("digits", "mlp")
    config.ladder.batch = batch
    with contextlib.ExitStack() as held:
        return workdirs.take(workdirs.path(folder), config, held)


@pytest.fixture
def folder(tmp_path):
    """A folder of which nothing but the config is there."""
    config = default("digits", "mlp").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "checkpoints" / "teacher" / "500.orbax-checkpoint-tmp").mkdir(
        parents=True
    )
    return tmp_path


def test_a_run_without_an_update_does_not_tie_its_folder(folder):
    assert take(folder, 128) == (None, False)
    assert take(folder, 64) == (None, True)


@pytest.mark.parametrize(
    "path", ["checkpoints/teacher/500", "damaged/teacher_500", "evaluation/a.npy"]
)
def test_what_was_trained_or_measured_does(folder, path):
    (folder / path).mkdir(parents=True)
    assert take(folder, 128) == (None, False)
    with pytest.raises(Refused, match=r"ladder\.batch: 128 -> 64"):
        take(folder, 64)


def test_a_folder_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdirs.path("~/run") == workdirs.path(tmp_path / "run")
    assert str(workdirs.path("gs://bucket/~run")) == "gs://bucket/~run"
