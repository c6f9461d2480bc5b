"""Students of a run's folder: loading, exporting, and samples on the command line."""

import dataclasses
import json
import multiprocessing
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import pd_jax
from pd_jax import api, data
from pd_jax.reports import samples
from pd_jax.runtime.errors import NotFinite, Refused
from pd_jax.runtime.interrupt import Interrupted
from pd_jax.students.student import Student
from tests.test_student import close
from tests.test_train import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "small"
    api.run(tiny(**{"ladder.updates": (4,), "teacher.updates": 4}), workdir, "small")
    return workdir


@pytest.fixture(scope="module")
def bundle(run):
    return next(iter(samples.export(str(run), 2)))


@pytest.fixture
def small(monkeypatch):
    """Batches of eight."""
    monkeypatch.setattr(samples, "BATCH", 8)


def everything(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_a_folder_gives_the_student_of_the_fewest_steps_without_its_data(
    run, monkeypatch
):
    monkeypatch.setattr(data, "get", None)
    before = everything(run)
    student = pd_jax.load(run)
    assert student.num_steps == 1
    assert student.metrics.keys() == {"frechet_pixels", "rmse_to_teacher"}
    kept = np.load(run / "evaluation" / "student_1.npy")
    levels = np.round((kept + 1) * 127.5)
    assert close(student.sample(jax.random.key(0), len(kept)), levels)
    assert student.facts["chain"] == [
        {"stage": "student_1", "updates": 4},
        {"stage": "student_2", "updates": 4},
        {"stage": "teacher", "updates": 4},
    ]
    assert everything(run) == before
    for path in (run, next(iter(samples.export(str(run), 1)))):
        with pytest.raises(Refused, match='its network is "mlp": leave out apply'):
            pd_jax.load(path, apply=lambda params, z, level, label: z)


def test_step_counts_of_a_folder(run):
    assert pd_jax.load(run, 2).num_steps == 2
    with pytest.raises(ValueError, match="of 3 steps: there are those of 2, 1"):
        pd_jax.load(run, 3)
    forced = pd_jax.load(run, 3, force=True)
    assert (forced.num_steps, forced.facts["stage"]) == (3, "student_2")
    assert not forced.metrics
    teacher = pd_jax.load(run, 0)
    assert teacher.num_steps == 0
    kept = np.load(run / "evaluation" / "teacher_4.npy")
    images = teacher.sample(jax.random.key(0), 20, num_steps=4)
    assert close(images, np.round((kept[:20] + 1) * 127.5))


def test_a_student_that_is_not_finished_is_passed_over(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "student_1" / "4").rename(tmp_path / "4")
    assert pd_jax.load(copy).num_steps == 2
    with pytest.raises(ValueError, match="of 1 steps: there are those of 2"):
        pd_jax.load(copy, 1)
    shutil.rmtree(copy / "checkpoints" / "student_2")
    with pytest.raises(ValueError, match="no student is finished yet"):
        pd_jax.load(copy)
    (copy / "config.json").write_text('{"data": {"name": "digits"}}')
    with pytest.raises(ValueError, match="not a config of pd_jax"):
        pd_jax.load(copy)


def test_export_writes_a_file_for_every_student(run, bundle, capsys):
    files = samples.export(str(run))
    assert [file.name for file in files] == [
        "small_student_2.safetensors",
        "small_student_1.safetensors",
    ]
    said = " ".join(capsys.readouterr().out.split())
    assert f"{bundle}: {bundle.stat().length} bytes sha256 " in said
    student = pd_jax.load(bundle)
    assert student.metrics == pd_jax.load(run, 2).metrics
    assert student.facts["config"]["teacher"]["updates"] == 4
    with pytest.raises(ValueError, match="at least 1"):
        samples.export(str(run), 0)


def test_a_grid(bundle, tmp_path, capsys):
    out = tmp_path / "grid.png"
    samples.sample(bundle, str(out), 10)
    content = out.read_bytes()
    with Image.open(out) as grid:
        found = np.asarray(grid)
    first = pd_jax.load(bundle).sample(jax.random.key(0), 10)[0, 0, 0, 0]
    assert abs(int(found[0, 0]) - int(first)) <= 1
    samples.sample(bundle, str(out), 10)
    assert "nothing to do" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        samples.sample(bundle, str(out), 10, seed=1)
    Image.new("L", (2, 2)).save(tmp_path / "mine.png")
    np.savez(tmp_path / "mine.npz", arr_0=np.zeros(3))
    (tmp_path / "no.png").write_text("{}")
    for name, why in {
        "mine.png": r"\(it says of no student\)",
        "mine.npz": r"\(it says of no student\)",
        "no.png": r"\(UnidentifiedImageError: ",
    }.items():
        with pytest.raises(Refused, match=f"not made by this command {why}"):
            samples.sample(bundle, str(tmp_path / name), 10)
    assert out.read_bytes() == content
    capsys.readouterr()
    samples.sample(bundle, str(tmp_path / "heun.png"), 10, sampler="heun")
    said = " ".join(capsys.readouterr().out.split())
    assert "this student was made for ddim; with another sampler" in said


@pytest.fixture
def stopped(small, monkeypatch):
    """Stops the third batch from now, once, as a signal would."""
    calls, plain = [], Student.at

    def at(self, *given, **named):
        calls.append(None)
        if len(calls) == 3:
            raise Interrupted(2)
        return plain(self, *given, **named)

    monkeypatch.setattr(Student, "at", at)
    return calls


def test_a_folder_of_pictures_goes_on_where_it_was_stopped(bundle, tmp_path, stopped):
    out = tmp_path / "many"
    with pytest.raises(Interrupted):
        samples.sample(bundle, str(out), 30)
    assert len(list(out.glob("*.png"))) == 16
    job = json.loads((out / samples.JOB).read_text())
    assert (job["num_steps"], job["sampler"], job["seed"]) == (2, "ddim", 0)
    (out / "000003.png").unlink()
    before = everything(out)
    samples.sample(bundle, str(out), 30)
    assert len(stopped) == 3 + 3  # of five batches the first one and the last two
    after = everything(out)
    assert all(after[path] == time for path, time in before.items() if path != out)
    images = [np.asarray(Image.open(out / f"{i:06d}.png")) for i in range(30)]
    expected = pd_jax.load(bundle).sample(jax.random.key(0), 30)
    assert close(np.stack(images)[..., None], expected)
    for change in ({"seed": 1}, {"sampler": "heun"}):
        with pytest.raises(ValueError, match="holds other samples"):
            samples.sample(bundle, str(out), 30, **change)
    assert everything(out) == after


def test_fewer_than_there_are_is_said(bundle, tmp_path, small, capsys):
    for num in (16, 10):
        samples.sample(str(bundle), str(tmp_path / "out"), num)
    said = " ".join(capsys.readouterr().out.split())
    assert "16 samples, 16 new" in said
    assert said.endswith(
        "16 samples, done already, nothing to do; --num=10 are asked for: 6 others are "
        "left there"
    )


def test_a_folder_without_a_picture_is_for_any_samples(bundle, tmp_path):
    out = tmp_path / "many"
    out.mkdir()
    job = {"seed": 7}  # of one that was stopped before its first batch
    (out / samples.JOB).write_text(json.dumps(job))
    samples.sample(bundle, str(out), 3)
    assert json.loads((out / samples.JOB).read_text())["seed"] == 0
    assert len(list(out.glob("*.png"))) == 3


def test_an_array_goes_on_where_it_was_stopped(bundle, tmp_path, stopped, capsys):
    out = tmp_path / "many.npz"
    with pytest.raises(Interrupted):
        samples.sample(bundle, str(out), 30)
    assert not out.exists()
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        samples.sample(bundle, str(out), 30, seed=1)
    samples.sample(bundle, str(out), 30)
    assert len(stopped) == 3 + 2
    assert list(tmp_path.iterdir()) == [out]
    with np.load(out) as file:
        found = file["arr_0"]
    expected = pd_jax.load(bundle).sample(jax.random.key(0), 30)
    assert close(found, expected.repeat(3, axis=-1))
    samples.sample(bundle, str(out), 30)
    assert "nothing to do" in capsys.readouterr().out


def wait_and_write(bundle, out, barrier):
    barrier.wait(60)
    samples.sample(bundle, out, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many.npz", "many", "many.png"])
def test_processes_that_write_one_target_all_end_well(name, bundle, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    given = str(bundle), str(tmp_path / name), barrier
    processes = [spawn.Process(target=wait_and_write, args=given) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    expected = pd_jax.load(bundle).sample(jax.random.key(0), 40)
    if name == "many.npz":
        with np.load(tmp_path / name) as file:
            assert close(file["arr_0"], expected.repeat(3, axis=-1))
    if name == "many":
        pictures = sorted(path.name for path in (tmp_path / name).iterdir())
        assert pictures == [samples.JOB, *(f"{i:06d}.png" for i in range(40))]


def test_a_runs_teacher_in_any_number_of_steps(run, tmp_path):
    out = tmp_path / "teacher.npz"
    samples.sample(str(run), str(out), 12, num_steps=7, sampler="heun", teacher=True)
    teacher = pd_jax.load(run, num_steps=0)
    key = jax.random.key(0)
    expected = teacher.sample(key, 12, num_steps=7, sampler="heun")
    with np.load(out) as file:
        assert close(file["arr_0"], expected.repeat(3, axis=-1))


WRONG = {
    "no samples": ({"num": 0}, "--num=0"),
    "a photograph": ({"out": "a.jpg"}, "NAME.png, NAME.npz, or a folder"),
    "a label": ({"label": "3"}, "has no labels"),
    "a sampler": ({"sampler": "ddmi"}, 'Did you mean "ddim"'),
    "other steps": ({"num_steps": 8}, "was made for 2"),
    "no steps": ({"num_steps": 0}, "at least 1"),
    "a teacher of none": ({"teacher": True}, "--num_steps=N is missing"),
    "a bundle's teacher": ({"teacher": True, "num_steps": 4}, "has no teacher"),
    "a large grid": ({"out": "a.png", "num": 5000}, "at most 4096"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_writes_nothing(bundle, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    changes, says = WRONG[case]
    with pytest.raises(ValueError, match=says):
        samples.sample(bundle, **({"out": "a", "num": 4} | changes))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_known_before_sampling(
    bundle, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(Student, "at", None)
    for name in ("grid.png", "array.npz"):
        with pytest.raises(OSError, match="file"):
            samples.sample(str(bundle), str(tmp_path / "file" / name), 4)


@pytest.mark.parametrize("out", ["a.png", "a.npz", "a"])
def test_samples_that_are_not_finite_are_not_written(bundle, tmp_path, out):
    student = pd_jax.load(bundle)
    params = jax.tree.map(lambda a: np.float32(1e38) * a, student.params)
    dataclasses.replace(student, params=params).save(tmp_path / "large")
    with pytest.raises(NotFinite, match="16 of 16 samples are not finite"):
        samples.sample(str(tmp_path / "large"), str(tmp_path / out), 16)
    assert not list(tmp_path.rglob("*.png")) + list(tmp_path.rglob("*.np[yz]"))


@pytest.mark.slow
def test_classes_have_the_names_of_their_folders(tmp_path, capsys):
    for i, name in enumerate(["ants", "bees"] * 4):
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        levels = np.full((8, 8, 3), 30 * i, np.uint8)
        Image.fromarray(levels).save(tmp_path / "pictures" / name / f"{i}.png")
    config = tiny().unlock()
    options = {"path": str(tmp_path / "pictures"), "cache": str(tmp_path / "cache")}
    config.data = data.options("image_folder") | options
    config.data.update(name="image_folder", size=8, labels=True)
    config.model.num_classes = 2
    config.eval.update(num_samples=8, paired_samples=8)
    workdir = tmp_path / "run"
    api.run(config, workdir, "classes")
    shutil.rmtree(tmp_path / "pictures")
    (file,) = samples.export(str(workdir), 1)
    bees = pd_jax.load(file).sample(jax.random.key(0), 4, "bees")
    assert close(bees, pd_jax.load(workdir).sample(jax.random.key(0), 4, 1))
    samples.sample(file, str(tmp_path / "bees"), 4, label="bees")
    found = [Image.open(path) for path in sorted((tmp_path / "bees").glob("*.png"))]
    assert close(np.stack([np.asarray(image) for image in found]), bees)
    with pytest.raises(ValueError, match='Did you mean "bees"'):
        samples.sample(file, str(tmp_path / "other"), 4, label="beas")
