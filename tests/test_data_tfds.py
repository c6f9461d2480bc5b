"""TFDS data as ArrayRecord, written and read where TensorFlow cannot be imported."""

import functools
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image

from pd_jax import data, prepare

HERE = pathlib.Path(__file__).parent
NUM = 40


def png(i):
    """10 x 12: level i, and 255 in the left- and right-most columns."""
    pixels = np.full((10, 12, 3), i, np.uint8)
    pixels[:, [0, -1]] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@functools.cache
def builders():
    """Builder classes; they need tensorflow_datasets, so are made when asked for."""
    import tensorflow_datasets as tfds

    class Patches(tfds.core.GeneratorBasedBuilder):
        """Encoded pictures of any size, with labels and more."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
                "id": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(0, NUM),
                "test": self._generate_examples(100, 104),
            }

        def _generate_examples(self, first, stop):
            for i in range(first, stop):
                yield i, {"image": png(i), "label": i % 3, "id": f"number {i}"}

    return {"patches": Patches}


def write(folder, file_format="array_record"):
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as tempfile.tempdir:  # TFDS leaves folders there
        builders()["patches"](
            data_dir=str(folder), file_format=file_format
        ).download_and_prepare()
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    write(folder)
    return str(folder)


# TensorFlow may be installed here: none of it can be found.
PROGRAM = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *more):
        if name.split(".")[0] != "tensorflow":
            return self.finder.find_spec(name, *more)

sys.meta_path[:] = map(Without, sys.meta_path)

if __name__ == "__main__":
    import test_data_tfds
    {lines}
    assert "tensorflow" not in sys.modules
"""


def run(lines, tmp_path):
    """Output of a program's lines, in a process of its own, without TensorFlow."""
    program = pathlib.Path(tmp_path, "program.py")
    program.write_text(PROGRAM.format(lines=lines.replace("\n", "\n    ")))
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_without_tensorflow(tmp_path):
    lines = f"""
from pd_jax import data
folder = {str(tmp_path)!r}
test_data_tfds.write(folder)
dataset = data.get("tfds", dataset="patches", data_dir=folder, size=5,
    label_key="label", flip=True)
batches = dataset.batches(0, {NUM}, (0,), workers=1)
batch = next(batches)
print(dataset.shape, dataset.num_classes, *dataset.label_names)
print(*batch["label"])
print(*((batch["image"][:, 2, 2, 0] + 1) * 127.5).round().astype(int))
batches.close()
"""
    *_, shape, labels, levels = run(lines, tmp_path).strip().split("\n")
    assert shape == "(5, 5, 3) 3 cat dog owl"
    levels = np.array(levels.split(), int)
    np.testing.assert_array_equal(np.sort(levels), np.arange(NUM))
    np.testing.assert_array_equal(np.array(labels.split(), int), levels % 3)


def test_as_it_is_stored(prepared):
    dataset = data.get(
        "tfds", dataset="patches:1.0.0", data_dir=prepared, split="test", size=10
    )
    assert len(dataset) == 4
    assert dataset.num_classes == 0
    images = dataset.take(np.arange(4))["image"]
    levels = np.rint((images + 1.0) * 127.5)
    assert np.all(np.sort(levels[:, 5, 5, 0]) == [100, 101, 102, 103])
    assert np.all(images == images[:, :1, :1])  # the columns cropped off
    part = data.get(
        "tfds", dataset="patches", data_dir=prepared, split="train[:25%]", size=10
    )
    assert len(part) == NUM // 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"data.size=0: pictures of patches are None x None"),
        ({"size": -1}, "data.size=-1"),
        ({"dataset": ""}, "data.dataset"),
        ({"dataset": "dogs"}, r"pd_jax.prepare --dataset=dogs --data_dir=.*tfds"),
        ({"dataset": "cifar10"}, "pd_jax.prepare --dataset=cifar10 --data_dir"),
        ({"size": 5, "split": "valid"}, "data.split.*splits are train, test"),
        ({"size": 5, "image_key": "picture"}, r"data.image_key.*image \(Image\)"),
        ({"size": 5, "label_key": "id"}, r"data.label_key.*label \(ClassLabel\)"),
    ],
)
def test_wrong_use(prepared, options, says):
    with pytest.raises(ValueError, match=says):
        data.get("tfds", **{"dataset": "patches", "data_dir": prepared, **options})


def test_files_that_are_not_there(prepared, tmp_path):
    folder = tmp_path / "patches" / "1.0.0"
    shutil.copytree(pathlib.Path(prepared, "patches", "1.0.0"), folder)
    for file in folder.glob("*train*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"data\.split.*cannot be read"):
        data.get("tfds", dataset="patches", data_dir=str(tmp_path), size=5)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"(?s)tfrecord files.*--dataset=patches"):
        data.get("tfds", dataset="patches", data_dir=str(tmp_path), size=5)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (0, r"data\.split.*1\.0\.0 cannot be read"),
        (50_000, r"data\.split.*1\.0\.0 cannot be read"),
        (2**16, "patches train: record 0 is not a picture; put back, or prepare"),
        (120_000, r"data\.split.*1\.0\.0 cannot be read"),
    ],
)
def test_a_file_cut_short_is_named(prepared, tmp_path, size, says):
    folder = tmp_path / "patches" / "1.0.0"
    shutil.copytree(pathlib.Path(prepared, "patches", "1.0.0"), folder)
    (file,) = folder.glob("*train*")
    assert file.stat().st_size == 2**17
    os.truncate(file, size)

    def read():
        dataset = data.get("tfds", dataset="patches", data_dir=str(tmp_path), size=5)
        dataset.take(np.arange(NUM))

    with pytest.raises(ValueError, match=says):
        read()


def test_prepare_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert prepare.main(["--dataset=cifar10"]) == 2
    assert "pip install 'pd_jax[prepare]'" in capsys.readouterr().err


def test_prepare_gives_flags_that_work(prepared, monkeypatch, capsys, tmp_path):
    import tensorflow_datasets as tfds

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert prepare.main(["--dataset=cifar_10"]) == 2
    assert 'Did you mean "cifar10"' in capsys.readouterr().err
    made = builders()["patches"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # TFDS leaves folders there
    monkeypatch.setattr(tfds, "builder", lambda name, **options: made(**options))
    assert prepare.main(["--dataset=patches", f"--data_dir={tmp_path}"]) == 0
    flags = capsys.readouterr().out.split("--config.data.")[1:]
    options = dict(flag.strip().split("=") for flag in flags)
    options["size"] = int(options["size"])
    assert options["label_key"] == "label"
    assert len(data.get("tfds", **options)) == NUM


def test_labels_of_slices_of_one_size_are_kept_apart(prepared):
    for _ in range(2):  # read from the records, then from the files that keep them
        for split in ("train[:50%]", "train[50%:]"):
            dataset = data.get(
                "tfds",
                dataset="patches",
                data_dir=prepared,
                split=split,
                size=8,
                label_key="label",
            )
            each = [dataset.source[row]["label"] for row in range(len(dataset))]
            np.testing.assert_array_equal(dataset.labels, each)


def test_kept_labels_of_other_records_are_read_again(prepared):
    def load():
        given = dict(dataset="patches", data_dir=prepared, size=8, label_key="label")
        return data.get("tfds", **given)

    labels, kept = load().labels, load().source.kept
    kept.write_bytes(b"damaged")
    np.testing.assert_array_equal(load().labels, labels)
    with kept.open("wb") as file:  # as many, of another preparation
        np.save(file, labels + 1)
    np.testing.assert_array_equal(load().labels, labels)
    np.testing.assert_array_equal(np.load(kept), labels)
