"""The benchmark: what it says, of what, and whom it refuses; never how fast it is."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from absl import flags

from pd_jax.bench import __main__ as bench
from pd_jax.bench import startup, subject, table, timing
from pd_jax.bench.timing import Figure
from pd_jax.config import default, setup

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = f"--config={ROOT}/configs/digits.py:smoke"
BENCH = (sys.executable, "-m", "pd_jax.bench")
QUICK = ("--repeats=2", "--seconds=0.02")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls the command line in an empty folder; (exit code, printed, JSON)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "PRODUCT", {"cpu": 64})

    def call(*arguments):
        for name in [n for n in flags.FLAGS if n.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for name in ("compare", "batch", "json", "measure", "training", "find_batch"):
            flags.FLAGS[name].unparse()
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        code = bench.main(sys.argv)
        path = tmp_path / "b.json"
        found = json.loads(path.read_text()) if path.exists() else None
        return code, capsys.readouterr(), found

    return call


@pytest.mark.slow
def test_one_config_in_json_and_within_the_width(call, tmp_path):
    measure = "--measure=step,sampler,loop,data,compiles"
    code, printed, found = call(DIGITS, measure, "--json=b.json", "--batch=32", *QUICK)
    assert code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]
    assert found["config"] == "digits:smoke"
    assert found["command"][-1] == "--seconds=0.02"
    assert found["versions"]["jax"] == jax.__version__
    assert found["device"]["count"] == jax.device_count()
    [variant] = found["variants"]
    assert variant["batch"] == 32
    assert variant["data"] == "its own"
    assert variant["multiplies_in"] == "float32"
    step, sampler = variant["compilations"]["step"], variant["compilations"]["sampler"]
    assert step == {"traces": 1, "compilations": 1, "stages": 3}
    assert sampler == {"compilations": 1, "rows": 7, "kinds": 1}
    figures = variant["figures"]
    for figure in figures.values():
        assert len(figure["rounds"]) == 2
        assert min(figure["rounds"]) <= figure["median"] <= max(figure["rounds"])
    ratios = zip(figures["step"]["rounds"], figures["forward"]["rounds"])
    assert figures["step_over_forward"]["rounds"] == [a / b for a, b in ratios]
    for name in ("sampler_over_forwards", "loop_over_bare", "data_images_per_second"):
        assert figures[name]["median"] > 0
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("step / forward") for line in lines)


@pytest.mark.slow
def test_an_exact_teacher_has_a_sampler_of_its_own(call):
    config = f"--config={ROOT}/configs/mixture2d.py:smoke"
    code, _, found = call(config, "--measure=compiles", "--json=b.json", *QUICK)
    assert code == 0
    counts = found["variants"][0]["compilations"]
    assert counts["step"]["compilations"] == 1
    assert counts["sampler"]["compilations"] == counts["sampler"]["kinds"] == 2
    code, printed, _ = call(config, "--training=teacher")
    assert code == 2
    assert "teacher is not trained" in printed.err


def test_variants_stand_side_by_side_and_one_without_memory_says_so(call, monkeypatch):
    begin = subject.Subject.begin

    def short(self, *args):
        if self.training.batch == 256:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
        begin(self, *args)

    monkeypatch.setattr(subject.Subject, "begin", short)
    compare = ("--compare=batch=128,256;ladder.ema=0.5", "--json=b.json")
    code, printed, found = call(DIGITS, "--measure=data", *compare, *QUICK)
    assert code == 0
    given, double, ema = found["variants"]
    assert given["changes"] == {}
    assert double["changes"] == {"batch": "256"}
    assert double["batch"] == 256
    assert double["failed"] == "out of memory"
    assert double["figures"] == {}
    assert ema["changes"] == {"ladder.ema": "0.5"}
    for variant in (given, ema):
        assert variant["figures"]["data_images_per_second"]["median"] > 0
    assert "batch=256: out of memory" in printed.out


def test_data_that_is_not_here_is_random_and_said_to_be(tmp_path):
    config = default("image_folder", "unet")
    config.data.update(path=str(tmp_path / "none"), size=8, labels=True, flip=True)
    config.model.num_classes = 7
    found, why = timing.find_data(config)
    assert found.shape == (8, 8, 3)
    assert found.num_classes == 7
    assert found.flip
    assert str(tmp_path) in why
    batch = next(found.batches(0, 4, (0,)))
    assert batch["image"].min() >= -1.0
    assert batch["image"].max() <= 1.0
    assert timing.find_data(default("digits", "mlp"))[1] == ""


def test_a_table_of_many_variants_stays_within_the_width():
    rows = [
        ("", *("model.attention",) * 9),
        ("step, ms", *(f"{i}.00" for i in range(9))),
    ]
    blocks = list(table._blocks(rows))
    assert len(blocks) > 1
    cells = [line.split()[2:] for block in blocks for line in block[1:]]
    assert all(line[0] == "0.00" for line in cells)
    assert [c for line in cells for c in line[1:]] == [f"{i}.00" for i in range(1, 9)]
    assert max(len(line) for block in blocks for line in block) <= 80


@pytest.mark.parametrize(("first", "found"), [(128, 512), (2500, 312)])
def test_the_largest_batch_is_found_by_doubling_and_halving(
    call, monkeypatch, first, found
):
    def first_step(config, training, cache, compiler=False):
        if config[training].batch > 600:
            return {"failed": "out of memory"}
        return {"seconds": {}, "memory": {"peak": 1}}

    monkeypatch.setattr(startup, "first_step", first_step)
    flags = ("--measure=data", "--find_batch", "--json=b.json", f"--batch={first}")
    code, _, result = call(DIGITS, "--config.run.substeps=1", *flags, *QUICK)
    assert code == 0
    assert result["variants"][0]["batch"] == found


WRONG = [
    ((), "--config=NAME is missing"),
    ((DIGITS, "--config.ladder.strat=16"), 'Did you mean "ladder.start"'),
    ((DIGITS, "--batch=0"), "--batch=0"),
    ((DIGITS, "--repeats=0"), "--repeats=0"),
    ((DIGITS, "--seconds=-1"), "--seconds=-1"),
    ((DIGITS, "--measure=speed"), "known are compiles, data"),
    ((DIGITS, "--training=students"), "known are ladder, teacher"),
    ((DIGITS, "--json=no/b.json"), "in a folder that is there"),
    ((DIGITS, "--json=."), "--json=."),
    ((DIGITS, "--compare=ladder.bach=1"), 'Did you mean "ladder.batch"'),
    ((DIGITS, "--compare=ladder.ema"), "give the values, ladder.ema=V1,V2"),
    ((DIGITS, "--compare=ladder.ema=lots"), "lots is not like ladder.ema=0.99"),
    ((DIGITS, "--compare=ladder.batch=1.5"), "--compare=ladder.batch=1.5"),
    ((DIGITS, "--compare=ladder.ema=2", "--measure=step"), "ladder.ema=2"),
    ((DIGITS, "--compare="), "no key"),
    ((DIGITS, "--config.ladder.factor=3", "--measure=step"), "nearest being 9"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=lambda a: str(a)[-40:])
def test_wrong_use_is_one_clear_message_and_nothing_written(
    call, tmp_path, arguments, says
):
    code, printed, _ = call(*arguments)
    assert code == 2
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert len(printed.err) < 700
    assert not printed.out
    assert not list(tmp_path.iterdir())


def test_values_to_compare_are_read_as_their_key_has_them():
    config = default("shapes", "unet")
    config.ladder.start = 4
    texts = ["model.ch_mult=(1,1),(1,2,2),1;data.flip=true,false", "data.name=a,b"]
    found = bench.variants(config, texts, "ladder")
    assert [v.name for v in found] == [
        "as given",
        "model.ch_mult=1,1",
        "model.ch_mult=1,2,2",
        "model.ch_mult=1",
        "data.flip=True",
        "data.name=a",
        "data.name=b",
    ]
    assert found[3].config.model.ch_mult == (1,)
    assert found[4].config.data.flip is True
    assert found[0].config is config


def test_figures_are_paired_round_by_round():
    one, other = Figure((2.0, 4.0, 9.0)), Figure((1.0, 4.0, 3.0))
    assert one.over(other).values == (2.0, 1.0, 3.0)
    assert one.median == 4.0
    assert one.map(lambda s: 1.0 / s).values[1] == 0.25


def test_flop_are_those_of_the_network_whatever_saves_memory_or_time():
    config = default("shapes", "dit")
    config.data.num_images = 8
    config.model.update(patch=4, width=16, depth=1)
    config.ladder.update(start=2, updates=(2,), batch=8)
    config.teacher.update(updates=2, batch=8)

    def flops():
        return timing.step_flops(setup.build(config), "ladder")

    plain = flops()
    config.model.remat, config.run.substeps = True, 2
    assert flops() == plain > 0


def test_only_known_boards_have_a_data_sheet():
    assert set(table.KINDS.values()) <= set(table.CHIPS)
    assert "NVIDIA H100 PCIe" not in table.KINDS
    assert table.facts()["device"]["data_sheet_flops_per_second"] is None


def test_a_start_that_is_killed_is_no_crash(monkeypatch):
    def run(*args, **kw):
        return subprocess.CompletedProcess(args, -9, "", "")

    monkeypatch.setattr(startup.subprocess, "run", run)
    found = startup.first_step(default("shapes", "unet"), "ladder", "nowhere")
    assert found == {"failed": "killed"}


@pytest.mark.slow
def test_the_whole_command_in_a_process(tmp_path):
    file = tmp_path / "b.json"
    done = subprocess.run(
        [*BENCH, DIGITS, f"--json={file}", "--compare=batch=64", *QUICK],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        check=True,
    )
    found = json.loads(file.read_text())
    assert [v["failed"] for v in found["variants"]] == ["", ""]
    for variant in found["variants"]:
        start = variant["start"]
        assert start["memory"]["compiler"] > 0
        for cold, warm in zip(start["cold"], start["warm"]):
            assert warm["compile"] < cold["compile"] < cold["call"] < cold["start"]
    assert "warm / cold" in done.stdout
    refused = subprocess.run(
        [*BENCH, DIGITS, "--find_batch"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert refused.returncode == 2
    assert "does not tell its memory" in refused.stderr
