"""From a config to the things that a run is made of; nothing is written here."""

import dataclasses

import jax
from ml_collections import ConfigDict

from pd_jax import config as configs
from pd_jax import data, methods, models, schedules
from pd_jax.data import Dataset
from pd_jax.denoisers import Model
from pd_jax.ladder import Stage
from pd_jax.optim import Descent
from pd_jax.schedules import Schedule
from pd_jax.step import Step


@dataclasses.dataclass
class Training:
    """One compiled step and the stages that it runs, in order.

    Attributes:
      name: "teacher" or "ladder".
      method: the objective.
      step: its update on all devices.
      stages: the stages.
      batch: examples per update.
      key: base random key, placed.
      seed: base seed of the data order.
    """

    name: str
    method: object
    step: Step
    stages: list[Stage]
    batch: int
    key: jax.Array
    seed: tuple[int, ...]


@dataclasses.dataclass
class Setup:
    """Everything that a config names, built and checked.

    Attributes:
      config: the config.
      dataset, schedule, model: what is learnt from, on which levels, with what.
      trainings: the teacher's (unless it is exact) and the ladder's.
      fresh: new weights, from the config's seed.
    """

    config: ConfigDict
    dataset: Dataset
    schedule: Schedule
    model: Model
    trainings: list[Training]
    fresh: dict


def _descent(section: ConfigDict) -> Descent:
    fields = {f.name for f in dataclasses.fields(Descent)}
    return Descent(**{k: v for k, v in section.items() if k in fields})


def _model(config: ConfigDict, dataset: Dataset) -> Model:
    fields = config.model.to_dict()
    name, output = fields.pop("name"), fields.pop("output")
    channels = dataset.shape[-1]
    network = models.get(
        name, **fields, out_ch=2 * channels if output == "both" else channels
    )
    classes = fields.get("num_classes", 0)
    if classes and classes < dataset.num_classes:
        raise ValueError(
            f"model.num_classes={classes}, but the labels of data "
            f'"{config.data.name}" go up to {dataset.num_classes - 1}: give '
            f"{dataset.num_classes}, or 0 to train without labels"
        )
    if classes and not dataset.num_classes:
        raise ValueError(
            f'model.num_classes={classes}, but data "{config.data.name}" has no '
            "labels: give 0, or say where they are (data.label_key for an .npz)"
        )
    return Model(network, output)


def build(config: ConfigDict) -> Setup:
    """Builds and checks all that a config names.

    Raises:
      ValueError: for anything that cannot work, naming the config key.
    """
    devices = jax.devices()
    configs.check(config, len(devices))
    options = config.data.to_dict()
    dataset = data.get(options.pop("name"), **options)
    if len(dataset.images) < 2:
        raise ValueError(
            f'data "{config.data.name}" has {len(dataset.images)} example: at least 2 '
            "are needed, to compare samples with"
        )
    options = config.schedule.to_dict()
    schedule = schedules.get(options.pop("name"), **options)
    model = _model(config, dataset)
    if config.teacher.exact and dataset.denoise is None:
        raise ValueError(
            "teacher.exact=True, but no exact denoiser of data "
            f'"{config.data.name}" is known: train a teacher (teacher.exact=False)'
        )

    # One base key for every purpose, folded and never stored.
    root = jax.random.key(config.seed)
    fresh_key, *keys = (jax.random.fold_in(root, purpose) for purpose in range(3))

    def training(purpose, name, stages):
        section = config[name]
        trained = Model(model.network.clone(dropout=section.dropout), model.output)
        kind = methods.get(section.method)
        offered = {
            "discrete": config.teacher.discrete,
            "teacher_steps": config.ladder.factor,
            "exact": dataset.denoise if config.teacher.exact else None,
        }
        taken = {f.name for f in dataclasses.fields(kind)} & offered.keys()
        method = kind(
            trained,
            schedule,
            _descent(section),
            section.weighting,
            **{key: offered[key] for key in taken},
        )
        step = Step(method.update, devices, config.run.substeps)
        key, seed = step.place(keys[purpose]), (config.seed, purpose)
        return Training(name, method, step, stages, section.batch, key, seed)

    trainings = [training(1, "ladder", configs.student_stages(config))]
    if not config.teacher.exact:
        trainings.insert(0, training(0, "teacher", [configs.teacher_stage(config)]))
    fresh = jax.jit(model.init, static_argnums=1)(fresh_key, dataset.shape)
    return Setup(config, dataset, schedule, model, trainings, fresh)
