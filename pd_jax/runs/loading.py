"""Students from where they are kept: a run's folder, or a bundle."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from pd_jax import __version__, models, schedules
from pd_jax import config as configs
from pd_jax.checkpoint import StageCheckpoints
from pd_jax.config import setup
from pd_jax.evaluation.rows import Row, row_of, student_rows
from pd_jax.models import Function, Model
from pd_jax.models._embedding import EXTRA
from pd_jax.runs import record as records
from pd_jax.runs.record import Record
from pd_jax.runs.stage_record import StageRecord
from pd_jax.runtime import numerics, processes
from pd_jax.runtime.errors import Refused
from pd_jax.schedules import Schedule
from pd_jax.space import Space
from pd_jax.storage import files
from pd_jax.students import bundle
from pd_jax.students.program import ProgramStudent
from pd_jax.students.student import Student
from pd_jax.training.method import state_shapes
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL

CONTENT = (
    *("num_steps", "step_counts", "sampler", "labels", "label_counts"),
    *("metrics", "facts"),
)


@numerics.pinned()
def load(
    path: str | os.PathLike,
    num_steps: int | None = None,
    *,
    force: bool = False,
    apply: Callable | None = None,
    model: Any = None,
    schedule: Schedule | None = None,
    program: bool = False,
) -> Student:
    """A student from a bundle or from a run's folder.

    Args:
      path: the file, or the folder.
      num_steps: the student of so many steps, 0 for a folder's teacher; None for a
        bundle's own, and a folder's finished student of the fewest.
      force: for another count takes the student whose own is nearest, at that count.
      apply: of a student of `pd_jax.distil`, the function that was given there. Its
        weights are nested dicts, and lists for lists and tuples; an `nnx.State` of them
        is `nnx.State(params)`, for one.
      model: of a bundle whose network is no `pd_jax.models`.
      schedule: of a bundle whose schedule is no `pd_jax.schedules`.
      program: samples by a bundle's own program, whatever its network; the program is
        code, so only of files that you trust.

    Raises:
      Refused: for what is not there, damaged, or not made for these steps, listing
        those that are.
    """
    processes.check_devices()
    path = epath.Path(path).expanduser()
    if num_steps is not None and num_steps < 0:
        raise Refused(f"{path}: num_steps={num_steps} is below 0")
    if path.is_dir():
        if program:
            raise Refused(f"{path} is a folder: a program is in a bundle, a file")
        student = _from_workdir(path, num_steps, force, apply)
        if num_steps == 0:
            return student
    else:
        student = _from_bundle(path, apply, model, schedule, program)
    try:
        steps = student.steps(
            student.num_steps if num_steps is None else num_steps, force
        )
    except Refused as error:
        raise Refused(f"{path}: {error}") from error
    if steps == student.num_steps:
        return student
    counts = student.step_counts if steps in student.step_counts else ()
    return dataclasses.replace(student, num_steps=steps, step_counts=counts, metrics={})


def _shapes(model: Model, shape: tuple[int, ...]) -> dict:
    """A network's weights as shapes, on one device."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda key: model.init(key, shape), numerics.key(0))
    return _on(here, shapes)


def _on(sharding: jax.sharding.Sharding, tree: Any) -> Any:
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
    )


# A bundle.


def _from_bundle(
    path: epath.Path,
    apply: Callable | None,
    model: Any,
    schedule: Schedule | None,
    program: bool,
) -> Student:
    if not path.exists():
        raise Refused(f"{path}: no such file or folder")
    try:
        opened = bundle.Bundle(path)
        content = opened.content
        named = {key: content[key] for key in CONTENT}
        said = content["shape"], content["kind"], content["clip"]
        named["space"] = _made(Space.stored, *said)
        if program:
            named |= {"model": None, "schedule": None, "step_counts": ()}
            named |= {"params": opened.params(), "serialized": opened.program()}
            return _made(ProgramStudent, **named)
        if schedule is None:
            schedule = _schedule(content)
        if apply is not None:
            model = _function(apply, content["model"], content)
        if model is None:
            model = _network(content)
        if isinstance(model, Model) and isinstance(model.network, nn.Module):
            _check(opened.shapes, model, tuple(content["shape"]))
        params = opened.params()
        params = params if apply is None else bundle.with_lists(params)
        named |= {"params": params, "model": model, "schedule": schedule}
        return _made(Student, **named)
    except ValueError as error:  # of a file's bytes, whoever reads them
        raise Refused(f"{path}: {error}") from error


def _schedule(content: dict) -> Schedule:
    if content["schedule"] is None:
        raise ValueError(
            "its schedule is none of pd_jax.schedules: give it as pd_jax.load(path, "
            "schedule=...)"
        )
    return _made(schedules.get, **content["schedule"])


def _network(content: dict) -> Model:
    """The network that a bundle names."""
    if content["model"] is None:
        raise ValueError(
            "its network is none of pd_jax.models: give its function, as "
            "pd_jax.load(path, apply=...); or, of a file that you trust, run its own "
            "program, with program=True or --mode=sample --program"
        )
    return _made(_model, content["model"], content["shape"], content["precision"])


def _function(apply: Callable, named: dict | None, about: dict) -> Model:
    """A caller's own network, of a file that says its `output` and `labels`."""
    if named is not None:
        raise ValueError(f'its network is "{named.get("name")}": leave out apply')
    labels = about["labels"]
    classes = len(labels) if isinstance(labels, list) else labels or 0
    return _made(Model, Function(apply, classes), about.get("output"))


def _model(section: dict, shape: tuple[int, ...], precision: str) -> Model:
    """The network of a section, with the attention that suits the devices here."""
    if "attention" in section:
        section = section | {"attention": "auto"}
    return models.build(section, shape[-1], precision)


def _made(make: Any, *given: Any, **named: Any) -> Any:
    """What `make` makes of a file's words; ValueError where it cannot."""
    try:
        return make(*given, **named)
    except Exception as error:  # they can be of any type
        raise ValueError(files.brief(error)) from error


def _check(shapes: dict, model: Model, shape: tuple[int, ...]) -> None:
    """Refuses weights that are not the network's, before they are read."""
    calls = 0

    def count(function, given, named, context):
        nonlocal calls
        calls += 1
        # A file's words could ask for networks without end.
        if calls > 100 + 8 * len(shapes):
            raise ValueError(f"its network is larger than {len(shapes)} weights")
        return function(*given, **named)

    with nn.intercept_methods(count):
        like = _made(_shapes, model, shape)
        if any(name.startswith(f"{EXTRA}/") for name in shapes):
            like = jax.eval_shape(lambda p: model.with_second_time(p, shape), like)
        like = bundle.flatten(like)
    off = sorted(
        f"{name} is {shapes.get(name)}, not {getattr(like.get(name), 'shape', None)}"
        for name in shapes.keys() | like.keys()
        if name not in shapes or name not in like or shapes[name] != like[name].shape
    )
    if off:
        raise ValueError(f"its weights are another network's: {'; '.join(off[:5])}")


# A run's folder.


def _from_workdir(
    workdir: epath.Path, num_steps: int | None, force: bool, apply: Callable | None
) -> Student:
    record, config = look(workdir)
    if num_steps == 0:
        return _teacher(workdir, config, record)
    stages = {n: stage for stage in students(record) for n in stage.step_counts}
    if not stages:
        none = f"{workdir}: no student is finished yet"
        raise Refused("; ".join([none, *record.warnings]))
    if num_steps is None:
        num_steps = list(stages)[-1]
    if num_steps not in stages and not force:
        raise Refused(
            f"{workdir} has no finished student of {num_steps} steps: there are those "
            f"of {', '.join(map(str, stages))}; in Python, force=True takes the nearest"
        )
    nearest = min(stages, key=lambda n: abs(np.log(n / num_steps)))
    stage = stages[nearest]
    given = workdir, config, stage.training, stage.stage
    return of_stage(*given, num_steps=nearest, apply=apply)


def look(workdir: epath.Path) -> tuple[Record, ConfigDict]:
    """What a run's folder says, and its config; Refused where it has none."""
    values = records.config_of(workdir)
    try:
        return records.look(workdir), configs.stored(values)
    except Refused as error:
        raise Refused(f"{workdir / 'config.json'}: {error}") from error


def students(record: Record) -> list[StageRecord]:
    """The finished stages of students, in order."""
    return [
        s for s in record.stages if s.finished and s.training not in ("", "teacher")
    ]


def _teacher(workdir: epath.Path, config: ConfigDict, record: Record) -> Student:
    stage = next((s for s in record.stages if s.training == "teacher"), None)
    if stage is None:
        raise Refused(
            f"{workdir}: its teacher was not trained there, so none is kept: "
            f"teacher.exact={config.teacher.exact}, "
            f"teacher.released={config.teacher.released!r}"
        )
    return of_stage(workdir, config, stage.training, stage.stage)


@numerics.pinned()
def of_stage(
    workdir: epath.Path,
    config: ConfigDict,
    training: str,
    stage: Stage,
    built: setup.Setup | None = None,
    num_steps: int | None = None,
    apply: Callable | None = None,
) -> Student:
    """The model of a finished stage of a config's training, as its checkpoint says.

    Args:
      workdir, config: the run's.
      training: the training's name.
      stage: the stage.
      built: the run's own setup, for a network without a name.
      num_steps: its steps by default, one of those that it was made for; default the
        fewest.
      apply: in place of `built`, the network as a function.

    Raises:
      Refused: where that cannot be told, or the stage is not finished.
    """
    processes.check_devices()
    own = config.model.name == configs.GIVEN
    if own and built is None and apply is None:
        raise Refused(
            f"{workdir}: its network is a caller's own: give its function, as "
            "pd_jax.load(FOLDER, apply=...), whose save(FILE) makes a bundle; or call "
            "pd_jax.distil as before, which gives the students of a run that is done"
        )
    if apply is not None and not own:
        raise Refused(
            f'{workdir}: its network is "{config.model.name}": leave out apply'
        )
    with StageCheckpoints(workdir, stage, writes=False) as checkpoints:
        if not checkpoints.finished:
            raise Refused(f"{workdir}: {stage.name} is not finished")
        facts = checkpoints.facts()
        model, weights = (built.model, built.shapes) if built else (None, None)
        if apply is not None:
            model, weights = _own(workdir, config, facts, apply)
        described = _made(_described, facts, config, model)
        model = described["model"]
        shape = described["space"].shape
        parts = setup.parts(config, training, model, described["schedule"], shape)
        method = configs.planned(config, 0, {training: parts})[training][0]
        if weights is None:
            weights = _shapes(model, shape)
        here = SingleDeviceSharding(jax.local_devices()[0])
        like = _on(here, state_shapes(method, stage, weights))
        params = jax.device_get(checkpoints.handed_over(like, method)[MODEL])
    rows = student_rows(method, stage, config.eval.sampler)
    made_for = [row for row in rows if num_steps in (None, row.num_steps)]
    teacher = Row("teacher", 0, stage.name, config.eval.sampler)
    row = made_for[-1] if made_for else teacher
    counts, record = method.step_counts(stage), records.look(workdir)
    measured = [entry for entry in record.rows if row_of(entry).name == row.name]
    now = {"pd_jax": __version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}
    return Student(
        **described,
        params=params,
        num_steps=row.num_steps,
        step_counts=counts if len(counts) > 1 else (),
        sampler=row.sampler,
        metrics=measured[0]["metrics"] if made_for and measured else {},
        facts={
            "stage": stage.name,
            "data": facts["data"],
            "chain": _chain(record, config, stage.name),
            "config": config.to_dict(),
            "versions": {"run": record.report.get("versions"), "export": now},
        },
    )


def _own(
    workdir: epath.Path, config: ConfigDict, facts: dict, apply: Callable
) -> tuple[Model, Any]:
    """A caller's own network, by its function, and its weights as shapes."""
    function = facts.get("function")
    if function is None:
        raise Refused(
            f"{workdir}: made by a former version, which does not tell the weights' "
            "shapes: call pd_jax.distil as before"
        )
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in function["weights"].items()
    }
    network = Function(apply, function["num_classes"])
    model = _made(Model, network, config.model.output)
    return model, bundle.with_lists(bundle.unflatten(shapes))


def _described(facts: dict, config: ConfigDict, model: Model | None) -> dict:
    """Those fields of a student that its checkpoint's facts tell."""
    about = facts["data"]
    space = Space.stored(about["shape"], about.get("kind", ""), facts["clip"])
    if model is None:
        here = setup.precision(config, jax.default_backend())
        model = _model(facts["model"], space.shape, facts.get("precision") or here)
    labels = facts.get("labels") or ()
    classes = getattr(model.network, "num_classes", 0)
    return {
        "model": model,
        "schedule": schedules.get(**facts["schedule"]),
        "space": space,
        "labels": labels if len(labels) == classes > 1 else classes or None,
        "label_counts": _counts(facts.get("label_counts", ()), classes),
    }


def _counts(counts: list[int], classes: int) -> tuple[int, ...]:
    """Those of a network's classes, of which the data may have had fewer."""
    return (*counts, *[0] * (classes - len(counts))) if counts else ()


def _chain(record: Record, config: ConfigDict, name: str) -> list[dict]:
    """A stage and those that it was taught by, each with its updates; first ones last.

    The last one of a ladder whose teacher is not kept there names that.
    """
    stages = {stage.name: stage for stage in record.stages if stage.saved}
    chain, taught_by = [], name
    while taught_by in stages:
        stage = stages.pop(taught_by)
        chain.append({"stage": stage.name, "updates": stage.saved})
        taught_by = stage.taught_by
    if chain[-1]["stage"] != "teacher":
        chain.append({"released": taught_by, "exact": config.teacher.exact})
    return chain
