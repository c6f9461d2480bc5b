"""Runs side by side: the page, the table, and what is refused."""

import json

import numpy as np
import pytest

from pd_jax.reports import compare
from pd_jax.runtime.errors import Refused
from tests.run_folders import make
from tests.test_page import Parsed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("compare")
    one = make(place / "one")
    two = make(place / "two", config={"ladder.ema": 0.5, "run.log_updates": 7})
    half = make(place / "half", updates={"teacher": 8}, rows=[], done=False)
    return one, two, half


def test_two_runs_side_by_side(folders, tmp_path, capsys):
    one, two, _ = folders
    compare.run([str(one), f"{two}/"], str(tmp_path / "page.html"))
    printed = capsys.readouterr().out
    assert "A: one\nB: two\n" in printed
    assert max(map(len, printed.partition("wrote")[0].splitlines())) <= 80
    assert "       1     2.00     2.00" in printed
    assert "warning" not in printed
    text = (tmp_path / "page.html").read_text()
    assert "://" not in text
    assert str(one.parent) not in text
    found = Parsed(text)
    assert found.texts["ladder.ema"] == found.texts["run.log_updates"] == 1
    assert not found.texts["teacher.ema"]
    # The teachers' best and two students of each run.
    assert len(found.of("img")) == 2 * 3
    positions = [e for _, e in found.elements if e.get("data-of") == "steps"]
    assert [e["data-says"] for e in positions] == ["teacher", "2", "1"]
    assert found.texts["21 s"] == 2


def test_a_narrow_terminal_has_some_runs_at_a_time(folders):
    runs = compare.read([str(folders[0]), str(folders[1])])
    text = compare.table(runs * 4, [f"run {i}" for i in range(8)], 40)
    lines = [line for line in text.splitlines() if line.startswith("   steps")]
    assert [line.split()[1:] for line in lines] == [[*"ABC"], [*"DEF"], [*"GH"]] * 2
    assert max(map(len, lines)) <= 40


def test_what_keeps_figures_from_being_compared_is_said(folders, tmp_path, capsys):
    one, _, half = folders
    changes = {"data.num_images": 100, "eval.num_samples": 80}
    other = make(tmp_path / "other", shape=(2,), config=changes)
    compare.run([str(one), str(half), str(other)], str(tmp_path / "page.html"))
    printed = capsys.readouterr().out
    assert "warning: half is not finished: stage 1 of 3, teacher" in printed
    assert "warning: the data differ (data.num_images)" in printed
    assert "other ways (eval.num_samples)" in printed
    assert "an RMSE is to the run's own teacher" in printed
    assert len(Parsed((tmp_path / "page.html").read_text()).of("img")) == 7


def test_names_tell_runs_apart(tmp_path, capsys):
    folders = [make(tmp_path / name / "digits") for name in ("a", "b")]
    compare.run([str(folder) for folder in folders], str(tmp_path / "page.html"))
    assert "A: a/digits\nB: b/digits\n" in capsys.readouterr().out


def test_mistakes_are_refused_and_nothing_is_written(folders, tmp_path):
    one, two, _ = (str(folder) for folder in folders)
    page = tmp_path / "page.html"
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"a": 1}))
    cases = [
        ([], page, "with 0 folders: give from 2 to 8"),
        ([one], page, "with 1 folders"),
        ([one] * 9, page, "with 9 folders"),
        ([one, one + "/"], page, "given twice"),
        ([one, str(tmp_path / "empty")], page, "no config.json there"),
        ([one, str(tmp_path / "none")], page, "no config.json there"),
        ([one, str(tmp_path / "odd")], page, "not the files of a run"),
        ([one, two], tmp_path / "report.json", "ends in .html"),
    ]
    for given, out, says in cases:
        with pytest.raises(Refused, match=says):
            compare.run(given, str(out))
        assert not out.exists()


def test_runs_without_a_figure_in_common(tmp_path, capsys):
    bare = [make(tmp_path / n, rows=[], updates={}, done=False) for n in "ab"]
    for folder in bare:
        np.save(folder / "evaluation" / "reference_teacher.npy", np.zeros(3))
    compare.run([str(folder) for folder in bare], str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert "Nothing: the runs have one config." in text
    assert "a is not finished" in capsys.readouterr().out
