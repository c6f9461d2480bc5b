"""Writes docs/config.md, the reference of all config keys, from the code.

    python docs/make_config.py

What a key means is said once, where it is defined: in the comments of
`pd_jax.config.default`, the attributes of a network's or a method's class, the
arguments of a data set's `load`. A test compares the file with what this makes.
"""

import ast
import contextlib
import importlib
import inspect
import io
import itertools
import pathlib
import re
import runpy
import textwrap
import tokenize
from collections.abc import Sequence

from pd_jax import config as configs
from pd_jax import conventions, data, methods, models, samplers, space
from pd_jax import schedules as schedule_module
from pd_jax.config import keys
from pd_jax.models import _attention, _embedding
from pd_jax.training import optimizer

ROOT = pathlib.Path(__file__).parents[1]
CHOICES = {
    "precision": configs.PRECISIONS,
    "data.name": data.known(),
    "data.kind": space.KINDS,
    "schedule.name": sorted(schedule_module.SCHEDULES),
    "model.name": models.known(),
    "model.output": list(conventions.CONVENTIONS),
    "ladder.method": methods.known(),
    "ladder.decay": optimizer.DECAYS,
    "eval.sampler": samplers.known(),
    "model.logsnr_input_type": _embedding.LOGSNR_INPUTS,
    "model.attention": _attention.KINDS,
}
SECTIONS = {
    "": "Of the whole run",
    "data": "`data`: what is learnt from",
    "schedule": "`schedule`: from time to noise level",
    "model": "`model`: the network",
    "ladder": "Trainings: `teacher`, `ladder`, and any other that `chain` names",
    "teacher": "`teacher`: what may teach instead of training",
    "perceptual": "`perceptual`: how pictures look, to a network",
    "eval": "`eval`: how teacher and students are measured",
    "run": "`run`: how a run is carried out",
}
# The section that a method is shown with; a config gives its own names to trainings.
METHODS = {"standard": "teacher", "progressive": "ladder"}
OTHER_METHODS = "student"
HEAD = """\
# Config reference

Made from the code by `python docs/make_config.py`; a test fails where it is stale.

A config file is a small Python program: it begins with
`pd_jax.config.default(DATA, NETWORK)` and changes keys. Another method than progressive
distillation is asked for there, too: with `default(DATA, NETWORK, student=METHOD)`
section `student` is in the place of `ladder`, with the keys of every training and of
that method. Any key is also a flag,
`--config.ladder.start=64`; tuples are quoted, `--config.ladder.updates='(400,800)'`.
A key that is not there is an error that names the nearest one.

A run's folder belongs to its values. Keys of section `run` alone may differ when a run
goes on; for other values give another `--workdir`.
"""


def comments(source: str) -> dict[int, str]:
    """Line number -> text of the comment that ends it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def documented_keys() -> dict[str, str]:
    """Dotted key -> meaning, from the comments of `pd_jax.config.default`."""
    source = inspect.getsource(keys)
    notes, lines = comments(source), source.splitlines()
    functions = {
        node.name: node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }

    def note(line):
        """The comment at a line, and those that stand alone below it."""
        parts = [notes.get(line, "")]
        while lines[line].lstrip().startswith("#"):
            line += 1
            parts.append(notes[line])
        return " ".join(parts)

    def walk(call, prefix):
        for keyword in call.keywords:
            value = keyword.value
            name = getattr(getattr(value, "func", None), "id", "")
            if keyword.arg is None and name in functions:
                yield from walk(functions[name].body[-1].value, prefix)
            elif name == "dict":
                yield from walk(value, f"{prefix}{keyword.arg}.")
            elif keyword.arg is not None:
                yield prefix + keyword.arg, note(value.end_lineno)

    calls = ast.walk(functions["default"])
    first = next(n for n in calls if getattr(getattr(n, "func", 0), "id", "") == "dict")
    own = {"ladder.": functions["_training"], "teacher.": functions["_teacher"]}
    return dict(walk(first, "")) | {
        key: meaning
        for prefix, function in own.items()
        for key, meaning in walk(function.body[-1].value, prefix)
    }


def documented_names(docstring: str, heading: str) -> dict[str, str]:
    """Name -> meaning, from a docstring's section "Attributes:" or "Args:"."""
    found = re.search(rf"^{heading}:\n((?:  .*\n?|\n)*)", docstring, re.MULTILINE)
    entries = textwrap.dedent(found[1]).strip() if found else ""
    meanings = {}
    for entry in re.split(r"\n(?! )", entries):
        names, _, text = entry.partition(":")
        for name in names.split(", "):
            meanings[name] = " ".join(text.split())
    return meanings


def kind(value: object) -> str:
    """A value's type in words."""
    if isinstance(value, tuple):
        return f"tuple of {kind(value[0])}" if value else "tuple of int"
    return type(value).__name__


def shown(value: object) -> str:
    """A value as code; of a tuple, what repeats is told once."""
    if type(value) in (tuple, list):
        runs = [(v, len(list(run))) for v, run in itertools.groupby(value)]
        if max((num for _, num in runs), default=0) > 3:
            parts = [f"({plain(v)},)" + f" * {num}" * (num > 1) for v, num in runs]
            return f"`{' + '.join(parts)}`"
        inside = ", ".join(map(plain, value))
        return f"`({inside}{',' * (len(value) == 1)})`"
    return f"`{plain(value)}`"


def plain(value: object) -> str:
    """A single value as Python has it."""
    if type(value) is int and value >= 10_000:
        return f"{value:_}"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def table(rows: list[tuple], *heads: str) -> list[str]:
    """A Markdown table."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [
        f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]
    ] + [""]


def row(
    key: str, value: object, meaning: str, choices: Sequence[str] = ()
) -> tuple[str, ...]:
    """A key's line of a table."""
    if not meaning:
        raise ValueError(f"{key}: say what it means where it is defined")
    meaning = meaning.rstrip(".")
    choices = choices or CHOICES.get(key)
    if choices:
        meaning += f". One of {', '.join(f'`{c}`' for c in choices)}"
    chosen = key in ("data.name", "model.name")  # by the config, always
    return f"`{key}`", kind(value), "" if chosen else shown(value), meaning


HEADS = ("key", "type", "default", "what")


def section(name: str, values: dict, meanings: dict[str, str]) -> list[str]:
    """The table of a section's keys that every config has, in the order of the code."""
    prefix = f"{name}." if name else ""
    keys = [key for key in meanings if key.removeprefix(prefix) in values]
    keys = [key for key in keys if key.startswith(prefix)]
    rows = [row(key, values[key.removeprefix(prefix)], meanings[key]) for key in keys]
    return [f"## {SECTIONS[name]}", "", *table(rows, *HEADS)]


def of_every_training(config: dict, meanings: dict[str, str]) -> list[str]:
    """The table of the keys that all trainings have, which the ladder's stand for."""
    rows = []
    for key, meaning in meanings.items():
        if key.startswith("ladder."):
            key = key.removeprefix("ladder.")
            cells = row(f"ladder.{key}", config["ladder"][key], meaning)
            values = dict.fromkeys(shown(config[t][key]) for t in ("teacher", "ladder"))
            key = f"`teacher.{key}`, `ladder.{key}`"
            rows.append((key, cells[1], ", ".join(values), cells[3]))
    return [f"## {SECTIONS['ladder']}", "", *table(rows, *HEADS)]


def options(
    title: str, summary: str, prefix: str, values: dict, meanings: dict[str, str]
) -> list[str]:
    """The table of one data set's, or one network's, own keys."""
    rows = [row(f"{prefix}.{key}", v, meanings.get(key)) for key, v in values.items()]
    return [f"### {title}", "", summary, "", *table(rows, *HEADS)]


def first_line(thing: object) -> str:
    """The first line of a docstring."""
    return inspect.getdoc(thing).splitlines()[0]


def data_sets() -> list[str]:
    """A table for every data set."""
    lines = []
    for name in data.known():
        module = importlib.import_module(f"pd_jax.data.{name}")
        meanings = documented_names(inspect.getdoc(module.load), "Args")
        values = data.options(name)
        lines += options(
            f"Data set `{name}`", first_line(module), "data", values, meanings
        )
    return lines


def networks() -> list[str]:
    """A table for every network."""
    lines = []
    for name in models.known():
        module = importlib.import_module(f"pd_jax.models.{name}")
        meanings = documented_names(inspect.getdoc(module.Network), "Attributes")
        values = models.fields(name)
        lines += options(
            f"Network `{name}`", first_line(module), "model", values, meanings
        )
    return lines


def training_methods() -> list[str]:
    """A table for every method."""
    lines = []
    for name in methods.known():
        module = methods.get(name)
        meanings = {}
        for kind_of in reversed(module.Method.__mro__):  # what methods share, too
            own = kind_of.__dict__.get("__doc__") or ""
            meanings |= documented_names(inspect.cleandoc(own), "Attributes")
        prefix = METHODS.get(name, OTHER_METHODS)
        rows = [
            row(f"{prefix}.{key}", field.default, meanings.get(key), limits)
            for key, field in methods.fields(name).items()
            for limits in [field.metadata.get("choices", ())]
        ]
        lines += [f"### Method `{name}`", "", first_line(module), ""]
        lines += table(rows, *HEADS)
    return lines


def changes(before: dict, after: dict) -> list[tuple[str, str, str]]:
    """Keys whose values differ, as code."""
    before, after = (dict(configs.flatten(values)) for values in (before, after))
    return [
        (f"`{key}`", shown(before[key]), shown(value))
        for key, value in after.items()
        if value != before[key]
    ]


def shipped() -> list[str]:
    """What every file of configs/ changes."""
    lines = ["## What the shipped configs change", ""]
    for path in sorted((ROOT / "configs").glob("*.py")):
        module = runpy.run_path(str(path))
        config = module["get_config"]()
        name, network = config.data.name, config.model.name
        default = configs.default(name, network).to_dict()
        lines += [
            f"### [{path.stem}](../configs/{path.name})",
            "",
            module["__doc__"].splitlines()[0],
            f"Data set `{name}`, network `{network}`.",
            "",
            *table(changes(default, config.to_dict()), "key", "default", "here"),
        ]
        with contextlib.suppress(ValueError):  # not all have this variant
            improved = module["get_config"]("improved").to_dict()
            for key, _, value in changes(config.to_dict(), improved):
                lines += [f"`:improved` has {key} {value}, too.", ""]
    return lines


def text() -> str:
    """The whole file."""
    meanings = documented_keys()
    config = configs.default("digits", "unet").to_dict()
    top = {key: v for key, v in config.items() if not isinstance(v, dict)}
    lines = [HEAD, *section("", top, meanings)]
    for name in list(SECTIONS)[1:]:
        if name == "ladder":
            lines += of_every_training(config, meanings)
            continue
        lines += section(name, config[name], meanings)
        made = {"data": data_sets, "model": networks, "teacher": training_methods}
        lines += made.get(name, list)()
    return "\n".join([*lines, *shipped()]).rstrip() + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "config.md").write_text(text())
