"""A file imports only from lower floors, or a named neighbour."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "pd_jax"

FLOORS = [
    {"__init__", "names", "console"},
    {
        "schedules",
        "diffusion",
        "arcs",
        "samplers",
        "ladder",
        "analytic",
        "conventions",
    },
    {"models", "denoisers", "state", "optim"},
    {"methods"},
    {"step", "processes", "compilation"},
    {"files", "seal"},
    {
        "data",
        "prepare",
        "metrics",
        "checkpoint",
        "writers",
        "interrupt",
        "bundle",
        "student",
        "callbacks",
    },
    {
        "config",
        "recipes",
        "setup",
        "stages",
        "evaluate",
        "folder",
        "report",
        "record",
        "figures",
        "page",
        "compare",
        "loop",
        "readings",
        "preflight",
        "costs",
        "estimate",
        "announce",
        "command",
        "doubts",
        "memory",
        "loading",
        "sampling",
        "boards",
    },
    {"train", "status"},
    {"api"},
    {"main", "bench"},
    {"__main__"},
]
NEIGHBOURS = {
    "arcs": {"schedules", "diffusion"},
    "samplers": {"schedules", "diffusion", "arcs"},
    "analytic": {"diffusion", "arcs"},
    "conventions": {"diffusion", "arcs"},
    "optim": {"state"},
    "denoisers": {"models"},
    "step": {"compilation"},
    "seal": {"files"},
    "checkpoint": {"writers"},
    "bundle": {"writers"},
    "student": {"bundle"},
    "metrics": {"writers"},
    "recipes": {"config"},
    "setup": {"config"},
    "stages": {"config", "setup"},
    "evaluate": {"setup"},
    "folder": {"config", "evaluate"},
    "report": {"setup", "evaluate"},
    "announce": {"setup", "report"},
    "record": {"config", "evaluate"},
    "figures": {"record", "report"},
    "page": {"config", "record", "figures", "report"},
    "compare": {"config", "record", "figures", "page", "report"},
    "loop": {"setup"},
    "preflight": {"readings", "setup"},
    "costs": {"setup", "evaluate"},
    "doubts": {"setup", "evaluate"},
    "estimate": {"setup", "costs"},
    "memory": {"setup", "costs"},
    "command": {"config"},
    "loading": {"config", "evaluate", "setup"},
    "sampling": {"loading", "report"},
    "boards": {"report"},
    "main": {"__main__"},
}
MATHS_LIBRARIES = {"jax", "numpy", "pd_jax"}
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Modules that a file imports, as dotted names with the names taken from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = room(path)
    for name in imports(path):
        if not name.startswith("pd_jax."):
            continue
        there = name.split(".")[1]
        there = there if there in FLOOR else "__init__"
        allowed = (
            FLOOR[there] < FLOOR[here]
            or there == here
            or there in NEIGHBOURS.get(here, ())
        )
        assert allowed, f"{path.name} imports {name}, which is not below it"


@pytest.mark.parametrize("name", sorted(FLOORS[1]))
def test_maths_needs_jax_alone(name):
    for found in imports(PACKAGE / f"{name}.py"):
        top = found.split(".")[0]
        assert top in MATHS_LIBRARIES or top in sys.stdlib_module_names


def test_only_step_says_pmap():
    says = [p.name for p in FILES if "jax.pmap(" in p.read_text()]
    assert says == ["step.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_package_opens_its_rooms_when_asked_and_leaves_devices_alone():
    program = (
        "import sys, pd_jax, pd_jax.main; assert 'jax' not in sys.modules; "
        "pd_jax.schedules.get('cosine'); pd_jax.arcs.join; pd_jax.samplers.sample; "
        "import pd_jax.train, pd_jax.status; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized(); "
        "print(hasattr(pd_jax, 'schedulers'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert done.stdout == "False\n"
