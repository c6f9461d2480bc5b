"""The configuration: every key with its default, and what values make sense together.

A config file is a small delta on `default(data, model)`. Sections `data` and `model`
hold the options of that data set and the fields of that network, with their defaults.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from ml_collections import ConfigDict

from pd_jax import conventions, data, methods, models, samplers, schedules
from pd_jax.metrics import lpips
from pd_jax.runtime import registry
from pd_jax.runtime.errors import Refused
from pd_jax.training import optimizer
from pd_jax.training.method import Method, Parts
from pd_jax.training.stage import Stage

MAX = 2**31 - 1  # of whole numbers, which are int32 on devices
MAX_STEPS = 2**23  # up to which float32 tells the times i/N apart
# How a run is carried out; a run may go on with other values than it began with.
FREE = ("run",)
DEFAULT_TRAININGS = {"teacher": "standard", "ladder": "progressive"}
CHAIN = tuple(DEFAULT_TRAININGS)  # of configs without key `chain`, too
GIVEN = "given"  # in a name's place: the data, or the network, is a caller's own object
PRECISIONS = ("auto", "float32", "bfloat16")


def _training(method: str) -> dict:
    """Keys of any training; those of its method follow."""
    return dict(
        method=method,  # a file of pd_jax/methods/
        batch=128,  # examples per update, over all devices
        decay="constant",  # of the learning rate over a stage, from its first update
        # on; "cooldown" is constant, then linear to 0 over the last 20%
        warmup_updates=0,  # in which the learning rate grows from 0, in every stage; a
        # factor beside the decay's, so that with both it stays below its peak
        clip_norm=1.0,  # of the gradient averaged over devices; 0: no clipping
        dropout=0.0,  # in the network, while training
        weight_decay=0.0,  # decoupled, times the learning rate
        ema=0.0,  # decay of the weights' running average, which is what is measured
        # and handed over; 0: none kept
        microbatches=1,  # parts of a device's batch, one after the other: less memory
        init="",  # what the first stage starts from: "" is what the training before
        # hands over, "fresh" new weights, else the name of a training before
        taught_by="",  # the training whose model teaches; "" is the one before
        data="",  # the data set's section that it learns from; "" is section data
        **{key: field.default for key, field in methods.fields(method).items()},
    )


def _teacher() -> dict:
    """Keys of section `teacher` alone."""
    return dict(
        exact=False,  # the data set's exact denoiser teaches: nothing to train
        released="",  # file of a released model that teaches: nothing to train
    )


def _section(name: str, method: str) -> dict:
    return (_teacher() if name == "teacher" else {}) | _training(method)


def default(
    data_name: str | Mapping[str, str], model_name: str, **trainings: str
) -> ConfigDict:
    """All keys with their defaults, for a data set and a network by name; locked.

    Data or a network that are a caller's own object have the name `GIVEN`.

    docs/config.md is made of the comments below: `python docs/make_config.py`.

    Args:
      data_name: the data set; or several by section, as {"data": "digits", "more":
        "npz"}: samples are compared with that of section data, and others are for
        trainings that name them.
      model_name: the network.
      **trainings: the run's trainings in order, name=method: each is a section of keys.
        Default: ladder="progressive". The first is the teacher's, by default
        teacher="standard".

    Raises:
      Refused: for an unknown name, listing the known ones.
    """
    trainings = {"teacher": "standard"} | (trainings or DEFAULT_TRAININGS)
    sets = {"data": data_name} if isinstance(data_name, str) else {**data_name}
    options = {
        section: {"kind": ""} if name == GIVEN else data.options(name)
        for section, name in sets.items()
    }
    return ConfigDict(
        dict(
            seed=0,  # of first weights, data order, noise and dropout
            precision="auto",  # of the networks' arithmetic; "auto": bfloat16, but
            # float32 on CPU
            chain=tuple(trainings),  # the trainings in order, each a section; the
            # teacher's is left out where it is exact or released
            data=dict(
                name=sets["data"],  # a file of pd_jax/data/
                **options.pop("data"),
            ),
            **{name: {"name": sets[name]} | keys for name, keys in options.items()},
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
            **{name: _section(name, method) for name, method in trainings.items()},
            perceptual=dict(
                weights="",  # file of LPIPS weights, AlexNet's or VGG16's, for
                # loss="lpips" of a training and for the metric lpips_to_teacher
                size=224,  # height and width that smaller pictures are enlarged to
            ),
            eval=dict(
                sampler="ddim",  # of every row; with a variant, as "ancestral:small",
                # and a spacing of its steps, as "heun@karras": uniform, quadratic,
                # karras, or falling times, as "ddim@1,0.6,0.3"
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
                check_memory=True,  # refuse updates that memory certainly cannot hold
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


def trainings(config: ConfigDict | dict) -> dict[str, str]:
    """The methods of a config's trainings by name, in order."""
    return {name: config[name]["method"] for name in config.get("chain", CHAIN)}


def data_sets(config: ConfigDict | dict) -> dict[str, str]:
    """The data sets of a config by section: `data`, and others that trainings name."""
    named = [config[name].get("data", "") for name in trainings(config)]
    return {
        section: config[section]["name"] for section in ["data", *filter(None, named)]
    }


def title(config: ConfigDict | dict) -> str:
    """What a run distils by: its methods' names for people, without the teacher's."""
    used = [method for name, method in trainings(config).items() if name != "teacher"]
    return ", then ".join(map(methods.label, used))


def stored(values: dict) -> ConfigDict:
    """A run's config.json as a config; keys that it does not have yet as by default.

    Raises:
      Refused: if it is none.
    """
    try:
        names = data_sets(values), values["model"]["name"]
        config = default(*names, **trainings(values))
        config.update(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(f"not a config of pd_jax: {str(error)[:300]}") from error
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


def planned_names(config: ConfigDict) -> list[str]:
    """The trainings that take place: all, or all but one of a teacher that is given."""
    given = config.teacher.exact or config.teacher.released
    return [name for name in trainings(config) if name != "teacher" or not given]


def planned(
    config: ConfigDict, teacher_steps: int = 0, parts: Mapping[str, Parts] | None = None
) -> dict[str, tuple[Method, list[Stage]]]:
    """The methods of a config's trainings and the stages that they plan, by name.

    Args:
      config: the config.
      teacher_steps: sampling steps that a released teacher was made for; 0 for any.
      parts: what each method is built of; default nothing, to look at the plan.

    Raises:
      Refused: for keys that cannot work, naming them.
    """
    plan, asked_steps = {}, 0
    for name in reversed(planned_names(config)):
        kind = methods.get(config[name].method).Method
        keys = {key: config[name][key] for key in methods.fields(config[name].method)}
        own = (parts or {}).get(name) or Parts(name)
        method = kind(dataclasses.replace(own, asked_steps=asked_steps), **keys)
        asked_steps, plan[name] = method.asks_steps, method
    first = next(reversed(plan))
    return {
        name: (plan[name], plan[name].plan(teacher_steps if name == first else 0))
        for name in reversed(plan)
    }


def stages(
    config: ConfigDict, begun: Collection[str] = ()
) -> list[tuple[str, Method, Stage]]:
    """All stages of a run in order, each with its training's name and method.

    A released teacher that is a student leaves out the stages of a ladder above it, or
    adds some: how many steps it has, the stages that are there tell.

    Args:
      config: the config.
      begun: names of stages that are there.

    Raises:
      Refused: for keys that cannot work, naming them.
    """
    plan = planned(config)
    if config.teacher.released:
        name, (method, _) = next(iter(plan.items()))
        numbers = [re.fullmatch(rf"{method.parts.student}_(\d+)", s) for s in begun]
        first = max((int(number[1]) for number in numbers if number), default=0)
        plan = planned(config, first * config[name].get("factor", 0))
    return [(name, m, stage) for name, (m, of) in plan.items() for stage in of]


def _check_value(
    key: str,
    value: object,
    least: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> None:
    """Checks a value against the limits of its key, as of `pd_jax.methods.setting`."""
    if choices:
        registry.check(value, choices, key)
    for number in value if isinstance(value, list | tuple) else [value]:
        if least is None and below is None:
            continue
        if not isinstance(number, type(0 if least is None else least) | int):
            raise Refused(f"{key}={value}: {number!r} is not a number")
        low = least is not None and not least <= number < math.inf
        if low or (below is not None and number >= below):
            limits = {"at least": least, "below": below}
            words = [f"{word} {n}" for word, n in limits.items() if n is not None]
            raise Refused(f"{key}={value}: must be {' and '.join(words)}")
        if number > MAX and isinstance(least, int):
            raise Refused(f"{key}={value}: must be below 2^31")


def check_keys(config: ConfigDict) -> None:
    """Raises Refused unless the keys are those of `default`."""
    sections = ("data", "model")
    if not all("name" in config.get(section, {}) for section in sections):
        raise Refused(
            "the config has no data.name or no model.name: begin with "
            "pd_jax.config.default(data, model), and change its keys"
        )
    if config.model.name != GIVEN:
        registry.check(config.model.name, models.known(), "model.name")
    chain = tuple(config.get("chain", CHAIN))
    for name in chain:
        if "method" not in config.get(name, {}):
            raise Refused(
                f"chain={chain}: there is no section {name} with a method: name "
                "trainings in pd_jax.config.default(data, model, NAME=METHOD)"
            )
        distils = name != "teacher"
        registry.check(config[name].method, methods.known(distils), f"{name}.method")
    if chain[:1] != ("teacher",) or len(chain) < 2 or len(set(chain)) < len(chain):
        raise Refused(
            f"chain={chain}: teacher comes first, then at least one other, each once"
        )
    for name in chain:
        section = config[name].get("data", "")
        if section and "name" not in config.get(section, {}):
            raise Refused(
                f'{name}.data="{section}": the config has no such section; its data '
                f"sets are named in pd_jax.config.default({{"
                f'"data": "{config.data.name}", "{section}": NAME}}, NETWORK)'
            )
    for section, name in data_sets(config).items():
        if (section, name) != ("data", GIVEN):
            registry.check(name, data.known(), f"{section}.name")
    like = default(data_sets(config), config.model.name, **trainings(config))
    known = dict(flatten(like)).keys()
    given = dict(flatten(config)).keys() | {"chain"}
    missing, unknown = sorted(known - given), sorted(given - known)
    if missing or unknown:
        names = ", ".join(
            f'{name}="{method}"'
            for name, method in trainings(config).items()
            if (name, method) not in DEFAULT_TRAININGS.items()
        )
        raise Refused(
            f'a config of data "{config.data.name}" and model "{config.model.name}" '
            f"lacks {', '.join(missing) or 'nothing'}, and has no use for "
            f"{', '.join(unknown) or 'nothing'}: begin with "
            f"pd_jax.config.default(data, model{names and ', '}{names})"
        )


def _check_training(config: ConfigDict, name: str, num_devices: int) -> None:
    """Checks a training's section."""
    section, own = config[name], methods.fields(config[name].method)
    limits = {key: field.metadata for key, field in own.items() if field.metadata}
    for key in ("batch", "microbatches"):
        limits[key] = {"least": 1}
    for key in ("warmup_updates", "clip_norm", "weight_decay"):
        limits[key] = {"least": 0.0}
    for key in ("ema", "dropout"):
        limits[key] = {"least": 0.0, "below": 1.0}
    limits["decay"] = {"choices": optimizer.DECAYS}
    for key, limit in limits.items():
        _check_value(f"{name}.{key}", section[key], **limit)
    if section.get("plateau") and not section.check_updates:
        raise Refused(
            f"{name}.plateau={section.plateau} needs checks: give "
            f"{name}.check_updates, the updates between two of them"
        )
    if section.get("loss") == "lpips" and not config.perceptual.weights:
        raise Refused(
            f'{name}.loss="lpips", but perceptual.weights is empty: give a file of '
            "LPIPS weights"
        )
    parts = num_devices * section.microbatches
    if section.batch % parts:
        below = section.batch // parts * parts
        raise Refused(
            f"{name}.batch={section.batch} is not divisible by {num_devices} devices x "
            f"{name}.microbatches={section.microbatches}: try "
            + " or ".join(str(n) for n in (below, below + parts) if n)
        )


def _check_chain(config: ConfigDict) -> None:
    """Checks what trainings ask of each other."""
    if config.teacher.exact and config.teacher.released:
        raise Refused(
            f"teacher.exact=True and teacher.released={config.teacher.released}: only "
            "one of them can teach"
        )
    before = []
    for name in trainings(config):
        registry.check(config[name].init, ("", "fresh", *before), f"{name}.init")
        registry.check(config[name].taught_by, ("", *before), f"{name}.taught_by")
        before.append(name)
    # Stages, rows and their files are called after these.
    names = [Parts(name).student for name in trainings(config)]
    if len(set(names)) < len(names) or any(re.search("_[0-9]+$", n) for n in names):
        raise Refused(
            f"chain={config.chain}: no name may end in _ and a number, and those of "
            'ladder are "student_N": student cannot stand beside it'
        )
    planned(config)


def check(config: ConfigDict, num_devices: int) -> None:
    """Raises Refused for the first value that cannot work, naming its key."""
    check_keys(config)
    values = dict(flatten(config))
    choices = {
        "model.output": conventions.CONVENTIONS,
        "precision": PRECISIONS,
        "schedule.name": schedules.SCHEDULES,
    }
    for key, known in choices.items():
        registry.check(values[key], known, key)
    if samplers.get(config.eval.sampler).jumps:
        raise Refused(
            f'eval.sampler="{config.eval.sampler}" is for students that know where a '
            "step is to go, and their methods say so; give the teacher's"
        )
    for key in ("seed", "eval.seed"):
        if not 0 <= values[key] < 2**31:
            raise Refused(f"{key}={values[key]}: must be at least 0 and below 2^31")
    counts = config.eval.teacher_steps
    if len(set(counts)) < max(len(counts), 1):
        raise Refused(
            f"eval.teacher_steps={counts}: give at least one, each number once"
        )
    for key in ("eval.reference_steps", "eval.teacher_steps"):
        if np.max(values[key]) > MAX_STEPS:
            raise Refused(f"{key}={values[key]}: at most {MAX_STEPS} sampling steps")
    for name in planned_names(config):
        _check_training(config, name, num_devices)
    _check_chain(config)
    least = {f"run.{key}": 1 for key in config.run if key != "wandb"}
    least |= {"run.log_seconds": 0.0, "run.data_workers": 0, "run.preflight": 0}
    least |= {"run.check_memory": 0, "run.tensorboard": 0}
    least |= {"perceptual.size": lpips.SMALLEST}
    least |= {"eval.reference_steps": 1, "eval.teacher_steps": 1}
    least |= {"eval.paired_samples": 1, "eval.num_samples": 2, "eval.num_reference": 0}
    for key, bound in (least | {"eval.max_steps": 0}).items():
        _check_value(key, values[key], bound)
    if config.eval.num_reference == 1:
        raise Refused("eval.num_reference=1: must be at least 2, or 0 for all")
    if config.eval.paired_samples > config.eval.num_samples:
        raise Refused(
            f"eval.paired_samples={config.eval.paired_samples}: at most "
            f"eval.num_samples={config.eval.num_samples}"
        )
