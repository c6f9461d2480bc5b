"""Before distilling: is the teacher what the config says that it is?

A teacher that is read in a wrong way (output kind, noise level, range of the data,
labels) distils without an error, into nothing. A few hundred examples tell: read
rightly, a denoiser leaves less error than read in any other way. So the claim and the
usual mistakes denoise the same noisy data, and the claim is refused where another
reading is both good and much better. That a teacher is poor is a note, not a refusal.

Errors are given as *scores*, multiples of what the best Gaussian denoiser of each
dimension alone would leave (`pd_jax.evaluation.interpretations`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from pd_jax import conventions
from pd_jax.config.setup import Setup
from pd_jax.conventions import Network
from pd_jax.evaluation.interpretations import (
    Alternative,
    Reading,
    Trial,
    best_labels,
    other_conventions,
    other_labels,
    other_levels,
    other_ranges,
)
from pd_jax.runtime import console, numerics
from pd_jax.runtime.errors import Refused
from pd_jax.samplers import sample
from pd_jax.schedules import Schedule
from pd_jax.storage import draws

NUM_LEVELS = 6  # spread over this range of logsnr, as far as the schedule has it, and
LEVELS = (-5.0, 4.0)  # counted from where the data's variance equals the noise's
SAMPLE_STEPS = (8, 32)
MAX_CLASSES = 32  # up to which each class is tried with every label, once in doubt
# Another reading refuses the claim when its score is below both GOOD and BETTER times
# the claim's, with no level's ratio above WORST. Networks read rightly had, from their
# first updates on, no other reading below 1.25 with a score under 0.96 times their own
# (MLPs on digits in two ranges: outputs v, x, eps and both, with labels and without).
GOOD, BETTER, WORST = 1.05, 0.8, 2.0

NUM_EXAMPLES = 256  # of a run's data; fewer where the ladder is a short one
LEAST_EXAMPLES = 32
COST = 22  # network evaluations per example, samples included
MANY_STEPS = 64  # from which on a student still denoises as its teacher does


def try_teacher(setup: Setup) -> None:
    """Says how well a teacher that was not trained here denoises the data.

    Not one that is a student of few steps, which is no denoiser any more.

    Raises:
      Refused: where it is not what the config says.
    """
    few = 0 < setup.teacher_steps < MANY_STEPS
    if setup.released is None or few or not setup.config.run.preflight:
        return
    ladder = setup.trainings[-1]
    updates = sum(stage.updates for stage in ladder.stages)
    allowed = updates * ladder.batch * ladder.method.forwards // (2 * COST)
    num = min(NUM_EXAMPLES, allowed, len(setup.dataset))
    if num < LEAST_EXAMPLES:
        console.say("preflight: left out; it would take as long as so short a ladder")
        return
    rows = draws.rows(num, len(setup.dataset), setup.config.seed)
    batch = setup.dataset.take(rows)
    if getattr(setup.model.network, "num_classes", 0) < 2:
        batch.pop("label", None)
    figures = check(
        setup.model.raw,
        jax.device_put(setup.released),
        setup.model.output,
        setup.schedule,
        batch,
        numerics.key(setup.config.seed),
        num_samples=num // 8,
        clip=setup.space.clip,
    )
    console.say(
        f"preflight: the teacher's error is {figures['score']:.2f} of a Gaussian "
        f"guess's; read in other ways, {figures['next_best']:.2f} or more"
    )
    for note in figures["notes"]:
        console.warn(f"preflight: {note}")


def check(
    network: Network,
    params: object,
    output: str,
    schedule: Schedule,
    batch: dict,
    key: jax.Array,
    *,
    batch_size: int = 64,
    num_samples: int = 32,
    clip: bool = True,
) -> dict:
    """Checks on data that a teacher is what its config says.

    Costs at most 17 network evaluations per example of the batch and 40 per sample; one
    more per example and class (up to 32) where labels look wrong.

    Args:
      network: (params, input, level, label) -> raw output, `Model.raw` or a function
        as for `conventions.adapt`.
      params: its weights.
      output: the claimed convention (model.output).
      schedule: the schedule to distil on.
      batch: {"image" [n, ...], "label" [n] for a network with labels}: data, some
        hundred examples.
      key: of the noise.
      batch_size: examples per network call; the last n modulo batch_size are left out.
      num_samples: samples of each of the step counts.
      clip: whether samples' predictions are clipped to [-1, 1] (eval.clip).

    Returns:
      Figures for a log: "score" and "next_best" (the best other reading's), "left"
      {logsnr: share of the data's variance}, "yardstick" (the same, of equation 1),
      "labels", "samples" {steps: {...}}, and "notes", a list of sentences about what
      looks poor but not wrong.

    Raises:
      Refused: where a claim looks wrong, with the figures and the key.
    """
    convention = conventions.get(output)
    size = min(batch_size, len(batch["image"]))
    num = len(batch["image"]) // size * size
    batch = {name: np.asarray(a)[:num] for name, a in batch.items()}
    if np.var(batch["image"], axis=0).max() == 0.0:
        raise Refused(f"data: all {num} examples that the preflight took are the same")
    _check_shape(network, params, convention, batch, size, output)

    call = jax.jit(network)
    levels = _levels_for(schedule, batch["image"])
    keys = jax.random.split(key, 4)
    trial = Trial(call, params, batch, levels, keys[0], size)
    raw = trial.raw(convention.inputs)
    implied = trial.implied(raw, convention.outputs)
    claim = trial.read(implied)

    others = other_conventions(trial, output, raw)
    others += other_levels(trial, output)
    others += other_ranges(trial, output)
    labels, relabelled = other_labels(trial, convention, implied, keys[1])
    others += relabelled
    worse = _worse(claim, others)
    if worse and labels:
        # Other labels are surely better for one that knows the data; random weights
        # have no right ones.
        unsure = [other._replace(sure=False) for other in others]
        if trial.label.max() < MAX_CLASSES:
            worse = _worse(claim, [*unsure, best_labels(trial, convention)])
        elif claim.ratio.min() > GOOD:
            worse = _worse(claim, unsure)
    if worse:
        raise Refused(_say(trial, claim, worse))
    notes = _notes(trial, claim, labels, output)
    start = float(schedule(1.0))
    notes += _start(call, params, batch, start, keys[2], size, output)
    denoise = conventions.adapt(network, output)
    few = {name: a[:num_samples] for name, a in batch.items()}
    samples = _samples(denoise, params, schedule, few, keys[3], clip)
    samples["data"] = _summary(batch["image"])
    notes += _sample_notes(samples)

    def by_level(values):
        return {f"{l:.3g}": float(v) for l, v in zip(levels, values)}

    variance = np.mean(trial.variance)
    return {
        "score": claim.score,
        "next_best": min(other.score for other in others),
        "left": by_level(claim.left),
        "yardstick": by_level(trial.yardstick() / variance),
        "labels": labels,
        "samples": samples,
        "notes": notes,
    }


def _levels_for(schedule, x) -> np.ndarray:
    """Levels, at most NUM_LEVELS, at which denoising this data takes knowledge."""
    equal = -np.log(np.mean(np.var(x, axis=0)))
    low, high = float(schedule(1.0)), float(schedule(0.0))
    num = min(NUM_LEVELS, len(x))
    return np.linspace(*np.clip(equal + np.array(LEVELS), low, high), num)


def _check_shape(network, params, convention, batch, size, output):
    """Refused where an output has not the claim's shape."""
    z = jax.ShapeDtypeStruct((size, *batch["image"].shape[1:]), jnp.float32)
    logsnr = jax.ShapeDtypeStruct((size,), jnp.float32)
    label = batch.get("label")
    label = None if label is None else jax.ShapeDtypeStruct((size,), label.dtype)
    given, level = jax.eval_shape(convention.inputs, z, logsnr)
    raw = jax.eval_shape(network, params, given, level, label)
    try:
        jax.eval_shape(convention.outputs, raw, z, logsnr)
    except ValueError as error:
        twice = raw.shape == (*z.shape[:-1], 2 * z.shape[-1])
        hint = ': x and noise together are model.output="both"' if twice else ""
        raise Refused(f'model.output="{output}": {error}{hint}') from error


def _worse(claim: Reading, others: list[Alternative]) -> Alternative | None:
    """The best reading of those that refuse the claim."""
    bar = min(GOOD, BETTER * claim.score)

    def refuses(other):
        fits = other.score < bar and other.reading.ratio.max() < WORST
        return other.sure or fits

    refusing = list(filter(refuses, others))
    return min(refusing, key=lambda other: other.score, default=None)


def _say(trial, claim: Reading, other: Alternative) -> str:
    """A refusal in words, with the figures at the level that tells most."""
    place = int(np.argmax(claim.ratio / other.reading.ratio))
    return (
        f"the teacher, {other.claim}, leaves {claim.left[place]:.2g} of the data's "
        f"variance at logsnr {trial.levels[place]:.3g}; {other.other}, "
        f"{other.reading.left[place]:.2g} (over all levels {claim.score:.3g} times the "
        f"error of a Gaussian guess, against {other.score:.3g}): {other.remedy}"
    )


def _notes(trial, claim: Reading, labels: dict, output: str) -> list[str]:
    """What looks poor."""
    notes = []
    possible = trial.yardstick() < 0.5 * np.mean(trial.variance)
    if possible.any() and claim.left.min() >= 1.0:
        notes.append(
            f'the teacher read as "{output}" is at every noise level worse than the '
            f"data's mean (errors of {claim.left.min():.3g} to {claim.left.max():.3g} "
            "times the data's variance), and no other reading fits: are these its "
            "weights, and do model.output, the data's range and the labels fit them?"
        )
    if claim.score > 1.5:
        notes.append(
            f"the teacher is poor: {claim.score:.3g} times the error of a Gaussian "
            "guess, over all noise levels"
        )
    if labels and labels["change"] < 1e-3 * labels["error"]:
        notes.append("labels make no difference to the teacher's predictions")
    return notes


def _start(call, params, batch, logsnr, key, size, output) -> list[str]:
    """The level where sampling starts: it must be one that the teacher knows."""
    convention = conventions.get(output)
    trial = Trial(call, params, batch, [logsnr], key, size)
    implied = trial.implied(trial.raw(convention.inputs), convention.outputs)
    left = trial.read(implied).left[0]
    if left <= 4.0:
        return []
    text = (
        f"at logsnr {logsnr:.3g}, where sampling starts, the teacher's x is off by "
        f"{left:.3g} times the data's variance"
    )
    lowest = convention.logsnr_range[0]
    if logsnr < lowest - 0.1:
        raise Refused(
            f'{text}: model.output="{output}" is trained down to logsnr {lowest:.4g} '
            f"only: set schedule.logsnr_min={np.ceil(10 * lowest) / 10:g}"
        )
    return [f"{text}; a larger schedule.logsnr_min starts where it is surer"]


def _samples(denoise, params, schedule, batch, key, clip) -> dict:
    """Mean, standard deviation and range of samples, as many as the batch has."""
    z = jax.random.normal(key, batch["image"].shape)
    label = batch.get("label")

    @jax.jit
    def draw(params, z, label, num_steps):
        return sample(denoise(params, label), z, num_steps, schedule, clip=clip)

    figures = {}
    for num_steps in SAMPLE_STEPS:
        x = np.asarray(draw(params, z, label, jnp.int32(num_steps)))
        if not np.isfinite(x).all():
            raise Refused(
                f"the teacher's samples of {num_steps} steps are not finite: are its "
                "weights whole, and is schedule.* within the levels that it knows?"
            )
        figures[str(num_steps)] = _summary(x)
    return figures


def _summary(x) -> dict[str, float]:
    kinds = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
    return {name: float(f(x)) for name, f in kinds.items()}


def _sample_notes(figures: dict) -> list[str]:
    """Says where samples are unlike the data."""
    data, samples = figures["data"], figures[str(SAMPLE_STEPS[-1])]
    off = abs(samples["mean"] - data["mean"]) / data["std"]
    if off < 0.5 and 2 / 3 < samples["std"] / data["std"] < 1.5:
        return []
    return [
        f"samples of {SAMPLE_STEPS[-1]} steps have mean {samples['mean']:.3g} and "
        f"standard deviation {samples['std']:.3g}, the data {data['mean']:.3g} and "
        f"{data['std']:.3g}"
    ]
