"""A run's page: what is on it, of whatever run, and that it is one whole file."""

import base64
import collections
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pd_jax.reports import grids, page
from pd_jax.runs import record
from pd_jax.space import to_uint8
from tests.run_folders import STAGES, make, report

VOID = {"meta", "link", "img", "input", "br"}


class Parsed(HTMLParser):
    """A page's elements, each of which must be closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], collections.Counter()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts[data.strip()] += 1

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.texts)


def parsed(folder, **given):
    return Parsed(page.html(record.read(folder, **given)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("page") / "mine")


@pytest.fixture(scope="module")
def text(whole):
    return page.html(record.read(whole))


def test_a_whole_run(text):
    found = Parsed(text)
    assert len(found.of("h1")) == 1
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for says in (
        "tiny",
        "1.25",
        "Frechet distance on raw values",
        "whole run",
        "70 a row",
    ):
        assert found.texts[says], says
    assert "jax 0.10.2" in found.text
    assert found.texts["0.00333"] == 3  # 4 devices, 3 seconds
    assert not any("http-equiv" in attributes for attributes in found.of("meta"))
    pictures = found.of("img")
    # The best, a grid a row, strips of it and two students, and their worst pairs.
    assert len(pictures) == 1 + 4 + 3 + 2 * page.WORST
    assert all(picture["alt"] for picture in pictures)
    (slider,) = found.of("input")
    assert (slider["min"], slider["max"]) == ("0", "2")
    positions = [e for _, e in found.elements if e.get("data-of") == slider["id"]]
    assert [e["data-says"] for e in positions] == ["4", "2", "1"]


def test_nothing_is_fetched_and_nothing_said_of_the_machine(whole, text):
    assert "://" not in text
    assert str(whole.parent) not in text
    for tag, attributes in Parsed(text).elements:
        for key in ("src", "href", "xlink:href"):
            if key in attributes:
                assert attributes[key].startswith(("data:", "#")), (tag, attributes)


def test_the_worst_pairs_are_the_worst(whole, text):
    best, mine = (
        np.load(whole / "evaluation" / f"{name}.npy").astype(np.float64)
        for name in ("reference_teacher", "student_1")
    )
    error = np.sqrt(((mine - best) ** 2).reshape(len(best), -1).mean(1))
    told = re.findall(r"Teacher's and student's sample, RMSE ([\d.]+)", text)
    expected = [page.figure_text(e) for e in -np.sort(-error)[: page.WORST]]
    assert told[: page.WORST] == expected


def test_defaults_are_dimmed_and_other_values_stand_out(whole, text):
    sections = dict(page.keys(record.read(whole).config))
    changed = {
        entry["name"]: (entry["value"], entry["default"])
        for entry in sections["teacher"]
        if entry["changed"]
    }
    assert changed == {"updates": (20, 0), "batch": (16, 128), "ema": (0.9, 0.0)}
    assert re.search(r'<dd class="changed">16 <small>128</small>', text)
    assert re.search(r"<dt>clip_norm</dt><dd>1.0</dd>", text)


def test_what_is_given_is_shown_and_not_run(tmp_path):
    hostile = '"><script>alert(1)</script>'
    folder = make(tmp_path / "run", config={"precision": hostile})
    told = report(warnings=[hostile], protocol={"samples": hostile}, config=hostile)
    told["versions"] = {"jax": "{{ 7 * 7 }}"}
    found = parsed(folder, report=told)
    assert len(found.of("script")) == 2
    assert found.texts[hostile] >= 4
    assert "{{ 7 * 7 }}" in found.text


def test_a_run_that_goes_on(tmp_path):
    begun = {"teacher": 20, "student_2": 8}
    folder = make(tmp_path / "live", updates=begun, rows=[], done=False)
    found = parsed(folder)
    assert found.of("meta")[-1] == {"http-equiv": "refresh", "content": "15"}
    assert "stage 2 of 3, student_2: 8 of 12 updates" in found.text
    assert not found.of("input")
    assert not found.of("img")
    assert "Training" in found.text

    # Before the first checkpoint there is a config, and no more.
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_bytes(
        (folder / "config.json").read_bytes()
    )
    new = parsed(tmp_path / "new")
    assert "stage 1 of 3, teacher: not trained yet, 0 of 20 updates" in new.text
    assert new.texts["not trained yet"] == 3

    folder = make(tmp_path / "measured", rows=[("teacher", 4)], done=False)
    found = parsed(folder)
    assert "all 3 stages done; 1 rows measured" in found.text
    assert found.texts["1.25"] == 1


def test_points_of_the_plane(tmp_path):
    found = parsed(make(tmp_path / "run", shape=(2,)))
    pictures = found.of("img")
    assert len(pictures) == 1 + 4
    assert all(picture["class"] == "plane" for picture in pictures)
    assert "a colour in the wrong place" in found.text
    assert found.texts["Worst pairs"] == 1


def test_each_metric_says_which_way_is_better_and_what_the_data_has(tmp_path):
    floor = {"metrics": {"frechet_pixels": 0.125}, "num_examples": [30, 31]}
    folder = make(tmp_path / "run")
    (folder / "report.json").write_text(json.dumps(report(floor=floor)))
    found = parsed(folder)
    assert found.texts["lower is better"] >= 2
    assert found.texts["0.125"] == 1
    assert "30 examples of it against 31 others" in found.text
    # While it goes on, from the file of the evaluation.
    (folder / "report.json").unlink()
    assert parsed(folder).texts["0.125"] == 0
    (folder / "evaluation" / "floor.json").write_text(json.dumps(floor))
    assert parsed(folder).texts["0.125"] == 1


def test_a_metric_of_one_number_of_steps_is_a_table_alone(tmp_path):
    found = parsed(make(tmp_path / "run", rows=[("student", 1)]))
    plots = [attributes.get("aria-label", "") for attributes in found.of("svg")]
    assert not any("against sampling steps" in says for says in plots)
    assert found.texts["2.00"] == 1
    found = parsed(make(tmp_path / "two", rows=[("student", 1), ("teacher", 4)]))
    plots = [attributes.get("aria-label", "") for attributes in found.of("svg")]
    assert sum("against sampling steps" in says for says in plots) == 2


def test_how_far_models_agree_with_themselves(whole, tmp_path):
    found = parsed(whole)
    assert sum("time of the path" in e["aria-label"] for e in found.of("svg")) == 1
    assert found.texts["0.0625"] == 1
    assert "student_1: trained at t = 1 alone of the times." in found.text
    times = [e["data-of"] for e in found.of("td") if "t =" in e.get("data-of", "")]
    assert times == ["t = 1", "t = 0.75", "t = 0.5", "t = 0.25"] * 3
    # While a run goes on its own file has them; of a former version there are none.
    folder = make(tmp_path / "run", done=False)
    assert "Self-consistency" not in parsed(folder).text
    file = folder / "evaluation" / "self_consistency.json"
    file.write_text(json.dumps(report()["self_consistency"]))
    assert "Self-consistency" in parsed(folder).text
    file.write_text(file.read_text().replace("0.0625", "NaN"))
    assert "Self-consistency" not in parsed(folder).text


def test_each_training_has_its_own_axes(tmp_path):
    begun = {"teacher": 20, "student_2": 4}  # one interval of the ladder
    found = parsed(make(tmp_path / "begun", updates=begun, rows=[], done=False))
    (plot,) = found.of("svg")
    assert plot["aria-label"] == "Loss and gradient norm of teacher"
    found = parsed(make(tmp_path / "run"))
    plots = [attributes["aria-label"] for attributes in found.of("svg")]
    assert plots[-2:] == [
        f"Loss and gradient norm of {t}" for t in ("teacher", "ladder")
    ]


def test_how_it_was_made_and_how_fast_samples_come(tmp_path):
    times = {"student_2": {"batch": 50, "batch_seconds": 0.0123}}
    made = {
        "date": "2026-01-02 03:04:05+00:00",
        "command": "python -m pd_jax.main --config=/somewhere/mine.py '--a=(1, 2)'",
        "devices": "1 x cpu",
        "processor": "2 cores of some kind",
    }
    folder = make(tmp_path / "run")
    (folder / "report.json").write_text(json.dumps(report(sampling=times, made=made)))
    found = parsed(folder)
    assert found.texts["4,065"] == 1
    assert found.texts["12.3"] == 1
    assert "2026-01-02 03:04:05+00:00, 1 x cpu, 2 cores of some kind" in found.text
    command = "python -m pd_jax.main --config=.../mine.py '--a=(1, 2)'"
    assert found.texts[command] == 1
    assert "Sampling speed" not in parsed(make(tmp_path / "old")).text


def labeled(folder, classes=None, data=True):
    """Adds labels 2, 1, 0, 2, ... of a run's samples, and examples of the data."""
    kept = folder / "evaluation"
    best = np.load(kept / "reference_teacher.npy")
    labels = (2 - np.arange(len(best) + 5) % 3).astype(np.int32)
    np.save(kept / "labels.npy", labels)
    for steps in (2, 1):  # rows keep more than the reference
        x = np.load(kept / f"student_{steps}.npy")
        np.save(kept / f"student_{steps}.npy", np.concatenate([x, x[:5]]))
    if data:
        np.save(kept / "examples.npy", best[::-1])
        np.save(kept / "examples_labels.npy", labels[: len(best)][::-1])
    for path in (folder / "checkpoints").rglob("metadata"):
        metadata = json.loads(path.read_text()) | {"labels": classes}
        path.write_text(json.dumps(metadata))
    return best, labels


@pytest.mark.parametrize("names", [None, ["zero", "one", "<two>"]])
def test_each_row_of_a_grid_is_a_class(tmp_path, names):
    folder = make(tmp_path / "run")
    best, labels = labeled(folder, names)
    found = parsed(folder)
    data, reference = (np.asarray(png(e)) for e in found.of("img")[:2])
    shown = to_uint8(best[..., 0])
    for c in range(3):
        own = shown[labels[: len(best)] == c]
        assert len(own) == 4
        for i, x in enumerate(own):
            place = slice(9 * c, 9 * c + 8), slice(9 * i, 9 * i + 8)
            np.testing.assert_array_equal(reference[*place, 0], x)
        for i, x in enumerate(own[::-1]):
            place = slice(9 * c, 9 * c + 8), slice(9 * i, 9 * i + 8)
            np.testing.assert_array_equal(data[*place, 0], x)
    for name in names or ("0", "1", "2"):
        assert found.texts[name] >= 2 + 4  # the data, the teacher, every row
    assert "Each row is a class." in found.text
    assert f"of another class: {', '.join(names or '012')}" in found.text


def test_a_class_without_enough_samples_has_empty_places():
    labels = np.array([7, 7, 3, 7, 5, 5])
    classes, places = grids.arranged(6, 8, labels)
    assert classes == [3, 5, 7]
    assert places.tolist() == [[2, -1, -1], [4, 5, -1], [0, 1, 3]]
    # Another grid has the same classes, unless one of them is not there.
    assert grids.arranged(5, 8, labels, [5, 7])[0] == [5, 7]
    assert grids.arranged(5, 8, labels, [5, 8])[0] == [3, 5, 7]
    # Of many classes the most frequent ones.
    many = np.concatenate([np.arange(40), np.arange(30, 40)])
    assert grids.arranged(50, 8, many)[0] == list(range(30, 40))
    image = np.full((6, 2, 2, 1), 1.0)
    assert grids.mosaic(image, places)[..., 1].sum() == 255 * 4 * 6


def test_data_that_cannot_be_shown_are_left_out(tmp_path):
    folder = make(tmp_path / "run")
    labeled(folder)
    for file, x in {
        "examples.npy": np.zeros((3, 2)),
        "labels.npy": np.zeros(3),
    }.items():
        np.save(folder / "evaluation" / file, x)
    found = parsed(folder)
    assert not found.of("ol")
    assert not found.texts["the data"]


def png(element):
    """The picture of an <img>."""
    return Image.open(io.BytesIO(base64.b64decode(element["src"].partition(",")[2])))


@pytest.mark.parametrize(("channels", "shown"), [(2, 2), (4, 4), (6, 4)])
def test_latents_are_shown_a_channel_at_a_time(tmp_path, channels, shown):
    folder = make(tmp_path / "run", shape=(4, 4, channels))
    best = np.load(folder / "evaluation" / "reference_teacher.npy")
    best[0, ..., 0] = np.linspace(-9.0, 9.0, 16).reshape(4, 4)  # beyond all others
    np.save(folder / "evaluation" / "reference_teacher.npy", best)
    found = parsed(folder)
    assert f"first {shown} of its {channels} channels" in found.text
    grid = np.asarray(png(found.of("img")[0]))
    width = 5 * shown - 1
    assert grid[..., 1].min() == 0  # clear gaps between samples, and nowhere else
    assert np.all(grid[:4, :width, 1] == 255)
    levels = np.linspace(0, 255, 16).round().reshape(4, 4)
    np.testing.assert_array_equal(grid[:4, :4, 0], levels)
    assert np.all(grid[:4, 4, 0] == 255)
    second = best[..., 1]
    of_first = (best[0, ..., 1] - second.min()) / (second.max() - second.min()) * 255
    np.testing.assert_allclose(grid[:4, 5:9, 0], of_first, atol=0.51)


@pytest.mark.parametrize("shape", [(3,), (4, 4, 2), (5, 70, 3)])
def test_data_of_any_shape(tmp_path, shape):
    found = parsed(make(tmp_path / "run", shape=shape, rows=[("student", 1)]))
    assert bool(found.of("img")) == (len(shape) == 3)
    assert found.texts["2.00"] == 1


def test_stages_that_ended_early_and_skipped_updates_are_warned_of(tmp_path):
    folder = make(tmp_path / "run", done=False, rows=[])
    facts = folder / "checkpoints" / "student_2" / "12" / "facts" / "metadata"
    facts.rename(folder / "facts")
    found = {"seconds": 1.0, "end": 10, "skipped": 3}
    place = folder / "checkpoints" / "student_2" / "10" / "facts"
    place.mkdir(parents=True)
    (place / "metadata").write_text(json.dumps(found))
    text = parsed(folder).text
    assert "student_2: 3 updates skipped" in text
    assert "student_2: ended early, after 10 of 12 updates" in text


DAMAGE = {
    "a config that is no object": ("config.json", "[]"),
    "a config of something else": ("config.json", '{"a": 1}'),
    "a ladder of words": ("config.json", '{"teacher": 1, "ladder": "x"}'),
    "rows that are none": ("report.json", '{"rows": 1, "seconds": {}}'),
    "steps without number": (
        "report.json",
        json.dumps(report(rows=[("student", 2**70)])),
    ),
    "no step at all": ("report.json", json.dumps(report()).replace(": 4,", ": -4,")),
    "a metric without end": (
        "report.json",
        json.dumps(report()).replace("1.25", "1" + "0" * 400),
    ),
    "an error in words": (
        "report.json",
        json.dumps(report()).replace("0.0625", '"small"'),
    ),
    "a path of no sampler": (
        "report.json",
        json.dumps(report()).replace('"steps": 8, "sampler": "ddim"', '"steps": 8'),
    ),
    "warnings of numbers": ("report.json", json.dumps(report(warnings=[1]))),
    "an update without end": (
        "metrics.jsonl",
        '{"stage": "teacher", "update": 1' + "0" * 400 + "}",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_folder_of_something_else_is_one_clear_error(case, tmp_path):
    file, text = DAMAGE[case]
    folder = make(tmp_path / "run")
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=r"run.*(not the files of a run|is damaged)"):
        page.html(record.read(folder))


@pytest.mark.parametrize("odd", [0.0, -1.0, 1e308, 1e-320, math.nan, math.inf])
def test_numbers_that_no_axis_holds(whole, tmp_path, odd):
    folder = make(tmp_path / "run", updates={"teacher": 4}, rows=[], done=False)
    line = {"stage": "teacher", "update": 4, "loss": odd, "grad_norm": None}
    text = json.dumps(line | {"validation_loss": odd, "skipped": 1})
    (folder / "metrics.jsonl").write_text(text)
    assert "teacher: 4 of 20 updates" in parsed(folder).text
    told = report()
    told["rows"][0]["metrics"]["frechet_pixels"] = odd
    found = parsed(whole, report=told)
    assert found.texts[page.figure_text(odd)] >= 1


def test_what_is_missing_or_damaged_is_left_out(tmp_path):
    folder = make(tmp_path / "run")
    kept = folder / "evaluation"
    (kept / "student_2.npy").write_bytes(b"\x93NUMPY")
    np.save(kept / "teacher_4.npy", np.full((3, 8, 8, 1), np.nan))
    np.save(kept / "teacher_1.npy", np.zeros((3, 2)))
    (folder / "metrics.jsonl").unlink()
    (folder / "checkpoints" / "teacher" / "20" / "facts" / "metadata").write_text("{")
    found = parsed(folder)
    assert [e["data-says"] for _, e in found.elements if "data-says" in e] == ["1"]
    assert len(found.of("img")) == 1 + 1 + 2 + page.WORST


def test_a_page_is_renewed_at_times_and_never_ends_a_run(tmp_path, capsys):
    folder = make(tmp_path / "run", updates={"teacher": 8}, rows=[], done=False)
    shown = page.Page(folder, "mine")
    shown.on_checkpoint("teacher", 8)
    first = (folder / "report.html").read_text()
    assert "8 of 20" in first
    metrics = folder / "metrics.jsonl"
    with open(metrics, "a") as file:
        file.write('{"stage": "teacher", "update": 12, "loss": 1.0}\n')
    shown.on_checkpoint("teacher", 12)  # sooner than it is written again
    assert (folder / "report.html").read_text() == first
    shown.on_stop("teacher", 12)
    assert "12 of 20" in (folder / "report.html").read_text()
    (folder / "config.json").unlink()
    shown.on_stop("teacher", 12)
    assert not capsys.readouterr().err


def test_numbers_read_as_people_say_them():
    assert [page.figure_text(v) for v in (None, 0.667, 123.4, 0.00004)] == [
        "",
        "0.667",
        "123",
        "4.00e-05",
    ]
    rates = [page.rate_text(v) for v in (9126.6, 100.0, 14.87)]
    assert rates == ["9,127", "100", "14.9"]
    seconds = [page.seconds_text(s) for s in (None, 8.42, 119, 120, 7200, 4e5)]
    assert seconds == ["", "8.42 s", "119 s", "2 min", "2 h", "4.63 days"]
    assert page.plain("/elsewhere/data/mine.npz") == "…/mine.npz"
    assert page.plain([1, 2]) == "1, 2"
    assert list(STAGES) == ["teacher", "student_2", "student_1"]
