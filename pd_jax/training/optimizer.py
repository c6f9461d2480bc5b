"""How gradients become weights: average over devices, clip, Adam, decay, average.

An update whose loss or gradient is not finite leaves all as it was, and counts.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from pd_jax.runtime import registry
from pd_jax.training.stage import Stage
from pd_jax.training.state import StageValues, TrainState

DECAYS = ("constant", "linear", "cosine", "cooldown")
COOLDOWN = 0.2  # share of a stage


def _copy(tree):
    """New buffers: a donated state must not hold one buffer twice."""
    return jax.tree.map(jnp.copy, tree)


@dataclasses.dataclass(frozen=True)
class Descent:
    """The optimiser of one training run; the learning rate itself is the stage's.

    Attributes:
      warmup_updates: updates of linear growth from 0 to the peak learning rate.
      decay: from the peak, over the stage's updates: "constant"; "linear" or
        "cosine" to 0; or "cooldown", constant and then, over the last 20%, linear to 0.
      clip_norm: global norm to which the averaged gradient is clipped; 0 for none.
      weight_decay: decoupled, times the learning rate.
      ema: decay of the weights' running average; 0 for none. Early in a stage the
        average is as long as the stage so far: min(ema, (1 + n)/(10 + n)).
      microbatches: parts into which each device's batch is cut, to save memory; their
        gradients are averaged before anything else happens.
    """

    warmup_updates: int = 0
    decay: str = "constant"
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    ema: float = 0.0
    microbatches: int = 1
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self):
        registry.check(self.decay, DECAYS, "learning rate decay")

    @property
    def _chain(self) -> optax.GradientTransformation:
        """Gradient to direction; `update` multiplies by the learning rate."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm or math.inf),
            optax.scale_by_adam(self.b1, self.b2),
            optax.add_decayed_weights(self.weight_decay),
        )

    @property
    def cooldown(self) -> float:
        """Share of a stage that is left when its rate should begin to fall."""
        return COOLDOWN if self.decay == "cooldown" else 0.0

    def start(self, params, stage: Stage, teacher=None) -> TrainState:
        """A stage's first state: new optimiser, and own copies of the weights."""
        return TrainState(
            step=jnp.int32(0),
            stage=StageValues.of(stage),
            params=_copy(params),
            ema=_copy(params) if self.ema else None,
            opt_state=self._chain.init(params),
            teacher=None if teacher is None else _copy(teacher),
        )

    def learning_rate(self, step: jax.Array, stage: StageValues) -> jax.Array:
        """Learning rate of update number `step` (0 is the first) of a stage."""
        rise = jnp.minimum(1.0, (step + 1) / max(self.warmup_updates, 1))
        done = step / stage.updates
        fall = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
            "cooldown": jnp.minimum(1.0, (1.0 - done) / COOLDOWN),
        }[self.decay]
        return stage.learning_rate * rise * fall

    def update(
        self,
        state: TrainState,
        loss: Callable[[dict, dict, jax.Array], jax.Array],
        batch: dict,
        keys: jax.Array,
    ) -> tuple[TrainState, dict]:
        """One update of state.params, on one device of the axis "batch".

        Args:
          state: the state before.
          loss: (params, batch, keys) -> losses, one per example.
          batch: this device's examples, every leaf [B, ...].
          keys: one random key per example, [B].

        Returns:
          The state after, and metrics averaged over devices: loss, grad_norm (before
          clipping), learning_rate; and skipped: 1 where one of the first two is not
          finite, and so nothing of the state but its step is new, else 0.
        """
        value, grads = self._mean_gradient(state.params, loss, batch, keys)
        value, grads = jax.lax.pmean((value, grads), "batch")
        direction, opt_state = self._chain.update(grads, state.opt_state, state.params)
        rate = self.learning_rate(state.step, state.stage)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        ema = state.ema
        if self.ema:
            n = state.step.astype(jnp.float32)
            keep = jnp.minimum(self.ema, (1.0 + n) / (10.0 + n))
            ema = optax.incremental_update(params, ema, 1.0 - keep)
        norm = optax.global_norm(grads)
        # Of averages over all devices, so that all of them do the same.
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        params, ema, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, ema, opt_state),
            (state.params, state.ema, state.opt_state),
        )
        metrics = {
            "loss": value,
            "grad_norm": norm,
            "learning_rate": rate,
            "skipped": 1 - finite.astype(jnp.int32),
        }
        state = state.replace(
            step=state.step + 1, params=params, ema=ema, opt_state=opt_state
        )
        return state, metrics

    def _mean_gradient(self, params, loss, batch, keys):
        """Mean loss and its gradient, over microbatches one after the other."""

        def mean(params, batch, keys):
            return jnp.mean(loss(params, batch, keys))

        gradient = jax.value_and_grad(mean)
        if self.microbatches == 1:
            return gradient(params, batch, keys)

        def cut(a):
            return a.reshape(self.microbatches, -1, *a.shape[1:])

        def body(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(body, zero, jax.tree.map(cut, (batch, keys)))
        return jax.tree.map(lambda a: a / self.microbatches, total)
