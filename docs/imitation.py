"""Imitation beside training on data, on the digits: losses, and noise of gradients.

    python docs/imitation.py [SEED]

Two students start from the same fresh weights and see the same examples, times and
noise; one is held to the teacher's prediction ("imitation"), one to the data
("standard"). Losses are those of 297 digits held back. Of the gradients g of single
training examples, at the first student's weights, the noise is

    tr(Cov g) / |E g|^2

the batch at which signal and noise are alike (McCandlish et al. 2018, 1812.06162).
"""

import functools
import pathlib
import runpy
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pd_jax import data, methods
from pd_jax.config.setup import build
from pd_jax.runtime import numerics
from pd_jax.training.method import Method
from pd_jax.training.state import MODEL, TEACHER, TrainState
from pd_jax.training.step import Step
from pd_jax.training.training import Training

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"
HELD_BACK = np.tile(np.arange(1500, 1797), 16)  # digits, each with 16 noises
HEAD = {
    "losses": "imitation: to teacher | to data | standard: to teacher | to data",
    "gradients": "noise: teacher's target | data | variance: teacher's target | data",
}


def gradient_noise(
    loss: Callable, params: dict, batch: dict, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Noise and variance of the gradient g of one example.

    Args:
      loss: (params, batch, keys) -> losses [B], each of its own example and key.
      params: the weights.
      batch, keys: N examples, and a key for each.

    Returns:
      tr(Cov g) / |E g|^2 and tr(Cov g), both terms without bias.
    """

    def add(sums, given):
        one = jax.tree.map(lambda a: a[None], given)
        g, _ = ravel_pytree(jax.grad(lambda p: loss(p, *one)[0])(params))
        return (sums[0] + g, sums[1] + g @ g), None

    num, (zero, _) = len(keys), ravel_pytree(jax.tree.map(jnp.zeros_like, params))
    (total, squares), _ = jax.lax.scan(add, (zero, zero[0]), (batch, keys))
    mean = total / num
    trace = (squares - num * mean @ mean) / (num - 1)
    return trace / (mean @ mean - trace / num), trace


def train(
    training: Training, method: Method, weights: dict, every: int
) -> Iterator[tuple[int, TrainState]]:
    """(updates, state) after 0, `every`, 2 `every`, ... of a training's updates."""
    (stage,), step = training.stages, Step(method.update, jax.devices()[:1], 10)
    feed = step.feed(training.dataset.batches(0, training.batch, training.seed))
    state, key = (
        step.place(x)
        for x in (method.begin(weights, stage, training.start_key), training.key)
    )
    for done in range(0, stage.updates + 1, 10):
        if done % every == 0:
            yield done, jax.tree.map(jnp.copy, state)  # a call gives its state up
        state, _ = step(state, next(feed), key)


def main(
    seed: int = 0,
    updates: int = 2000,
    teacher_updates: int = 2500,
    gradients: int = 8192,
) -> None:
    """Prints both tables."""
    config = runpy.run_path(str(CONFIG))["get_config"]("imitation")
    config.seed = seed
    config.teacher.updates, config.student.updates = teacher_updates, updates
    setup = build(config)
    of_teacher, training = setup.trainings
    *_, (_, state) = train(
        of_teacher, of_teacher.method, {MODEL: setup.fresh_weights()}, teacher_updates
    )
    teacher = of_teacher.method.result(state)[MODEL]
    keys = jax.random.split(numerics.key(seed), 3)
    weights = {MODEL: setup.fresh_weights(keys[0]), TEACHER: teacher}
    imitation = training.method
    standard = methods.get("standard").Method(
        imitation.parts, weighting=imitation.weighting
    )
    digits = data.get("digits", num_images=1797)
    held_back = digits.take(HELD_BACK), jax.random.split(keys[1], len(HELD_BACK))
    rows = np.arange(gradients) % len(training.dataset)
    shown = training.dataset.take(rows), jax.random.split(keys[2], gradients)
    frozen = imitation.begin(weights, training.stages[0], training.start_key)
    means, noises = [], []
    for method in (imitation, standard):
        loss = functools.partial(method.losses, frozen)
        means.append(jax.jit(lambda *given, loss=loss: jnp.mean(loss(*given))))
        noises.append(jax.jit(functools.partial(gradient_noise, loss)))
    runs = (train(training, m, weights, updates // 8) for m in (imitation, standard))
    tables = {"losses": [], "gradients": []}
    for (done, one), (_, other) in zip(*runs):
        models = one.model.weights, other.model.weights
        values = [mean(w, *held_back) for w in models for mean in means]
        tables["losses"].append((done, values))
        if done % (updates // 2) == 0:
            found = zip(*(noise(one.model.params, *shown) for noise in noises))
            tables["gradients"].append((done, [v for pair in found for v in pair]))
    for name, lines in tables.items():
        print(f"\n| updates | {HEAD[name]} |\n|---:|---:|---:|---:|---:|")
        for done, values in lines:
            print(f"| {done} | {' | '.join(f'{v:#.3g}' for v in values)} |")
    print(f"\nThe teacher's loss to the data: {means[1](teacher, *held_back):#.3g}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
