"""One set of noisy data, and a network read on it in one way and in others.

Used by `pd_jax.evaluation.preflight`, which says what is concluded. The yardstick is
the best denoiser that knows each dimension's mean and variance s^2, and nothing of how
dimensions go together. Its mean squared error is

    s^2 sigma^2 / (alpha^2 s^2 + sigma^2)                                     (1)

and the *score* of a reading is its error as a multiple of (1), the geometric mean over
noise levels: about 1 for Gaussian data and below 1 for anything with more structure.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pd_jax import conventions
from pd_jax.diffusion import alpha_sigma, diffuse

SHIFTS = (-4.0, -2.0, 2.0, 4.0)  # of the logsnr that the network is told


class Reading(NamedTuple):
    """How well a reading of the teacher denoises, [levels] each."""

    left: np.ndarray  # error as a share of the data's variance
    ratio: np.ndarray  # error as a multiple of (1)

    @property
    def score(self) -> float:
        """Geometric mean of the ratios."""
        return float(np.exp(np.mean(np.log(self.ratio))))


class Alternative(NamedTuple):
    """Another reading, with the words for it."""

    reading: Reading
    claim: str  # what the config says
    other: str  # what fits better
    remedy: str
    sure: bool = False  # refuses the claim, whatever the scores

    @property
    def score(self) -> float:
        """The reading's."""
        return self.reading.score


@functools.partial(jax.jit, static_argnums=0)
def _given(inputs, x, noise, logsnr, told_logsnr):
    """What a network is given for data at logsnr, and the level that it is told."""
    z = diffuse(x, noise, logsnr)
    return inputs(z, logsnr)[0], inputs(z, told_logsnr)[1]


@functools.partial(jax.jit, static_argnums=0)
def _implied(outputs, raw, x, noise, logsnr):
    """The data that an output points at."""
    return outputs(raw, diffuse(x, noise, logsnr), logsnr).x


class Trial:
    """One set of noisy data, on which every reading of a network is tried."""

    def __init__(self, network, params, batch, levels, key, batch_size):
        self.call = functools.partial(network, params)
        self.x = np.asarray(batch["image"], np.float32)
        self.label = batch.get("label")
        self.levels = np.asarray(levels, np.float32)
        self.place = np.arange(len(self.x)) % len(self.levels)
        self.logsnr = self.levels[self.place]
        self.noise = np.asarray(jax.random.normal(key, self.x.shape))
        self.batch_size = batch_size
        self.variance = np.var(self.x, axis=0)

    def raw(self, inputs, told_logsnr=None, label=None, scale=1.0, offset=0.0):
        """The network's output for these inputs, told this logsnr or the data's."""
        told_logsnr = self.logsnr if told_logsnr is None else told_logsnr
        label = self.label if label is None else label
        parts = []
        for first in range(0, len(self.x), self.batch_size):
            part = slice(first, first + self.batch_size)
            x = scale * self.x[part] + offset
            given, level = _given(
                inputs, x, self.noise[part], self.logsnr[part], told_logsnr[part]
            )
            some = None if label is None else jnp.asarray(label[part])
            parts.append(np.asarray(self.call(given, level, some)))
        return np.concatenate(parts)

    def implied(self, raw, outputs, scale=1.0, offset=0.0):
        """The data that an output points at."""
        x = scale * self.x + offset
        return np.asarray(_implied(outputs, raw, x, self.noise, self.logsnr))

    def yardstick(self, scale=1.0):
        """Equation 1 at each level, averaged over dimensions, [levels]."""
        alpha, sigma = (np.asarray(a)[:, None] for a in alpha_sigma(self.levels))
        s2 = scale**2 * self.variance.reshape(1, -1)
        return np.mean(s2 * sigma**2 / (alpha**2 * s2 + sigma**2), axis=1)

    def _error(self, one, other):
        """Mean squared difference per example, [n]; 1e30 where it is not finite."""
        with np.errstate(all="ignore"):
            square = np.square(np.asarray(one, np.float64) - other)
            error = np.mean(square, axis=tuple(range(1, self.x.ndim)))
        return np.nan_to_num(error, nan=1e30, posinf=1e30).clip(max=1e30)

    def multiples(self, one, other):
        """Squared difference per example, as multiples of (1), [n]."""
        return self._error(one, other) / self.yardstick()[self.place]

    def read(self, implied, scale=1.0, offset=0.0) -> Reading:
        """How far implied data is from the truth."""
        error = self._error(implied, scale * self.x + offset)
        error = np.bincount(self.place, weights=error) / np.bincount(self.place)
        error = np.maximum(error, 1e-30)  # which has a logarithm
        variance = scale**2 * np.mean(self.variance)
        return Reading(error / variance, error / self.yardstick(scale))


def other_conventions(trial, output, raw) -> list[Alternative]:
    """The same network read in every other convention that its output fits."""
    claimed = conventions.get(output)
    raws = {claimed.inputs: raw}
    others = []
    for name, convention in conventions.CONVENTIONS.items():
        if name == output or "both" in (name, output):
            continue
        if convention.inputs not in raws:
            raws[convention.inputs] = trial.raw(convention.inputs)
        raw = raws[convention.inputs]
        reading = trial.read(trial.implied(raw, convention.outputs))
        nothing = trial.read(trial.implied(np.zeros_like(raw), convention.outputs))
        # Read as "v", zeros denoise data of variance 1 as well as a Gaussian can: an
        # output that has hardly left zero speaks for no reading.
        if reading.score < 0.9 * nothing.score:
            claim, other = (f'read as "{kind}"' for kind in (output, name))
            remedy = f'set model.output="{name}"'
            others.append(Alternative(reading, claim, other, remedy))
    return others


def other_levels(trial, output) -> list[Alternative]:
    """The same noisy data, with the network told another level."""
    convention = conventions.get(output)

    def read_told(logsnr):
        raw = trial.raw(convention.inputs, told_logsnr=logsnr.astype(np.float32))
        return trial.read(trial.implied(raw, convention.outputs))

    remedy = (
        "the network's level input means something else than in "
        f'model.output="{output}" (pd_jax/conventions.py has what it means there)'
    )
    claim = "told the logsnr that the data has"
    flipped = read_told(-trial.logsnr)
    shifted = [read_told(trial.logsnr + shift) for shift in SHIFTS]
    # A wrong schedule is off by an amount that differs between levels.
    best = np.argmin([reading.ratio for reading in shifted], axis=0)
    choose = functools.partial(np.choose, best)
    one = Reading(*(choose(views) for views in zip(*shifted)))
    by = ", ".join(f"{SHIFTS[i]:+g} at {l:.3g}" for i, l in zip(best, trial.levels))
    return [
        Alternative(flipped, claim, "told its negative", f"{remedy}: flip its sign"),
        Alternative(one, claim, f"told another one (off by {by})", remedy),
    ]


def other_ranges(trial, output) -> list[Alternative]:
    """The same network on data of another range."""
    convention = conventions.get(output)
    mean, std = float(np.mean(trial.x)), float(np.std(trial.x))
    maps = {
        "x/2 + 1/2 (from [-1, 1] to [0, 1])": (0.5, 0.5),
        "2 x - 1 (from [0, 1] to [-1, 1])": (2.0, -1.0),
        "x/2": (0.5, 0.0),
        f"(x - {mean:.3g})/{std:.3g} (mean 0, std 1)": (1.0 / std, -mean / std),
    }
    others = []
    for text, (scale, offset) in maps.items():
        kw = {"scale": scale, "offset": offset}
        implied = trial.implied(
            trial.raw(convention.inputs, **kw), convention.outputs, **kw
        )
        others.append(
            Alternative(
                trial.read(implied, **kw),
                "given the data x as it is",
                f"given {text}",
                "the teacher was trained on data of that range: give it that (data.*)",
            )
        )
    return others


def other_labels(trial, convention, implied, key) -> tuple[dict, list[Alternative]]:
    """Whether labels matter, and whether others than the data's own fit better.

    For the best denoiser, other labels raise the squared error by exactly the squared
    change of its prediction: a gain of 1 for the right labels. It is 0 where both are
    equally wrong, and negative where the others are better.
    """
    figures, others = {}, []
    if trial.label is None:
        return figures, others
    classes = int(trial.label.max()) + 1
    order = np.asarray(jax.random.permutation(key, len(trial.x)))
    tables = {
        "of other examples": trial.label[order],
        "one more": (trial.label + 1) % classes,
        "one less": (trial.label - 1) % classes,
    }
    remedy = "number the data's labels as the teacher's training did (data.*)"
    own = trial.multiples(implied, trial.x)
    for text, label in tables.items():
        differ = label != trial.label
        if not differ.any():
            continue
        label = label.astype(trial.label.dtype)
        changed = trial.implied(
            trial.raw(convention.inputs, label=label), convention.outputs
        )
        worse = (trial.multiples(changed, trial.x) - own)[differ]
        change = float(np.mean(trial.multiples(changed, implied)[differ]))
        gain = float(np.mean(worse)) / max(change, 1e-30)
        error = float(np.std(worse)) / max(change, 1e-30) / np.sqrt(len(worse))
        matter = change > 0.1 * np.mean(own[differ])
        if text == "of other examples":
            figures = {"change": change, "gain": gain, "error": float(np.mean(own))}
            sure = gain < 0.3
        else:
            sure = gain < -0.3 and gain < -4.0 * error
        others.append(
            Alternative(
                trial.read(changed),
                "given the data's own labels",
                f"given labels {text}",
                remedy,
                bool(sure and matter),
            )
        )
    return figures, others


def best_labels(trial, convention) -> Alternative:
    """The label that fits each class of the data best, class by class."""
    classes = int(trial.label.max()) + 1
    errors = []
    for k in range(classes):
        label = np.full_like(trial.label, k)
        raw = trial.raw(convention.inputs, label=label)
        error = trial.multiples(trial.implied(raw, convention.outputs), trial.x)
        errors.append(np.bincount(trial.label, weights=error, minlength=classes))
    best = np.argmin(errors, axis=0)
    raw = trial.raw(
        convention.inputs, label=best[trial.label].astype(trial.label.dtype)
    )
    return Alternative(
        trial.read(trial.implied(raw, convention.outputs)),
        "given the data's own labels",
        "given " + ", ".join(f"{k} for {i}" for i, k in enumerate(best)),
        "number the data's labels as the teacher's training did (data.*)",
    )
