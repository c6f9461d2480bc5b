"""The configuration: every key with its default, and what values make sense together.

A config file is a small delta on `default(data, model)`. Sections `data` and `model`
hold the options of that data set and the fields of that network, with their defaults.
"""

import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from pd_jax import conventions, data, diffusion, methods, models, samplers, schedules
from pd_jax.methods.progressive import step_counts
from pd_jax.runtime import registry
from pd_jax.training import optimizer
from pd_jax.training.stage import Stage

MOST = 2**31 - 1  # of whole numbers, which are int32 on devices
MOST_STEPS = 2**23  # up to which float32 tells the times i/N apart
# How a run is carried out; a run may go on with other values than it began with.
FREE = ("run",)
GIVEN = "given"  # in a name's place: the data, or the network, is a caller's own object
REGRESSIONS = ("flag", "stop")  # what to do about them
PRECISIONS = ("auto", "float32", "bfloat16")


def _training() -> dict:
    """Keys that the teacher's training and the ladder share."""
    return dict(
        batch=128,  # examples per update, over all devices
        weighting="truncated_snr",  # of the loss over noise levels
        decay="constant",  # of the learning rate over a stage; "cooldown" is constant,
        # then linear to 0 over the last 20%
        warmup_updates=0,  # in which the learning rate grows from 0, in every stage
        clip_norm=1.0,  # of the gradient averaged over devices; 0: no clipping
        dropout=0.0,  # in the network, while training
        weight_decay=0.0,  # decoupled, times the learning rate
        ema=0.0,  # decay of the weights' running average, which is what is measured
        # and handed over; 0: none kept
        microbatches=1,  # parts of a device's batch, one after the other: less memory
    )


def default(data_name: str, model_name: str) -> ConfigDict:
    """All keys with their defaults, for a data set and a network by name; locked.

    Data or a network that are a caller's own object have the name `GIVEN`.

    docs/config.md is made of the comments below: `python docs/make_config.py`.

    Raises:
      ValueError: for an unknown name, listing the known ones.
    """
    return ConfigDict(
        dict(
            seed=0,  # of first weights, data order, noise and dropout
            precision="auto",  # of the networks' arithmetic; "auto": bfloat16, but
            # float32 on CPU
            data=dict(
                name=data_name,  # a file of pd_jax/data/
                **({} if data_name == GIVEN else data.options(data_name)),
            ),
            schedule=dict(
                name="cosine",  # a function of pd_jax.schedules
                logsnr_min=-20.0,  # log signal-to-noise ratio at t = 1, where sampling
                # starts: pure noise
                logsnr_max=20.0,  # the same at t = 0: data
            ),
            model=dict(
                name=model_name,  # a file of pd_jax/models/
                output="v",  # what the network's output means, and the teacher's, too
                **({} if model_name == GIVEN else models.fields(model_name)),
            ),
            teacher=dict(
                exact=False,  # the data set's exact denoiser teaches: nothing to train
                released="",  # file of a released model that teaches: nothing to train
                method="standard",  # a file of pd_jax/methods/
                discrete=False,  # train on the times i/ladder.start only
                updates=0,  # of the optimiser; at least 1 where a teacher is trained
                learning_rate=1e-3,  # its peak
                **_training(),
            ),
            ladder=dict(
                method="progressive",  # a file of pd_jax/methods/
                start=0,  # the teacher's sampling steps; end times a power of factor
                end=1,  # the last student's sampling steps
                factor=2,  # teacher steps per student step
                updates=(
                    0,
                ),  # of the optimiser, for every student, or one number a student
                learning_rate=(5e-4,),  # its peak, for every student, or one a student
                check_updates=0,  # between measurements of the validation loss; 0: none
                plateau=0.0,  # a stage ends early once its validation loss falls by a
                # smaller share; with decay="cooldown", after its learning rate has come
                # down; 0: never
                regression_factor=2.0,  # a student whose Frechet distance on pixels is
                # more than so many times its teacher's is warned of in the report
                on_regression="flag",  # what to do then, beside warning; "stop": the
                # ladder ends there, and students are measured as they are made
                **_training(),
            ),
            eval=dict(
                sampler="ddim",  # of every row; "ancestral" may name its variance, as
                # "ancestral:small"
                clip=True,  # clip predictions of x to [-1, 1]
                teacher_steps=(256, 32, 16, 8, 4, 2, 1),  # of the teacher's rows
                max_steps=0,  # students of more steps are not measured; 0: all are
                num_reference=0,  # examples that samples are compared with; 0: all
                inception="",  # file of Inception weights, for FID and its kin
                statistics="",  # .npz of reference statistics (mu, sigma) for FID
                num_samples=4000,  # of every model and number of steps
                paired_samples=500,  # of those, compared one by one with the reference
                reference_steps=1024,  # of the teacher's own best samples
                seed=0,  # of the one noise set for all rows
            ),
            run=dict(
                checkpoint_updates=500,  # between two checkpoints; a stage's end is one
                log_updates=50,  # in a line of metrics.jsonl
                log_seconds=5.0,  # between lines of output, where there is no terminal
                eval_batch=1000,  # samples at once, over all devices
                preflight=True,  # try out a teacher that was not trained here
                data_workers=0,  # processes that read and decode, where data must be
                substeps=1,  # updates per call of the step, or the largest number
                # below that divides those of every stage; more helps accelerators
                most_skipped=10,  # updates in a row, with a loss or gradient that is
                # not finite, after which training stops
                tensorboard=False,  # figures and pictures for TensorBoard, too, in the
                # folder tensorboard of the workdir
                wandb="",  # project at Weights & Biases to show them in; needs the
                # extra pd_jax[wandb]
            ),
        )
    ).lock()


def stored(found: dict) -> ConfigDict:
    """A run's config.json as a config; keys that it does not have yet as by default.

    Raises:
      ValueError: where it is none.
    """
    try:
        config = default(found["data"]["name"], found["model"]["name"])
        config.update(found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a config of pd_jax: {str(error)[:300]}") from error
    return config


def flatten(
    config: ConfigDict | dict, prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every leaf, tuples as lists, as JSON would return them."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            value = list(value) if isinstance(value, tuple) else value
            yield f"{prefix}{key}", value


def differences(old: dict, new: dict) -> list[str]:
    """Keys whose values differ and matter to results, as 'key: old -> new'."""
    old, new = dict(flatten(old)), dict(flatten(new))
    return [
        f"{key}: {old.get(key, '(none)')} -> {new.get(key, '(none)')}"
        for key in sorted(old.keys() | new.keys())
        if key.partition(".")[0] not in FREE and old.get(key) != new.get(key)
    ]


def student_stages(config: ConfigDict, start: int = 0) -> list[Stage]:
    """The ladder's stages, in order; ValueError names the key at fault.

    Args:
      config: the config.
      start: sampling steps that the teacher was made for, which leave out the stages
        above; 0 for any.
    """
    lad = config.ladder
    counts = step_counts(lad.start, lad.end, lad.factor)
    per_stage = {}
    for key in ("updates", "learning_rate"):
        values = tuple(lad[key])
        if len(values) not in (1, len(counts)):
            raise ValueError(
                f"ladder.{key} has {len(values)} values: give one for all students, or "
                f"{len(counts)}, one for each of {counts} steps"
            )
        per_stage[key] = values * len(counts) if len(values) == 1 else values
    if start:
        try:
            below = step_counts(start, lad.end, lad.factor)
        except ValueError as error:
            raise ValueError(
                f"teacher.released is a student of {start} steps, where the ladder "
                f"starts: {error}"
            ) from error
        missing = len(below) - len(counts)
        counts = below
        per_stage = {
            key: (values[0],) * missing + values[max(0, -missing) :]
            for key, values in per_stage.items()
        }
    return [
        Stage(f"student_{n}", i, n, updates, rate)
        for i, (n, updates, rate) in enumerate(zip(counts, *per_stage.values()))
    ]


def teacher_stage(config: ConfigDict) -> Stage | None:
    """The teacher's stage, or None where there is nothing to train."""
    tea = config.teacher
    if tea.exact or tea.released:
        return None
    num_steps = config.ladder.start if tea.discrete else 0
    return Stage("teacher", 0, num_steps, tea.updates, tea.learning_rate)


def _at_least(config: ConfigDict, bounds: dict[str, float]) -> None:
    """Checks numbers, alone or in tuples; an int as bound asks for whole numbers."""
    flat = dict(flatten(config))
    for key, bound in bounds.items():
        value = flat[key]
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, type(bound) | int):
                raise ValueError(f"{key}={value}: {number!r} is not a number")
            if not bound <= number < math.inf:
                raise ValueError(f"{key}={value}: must be at least {bound}")
            if number > MOST and isinstance(bound, int):
                raise ValueError(f"{key}={value}: must be below 2^31")


def check_keys(config: ConfigDict) -> None:
    """Raises ValueError unless the keys are those of `default`."""
    sections = ("data", "model")
    if not all("name" in config.get(section, {}) for section in sections):
        raise ValueError(
            "the config has no data.name or no model.name: begin with "
            "pd_jax.config.default(data, model), and change its keys"
        )
    for section, known in (("data", data.known), ("model", models.known)):
        if config[section].name != GIVEN:
            registry.check(config[section].name, known(), f"{section}.name")
    known = dict(flatten(default(config.data.name, config.model.name))).keys()
    given = dict(flatten(config)).keys()
    missing, unknown = sorted(known - given), sorted(given - known)
    if missing or unknown:
        raise ValueError(
            f'a config of data "{config.data.name}" and model "{config.model.name}" '
            f"lacks {', '.join(missing) or 'nothing'}, and has no use for "
            f"{', '.join(unknown) or 'nothing'}: begin with "
            "pd_jax.config.default(data, model)"
        )


def _check_plateau(section: ConfigDict) -> None:
    """Raises ValueError for a plateau rule that cannot work."""
    every, plateau = section.check_updates, section.plateau
    if every < 0:
        raise ValueError(
            f"ladder.check_updates={every}: must be 0, for no checks, or positive"
        )
    if not 0.0 <= plateau < 1.0:
        raise ValueError(f"ladder.plateau={plateau}: must be at least 0 and below 1")
    if plateau and not every:
        raise ValueError(
            f"ladder.plateau={plateau} needs checks: give ladder.check_updates, the "
            "updates between two of them"
        )


def check(config: ConfigDict, num_devices: int) -> None:
    """Raises ValueError for the first value that cannot work, naming its key."""
    check_keys(config)
    registry.check(config.model.output, conventions.CONVENTIONS, "model.output")
    registry.check(config.precision, PRECISIONS, "precision")
    registry.check(config.schedule.name, schedules.SCHEDULES, "schedule.name")
    samplers.parse(config.eval.sampler)
    for key in ("seed", "eval.seed"):
        seed = dict(flatten(config))[key]
        if not 0 <= seed < 2**31:
            raise ValueError(f"{key}={seed}: must be at least 0 and below 2^31")
    counts = config.eval.teacher_steps
    if len(set(counts)) < max(len(counts), 1):
        raise ValueError(
            f"eval.teacher_steps={counts}: give at least one, each number once"
        )
    steps = {
        "ladder.start": config.ladder.start,
        "eval.reference_steps": config.eval.reference_steps,
        "eval.teacher_steps": max(counts),
    }
    for key, number in steps.items():
        if number > MOST_STEPS:
            raise ValueError(f"{key}={number}: at most {MOST_STEPS} sampling steps")
    if config.teacher.exact and config.teacher.released:
        raise ValueError(
            f"teacher.exact=True and teacher.released={config.teacher.released}: only "
            "one of them can teach"
        )
    teacher = teacher_stage(config)
    for name in ["ladder"] if teacher is None else ["teacher", "ladder"]:
        section = config[name]
        distils = name == "ladder"
        registry.check(section.method, methods.known(distils), f"{name}.method")
        registry.check(section.weighting, diffusion.WEIGHTINGS, f"{name}.weighting")
        registry.check(section.decay, optimizer.DECAYS, f"{name}.decay")
        positive = ("batch", "updates", "microbatches")
        _at_least(config, {f"{name}.{key}": 1 for key in positive})
        other = ("learning_rate", "warmup_updates", "clip_norm", "weight_decay")
        _at_least(config, {f"{name}.{key}": 0.0 for key in other})
        for key in ("ema", "dropout"):
            if not 0.0 <= section[key] < 1.0:
                raise ValueError(
                    f"{name}.{key}={section[key]}: must be at least 0 and below 1"
                )
        if distils:
            _check_plateau(section)
            registry.check(section.on_regression, REGRESSIONS, "ladder.on_regression")
            _at_least(config, {"ladder.regression_factor": 1.0})
        parts = num_devices * section.microbatches
        if section.batch % parts:
            below = section.batch // parts * parts
            raise ValueError(
                f"{name}.batch={section.batch} is not divisible by {num_devices} "
                f"devices x {name}.microbatches={section.microbatches}: try "
                + " or ".join(str(n) for n in (below, below + parts) if n)
            )
    zero = {"log_seconds": 0.0, "data_workers": 0, "preflight": 0, "tensorboard": 0}
    positive = ("eval.reference_steps", "eval.teacher_steps", "eval.paired_samples")
    positive += tuple(f"run.{key}" for key in config.run if key not in (*zero, "wandb"))
    _at_least(config, {key: 1 for key in positive})
    _at_least(config, {f"run.{key}": least for key, least in zero.items()})
    _at_least(
        config, {"eval.num_samples": 2, "eval.num_reference": 0, "eval.max_steps": 0}
    )
    if config.eval.num_reference == 1:
        raise ValueError("eval.num_reference=1: must be at least 2, or 0 for all")
    if config.eval.paired_samples > config.eval.num_samples:
        raise ValueError(
            f"eval.paired_samples={config.eval.paired_samples}: at most "
            f"eval.num_samples={config.eval.num_samples}"
        )
    student_stages(config)
