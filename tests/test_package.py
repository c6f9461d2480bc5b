"""The package as others get it: what a wheel holds, and that it runs anywhere."""

import os
import pathlib
import subprocess
import sys
import tomllib
import zipfile

import pytest

import pd_jax

ROOT = pathlib.Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_of_code_is_a_listed_package():
    folders = {p.parent for p in (ROOT / "pd_jax").rglob("*.py")}
    found = {".".join(f.relative_to(ROOT).parts) for f in folders}
    listed = project()["tool"]["setuptools"]["packages"]
    assert sorted(found | {"pd_jax.configs"}) == listed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A wheel of the files that are under version control, and a folder with it."""
    folder = tmp_path_factory.mktemp("package")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    offline = ("--no-index", "--no-deps")
    subprocess.run(
        [
            *PIP,
            "wheel",
            *offline,
            "--no-build-isolation",
            "--wheel-dir",
            ".",
            "./tree",
        ],
        cwd=folder,
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*PIP, "install", *offline, "--target", folder / "site", wheel], check=True
    )
    return wheel, folder / "site"


@pytest.mark.slow
def test_a_wheel_holds_all_that_is_under_version_control(site):
    with zipfile.ZipFile(site[0]) as archive:
        names = set(archive.namelist())
    tree = site[0].parent / "tree"
    for path in [p for p in (tree / "pd_jax").rglob("*") if p.is_file()]:
        assert str(path.relative_to(tree)) in names
    assert (tree / "pd_jax/py.typed").is_file()
    for path in (tree / "configs").glob("*.py"):
        assert f"pd_jax/configs/{path.name}" in names
    about = f"pd_jax-{pd_jax.__version__}.dist-info"
    assert f"{about}/licenses/LICENSE" in names
    assert {name.partition("/")[0] for name in names} == {"pd_jax", about}


@pytest.mark.slow
def test_an_installed_command_runs_anywhere(site, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(site[1])}

    def call(*arguments):
        return subprocess.run(
            [sys.executable, site[1] / "bin" / "pd-jax", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    assert call("--version").stdout.startswith(f"pd_jax {pd_jax.__version__}, jax ")
    done = call("--config=digits:smoke")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "digits_smoke" / "report.json").is_file()
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    done = call("--config=digits:smoke", "--quiet")
    assert done.stdout.startswith("| steps |")
    done = call("--mode=status", "--workdir=runs/digits_smoke")
    assert done.returncode == 0, done.stderr
    assert "digits_smoke: complete" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    done = call("--config=configs/digits.py")
    assert done.returncode == 2
    assert 'Did you mean "digits"' in done.stderr
    assert not done.stdout
