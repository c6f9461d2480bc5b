"""How gradients become weights: average over devices, clip, Adam, decay, average.

An update whose loss or gradient is not finite leaves all as it was, and counts.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pd_jax.runtime import registry
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TEACHER, Trained, TrainState

DECAYS = ("constant", "linear", "cosine", "cooldown")
COOLDOWN = 0.2  # share of a stage

# An average's decay: a number, which rises early in a stage; or a law of the state
# before the update, which is followed as it is.
Decay = float | Callable[[TrainState], jax.Array]

# (params, batch, keys) -> losses, one per example.
Loss = Callable[[Any, dict, jax.Array], jax.Array]


def copy(tree: Any) -> Any:
    """New buffers: a donated state must not hold one buffer twice."""
    return jax.tree.map(jnp.copy, tree)


def mean_gradient(
    loss: Loss, params: Any, batch: dict, keys: jax.Array, microbatches: int = 1
) -> tuple[jax.Array, Any]:
    """Mean loss over all examples of all devices, and its gradient.

    Args:
      loss: of one device's examples.
      params: what to differentiate by.
      batch: this device's examples, every leaf [B, ...].
      keys: one random key per example, [B].
      microbatches: parts into which the device's batch is cut, one after the other, to
        save memory.
    """

    def mean(params, batch, keys):
        return jnp.mean(loss(params, batch, keys))

    def cut(a):
        return a.reshape(microbatches, -1, *a.shape[1:])

    def body(total, part):
        return jax.tree.map(jnp.add, total, gradient(params, *part)), None

    gradient = jax.value_and_grad(mean)
    if microbatches == 1:
        return jax.lax.pmean(gradient(params, batch, keys), "batch")
    zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(body, zero, jax.tree.map(cut, (batch, keys)))
    return jax.lax.pmean(jax.tree.map(lambda a: a / microbatches, total), "batch")


def average(old: Any, new: Any, decay: Decay, state: TrainState) -> Any:
    """Weights' running average after the update of a state (at step n, 0 at first).

    Where the decay is a number the average is, early in a stage, as long as the stage
    so far: min(decay, (1 + n)/(10 + n)).
    """
    if callable(decay):
        keep = decay(state)
    else:
        n = state.step.astype(jnp.float32)
        keep = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return optax.incremental_update(new, old, 1.0 - keep)


def where(made: jax.Array, new: Any, old: Any) -> Any:
    """The new tree if an update is made, else the old one."""
    return jax.tree.map(lambda a, b: jnp.where(made, a, b), new, old)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer of one network; the peak learning rate is the stage's.

    Warm-up and decay are two factors of the peak, both from a stage's first update on:
    with both, the rate stays below the peak (0.75 of it after 100 of 400 updates of
    warm-up and linear decay).

    Attributes:
      warmup_updates: updates over which the one factor grows linearly from 0 to 1.
      decay: the other factor, from 1, over the stage's updates: "constant"; "linear" or
        "cosine" to 0; or "cooldown", constant and then, over the last 20%, linear to 0.
      clip_norm: global norm to which the averaged gradient is clipped; 0 for none.
      weight_decay: decoupled, times the learning rate.
      ema: decay of the average "sampling" of the weights; 0 for none.
      microbatches: as for `mean_gradient`.
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
        """Gradient to direction; `move` multiplies by the learning rate."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm or math.inf),
            optax.scale_by_adam(self.b1, self.b2),
            optax.add_decayed_weights(self.weight_decay),
        )

    @property
    def cooldown(self) -> float:
        """Share of a stage that is left when its rate should begin to fall."""
        return COOLDOWN if self.decay == "cooldown" else 0.0

    def _decays(self, averages: Mapping[str, Decay]) -> dict[str, Decay]:
        decays = {"sampling": self.ema, **averages}
        return {name: decay for name, decay in decays.items() if decay}

    def init(self, params: Any, averages: Mapping[str, Decay] | None = None) -> Trained:
        """A network before its first update, with buffers of its own.

        Args:
          params: its weights.
          averages: decays of further averages by name; 0 for none.
        """
        return Trained(
            params=copy(params),
            averages={name: copy(params) for name in self._decays(averages or {})},
            opt_state=self._chain.init(params),
        )

    def start(
        self,
        params: Any,
        stage: Stage,
        teacher: Any = None,
        averages: Mapping[str, Decay] | None = None,
    ) -> TrainState:
        """The first state of a stage that moves one network.

        Args:
          params: its weights.
          stage: the stage.
          teacher: frozen weights that teach it, if any.
          averages: as for `init`.
        """
        return TrainState(
            step=jnp.int32(0),
            stage=stage.values(),
            networks={MODEL: self.init(params, averages)},
            frozen={} if teacher is None else {TEACHER: copy(teacher)},
        )

    def learning_rate(
        self, step: jax.Array, stage: Mapping[str, jax.Array], peak: jax.Array | None
    ) -> jax.Array:
        """Learning rate of update number `step` (0 is the first) of a stage.

        Args:
          step: the number.
          stage: the stage's numbers.
          peak: the peak; default the stage's "learning_rate".
        """
        peak = stage["learning_rate"] if peak is None else peak
        rise = jnp.minimum(1.0, (step + 1) / max(self.warmup_updates, 1))
        done = step / stage["updates"]
        fall = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
            "cooldown": jnp.minimum(1.0, (1.0 - done) / COOLDOWN),
        }[self.decay]
        return peak * rise * fall

    def move(
        self,
        state: TrainState,
        name: str,
        loss: Loss,
        batch: dict,
        keys: jax.Array,
        *,
        averages: Mapping[str, Decay] | None = None,
        peak: jax.Array | None = None,
    ) -> tuple[TrainState, dict]:
        """Moves one network of a state, on one device of the axis "batch".

        Args:
          state: the state before.
          name: which of its networks.
          loss: (params, batch, keys) -> losses, one per example.
          batch, keys: as for `mean_gradient`.
          averages: as for `init`.
          peak: as for `learning_rate`.

        Returns:
          The state after, at the same `step`; and metrics averaged over devices: loss,
          grad_norm (before clipping), learning_rate; and skipped: 1 where one of the
          first two is not finite, and so nothing of the state is new, else 0.
        """
        old = state.networks[name]
        value, grads = mean_gradient(loss, old.params, batch, keys, self.microbatches)
        direction, opt_state = self._chain.update(grads, old.opt_state, old.params)
        rate = self.learning_rate(state.step, state.stage, peak)
        params = jax.tree.map(lambda p, d: p - rate * d, old.params, direction)
        new = Trained(
            params=params,
            averages={
                average_name: average(old.averages[average_name], params, decay, state)
                for average_name, decay in self._decays(averages or {}).items()
            },
            opt_state=opt_state,
        )
        norm = optax.global_norm(grads)
        # Of averages over all devices, so that all of them do the same.
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        metrics = {
            "loss": value,
            "grad_norm": norm,
            "learning_rate": rate,
            "skipped": 1 - finite.astype(jnp.int32),
        }
        return state.with_network(name, where(finite, new, old)), metrics

    def update(
        self,
        state: TrainState,
        loss: Loss,
        batch: dict,
        keys: jax.Array,
        averages: Mapping[str, Decay] | None = None,
    ) -> tuple[TrainState, dict]:
        """One whole update of a state that moves one network; as `move`."""
        state, metrics = self.move(state, MODEL, loss, batch, keys, averages=averages)
        return state.replace(step=state.step + 1), metrics
