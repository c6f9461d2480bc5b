"""Whole runs, small: what is written, what is done once, what stopping costs."""

import datetime
import fcntl
import json
import os
import shutil
import signal
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from pd_jax import api, checkpoint, data
from pd_jax.config import default
from pd_jax.metrics import Moments, frechet_distance, inception, save_statistics
from pd_jax.reports import status
from pd_jax.runs import record
from pd_jax.runtime import console
from pd_jax.runtime.errors import Refused
from pd_jax.runtime.interrupt import Interrupted
from pd_jax.storage import draws
from pd_jax.storage.writers import JsonLines
from pd_jax.training.loop import Loop


def tiny(**changes):
    config = default("digits", "mlp")
    changes = {
        "data.num_images": 200,
        "model.width": 8,
        "model.num_blocks": 1,
        "teacher.updates": 20,
        "teacher.batch": 16,
        "teacher.ema": 0.9,
        "ladder.start": 4,
        "ladder.updates": (12,),
        "ladder.batch": 16,
        "eval.teacher_steps": (4, 1),
        "eval.num_samples": 70,
        "eval.paired_samples": 20,
        "eval.reference_steps": 8,
        "run.checkpoint_updates": 5,
        "run.log_updates": 4,
        "run.eval_batch": 30,
        **changes,
    }
    config.update_from_flattened_dict(changes)
    return config


def unwrapped(capsys):
    """What was printed, in one line."""
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: its folder and its report."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, api.run(tiny(), workdir, "tiny")


def test_its_status(whole, capsys):
    workdir, report = whole
    found = status.read(workdir)
    assert found.record.finished
    assert not found.left
    assert [(s.name, s.saved, s.end) for s in found.record.stages] == [
        ("teacher", 20, 20),
        ("student_2", 12, 12),
        ("student_1", 12, 12),
    ]
    assert all(s.rate > 0.0 and s.saved_bytes > 1000 for s in found.record.stages)
    assert all(np.isfinite(s.lines[-1].loss) for s in found.record.stages)
    figures = {(r["model"], r["num_steps"]): r["metrics"] for r in report["rows"]}
    assert {
        (r["model"], r["num_steps"]): r["metrics"] for r in found.record.rows
    } == figures
    status.tell(found)
    printed = capsys.readouterr().out
    assert "run: complete" in printed
    assert "4 of 4 rows measured" in printed


def test_as_much_is_printed_as_was_asked_for(whole, tmp_path, capsys, monkeypatch):
    said = {}
    for level in (console.QUIET, console.NORMAL, console.VERBOSE):
        shutil.copytree(whole[0], tmp_path / str(level))
        (tmp_path / str(level) / "report.json").unlink()
        (tmp_path / str(level) / "evaluation" / "teacher_1.json").unlink()
        monkeypatch.setattr(console, "level", level)
        api.run(tiny(), tmp_path / str(level), "tiny")
        said[level] = capsys.readouterr().out
        too_long = [
            x for x in said[level].splitlines() if len(x) > 80 and " " in x.strip()
        ]
        assert not too_long
    assert said[0].startswith("| steps |")
    assert set(said[0].splitlines()) < set(said[1].splitlines())
    assert "teacher, 1 step(s): frechet_pixels" not in said[1]
    assert "teacher, 1 step(s): frechet_pixels" in said[2]


def files(workdir):
    return {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


def test_the_report(whole):
    workdir, report = whole
    assert json.loads((workdir / "report.json").read_text()) == report
    assert report["config"] == "tiny"
    assert report["traces"] == {"teacher": 1, "ladder": 1}
    rows = [(r["model"], r["num_steps"]) for r in report["rows"]]
    assert rows == [("teacher", 4), ("teacher", 1), ("student", 2), ("student", 1)]
    for row in report["rows"]:
        assert row["sampler"] == "ddim"
        assert set(row["metrics"]) == {"frechet_pixels", "rmse_to_teacher"}
        assert all(np.isfinite(v) for v in row["metrics"].values())
    seconds = report["seconds"]
    parts = seconds["teacher"] + seconds["ladder"] + seconds["evaluation"]
    assert min(seconds.values()) > 0
    assert seconds["total"] >= parts - 0.3  # of rounding
    page = (workdir / "report.html").read_text()
    assert f"{report['rows'][3]['metrics']['frechet_pixels']:#.3g}" in page
    assert "4 x cpu" in page
    text = (workdir / "report.md").read_text()
    assert "quality.png" in text
    assert f"{report['rows'][3]['metrics']['frechet_pixels']:#.3g}" in text
    for name in ("quality.png", "samples/teacher_1.png", "samples/student_2.png"):
        assert name in text
        with Image.open(workdir / name) as image:
            assert image.size[0] > 100


def test_the_report_says_how_far_models_agree_with_themselves(whole):
    workdir, report = whole
    found = report["self_consistency"]
    assert (found["steps"], found["sampler"]) == (8, "ddim")
    assert found["times"] == [i / 8 for i in range(8, 0, -1)]
    assert list(found["rmse"]) == ["teacher", "student_2", "student_1"]
    missing = {name: v.count(None) for name, v in found["rmse"].items()}
    assert missing == {"teacher": 0, "student_2": 6, "student_1": 7}
    # From the noise it is the RMSE of one step to the best samples, of 8 steps here.
    rows = {(r["stage"], r["num_steps"]): r["metrics"] for r in report["rows"]}
    for name in ("teacher", "student_1"):
        expected = rows[name, 1]["rmse_to_teacher"]
        assert found["rmse"][name][0] == pytest.approx(expected, rel=1e-5)
    text = (workdir / "report.md").read_text()
    assert f"student_1 {expected:#.3g} from the noise." in text
    assert "Self-consistency along the path" in (workdir / "report.html").read_text()


def test_the_report_says_what_halves_of_the_data_have_and_how_it_was_made(whole):
    workdir, report = whole
    digits = data.get("digits", num_images=200).reference
    first = np.isin(np.arange(200), draws.rows(100, 200, 0))
    small = digits.take(np.arange(200))["image"].reshape(200, -1)
    expected = frechet_distance(small[first], small[~first])
    floor = report["floor"]
    assert floor["num_examples"] == [100, 100]
    assert floor["metrics"] == {"frechet_pixels": pytest.approx(expected, rel=1e-6)}
    text = (workdir / "report.md").read_text()
    says = f"(100 and 100 examples): frechet_pixels {expected:#.3g}."
    assert says in text
    assert "frechet_pixels (lower is better): Frechet" in text
    assert set(report["sampling"]) == {
        *("teacher_4", "teacher_1", "student_2", "student_1")
    }
    for times in report["sampling"].values():
        assert times["batch"] == 32  # 30 on four devices
        assert times["batch_seconds"] > 0.0
    assert not any("sampling" in row for row in report["rows"])
    (warning,) = (w for w in report["warnings"] if "far from the data" in w)
    teacher = [row for row in report["rows"] if row["model"] == "teacher"]
    best = min(row["metrics"]["frechet_pixels"] for row in teacher)
    assert f"is {best:.3g} at best, {expected:.3g} between" in warning
    made = report["made"]
    assert datetime.datetime.fromisoformat(made["date"]).tzinfo is not None
    assert made["devices"] == "4 x cpu"
    assert made["command"] in text
    assert report["versions"]["numpy"] == np.__version__
    found = record.read(workdir)
    assert found.sampling("student", 2) == report["sampling"]["student_2"]
    examples = digits.take(draws.rows(256, 200, 0))["image"]
    np.testing.assert_array_equal(found.examples, examples)


def test_the_metrics_lines_hold_every_interval_once(whole):
    lines = [
        json.loads(s) for s in (whole[0] / "metrics.jsonl").read_text().split("\n") if s
    ]
    places = [(e["stage"], e["update"]) for e in lines]
    assert len(set(places)) == len(places)
    # Every log_updates, and before each checkpoint.
    assert [u for s, u in places if s == "student_2"] == [4, 5, 8, 10, 12]
    assert all(np.isfinite(e["loss"]) for e in lines)
    rates = [e["learning_rate"] for e in lines if e["stage"] == "teacher"]
    assert rates == [pytest.approx(1e-3)] * len(rates)


def test_a_second_run_does_nothing_and_says_so(whole, capsys):
    workdir, report = whole
    before = files(workdir)
    assert api.run(tiny(), workdir, "tiny") == report
    assert "nothing to do" in capsys.readouterr().out
    assert files(workdir) == before
    # How a run is carried out may change; what it computes may not.
    api.run(tiny(**{"run.log_seconds": 1.0}), workdir, "tiny")


def test_another_config_is_refused_with_the_differing_keys(whole):
    workdir, _ = whole
    before = files(workdir)
    other = tiny(**{"ladder.updates": (13,), "seed": 5})
    with pytest.raises(ValueError, match="different config") as error:
        api.run(other, workdir, "tiny")
    assert "ladder.updates: [12] -> [13]" in str(error.value)
    assert "seed: 0 -> 5" in str(error.value)
    assert "teacher" not in str(error.value)
    assert files(workdir) == before


@pytest.mark.slow
def test_stopped_by_signals_and_gone_on_with_the_same_bits(
    whole, tmp_path, monkeypatch, capsys
):
    stops = {3: signal.SIGINT, 14: signal.SIGTERM, 31: signal.SIGTERM}
    calls, stopped = [0], []
    plain = Loop.call

    def call(self, state):
        calls[0] += 1
        if calls[0] in stops:
            os.kill(os.getpid(), stops[calls[0]])
        return plain(self, state)

    monkeypatch.setattr(Loop, "call", call)
    while True:
        try:
            report = api.run(tiny(), tmp_path / "run", "tiny")
            break
        except Interrupted as stop:
            stopped.append(stop.exit_code)
    assert stopped == [130, 143, 143]
    assert calls[0] == 20 + 2 * 12  # no update lost, none done twice
    assert "stopped and saved at update 3" in capsys.readouterr().out
    assert report["rows"] == whole[1]["rows"]
    for name in ("student_1", "teacher_4", "reference_teacher"):
        mine, theirs = (
            np.load(d / "evaluation" / f"{name}.npy")
            for d in (tmp_path / "run", whole[0])
        )
        np.testing.assert_array_equal(mine, theirs)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    updates = [json.loads(line)["update"] for line in lines]
    assert updates.count(20) == 1


@pytest.mark.slow
def test_stages_that_end_early_end_alike_after_stops(tmp_path, monkeypatch, capsys):
    config = default("ring2d", "mlp")
    config.update_from_flattened_dict(
        {
            "data.num_points": 50,
            "model.width": 8,
            "model.num_blocks": 1,
            "teacher.exact": True,
            "ladder.start": 4,
            "ladder.batch": 16,
            "ladder.updates": (12,),
            "ladder.decay": "cooldown",
            "ladder.ema": 0.9,
            "ladder.check_updates": 2,
            "ladder.plateau": 0.9,  # of which no check's improvement is
            "eval.teacher_steps": (1,),
            "eval.num_samples": 20,
            "eval.paired_samples": 20,
            "eval.reference_steps": 4,
            "run.checkpoint_updates": 5,
        }
    )
    stops, calls, plain = (), [0], Loop.call

    def call(self, state):
        calls[0] += 1
        if calls[0] in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, state)

    monkeypatch.setattr(Loop, "call", call)
    whole = api.run(config, tmp_path / "whole", "tiny")
    # A plateau at update 4, and two more updates with a falling learning rate.
    early = {"done": 6, "planned": 12}
    assert whole["updates"] == {"student_2": early, "student_1": early}
    assert whole["traces"] == {"ladder": 1}
    assert calls[0] == 2 * 6
    text = (tmp_path / "whole" / "report.md").read_text()
    assert "student_2 after 6 of 12 updates" in text
    entries = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    entries = [e for e in map(json.loads, entries) if e["stage"] == "student_2"]
    checks = {e["update"] for e in entries if "validation_loss" in e}
    assert checks == {2, 4, 6}
    rates = {e["update"]: e["learning_rate"] for e in entries}
    peak = pytest.approx(5e-4)
    assert rates == {2: peak, 4: peak, 5: peak, 6: pytest.approx(5e-4 * 5 / 6)}

    # Before the plateau, while the rate falls, and in the last stage's last update.
    stops, calls[0] = (3, 5, 12), 0
    for _ in stops:
        with pytest.raises(Interrupted):
            api.run(config, tmp_path / "run", "tiny")
    report = api.run(config, tmp_path / "run", "tiny")
    assert "student_2 done, student_1 done" in unwrapped(capsys)
    assert calls[0] == 2 * 6
    assert report["rows"] == whole["rows"]
    assert report["updates"] == whole["updates"]
    last = [
        json.loads((tmp_path / d / "metrics.jsonl").read_text().splitlines()[-1])
        for d in ("run", "whole")
    ]
    assert last[0]["validation_loss"] == last[1]["validation_loss"]


@pytest.mark.slow
def test_labels_substeps_averages_and_a_factor_of_four(tmp_path):
    config = tiny(
        **{
            "model.num_classes": 10,
            "model.output": "both",
            "ladder.start": 16,
            "ladder.factor": 4,
            "ladder.ema": 0.9,
            "ladder.microbatches": 2,
            "teacher.discrete": True,
            "run.substeps": 4,
            "eval.sampler": "ancestral:medium:0.3",
        }
    )
    report = api.run(config, tmp_path / "run", "tiny")
    students = [r["num_steps"] for r in report["rows"] if r["model"] == "student"]
    assert students == [4, 1]


@pytest.mark.slow
def test_an_exact_teacher(tmp_path):
    config = default("ring2d", "mlp")
    config.update_from_flattened_dict(
        {
            "model.width": 16,
            "teacher.exact": True,
            "ladder.start": 4,
            "ladder.batch": 64,
            "ladder.updates": (30, 10),
            "eval.clip": False,
            "eval.teacher_steps": (64, 1),
            "eval.num_samples": 50,
            "eval.paired_samples": 50,
        }
    )
    report = api.run(config, tmp_path / "run", "ring")
    metrics = {(r["model"], r["num_steps"]): r["metrics"] for r in report["rows"]}
    assert metrics["teacher", 64]["rmse_to_exact"] < 0.03
    assert metrics["teacher", 1]["rmse_to_exact"] > 0.5
    assert report["traces"] == {"ladder": 1}
    assert report["seconds"]["teacher"] == 0.0
    assert (tmp_path / "run" / "landing.png").exists()


@pytest.mark.slow
def test_substeps_may_change_where_they_divide_what_is_left(
    whole, tmp_path, monkeypatch
):
    plain, calls = Loop.call, [0]

    def call(self, state):
        calls[0] += 1
        if calls[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, state)

    monkeypatch.setattr(Loop, "call", call)
    with pytest.raises(Interrupted):
        api.run(tiny(), tmp_path / "run", "tiny")
    with pytest.raises(ValueError, match="3 to 20"):
        api.run(tiny(**{"run.substeps": 4}), tmp_path / "run", "tiny")
    assert api.run(tiny(), tmp_path / "run", "tiny")["rows"] == whole[1]["rows"]


def test_damaged_and_missing_pieces(whole, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    (workdir / "report.json").write_text("{}")
    (workdir / "evaluation" / "student_2.json").write_text('{"mod')
    samples = workdir / "evaluation" / "student_2.npy"
    samples.write_bytes(samples.read_bytes()[:200])
    assert api.run(tiny(), workdir, "tiny")["rows"] == whole[1]["rows"]
    assert "3 of 4 rows measured" in unwrapped(capsys)

    (workdir / "report.json").unlink()
    samples.unlink()
    (workdir / "evaluation" / "student_2.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "student_2" / "12" / "facts")
    with pytest.raises(Refused, match=r"student_2.12 is damaged .*from a copy"):
        api.run(tiny(), workdir, "tiny")
    shutil.rmtree(workdir / "checkpoints" / "student_2" / "12")
    assert api.run(tiny(), workdir, "tiny")["rows"] == whole[1]["rows"]


def test_a_folder_in_use_is_refused(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with open(workdir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="in use by another process"):
            api.run(tiny(), workdir, "tiny")
    assert [p.name for p in workdir.iterdir()] == [".lock"]


def test_a_workdir_in_an_object_store(whole, tmp_path, monkeypatch):
    # The files of a run go through epath to what fsspec calls gs; here, memory. The
    # checkpoints, which TensorStore would write, stay in a local folder.
    class Store(MemoryFileSystem):
        protocol = ("gs", "gcs")
        store: ClassVar = {}

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.split("://")[-1])

    for name in Store.protocol:
        fsspec.register_implementation(name, Store, clobber=True)
    plain = checkpoint.StageCheckpoints.__init__
    monkeypatch.setattr(
        checkpoint.StageCheckpoints,
        "__init__",
        lambda self, workdir, stage: plain(self, tmp_path, stage),
    )
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    report = api.run(tiny(), "gs://bucket/run", "tiny")
    assert report["rows"] == whole[1]["rows"]
    kept = epath.Path("gs://bucket/run")
    assert json.loads((kept / "report.json").read_text())["rows"] == report["rows"]
    assert {"report.md", "quality.png", "config.json"} <= {
        p.name for p in kept.iterdir()
    }
    assert api.run(tiny(), "gs://bucket/run", "tiny")["rows"] == report["rows"]

    lines = JsonLines(kept / "metrics.jsonl")
    for update in (1, 2, 3):
        lines.on_metrics({"stage": "teacher", "update": update})
    lines.flush()
    lines.on_start("teacher", 2)
    lines.on_metrics({"stage": "teacher", "update": 3})
    assert len((kept / "metrics.jsonl").read_text().splitlines()) == 2
    lines.flush()
    assert [e["update"] for e in lines.read()] == [1, 2, 3]


@pytest.mark.slow
def test_inception_features_and_reference_statistics(tmp_path):
    # Weights of the published names and shapes, but random: the way, not the figures.
    rng = np.random.default_rng(0)
    weights = {
        name: (1.0 + 0.1 * rng.random(shape)).astype(np.float32)
        if len(shape) == 1
        else (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(
            np.float32
        )
        for name, shape in inception.shapes().items()
    }
    np.savez(tmp_path / "weights.npz", **weights)
    save_statistics(tmp_path / "statistics.npz", Moments(np.zeros(2048), np.eye(2048)))
    few = {
        "ladder.start": 2,
        "eval.teacher_steps": (1,),
        "eval.num_samples": 8,
        "eval.paired_samples": 4,
        "eval.num_reference": 8,
        "eval.inception": str(tmp_path / "weights.npz"),
        "eval.statistics": str(tmp_path / "statistics.npz"),
    }
    report = api.run(tiny(**few), tmp_path / "run", "tiny")
    for row in report["rows"]:
        assert {"fid", "inception_score", "kid", "precision", "recall"} <= set(
            row["metrics"]
        )
        assert row["metrics"]["inception_score"] >= 1.0
        assert row["metrics"]["fid"] > 1000.0  # the statistics are not the examples'
    assert "sha256" in report["protocol"]["fid"]
    assert "statistics.npz" in report["protocol"]["fid"]
    assert "8 training examples" in report["protocol"]["kid"]
    page = (tmp_path / "run" / "report.md").read_text()
    assert "sha256" in page

    (tmp_path / "run" / "report.json").unlink()
    again = api.run(tiny(**few), tmp_path / "run", "tiny")
    assert again["rows"] == report["rows"]

    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="3 dimensions"):
        api.run(
            tiny(**(few | {"eval.statistics": str(tmp_path / "small.npz")})),
            tmp_path / "third",
            "tiny",
        )


def test_without_inception_weights_it_says_so(whole):
    workdir, report = whole
    assert "no Inception weights" in report["protocol"]["fid"]
    assert "no Inception weights" in (workdir / "report.md").read_text()
