"""The documents: links, commands, keys, names and messages are those of the code."""

import ast
import functools
import importlib
import itertools
import json
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import yaml

import pd_jax
from pd_jax import config as configs
from pd_jax import data, models

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "launch/*.md", "tests/*.md")
    for path in ROOT.glob(pattern)
)
HOSTS = {"arxiv.org", "docs.jax.dev", "github.com"}
PROGRAMS = {"pd_jax.main": "main.py", "pd_jax.bench": "bench/__main__.py"}
SECTIONS = "data|schedule|model|teacher|ladder|eval|run"
KEY = re.compile(rf"(?:--)?(?:config\.)?((?:{SECTIONS})\.[a-z_]+)(?:=.*)?")
NAME = re.compile(r"(?:pd_jax\.)?([a-z_]+)\.([A-Za-z_]+)(?:\(.*\))?")
PATH = re.compile(r"(?:pd_jax|configs|docs|launch|tests|\.ci)/[\w./-]*")
SUFFIXES = ("md", "json", "jsonl", "png", "html", "py", "sh")
STAND_INS = ("NAME", "mine")  # for what a reader puts there
every_file = pytest.mark.parametrize("file", FILES)


@functools.cache
def read(file):
    """A document, and its text without blocks of code."""
    text = (ROOT / file).read_text()
    return text, re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(file):
    """The code within lines."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", read(file)[1])]


@functools.cache
def anchors(file):
    """The names by which a document's headings can be linked to."""
    found = []
    for title in re.findall(r"^#+ (.*)$", read(file)[1], re.MULTILINE):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        taken = found.count(slug)
        found += [slug, f"{slug}-{taken}"][: 1 + bool(taken)]
    return found


@every_file
def test_its_links_lead_somewhere(file):
    prose = re.sub(r"`[^`]*`", "", read(file)[1])
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            host = re.fullmatch(r"https://([\w.-]+)(/\S*)?", target)
            assert host, f"{target}: https, please"
            assert host[1] in HOSTS, f"{target}: a host that is not in HOSTS"
            continue
        name, _, anchor = target.partition("#")
        there = (ROOT / file).parent / name if name else ROOT / file
        assert there.exists(), f"{target}: not there"
        if anchor:
            there = str(there.resolve().relative_to(ROOT))
            assert anchor in anchors(there), f"{target}: no such heading"


def test_the_readme_is_short_and_leads_to_all_documents():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 250
    linked = re.findall(r"\]\(([^)#\s]+)", text)
    for path in [*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]:
        name = str(path.relative_to(ROOT))
        assert name in linked, f"{name}: README.md has no link to it"


def commands(file):
    """(program, arguments) of every command of this package in a document."""
    text = read(file)[0].replace("\\\n", " ")
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
            lexer.whitespace_split = True
            groups = itertools.groupby(lexer, lambda word: not word.strip("&;|"))
            for words in (list(group) for between, group in groups if not between):
                if words[:2] == ["python", "-m"] and words[2] in PROGRAMS:
                    yield words[2], words[3:]
                elif words[0] == "pd-jax":
                    yield "pd_jax.main", words[1:]
                elif words[0].startswith("launch/") and "--" in words:
                    yield "pd_jax.main", words[words.index("--") + 1 :]


@functools.cache
def known_flags(program):
    source = (ROOT / "pd_jax" / PROGRAMS[program]).read_text()
    found = re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", source)
    return {"config", "help", *found}


@functools.cache
def known_keys():
    pairs = itertools.product(data.known(), models.known())
    return {key for pair in pairs for key, _ in configs.flatten(configs.default(*pair))}


@functools.cache
def load(given):
    """The config of a flag --config, by its file or its name."""
    name, _, variant = given.partition(":")
    path = ROOT / (name if name.endswith(".py") else f"configs/{name}.py")
    return runpy.run_path(str(path))["get_config"](variant)


def change(config, key, text):
    """Sets a key to a flag's text."""
    old = dict(configs.flatten(config))[key]
    value = text if isinstance(old, str) else ast.literal_eval(text)
    if isinstance(old, list) and not isinstance(value, tuple):
        value = (value,)
    config.update_from_flattened_dict({key: value})


@every_file
def test_its_commands_can_be_given(file):
    for program, arguments in commands(file):
        flags = dict(a[2:].partition("=")[::2] for a in arguments if a[:2] == "--")
        keys = {k: flags.pop(k) for k in list(flags) if k.startswith("config.")}
        assert flags.keys() <= known_flags(program), arguments
        if "config" not in flags or "$" in flags["config"]:  # a loop of the shell
            continue
        config = load(flags["config"]).copy_and_resolve_references()
        for key, value in keys.items():
            change(config, key.removeprefix("config."), value)
        configs.check(config, int(flags.get("num_chips", 1)))


@every_file
def test_what_it_names_is_there(file):
    for code in spans(file):
        key, name = KEY.fullmatch(code), NAME.fullmatch(code)
        if PATH.fullmatch(code):
            there = (ROOT / code).exists() or pathlib.Path(code).stem in STAND_INS
            assert there, f"`{code}`: no such file"
        elif key:
            assert key[1] in known_keys(), f"`{code}`: no such key"
        elif name and (ROOT / "pd_jax" / f"{name[1]}.py").exists():
            module = importlib.import_module(f"pd_jax.{name[1]}")
            there = hasattr(module, name[2]) or name[2] in SUFFIXES
            assert there, f"`{code}`: no such name"


def texts(node):
    """The texts in a program, with a mark where something is put in."""
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            pieces = (getattr(piece, "value", "\0") for piece in part.values)
            yield "".join(p if isinstance(p, str) else "\0" for p in pieces)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def test_quoted_messages_are_those_of_the_code():
    files = (ROOT / "pd_jax").rglob("*.py")
    said = "\n\n".join(text for f in files for text in texts(ast.parse(f.read_text())))
    quoted = re.findall(r'\*\*"(.+?)"\*\*', read("docs/troubleshooting.md")[1], re.S)
    assert len(quoted) > 40
    for message in quoted:
        parts = re.escape(" ".join(message.split())).split("…")
        assert re.search("[^\n]*".join(parts), said), f"nothing says: {message}"


def test_the_config_reference_is_fresh():
    made = runpy.run_path(str(ROOT / "docs" / "make_config.py"))["text"]()
    assert (ROOT / "docs" / "config.md").read_text() == made, (
        "keys have changed: run python docs/make_config.py"
    )
    assert all(f"`{key}`" in made for key in known_keys())


def made_methods(name):
    return runpy.run_path(str(ROOT / "docs" / "make_methods.py"))[name]


def test_every_row_of_the_methods_tables_is_a_run_that_can_be_given(tmp_path):
    names = {}
    for _, run, _, _ in made_methods("rows")(read("docs/methods.md")[0]):
        names.setdefault(run[0], set()).add(run[1])
        (given,), flags = (
            [a for a in made_methods("command")(run, 3, tmp_path) if part in a]
            for part in ("--config=", "--config.")
        )
        config = load(given.removeprefix("--config=")).copy_and_resolve_references()
        for flag in flags:
            change(config, *flag.removeprefix("--config.").split("="))
        configs.check(config, 1)
        assert config.seed == 3
    for name, methods in names.items():
        every = runpy.run_path(str(ROOT / f"configs/{name}.py"))["METHODS"]
        # A sample of it is tied to no noise of the ring's map.
        left_out = {"diff_instruct"} if name == "mixture2d" else set()
        assert methods == {"progressive", *every} - left_out


def test_the_methods_tables_are_filled_with_what_runs_measured(tmp_path):
    def run(name, seed, sampler, values, **section):
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        rows = [
            {
                "model": model,
                "num_steps": steps,
                "sampler": sampler,
                "metrics": {"rmse_to_exact": value + (model == "teacher")},
            }
            for steps, value in values.items()
            for model in ("teacher", "student")
        ]
        report = {"rows": rows, "seconds": {"total": 60.4 + seed}}
        (folder / "report.json").write_text(json.dumps(report))
        config = {"chain": ["teacher", "student"], "student": section}
        (folder / "config.json").write_text(json.dumps(config))

    for seed in (0, 1):
        run("mixture2d-boot", seed, "path", {1: 0.02 * (seed + 2.1)}, grid=16)
        values = {4: 0.9, 1: 0.0512}
        name = "mixture2d-consistency_distillation"
        run(name, seed, "consistency", values, grid=32)
        run(f"{name}-segments=2", seed, "ddim", {2: 0.04}, grid=64)
        run("mixture2d-trajectory", seed, "path", {4: 0.04, 1: 0.1}, grid=8)
    run("mixture2d-tract", 0, "ddim", {2: 0.03}, start=32)
    old = """
| other | K |
|---|---|
| `boot` | 1 |

| `mixture2d` | what | K | 1 step | 4 steps | bound | time, s | 2 steps |
|---|---|---|---|---|---|---|---|
| `boot` | by hand | | | | | | |
| `trajectory`, experimental | x | | 9 | | | | |
| `consistency_distillation` | | | | 7 | | | |
| `consistency_distillation`, `segments=2` | | 1 | | | | | |
| `tract` | one run of two | 1 | | | | | 0.5 |

Text.
"""
    new = """
| other | K |
|---|---|
| `boot` | 1 |

| `mixture2d` | what | K | 1 step | 4 steps | bound | time, s | 2 steps |
|---|---|---|---|---|---|---|---|
| `boot`, experimental | by hand | 16 | 0.042, 0.062 | | 0.06 | 60, 61 | |
| `trajectory` | x | 8 | 0.100, 0.100 | 0.040, 0.040 | 0.13, 0.05 (4 steps) | 60, 61 | |
| `consistency_distillation` | | 32 | 0.051, 0.051 | | 0.07 | 60, 61 | |
| `consistency_distillation`, `segments=2` | | 64 | | | | 60, 61 | 0.040, 0.040 |
| `tract` | one run of two | 1 | | | 0.05 (2 steps) | | 0.5 |

Text.
"""
    text = made_methods("text")
    assert text(old, tmp_path, [0, 1]) == new
    assert text(new, tmp_path, [0, 1]) == new


def test_the_citation_is_of_this_version():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0"
    assert found["version"] == pd_jax.__version__
    assert found["authors"]
    assert found["message"]


@pytest.mark.slow
def test_the_samplers_table_is_fresh():
    made = subprocess.run(
        [sys.executable, ROOT / "docs" / "samplers.py"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout
    text = (ROOT / "docs" / "methods.md").read_text()
    rows = {line.split("|")[1]: line for line in text.splitlines() if "|" in line}
    for line in filter(None, made.splitlines()):
        new, old = (re.findall(r"[0-9.]+", x) for x in (line, rows[line.split("|")[1]]))
        assert list(map(float, new)) == pytest.approx(list(map(float, old)), rel=0.1)
