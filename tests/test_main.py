"""The command line: what a person types, and what they are told."""

import pathlib
import sys

import pytest
from absl import flags

from pd_jax import main

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = f"--config={ROOT}/configs/digits.py"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls the command line in an empty folder; (exit code, printed, files)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        for name in [n for n in flags.FLAGS if n.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        code = main.main(sys.argv)
        printed = capsys.readouterr()
        return code, printed, list(tmp_path.rglob("*"))

    return call


WRONG = [
    ((), "--config=configs/NAME.py is missing"),
    (("--config=configs/nothing.py",), "no such file"),
    ((f"--config={ROOT}",), "no such file"),
    ((DIGITS + ":smoky",), 'Did you mean "smoke"'),
    ((DIGITS, "surplus"), "unexpected argument surplus"),
    ((DIGITS, "--wokdir=x"), "workdir"),
    ((DIGITS, "--mode=runs"), 'Did you mean "run"'),
    ((DIGITS, "--config.ladder.strat=16"), 'Did you mean "ladder.start"'),
    ((DIGITS, "--config.lader.start=16"), 'Did you mean "ladder.start"'),
    ((DIGITS, "--config.ladder=16"), "no such key"),
    ((DIGITS, "--config.data.num_image=16"), 'Did you mean "data.num_images"'),
    ((DIGITS, "--config.ladder.start=many"), "invalid literal"),
    ((DIGITS, "--config.ladder.start=31"), "the nearest being 32"),
    ((DIGITS, "--config.ladder.end=0"), "at least 1"),
    ((DIGITS, "--config.ladder.factor=1"), "at least 2"),
    ((DIGITS, "--config.ladder.factor=3"), "nearest being 27"),
    ((DIGITS, "--config.ladder.updates=(1,2)"), "2 values"),
    ((DIGITS, "--config.ladder.updates=many"), "ladder.updates"),
    ((DIGITS, "--config.ladder.updates=0"), "ladder.updates"),
    ((DIGITS, "--config.teacher.updates=-5"), "teacher.updates=-5"),
    ((DIGITS, "--config.ladder.learning_rate=nan"), "ladder.learning_rate"),
    ((DIGITS, "--config.teacher.batch=0"), "teacher.batch=0"),
    ((DIGITS, "--config.ladder.batch=126"), "try 124 or 128"),
    ((DIGITS, "--config.ladder.microbatches=3"), "not divisible"),
    ((DIGITS, "--config.teacher.weighting=snr+1"), "snr_plus_1"),
    ((DIGITS, "--config.ladder.decay=linar"), 'Did you mean "linear"'),
    ((DIGITS, "--config.ladder.plateau=0.1"), "give ladder.check_updates"),
    ((DIGITS, "--config.ladder.plateau=1.0"), "below 1"),
    ((DIGITS, "--config.ladder.check_updates=-5"), "multiple"),
    ((DIGITS, "--config.teacher.ema=1.0"), "below 1"),
    ((DIGITS, "--config.ladder.dropout=-0.1"), "at least 0"),
    ((DIGITS, "--config.model.name=mpl"), 'Did you mean "mlp"'),
    ((DIGITS, "--config.model.output=w"), "known are both, ddpm, edm, eps, flow, v, x"),
    ((DIGITS, "--config.model.num_classes=5"), "give 10"),
    ((DIGITS, "--config.model.emb_ch=3"), "model.emb_ch=3"),
    ((DIGITS, "--config.model.num_blocks=-1"), "model.num_blocks=-1"),
    ((DIGITS, "--config.data.name=digit"), 'Did you mean "digits"'),
    ((DIGITS, "--config.data.num_images=9999"), "1797"),
    ((DIGITS, "--config.schedule.name=cos"), "known are cosine"),
    ((DIGITS, "--config.schedule.logsnr_min=30"), "must be below"),
    ((DIGITS, "--config.teacher.exact=true"), "train a teacher"),
    ((DIGITS, "--config.teacher.method=plain"), "known are standard"),
    ((DIGITS, "--config.teacher.method=progressive"), "known are standard"),
    ((DIGITS, "--config.ladder.method=standard"), "known are progressive"),
    ((DIGITS, "--config.ladder.method=progresive"), 'Did you mean "progressive"'),
    ((DIGITS, "--config.eval.sampler=dim"), 'Did you mean "ddim"'),
    ((DIGITS, "--config.eval.sampler=ancestral:wide"), "small, large"),
    ((DIGITS, "--config.eval.paired_samples=5000"), "at most"),
    ((DIGITS, "--config.eval.teacher_steps=(4,0)"), "at least 1"),
    ((DIGITS, "--config.eval.num_samples=1"), "at least 2"),
    ((DIGITS, "--config.run.substeps=7"), "does not divide"),
    ((DIGITS, "--config.eval.teacher_steps=(4,4)"), "each number once"),
    ((DIGITS, "--config.seed=-1"), "seed=-1"),
    ((DIGITS, "--workdir="), "--workdir= is empty"),
    ((f"--config={ROOT}/README.md",), "is not Python"),
    ((DIGITS, "--config.eval.seed=99999999999999"), "below 2^31"),
    ((DIGITS, "--config.data.num_images=1"), "at least 2"),
    ((DIGITS, "--config.ladder.updates[9]=5"), "index out of range"),
    (("--config", f"{ROOT}/configs/digits.py", "--config.seed=-1"), "seed=-1"),
    ((f"--config={ROOT}/tests/conftest.py",), "no get_config"),
    ((DIGITS, "--config.run.checkpoint_updates=0"), "at least 1"),
    ((DIGITS, "--config.teacher.released=none"), "none: not a released checkpoint"),
    ((DIGITS, "--config.eval.inception=none"), "none"),
    ((DIGITS, "--config.eval.statistics=a.npz"), "eval.inception"),
    ((DIGITS, "--config.eval.num_reference=1"), "at least 2"),
    ((DIGITS, "--distributed=maybe"), "known are auto, off, on"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=lambda a: str(a)[-40:])
def test_wrong_use_is_one_clear_message_and_nothing_written(call, arguments, says):
    code, printed, files = call(*arguments)
    assert code == 2
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err) < 500
    assert not printed.out
    assert not files


def test_a_folder_of_something_else_is_left_alone(call, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    code, printed, files = call(DIGITS, "--workdir=mine")
    assert code == 2
    assert "not a folder of a run" in printed.err
    assert len(files) == 2
    code, printed, _ = call(DIGITS, "--workdir=mine/thesis.tex")
    assert code == 2
    assert "thesis.tex" in printed.err


def test_a_damaged_folder_is_named(call, tmp_path):
    (tmp_path / "run").mkdir()
    for text in ('{"seed": 0', "[]"):
        (tmp_path / "run" / "config.json").write_text(text)
        code, printed, _ = call(DIGITS, "--workdir=run")
        assert code == 2
        assert "config.json is damaged" in printed.err


def test_training_that_diverges_stops_with_the_stage_and_keeps_no_such_state(
    call, tmp_path
):
    code, printed, _ = call(
        DIGITS + ":smoke", "--workdir=run", "--config.teacher.learning_rate=1e30"
    )
    assert code == 1
    assert "error: teacher: the loss is" in printed.err
    assert "Traceback" not in printed.err
    assert not list((tmp_path / "run" / "checkpoints" / "teacher").glob("[0-9]*"))


def test_a_config_file_with_a_misspelt_key(call, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pd_jax.config import default\n"
        "def get_config(variant=''):\n"
        "    config = default('digits', 'mlp')\n"
        "    config.teacher.update = 3\n"
        "    return config\n"
    )
    code, printed, _ = call("--config=mine.py")
    assert code == 2
    assert 'Did you mean "updates"' in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err) < 300
