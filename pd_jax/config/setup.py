"""From a config to the things that a run is made of; nothing is written here."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from pd_jax import config as configs
from pd_jax import data, metrics, models, schedules
from pd_jax.arcs import Denoiser
from pd_jax.checkpoint.released import load_released
from pd_jax.data import Dataset, Description
from pd_jax.metrics import inception, load_statistics, lpips
from pd_jax.models import Model
from pd_jax.runtime import console, numerics, processes
from pd_jax.runtime.errors import Refused
from pd_jax.schedules import Schedule
from pd_jax.space import PICTURES, Space
from pd_jax.training.method import Measured, Method, Parts
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.plateau import Plateau
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL
from pd_jax.training.step import Measure, Step
from pd_jax.training.training import Training

# What the config's seed is folded with, once for every purpose: the updates of training
# number n (0 is the teacher's) with 1 + n, but 2 + n from the third training on.
FIRST_WEIGHTS, VALIDATION = 0, 3
START, FURTHER_VALIDATION = 2**16, 2**17


@dataclasses.dataclass
class Setup:
    """Everything that a config names, built and checked; no weights are made yet.

    Attributes:
      config: the config.
      datasets: what is learnt from, by section of the config; of a `sketch`, each is a
        `Description`.
      schedule, model: on which levels, with what.
      shapes: the network's weights as shapes and types.
      trainings: the config's chain, without a teacher's that is exact or released.
      released: a released teacher's weights, on the host; or None.
      teacher_steps: sampling steps that the teacher was made for; 0 for any.
    """

    config: ConfigDict
    datasets: dict[str, Dataset | Description]
    schedule: Schedule
    model: Model
    shapes: dict
    trainings: list[Training]
    released: dict | None
    teacher_steps: int

    @property
    def dataset(self) -> Dataset | Description:
        """What samples are compared with, and what is learnt from by default."""
        return self.datasets["data"]

    def data_of(self, stage: Stage) -> tuple[str, Dataset | Description]:
        """The data set that a stage learns from, with its name."""
        name = next(t.name for t, of in self.stages if of == stage)
        section = self.config[name].data or "data"
        return self.config[section].name, self.datasets[section]

    def first_weights(self) -> dict:
        """What the first stage starts from: released, or new from the config's seed."""
        return self.fresh_weights() if self.released is None else self.released

    def fresh_weights(self, key: jax.Array | None = None) -> dict:
        """New weights of a key; default the first ones of the config's seed."""
        if key is None:
            key = jax.random.fold_in(numerics.key(self.config.seed), FIRST_WEIGHTS)
        return jax.jit(self.model.init, static_argnums=1)(key, self.dataset.shape)

    def training(self, name: str) -> Training:
        """The training of a config section."""
        return next(t for t in self.trainings if t.name == name)

    @property
    def space(self) -> Space:
        """What an example is, and whether predictions of it are clipped."""
        dataset = self.dataset
        return Space.of(dataset.shape, dataset.kind, self.config.eval.clip)

    @property
    def stages(self) -> list[tuple[Training, Stage]]:
        """All stages in order: a place here is a stage's index in the run."""
        return [(t, stage) for t in self.trainings for stage in t.stages]


def _shapes(model: Model, dataset: Dataset | Description) -> dict:
    shapes = jax.eval_shape(lambda key: model.init(key, dataset.shape), numerics.key(0))
    if processes.is_first():
        for note in models.notes(model.network, dataset.shape):
            console.warn(note)
    return shapes


def precision(config: ConfigDict, platform: str) -> str:
    """The type that the network multiplies in on a platform, such as "cpu"."""
    name = config.precision
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    if name == "float32" or models.has_dtype(config.model.name):
        return name
    if config.precision == "auto":
        return "float32"
    raise Refused(
        f'precision="{name}": network "{config.model.name}" has no field dtype, and '
        'computes as it wants; give "auto" or "float32"'
    )


def _model(
    config: ConfigDict, datasets: dict[str, Dataset | Description], platform: str
) -> Model:
    section = config.model.to_dict()
    channels = datasets["data"].shape[-1]
    model = models.build(section, channels, precision(config, platform))
    classes = section.get("num_classes", 0)
    for section, dataset in datasets.items():
        name, largest = config[section].name, dataset.num_classes
        if largest is None:
            continue
        if classes > 1 and not largest:
            raise Refused(
                f'model.num_classes={classes}, but data "{name}" has no labels: give '
                f"0, or say where they are (the keys of section {section})"
            )
        if 1 < classes < largest:
            raise Refused(
                f'model.num_classes={classes}, but the labels of data "{name}" go up '
                f"to {largest - 1}: give {largest}, or 0 to train without labels"
            )
    return model


def _check_alike(datasets: dict[str, Dataset | Description]) -> None:
    """Refuses data sets of one run whose examples are not of one shape and kind."""
    spaces = {name: Space.of(d.shape, d.kind) for name, d in datasets.items()}
    for name, space in spaces.items():
        if space != spaces["data"]:
            words = [
                f"{name}: {spaces[name].kind} of shape {datasets[name].shape}"
                for name in ("data", name)
            ]
            raise Refused(
                f"the trainings of a run learn from examples of one shape and kind, "
                f"not of {'; '.join(words)}"
            )


def parts(
    config: ConfigDict,
    name: str,
    model: Model,
    schedule: Schedule,
    shape: tuple[int, ...],
    exact: Denoiser | None = None,
) -> Parts:
    """What the method of section `name` is built of.

    Args:
      config, name: the config and the section.
      model, schedule: what is trained, on which noise levels.
      shape: of one example.
      exact: the denoiser that teaches first, in place of weights.
    """
    section = config[name]
    fields = {f.name for f in dataclasses.fields(Optimizer)}
    optimizer = Optimizer(**{k: v for k, v in section.items() if k in fields})
    model = dataclasses.replace(
        model, network=model.network.clone(dropout=section.dropout)
    )
    perceptual = _perceptual(config) if section.get("loss") == "lpips" else None
    return Parts(name, model, schedule, optimizer, shape, exact, perceptual)


def _perceptual(config: ConfigDict) -> lpips.Perceptual:
    """What pictures are compared by."""
    with _named("perceptual.weights"):
        weights = lpips.load_weights(config.perceptual.weights)
    return lpips.Perceptual(weights, config.perceptual.size)


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    """Puts the config key before what is said of the file that it names."""
    try:
        yield
    except Refused as error:
        raise Refused(f"{key}: {error}") from error


def _check_numbers(config: ConfigDict, dataset: Dataset) -> None:
    """Refuses fewer samples or examples than some metric is made of."""
    ev, held_back = config.eval, len(dataset.reference)
    numbers = {
        f"eval.num_samples={ev.num_samples}": ev.num_samples,
        f"eval.num_reference={ev.num_reference}, of {held_back} examples": min(
            ev.num_reference or held_back, held_back
        ),
    }
    for metric in metrics.every():
        if "features" in metric.needs and not ev.inception:
            continue
        for given, number in numbers.items():
            if number < metric.least:
                raise Refused(f"{given}: {metric.name} needs {metric.least} at least")


def _check_data(config: ConfigDict, dataset: Dataset) -> None:
    name = config.data.name
    for examples, what in (
        (dataset, "example"),
        (dataset.reference, "held-back example"),
    ):
        if len(examples) < 2:
            raise Refused(
                f'data "{name}" has {len(examples)} {what}: at least 2 are needed, to '
                "compare samples with"
            )
    ev = config.eval
    if ev.statistics and not ev.inception:
        raise Refused(
            f"eval.statistics={ev.statistics}: statistics of Inception features need "
            "the network's weights in eval.inception"
        )
    _check_numbers(config, dataset)
    files = {
        "eval.inception": ev.inception,
        "perceptual.weights": config.perceptual.weights,
    }
    kind = Space.of(dataset.shape, dataset.kind).kind
    for key, file in files.items():
        if file and kind != PICTURES:
            raise Refused(
                f'{key} needs pictures; data "{name}" are {kind} of shape '
                f"{dataset.shape}"
            )
    if config.perceptual.weights:
        _perceptual(config)
    if ev.inception:
        # Read now, and again when needed: a mistake is found before days of training.
        with _named("eval.inception"):
            inception.load_weights(ev.inception)
        if ev.statistics:
            with _named("eval.statistics"):
                size = load_statistics(ev.statistics).mean.size
            if size != inception.shapes()["fc.weight"][1]:
                raise Refused(
                    f"eval.statistics={ev.statistics} has {size} dimensions, Inception "
                    f"features have {inception.shapes()['fc.weight'][1]}"
                )


def build(
    config: ConfigDict,
    dataset: Dataset | None = None,
    teacher: tuple[Model, Any] | None = None,
) -> Setup:
    """Builds and checks all that a config names.

    Args:
      config: the config.
      dataset: in place of the one that the config names.
      teacher: a model with its weights (a pytree of float32 arrays) that teaches, in
        place of the network that the config names and of what teacher.released names.

    Raises:
      Refused: for anything that cannot work, naming the config key.
    """
    devices = jax.devices()
    configs.check(config, len(devices))
    datasets = {} if dataset is None else {"data": dataset}
    datasets = _datasets(config, data.get, datasets)
    _check_data(config, datasets["data"])
    released, steps = None, 0
    if teacher is not None:
        model, released = teacher
        shapes = jax.eval_shape(lambda: released)
        return _assemble(config, datasets, model, shapes, released, steps, devices)
    model = _model(config, datasets, devices[0].platform)
    shapes = _shapes(model, datasets["data"])
    if config.teacher.released:
        with _named("teacher.released"):
            released, steps = load_released(config.teacher.released, shapes)
    return _assemble(config, datasets, model, shapes, released, steps or 0, devices)


def _datasets(
    config: ConfigDict, get: Callable, given: dict[str, Dataset]
) -> dict[str, Dataset | Description]:
    """The data sets of a config by section; those that are not given are got."""
    datasets = {
        section: given[section]
        if section in given
        else get(**config[section].to_dict())
        for section in configs.data_sets(config)
    }
    _check_alike(datasets)
    return datasets


def sketch(config: ConfigDict, num_devices: int) -> Setup:
    """As `build` for devices that need not be here, to trace on shapes alone.

    Of the data only the description is asked for; no released teacher and no
    evaluation network is read, so a released teacher counts as one of any steps. The
    steps are of one device of this machine, to be given one device's part of a batch.

    Raises:
      Refused: for what cannot work, naming the config key.
    """
    configs.check(config, num_devices)
    datasets = _datasets(config, data.describe, {})
    model = _model(config, datasets, "of chips")
    shapes = _shapes(model, datasets["data"])
    return _assemble(config, datasets, model, shapes, None, 0, jax.local_devices()[:1])


def _assemble(
    config: ConfigDict,
    datasets: dict[str, Dataset | Description],
    model: Model,
    shapes: dict,
    released: dict | None,
    steps: int,
    devices: list[jax.Device],
) -> Setup:
    """The rest of a setup; released weights are for `steps` steps, or 0 for any."""
    dataset = datasets["data"]
    if config.teacher.exact and dataset.denoise is None:
        raise Refused(
            f'teacher.exact=True, but no exact denoiser of data "{config.data.name}" '
            "is known: train a teacher (teacher.exact=False)"
        )
    options = config.schedule.to_dict()
    schedule = schedules.get(options.pop("name"), **options)

    names = configs.planned_names(config)
    built = {}
    for name in names:
        taught_by = config[name].taught_by or ("" if built else "teacher")
        exact = taught_by == "teacher" and config.teacher.exact
        denoise = dataset.denoise if exact else None
        built[name] = parts(config, name, model, schedule, dataset.shape, denoise)
    plan = configs.planned(config, steps, built)
    trainings = [
        _training(
            config,
            name,
            method,
            stages,
            datasets[config[name].data or "data"],
            devices,
        )
        for name, (method, stages) in plan.items()
    ]
    return Setup(config, datasets, schedule, model, shapes, trainings, released, steps)


def _purpose(config: ConfigDict, name: str) -> int:
    """What a training's number among all of a config is folded into keys as."""
    place = list(configs.trainings(config)).index(name)
    # The third purpose is the validation loss of the second training.
    return place if place < 2 else place + 1


def updates(config: ConfigDict) -> dict[tuple[int, int], int]:
    """Each stage's updates, in order, by what ends the seed of its batches."""
    return {
        (_purpose(config, name), stage.index): stage.updates
        for name, _, stage in configs.stages(config)
    }


def _training(
    config: ConfigDict,
    name: str,
    method: Method,
    stages: list[Stage],
    dataset: Dataset | Description,
    devices: list[jax.Device],
) -> Training:
    section, place = config[name], list(configs.trainings(config)).index(name)
    purpose = _purpose(config, name)
    root = numerics.key(config.seed)
    check = section.get("check_updates", 0)
    whole = math.gcd(check, *(stage.updates for stage in stages))
    substeps = range(1, config.run.substeps + 1)
    step = Step(method.update, devices, max(n for n in substeps if whole % n == 0))
    rule, measure = Plateau(), None
    if check:
        fold = VALIDATION if place < 2 else FURTHER_VALIDATION + purpose
        rule = Plateau(check, section.plateau)
        measure = Measure(_handed_over(method), step, jax.random.fold_in(root, fold))
    return Training(
        name=name,
        method=method,
        step=step,
        stages=stages,
        dataset=data.source(dataset, method.data),
        batch=section.batch,
        key=step.place(jax.random.fold_in(root, 1 + purpose)),
        start_key=jax.random.fold_in(root, START + purpose),
        seed=(config.seed, purpose),
        init=section.init,
        taught_by=section.taught_by,
        plateau=rule,
        measure=measure,
    )


def _handed_over(method: Measured) -> Callable:
    """The validation loss of what a stage would hand over."""

    def loss(state, batch, keys):
        return method.losses(state, method.result(state)[MODEL], batch, keys)

    return loss
