"""Trainings that learn from other data than their teacher's."""

import os

import chex
import numpy as np
import pytest
from test_inputs import tiny

import pd_jax
from pd_jax import api, config
from pd_jax.config import setup
from pd_jax.costs import estimate
from pd_jax.runtime.errors import Refused

RNG = np.random.default_rng(0)
FIRST = {"images": np.zeros((40, 4, 4, 1), np.uint8), "labels": np.arange(40) % 4}
OTHER = {"images": np.full((30, 4, 4, 1), 255, np.uint8), "labels": np.arange(30) % 2}


def chained(**others):
    """`tiny`, whose ladder learns from section more."""
    made = config.default({"data": "npz", "more": "npz"}, "mlp")
    made.update(tiny("first.npz"))
    made.more.path, made.ladder.data = "other.npz", "more"
    made.data.label_key = made.more.label_key = "labels"
    made.model.num_classes, made.ladder.updates = 4, (10,)
    made.update_from_flattened_dict(others)
    return made


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("first.npz", **FIRST)
    np.savez("other.npz", **OTHER)


class Stop(Exception):
    pass


def stop(entry):
    if (entry["stage"], entry["update"]) == ("student_1", 10):
        raise Stop


def test_a_ladder_learns_from_what_its_section_names(files):
    teacher, ladder = setup.build(chained()).trainings
    for training, level in (teacher, -1.0), (ladder, 1.0):
        batch = next(training.dataset.batches(0, 8, (0,)))
        chex.assert_trees_all_equal(batch["image"], np.full((8, 4, 4, 1), level, "f4"))


@pytest.mark.slow
def test_stopped_and_gone_on_with_the_same_bits(files, capsys):
    api.run(chained(), "whole", "run")
    assert "40 examples, 30 of more of shape (4, 4, 1)" in capsys.readouterr().out
    with pytest.raises(Stop):
        api.run(chained(), "stopped", "run", callbacks=[stop])
    assert api.run(chained(), "stopped", "run")["rows"] != []
    students = [pd_jax.load(folder) for folder in ("whole", "stopped")]
    chex.assert_trees_all_equal(*(student.params for student in students))
    # Its own data's labels are drawn, by default; the rows' are those of section data.
    assert students[0].label_counts == (15, 15, 0, 0)
    assert pd_jax.load("whole", num_steps=0).label_counts == (10, 10, 10, 10)


def test_the_other_data_counts_in_what_a_run_is_made_from(files):
    with pytest.raises(Stop):
        api.run(chained(), "run", "run", callbacks=[stop])
    np.savez("other.npz", images=255 - OTHER["images"], labels=OTHER["labels"])
    with pytest.raises(Refused, match="made from other content:\n  more: "):
        api.run(chained(), "run", "run")
    np.savez("moved.npz", **OTHER)
    api.run(chained(**{"more.path": "moved.npz"}), "run", "run")


def test_estimate(files, capsys):
    estimate.run(chained(), "run", num_chips=1)
    assert "ladder" in capsys.readouterr().out


REFUSED = {
    "section": (
        {"ladder.data": "mine"},
        'ladder.data="mine": .*default.*"data": "npz", "mine": NAME',
    ),
    "unused": (
        {"ladder.data": ""},
        "has no use for more.flip, .* more.name, more.path",
    ),
    "name": ({"more.name": "nzp"}, 'unknown more.name "nzp": .* Did you mean "npz"'),
    "shape": (
        {},
        r"data: pictures of shape \(4, 4, 1\); more: pictures of shape \(8, 8",
    ),
    "labels": ({"model.num_classes": 4}, 'labels of data "npz" go up to 7: give 8'),
    "none": (
        {"more.label_key": ""},
        r'"npz" has no labels: give 0, .* \(the keys of section more\)',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(files, case):
    changes, says = REFUSED[case]
    other = dict(OTHER)
    if case == "shape":
        other["images"] = np.zeros((30, 8, 8, 1), np.uint8)
    if case == "labels":
        other["labels"] = np.arange(30) % 8
    if case == "none":
        del other["labels"]
    np.savez("other.npz", **other)
    with pytest.raises(Refused, match=says):
        api.run(chained(**changes), "run", "run")
    assert not os.path.exists("run")
