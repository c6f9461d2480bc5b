"""What a run is made from: the same content anywhere goes on, other content nowhere."""

import contextlib
import itertools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import pd_jax
from pd_jax import api, data
from pd_jax.config import default
from pd_jax.data import InMemory
from pd_jax.data._stream import Stream
from pd_jax.runtime.errors import Refused

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (100, 4, 4, 1)).astype(np.uint8)


def tiny(path):
    config = default("npz", "mlp")
    changes = {
        "data.path": str(path),
        "model.width": 8,
        "model.num_blocks": 1,
        "teacher.updates": 10,
        "teacher.batch": 8,
        "ladder.start": 2,
        "ladder.updates": (6,),
        "ladder.batch": 8,
        "eval.teacher_steps": (1,),
        "eval.num_samples": 16,
        "eval.paired_samples": 8,
        "eval.reference_steps": 4,
        "run.checkpoint_updates": 5,
        "run.log_updates": 5,
        "run.eval_batch": 16,
    }
    config.update_from_flattened_dict(changes)
    return config


class Stop(Exception):
    pass


def stop(entry):
    if (entry["stage"], entry["update"]) == ("teacher", 10):
        raise Stop


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that was stopped after the teacher's first checkpoint."""
    place = tmp_path_factory.mktemp("made")
    np.savez(place / "one.npz", images=IMAGES)
    with contextlib.chdir(place), pytest.raises(Stop):
        api.run(tiny("one.npz"), "run", "run", callbacks=[stop])
    assert (place / "run" / "checkpoints" / "teacher" / "5").is_dir()
    return place


@pytest.fixture
def stopped(made, tmp_path, monkeypatch):
    """A copy of it: the run's folder, and its data's file."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run", pathlib.Path("one.npz")


def test_the_same_data_under_another_path_goes_on(stopped):
    folder, path = stopped
    other = path.rename(path.with_name("two.npz"))
    done = api.run(tiny(other), folder, "run")
    assert json.loads((folder / "config.json").read_text())["data"]["path"] == str(
        other
    )
    # A run that is finished knows its data wherever it lies, too.
    third = other.rename(path.with_name("three.npz"))
    assert api.run(tiny(third), folder, "run")["rows"] == done["rows"]
    np.savez(path.with_name("four.npz"), images=IMAGES[::-1])
    with pytest.raises(Refused, match="data: 64 of 64 examples compared are others"):
        api.run(tiny(path.with_name("four.npz")), folder, "run")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (255 - IMAGES, r"data: 6\d of 64 examples compared are others"),
        (IMAGES[:99], "data: examples of the data: 100 -> 99"),
        (
            IMAGES.reshape(100, 8, 2, 1),
            r"shape of the data: \[4, 4, 1\] -> \[8, 2, 1\]",
        ),
    ],
)
def test_other_data_under_the_same_path_is_refused(stopped, images, words):
    folder, path = stopped
    np.savez(path, images=images)
    with pytest.raises(
        Refused, match=f"(?s)was made from other content:.*{words}"
    ) as info:
        api.run(tiny(path), folder, "run")
    assert "another folder with --workdir=DIR" in str(info.value)


def test_a_folder_of_an_earlier_version_has_paths_only(stopped):
    folder, path = stopped
    (folder / "inputs.json").unlink()
    other = path.rename(path.with_name("two.npz"))
    with pytest.raises(Refused, match=r"different config:\s+data\.path"):
        api.run(tiny(other), folder, "run")
    other.rename(path)
    with pytest.raises(Stop):
        api.run(tiny(path), folder, "run", callbacks=[stop])
    assert (
        json.loads((folder / "inputs.json").read_text())["data"]["examples"] == 100
    )  # from now on


def test_folders_of_pictures_are_what_is_in_them(tmp_path):
    def load(name, level):
        for i in range(3):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (level, 40 * i, 0)).save(path)
        where = dict(path=str(tmp_path / name), cache=str(tmp_path / "cache"))
        return data.get("image_folder", size=4, **where)

    one = load("one", 10).identity()
    load("two", 10).go_on(one)
    with pytest.raises(Refused, match="3 of 3 examples"):
        load("one", 200).go_on(one)


def test_last_bits_are_no_other_data():
    x = RNG.standard_normal((80, 3, 3, 4)).astype(np.float32)
    InMemory(x * np.float32(1.0 + 1e-5)).go_on(InMemory(x).identity())
    with pytest.raises(Refused, match="64 of 64"):
        InMemory(-x).go_on(InMemory(x).identity())
    labels = np.arange(80) % 4
    with pytest.raises(Refused, match="labels of the data"):
        InMemory(x, 3 - labels).go_on(InMemory(x, labels).identity())


def batches(start=0):
    return [IMAGES[8 * i : 8 * i + 8] / np.float32(256.0) for i in range(start, 12)]


def stream(source):
    return Stream(source, {(1, 0): 100}, 8)


def test_a_list_is_its_content_and_what_cannot_be_read_twice_is_none():
    before = stream(batches()).identity()
    stream(batches()).go_on(before)
    with pytest.raises(Refused, match="batches of the data: 12 -> 11"):
        stream(batches(1)).go_on(before)
    with pytest.raises(Refused, match="examples compared are others"):
        stream(batches()[::-1]).go_on(before)
    for source in (iter(batches(1)), lambda n: batches(1)[n:]):
        stream(source).go_on(stream(iter(batches())).identity())


def test_an_iterator_that_begins_as_before_is_read_on_to_the_place(capsys):
    before = stream(itertools.cycle(batches())).identity()

    def next_of(source):
        given = stream(source)
        given.go_on(before)
        batch = next(given.batches(5 * 8, 8, (0, 1, 0)))["image"]
        return [np.array_equal(batch, b) for b in batches()].index(True)

    assert next_of(itertools.cycle(batches())) == 5
    assert "reading 5 batches that were used before" in capsys.readouterr().out
    assert next_of(itertools.cycle(batches(3))) == 3


def test_distil_refuses_other_data(tmp_path):
    def apply(params, z, s, label):
        return params["w"][:, None, None, None] * z

    def go(images, *callbacks):
        keys = dict(start=2, batch=8, updates=6, output="x")
        keys["eval"] = dict(num_samples=8, paired_samples=4, reference_steps=4)
        keys["run"] = dict(checkpoint_updates=2, log_updates=2)
        given = apply, {"w": jnp.ones(1)}, InMemory(images), tmp_path / "run"
        return pd_jax.distil(*given, callbacks=callbacks, **keys)

    def stop(entry):
        if entry["update"] == 4:
            raise Stop

    with pytest.raises(Stop):
        go(IMAGES, stop)
    with pytest.raises(Refused, match="was made from other content"):
        go(255 - IMAGES)
    students = go(IMAGES)
    with pytest.raises(Refused, match="was made from other content"):
        go(255 - IMAGES)  # when all is done, too
    assert students[1].sample(jax.random.key(0), 2).shape == (2, 4, 4, 1)
