"""Rows of the report and their entries."""

import pytest

from pd_jax.config.setup import build
from pd_jax.evaluation.rows import Row, check_entry, row_of, rows
from pd_jax.runs import record
from tests import run_folders
from tests.test_train import tiny

ENTRY = {"model": "student", "num_steps": 4, "sampler": "heun", "metrics": {"fid": 1.0}}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (Row("teacher", 256, "teacher", "ddim"), "teacher_256"),
        (Row("student", 4, "student_4", "ddim"), "student_4"),
        (Row("student", 2, "student", "heun"), "student_2"),
        (Row("student", 2, "student_4", "heun"), "student_4_2"),
    ],
)
def test_names_of_files(row, name):
    assert row.name == name
    entry = {**row._asdict(), "metrics": {}}
    assert row_of(check_entry(entry)) == row


def test_entries_without_a_stage_are_read():
    assert row_of(check_entry(ENTRY)) == Row("student", 4, "student_4", "heun")
    teacher = check_entry(ENTRY | {"model": "teacher"})
    assert row_of(teacher) == Row("teacher", 4, "teacher", "heun")


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "../../student_4"},
        {"stage": 4},
        {"stage": ""},
        {"sampler": "huen"},
        {"sampler": None},
        {"metrics": {"fid": "1"}},
    ],
)
def test_entries_that_cannot_be_a_rows(change):
    with pytest.raises(ValueError, match=next(iter(change)).removesuffix("s")):
        check_entry(ENTRY | change)


def test_planned_rows():
    planned = rows(build(tiny()))
    assert {row.sampler for row in planned} == {"ddim"}
    assert [row.name for row in planned][-2:] == ["student_2", "student_1"]
    assert all(row.stage == row.name for row in planned if row.model == "student")


def test_a_record_reads_the_samples_of_a_rows_own_file(tmp_path):
    folder = run_folders.make(tmp_path / "run")
    run = record.read(folder)
    assert run.samples(run.row("student", 2)).shape == (run_folders.SAMPLES, 8, 8, 1)
    assert run.row("student", 16) is None
    assert {row["stage"] for row in run.rows} == {"teacher", "student_2", "student_1"}
