"""What a training learns, as a contract: `pd_jax.methods` has one method a file."""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from pd_jax.arcs import Denoiser
from pd_jax.metrics.lpips import Perceptual
from pd_jax.models import Model
from pd_jax.runtime import numerics
from pd_jax.schedules import Schedule
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TEACHER, TrainState


def setting(
    default: Any,
    *,
    least: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a method, with what its config key may be.

    Args:
      default: its default.
      least: the smallest number, of every number of a tuple; an int asks for whole
        numbers.
      below: what the numbers must be below.
      choices: the names that it may have.
    """
    limits = {"least": least, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=limits)


def on_grid(num: int, grid: int = 0) -> list[int]:
    """The times i/num that a model knows which was trained on those of a grid: i.

    Args:
      num: intervals of the times asked for, i = 1, ..., num.
      grid: intervals of those of training; 0 for any time. One as fine as `num` or
        finer has a time near every one asked for, a coarser one only its own.
    """
    fine = not grid or grid >= num
    return [i for i in range(1, num + 1) if fine or i * grid % num == 0]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a method is built of, besides its keys; to plan stages the name is enough.

    Attributes:
      name: the training's, which is its config section.
      model, schedule, optimizer: what is trained, on which noise levels, and how.
      shape: of one example.
      exact: a denoiser that teaches the first stage (index 0) in place of weights.
      perceptual: what `loss="lpips"` compares by.
      asked_steps: sampling steps that the next training asks of this one's model; 0
        for any.
    """

    name: str = "ladder"
    model: Model | None = None
    schedule: Schedule | None = None
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    shape: tuple[int, ...] = ()
    exact: Denoiser | None = None
    perceptual: Perceptual | None = None
    asked_steps: int = 0

    @property
    def student(self) -> str:
        """How the names of the training's stages begin."""
        return "student" if self.name == "ladder" else self.name

    def frozen_teacher(self, handed_over: dict[str, Any]) -> dict[str, Any]:
        """The frozen weights of a state that only `teacher` asks for.

        What teaches is constant, so it is cast to the network's type once.
        """
        if self.exact is not None:
            return {}
        return {TEACHER: jax.tree.map(jnp.copy, self.model.cast(handed_over[TEACHER]))}

    def teacher(self, state: TrainState, label: jax.Array | None) -> Denoiser:
        """What teaches: a network with its labels, or first what is exact.

        Where the state has frozen weights beside what is exact, they teach the stages
        after the first.
        """
        if TEACHER not in state.frozen:
            return self.exact
        network = self.model.denoiser(state.frozen[TEACHER], label)
        if self.exact is None:
            return network
        # A branch at run time, so that both kinds of teacher share one compiled step.
        first = state.stage["index"] == 0
        return lambda z, logsnr: jax.lax.cond(first, self.exact, network, z, logsnr)


class Method(Protocol):
    """One way to train a model: a frozen dataclass.

    Its fields, besides `parts`, are the keys of its config section that are its own,
    with their defaults and limits (`setting`); its docstring says what they mean.

    Attributes:
      parts: what it is built of.
      distils: whether it makes a student of few steps, of what was trained before or
        beside it; else it makes a teacher.
      data: what it is fed: "images", batches {"image": [B, ...], "label": [B]}; or
        "places", batches {"place": [B]} with labels as often as the data has them; or
        "pairs", batches of images with the "noise" [B, ...] that a teacher made them
        of, by the method's keys `pairs`, `teacher_steps` and `teacher_sampler`; and
        `places` [int] of the path are kept, data last.
      sampler: its student's, one of `pd_jax.samplers`; "" for the config's.
    """

    parts: Parts
    distils: ClassVar[bool]
    data: ClassVar[str]
    sampler: ClassVar[str]

    @property
    def asks_steps(self) -> int:
        """Sampling steps that it asks of its teacher at first; 0 for any."""

    @property
    def forwards(self) -> int:
        """Network evaluations per example and update; a backward pass counts as two."""

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """Its stages, in order.

        Args:
          teacher_steps: sampling steps that its teacher was made for; 0 for any.

        Raises:
          Refused: for keys that cannot work, naming them.
        """

    def step_counts(self, stage: Stage) -> tuple[int, ...]:
        """The sampling steps that a stage's model is made for, the fewest last."""

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """The times i/num, 0 < i <= num, at which a stage's model points at data: i.

        Those at which it was trained to: see `on_grid`.
        """

    def begin(
        self, handed_over: dict[str, Any], stage: Stage, key: jax.Array
    ) -> TrainState:
        """A stage's first state.

        Args:
          handed_over: weights by name: what the stage before hands over, or fresh ones,
            "model" among them; and "teacher", those that teach.
          stage: the stage.
          key: for what is random in it.
        """

    def update(
        self, state: TrainState, batch: dict, keys: jax.Array
    ) -> tuple[TrainState, dict]:
        """One update; pure, traced once for all stages.

        Args:
          state: the state before.
          batch: one device's examples, leaves [B, ...], of the axis "batch".
          keys: one random key per example, [B].

        Returns:
          The state after, its `step` one more; metrics as of `Optimizer.move`, and
          more if the method has any.
        """

    def result(self, state: TrainState) -> dict[str, Any]:
        """The part of the state that a finished stage hands over, by name."""


class Measured(Method, Protocol):
    """A method with a loss that can be measured on data that is held back."""

    def losses(
        self,
        state: TrainState,
        params: Any,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Losses [B] of `params` with the state's teacher and stage."""


def state_shapes(method: Method, stage: Stage, weights: Any) -> TrainState:
    """A stage's first state as shapes, of a network whose weights have these."""

    def begin(weights, key):
        return method.begin({MODEL: weights, TEACHER: weights}, stage, key)

    return jax.eval_shape(begin, weights, numerics.key(0))
