"""A folder, or a file beside the folders, uses only those that stand before it."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "pd_jax"
FLOORS = [
    "runtime",
    "storage",
    "space",
    "schedules",
    "diffusion",
    "arcs",
    "conventions",
    "analytic",
    "scores",
    "metrics",
    "samplers",
    "data",
    "models",
    "training",
    "checkpoint",
    "methods",
    "config",
    "students",
    "evaluation",
    "costs",
    "runs",
    "bench",
    "reports",
    "api",
    "prepare",
    "main",
    "__main__",
]
MATHS = {"schedules", "diffusion", "arcs", "conventions", "analytic", "scores"}
FILES = sorted(PACKAGE.rglob("*.py"))


def floor(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Modules that a file imports, as dotted names with the names taken from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_floor_is_there():
    assert {floor(path) for path in FILES} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if floor(path) != "__init__"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_go_down(path):
    below = FLOORS[: FLOORS.index(floor(path)) + 1]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("pd_jax.")}
    above = used & set(FLOORS) - set(below)
    assert not above, f"{path.name} imports {above}, which stand above it"


@pytest.mark.parametrize("name", sorted(MATHS & set(FLOORS)))
def test_maths_needs_jax_alone(name):
    libraries = {"jax", "numpy", "pd_jax", *sys.stdlib_module_names}
    assert {used.split(".")[0] for used in imports(PACKAGE / f"{name}.py")} <= libraries


def test_public_names_are_those_listed_and_import_without_jax():
    program = (
        "import sys, pd_jax, pd_jax.main; assert 'jax' not in sys.modules; "
        "listed = [getattr(pd_jax, name) for name in pd_jax.__all__]; "
        "pd_jax.schedules.get('cosine'); pd_jax.arcs.join; pd_jax.samplers.sample; "
        "import pd_jax.api; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized(); "
        "print(hasattr(pd_jax, 'schedulers'), hasattr(pd_jax, '_nothing'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert done.stdout == "False False\n"
