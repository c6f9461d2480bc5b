"""The command line: what a person types, and what they are told."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags

from pd_jax import main
from pd_jax.training.step import Step

ROOT = pathlib.Path(__file__).parents[1]
DIGITS, PHOTOS, FOLDER, CIFAR = (
    f"--config={ROOT}/configs/{name}.py"
    for name in ("digits", "photos32", "image_folder", "cifar10")
)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls the command line in an empty folder; (exit code, printed, new files)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        before = set(tmp_path.rglob("*"))
        for name in [n for n in flags.FLAGS if n.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        code = main.main(sys.argv)
        printed = capsys.readouterr()
        return code, printed, set(tmp_path.rglob("*")) - before

    return call


WRONG = [
    ((), "--config=NAME is missing: a file, or one of cifar10, digits"),
    (("--config=configs/nothing.py",), "no such file"),
    (("--config=configs/digits.py",), 'Did you mean "digits"'),
    (("--config=digit",), "comes with pd_jax: cifar10, digits, image_folder"),
    (("--config=digits:smoky",), 'Did you mean "smoke"'),
    (("--config", "digits:smoke", "--config.seed=-1"), "seed=-1"),
    ((DIGITS, "--quiet", "--verbose"), "give one of them"),
    (("--mode=status", "--workdir=runs/digits"), "runs/digits: no such folder"),
    (("--mode=status", "--config=digits:smoke"), "runs/digits_smoke: no such folder"),
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
    (
        (DIGITS, "--config.ladder.check_updates=-5"),
        "check_updates=-5: must be at least 0",
    ),
    ((DIGITS, "--config.ladder.on_regression=halt"), "known are flag, stop"),
    ((DIGITS, "--config.ladder.regression_factor=0.5"), "at least 1"),
    ((DIGITS, "--config.run.most_skipped=0"), "run.most_skipped=0"),
    ((DIGITS, "--config.teacher.ema=1.0"), "below 1"),
    ((DIGITS, "--config.ladder.dropout=-0.1"), "at least 0"),
    ((DIGITS, "--config.model.name=mpl"), 'Did you mean "mlp"'),
    ((DIGITS, "--config.model.output=w"), "known are both, ddpm, edm, eps, flow, v, x"),
    ((DIGITS, "--config.model.num_classes=5"), "give 10"),
    ((DIGITS, "--config.model.emb_ch=3"), "model.emb_ch=3"),
    ((DIGITS, "--config.model.num_blocks=-1"), "model.num_blocks=-1"),
    ((DIGITS, "--config.model.time_scale=0.0"), "model.time_scale=0.0: must be above"),
    ((DIGITS, "--config.data.name=digit"), 'Did you mean "digits"'),
    ((DIGITS, "--config.data.num_images=9999"), "1797"),
    ((DIGITS, "--config.schedule.name=cos"), "known are cosine"),
    ((DIGITS, "--config.schedule.logsnr_min=30"), "must be below"),
    ((DIGITS, "--config.teacher.exact=true"), "train a teacher"),
    ((DIGITS, "--config.teacher.method=plain"), "known are standard"),
    ((DIGITS, "--config.teacher.method=progressive"), "known are standard"),
    (
        (DIGITS, "--config.ladder.method=standard"),
        'unknown ladder.method "standard": known are ',
    ),
    ((DIGITS, "--config.ladder.method=progresive"), 'Did you mean "progressive"'),
    ((DIGITS, "--config.eval.sampler=dim"), 'Did you mean "ddim"'),
    ((DIGITS, "--config.eval.sampler=ancestral:wide"), "small, large"),
    ((DIGITS, "--config.eval.paired_samples=5000"), "at most"),
    ((DIGITS, "--config.eval.teacher_steps=(4,0)"), "at least 1"),
    ((DIGITS, "--config.eval.num_samples=1"), "at least 2"),
    ((DIGITS, "--config.run.substeps=0"), "run.substeps=0"),
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
    ((DIGITS, "--config.ladder.updates=(99999999999,)"), "below 2^31"),
    ((DIGITS, "--config.teacher.batch=4000000000000"), "below 2^31"),
    ((DIGITS, "--config.eval.num_samples=99999999999"), "below 2^31"),
    (
        (DIGITS, "--config.ladder.start=33554432", "--config.ladder.updates=5"),
        "8388608",
    ),
    ((DIGITS, "--config.eval.teacher_steps=(99999999,)"), "8388608"),
    ((DIGITS, "--config.schedule.logsnr_min=-1e9"), "-80 to 80"),
    ((DIGITS, "--config.schedule.logsnr_max=nan"), "not finite"),
    ((DIGITS, "--config.run.log_seconds=nan"), "at least 0"),
    ((DIGITS, "--workdir=gss://bucket/run"), "no such storage"),
    ((DIGITS, "--mode=estimate", "--num_chips=0"), "at least 1"),
    ((DIGITS, "--mode=estimate", "--utilisation=nan"), "above 0"),
    ((DIGITS, "--mode=estimate", "--chip=v99"), "known are A100"),
    (("--mode=export",), "folder is missing: --workdir=DIR"),
    (("--mode=status",), "folder is missing: --workdir=DIR"),
    (("--mode=export", "--workdir=a", "--from=b"), "mean the same: give one"),
    (("--mode=sample", "--workdir=", "--out=b.png"), "--from= is empty"),
    (("--mode=sample", "--from=a", "--out=b.npz", "--teacher"), "N is missing"),
    (("--mode=export", "--from=none"), "no folder of a run"),
    (("--mode=export", "--from=none", "--workdir=none/"), "no folder of a run"),
    ((DIGITS, "--from=none"), "a run's own folder is --workdir=DIR"),
    (("--mode=sample", "--workdir=none", "--out=a.png"), "no such file or folder"),
    (("--mode=sample", "--from=~/none", "--out=a.png"), "no such file or folder"),
    (("--mode=export", "--workdir=none"), "no folder of a run"),
    (("--mode=sample", "--out=a.png"), "--from is missing"),
    (("--mode=sample", "--from=none"), "--out is missing"),
    (("--mode=sample", "--from=none", "--out=a.png"), "no such file or folder"),
    (("--mode=sample", "--from=a", "--out=b", "--num=many"), "flag --num=many"),
    (("--mode=compare",), "with 0 folders: give from 2 to 8"),
    (("--mode=compare", "one", "two"), "one: no config.json there"),
    ((PHOTOS, "--config.data.size=31"), "divisible by 4"),
    ((PHOTOS, "--config.model.emb_ch=0"), "model.emb_ch=0"),
    ((PHOTOS, "--config.model.ch_mult=()"), "model.ch_mult=()"),
    ((PHOTOS, "--config.model.num_heads=7"), "give divisors"),
    ((FOLDER, "--config.data.path=nowhere"), "no such folder"),
    ((CIFAR, "--config.data.data_dir=nowhere"), "pd_jax.prepare --dataset=cifar10"),
]


def refused(code, printed, new, says):
    assert code == 2, printed
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err) < 500
    assert not printed.out
    assert not new


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=lambda a: str(a)[-40:])
def test_wrong_use_is_one_clear_message_and_nothing_written(call, arguments, says):
    refused(*call(*arguments), says)


OWN = """
from pd_jax.config import default
def get_config(variant=""):
    config = default("npz", "mlp")
    config.data.path = "mine.npz"
    config.teacher.updates = config.ladder.start = 4
    config.ladder.updates = (4,)
    return config
"""
IMAGES = np.zeros((20, 8, 8, 3), np.uint8)
LABELS = "--config.data.label_key=labels"
WRONG_DATA = {
    "no file": ({}, (), "no such file"),
    "another name": (dict(pictures=IMAGES), (), "the file has: pictures"),
    "one image": (dict(images=IMAGES[0]), (), "(8, 8, 3); images are [N, H, W, C]"),
    "none": (dict(images=IMAGES[:0]), (), "(0, 8, 8, 3)"),
    "too few": (dict(images=IMAGES[:1]), (), "at least 2"),
    "no channels": (dict(images=IMAGES[..., :0]), (), "(20, 8, 8, 0)"),
    "0 to 255 in floats": (dict(images=IMAGES + 99.0), (), "scale them to [-1, 1]"),
    "not finite": (dict(images=IMAGES * np.nan), (), "not finite"),
    "another dtype": (dict(images=IMAGES.astype(np.int16)), (), "int16"),
    "complex": (dict(images=IMAGES.astype(complex)), (), "complex128"),
    "text": (dict(images=IMAGES.astype("S3")), (), "S3"),
    "objects": (dict(images=IMAGES.astype(object)), (), "Python objects"),
    "no labels": (dict(images=IMAGES), (LABELS,), 'no array "labels"'),
    "few labels": (dict(images=IMAGES, labels=np.arange(3)), (LABELS,), "20 images"),
    "float labels": (dict(images=IMAGES, labels=np.ones(20)), (LABELS,), "float64"),
    "labels below 0": (
        dict(images=IMAGES, labels=np.arange(20) - 1),
        (LABELS,),
        "negative",
    ),
    "huge labels": (
        dict(images=IMAGES, labels=np.full(20, 2**40)),
        (LABELS,),
        "2^31",
    ),
    "labels above the classes": (
        dict(images=IMAGES, labels=np.arange(20)),
        (LABELS, "--config.model.num_classes=10"),
        "give 20",
    ),
    "classes without labels": (
        dict(images=IMAGES),
        ("--config.model.num_classes=10",),
        "no labels",
    ),
    "Inception of 2 channels": (
        dict(images=IMAGES[..., :2].astype(np.float32)),
        ("--config.eval.inception=weights.pth",),
        "are latents of shape (8, 8, 2)",
    ),
    "transparency": (
        dict(images=IMAGES[..., [0, 1, 2, 2]]),
        (),
        "[8, 8, 4] are no pictures, which are [H, W, 1] or [H, W, 3]",
    ),
    "a kind that is none": (
        dict(images=IMAGES),
        ("--config.data.kind=picture",),
        'Did you mean "pictures"',
    ),
    "another network's keys": (
        dict(images=IMAGES),
        ("--config.model.name=unet",),
        "has no use for model.num_blocks",
    ),
}


@pytest.mark.parametrize("case", WRONG_DATA)
def test_data_that_cannot_be_used(call, tmp_path, case):
    arrays, arguments, says = WRONG_DATA[case]
    (tmp_path / "mine.py").write_text(OWN)
    if arrays:
        np.savez("mine.npz", **arrays)
    refused(*call("--config=mine.py", *arguments), says)


WRONG_CONFIGS = {
    "raises": ("def get_config(variant=''):\n    1 / 0", "line 2: ZeroDivisionError"),
    "imports": ("import nothing_of_that_name", "line 1: ModuleNotFoundError"),
    "returns nothing": ("def get_config(variant=''):\n    pass", "returns NoneType"),
    "returns a dict": ("def get_config(variant=''): return {'a': 1}", "returns dict"),
    "returns another": (
        "from ml_collections import ConfigDict\n"
        "def get_config(variant=''): return ConfigDict({'a': 1})",
        "no data.name",
    ),
    "lacks a section": (
        "from pd_jax.config import default\n"
        "def get_config(variant=''):\n"
        "    config = default('digits', 'mlp').unlock()\n"
        "    del config.eval\n"
        "    return config",
        "lacks eval.clip",
    ),
    "knows no variant": ("def get_config(): pass", "takes 0 positional arguments"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_config_files_that_are_none(call, tmp_path, case):
    text, says = WRONG_CONFIGS[case]
    (tmp_path / "mine.py").write_text(text)
    refused(*call("--config=mine.py" + ":small" * (case == "knows no variant")), says)


WRONG_PLACES = {
    "within a file": ("--workdir=file/run", "nothing can be written there"),
    "in /proc": ("--workdir=/proc/run", "nothing can be written there"),
    "a device": ("--workdir=/dev/null", "not a folder of a run"),
    "weights that are a folder": ("--config.eval.inception=.", "eval.inception: ."),
    "weights that are text": ("--config.eval.inception=file", "not a torch state"),
    "a released file that is text": (
        "--config.teacher.released=file",
        "teacher.released: file: not a released checkpoint",
    ),
    "statistics that are text": ("--config.eval.statistics=file", "eval.inception"),
}


@pytest.mark.parametrize("case", WRONG_PLACES)
def test_places_that_are_none(call, tmp_path, case):
    argument, says = WRONG_PLACES[case]
    (tmp_path / "file").write_text("text")
    code, printed, new = call(DIGITS, argument)
    refused(2 if "written" in says else code, printed, new, says)
    assert code == 1 or "written" not in says


def test_a_folder_of_something_else_is_left_alone(call, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    code, printed, files = call(DIGITS, "--workdir=mine")
    assert code == 2
    assert "not a folder of a run" in printed.err
    assert not files
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


@pytest.mark.slow
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


def test_devices_out_of_memory(call, monkeypatch):
    def out_of_memory(self, *arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Step, "__call__", out_of_memory)
    code, printed, _ = call(DIGITS + ":smoke", "--workdir=run")
    assert code == 1
    assert "error: teacher: a device is out of memory; a step needs" in printed.err
    assert "on each of 4 devices" in printed.err
    assert "teacher.batch than 128 or a larger teacher.microbatches" in printed.err
    assert "Traceback" not in printed.err


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


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu", "gpu"])
@pytest.mark.parametrize(
    "command",
    [
        f"pd_jax {DIGITS}:smoke",
        f"pd_jax {DIGITS}:smoke --mode=estimate --compile",
        f"pd_jax --mode=sample --from={ROOT} --out=new.npz",
        f"pd_jax.bench {DIGITS}:smoke",
    ],
    ids=["run", "estimate", "sample", "bench"],
)
def test_platforms_that_are_not_here_are_one_message(command, platform, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: JAX_PLATFORMS={platform}: JAX finds no such device")
    assert not any(tmp_path.iterdir())
