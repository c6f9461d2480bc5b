"""Diff-Instruct: a one-step generator whose noised samples look like noised data.

x = model(eps, t = 1). A second network, `fake`, learns to denoise the model's samples,
as in standard training; then the gap between it and the teacher, at the samples noised
anew, is pulled back through the generator:

    grad = E k (D_fake - D_teacher)(alpha x + sigma eps', t) dx/dparams

which descends an integral of KL divergences over noise levels (scores.py). No data is
needed but labels.

Source: Luo et al. 2023 (2305.18455), algorithm 1, where `fake_updates` is 1 and the
generator is fed at a noise level of its own; here it is the model at t = 1. The weight
"dmd" is that of Yin et al. 2024 (2311.18828), five fake updates a student's that of
DMD2 (2405.14867).
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax import scores
from pd_jax.diffusion import WEIGHTINGS, Prediction, diffuse, velocity, weighted_mse
from pd_jax.methods import _draws
from pd_jax.training.method import Parts, on_grid, setting
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TEACHER, TrainState

FAKE = "fake"


@dataclasses.dataclass(frozen=True)
class Method:
    """Diff-Instruct.

    Attributes:
      parts: model, schedule and optimizer; and the teacher, if it is exact.
      updates: of the student's optimizer.
      learning_rate: its peak.
      fake_updates: of the second network, for each of the student's.
      fake_learning_rate: the peak of its optimizer, which is else as the student's.
      weighting: of the second network's loss over noise levels.
      gap_weight: k of the gap (scores.py).
      time_law: of the noise levels of both losses (scores.py).
    """

    parts: Parts
    updates: int = setting(0, least=1)
    learning_rate: float = setting(1e-3, least=0.0)
    fake_updates: int = setting(1, least=1)
    fake_learning_rate: float = setting(1e-3, least=0.0)
    weighting: str = setting("snr_plus_1", choices=WEIGHTINGS)
    gap_weight: str = setting("constant", choices=scores.WEIGHTS)
    time_law: str = setting("lognormal", choices=scores.LAWS)

    distils = True
    data = "places"
    sampler = "ddim"
    asks_steps = 0

    @property
    def forwards(self) -> int:
        """A sample and a training step for each fake update; then the student's own
        forward and backward passes, the teacher and the fake."""
        return 4 * self.fake_updates + 5

    @property
    def fake_optimizer(self) -> Optimizer:
        """The second network's, of which no average is sampled."""
        return dataclasses.replace(self.parts.optimizer, ema=0.0)

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """One stage."""
        numbers = {"fake_learning_rate": self.fake_learning_rate}
        name = self.parts.student
        return [Stage(name, 0, 1, self.updates, self.learning_rate, numbers)]

    def step_counts(self, stage: Stage) -> tuple[int, ...]:
        """One step."""
        return (1,)

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """From the noise alone."""
        return on_grid(num, 1)

    def begin(self, handed_over: dict, stage: Stage, key: jax.Array) -> TrainState:
        """The second network starts from the teacher's weights."""
        state = self.parts.optimizer.start(handed_over[MODEL], stage)
        fake = self.fake_optimizer.init(handed_over[TEACHER])
        frozen = self.parts.frozen_teacher(handed_over)
        return state.with_network(FAKE, fake).replace(frozen=frozen)

    def result(self, state: TrainState) -> dict:
        """The student's weights."""
        return {MODEL: state.model.weights}

    def generate(
        self, params: dict, label: jax.Array | None, keys: jax.Array, **options
    ) -> jax.Array:
        """The samples x [B, ...] of the student's weights."""
        shape = (len(keys), *self.parts.shape)
        eps = _draws.normal_like(keys, jnp.zeros(shape))
        denoise = self.parts.model.denoiser(params, label, **options)
        return denoise(eps, self.parts.schedule(jnp.ones(len(keys)))).x

    def _noised(self, x: jax.Array, keys: jax.Array) -> tuple[jax.Array, ...]:
        """Samples with noise: z, its noise eps, and its level."""
        u = _draws.uniform_times(keys)
        logsnr = scores.logsnr_at(self.time_law, u, self.parts.schedule)
        eps = _draws.normal_like(keys, x)
        return diffuse(x, eps, logsnr), eps, logsnr

    def fake_loss(
        self, state: TrainState, params: dict, batch: dict, keys: jax.Array
    ) -> jax.Array:
        """How far the second network is from denoising the student's samples, [B]."""
        label, student = batch.get("label"), state.model.params
        x = self.generate(student, label, _draws.fold(keys, 0))
        z, eps, logsnr = self._noised(jax.lax.stop_gradient(x), keys)
        denoise = self.parts.model.denoiser(params, label, _draws.dropout_key(keys))
        truth = Prediction(x, eps, velocity(x, eps, logsnr))
        truth = jax.lax.stop_gradient(truth)
        return weighted_mse(denoise(z, logsnr), truth, self.weighting)

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The student's loss [B], of which the gradient alone has a meaning."""
        label, model = batch.get("label"), self.parts.model
        keys_of_samples = _draws.fold(keys, 0)
        x = self.generate(params, label, keys_of_samples, dropout_key=dropout_key)
        z, _, logsnr = self._noised(jax.lax.stop_gradient(x), keys)
        fake = model.denoiser(state.networks[FAKE].params, label)(z, logsnr)
        teacher = self.parts.teacher(state, label)(z, logsnr)
        field = scores.gap(x, fake, teacher, logsnr, self.gap_weight)
        return scores.pull(field, x)

    def update(
        self, state: TrainState, batch: dict, keys: jax.Array
    ) -> tuple[TrainState, dict]:
        """`fake_updates` of the second network, then one of the student's.

        Args:
          state: the state before.
          batch: {"place" [B]}, and "label" [B] if there are labels.
          keys: one for each of them, [B].
        """
        skipped, peak = 0, state.stage["fake_learning_rate"]
        for i in range(self.fake_updates):

            def fake_loss(params, batch, keys, state=state):
                return self.fake_loss(state, params, batch, keys)

            fake_keys = _draws.fold(keys, 1 + i)
            state, fake = self.fake_optimizer.move(
                state, FAKE, fake_loss, batch, fake_keys, peak=peak
            )
            skipped = jnp.maximum(skipped, fake["skipped"])

        def loss(params, batch, keys):
            return self.losses(state, params, batch, keys, _draws.dropout_key(keys))

        state, metrics = self.parts.optimizer.update(state, loss, batch, keys)
        metrics["skipped"] = jnp.maximum(skipped, metrics["skipped"])
        return state, metrics | {"fake_loss": fake["loss"]}
