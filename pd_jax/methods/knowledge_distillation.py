"""Knowledge distillation: the teacher's whole sampler in one step, or in a few.

Pairs of a noise and the teacher's sample of it, x = sampler(eps), made once; then

    student(eps, t = 1) -> x

With k steps the places of the teacher's path between them are kept, too: z_k = eps at
t = 1, ..., z_0 = x at t = 0. The student's n-th step, of DDIM, is to go from one to the
next, so it is to predict

    v = (cos(delta) z_n - z_(n-1)) / sin(delta),   delta = phi(n/k) - phi((n-1)/k)

with phi(0) = 0, as the last step returns the data.

Source: Luhman & Luhman 2021 (2101.02388), one step. They compare |x - x'|, or its
square as `loss="squared"` does; weights there start from the teacher's, too.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax import arcs
from pd_jax.diffusion import expand, predict
from pd_jax.methods._paired import Paired
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import on_grid, setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Method(Paired):
    """Knowledge distillation.

    Attributes:
      steps: sampling steps of the student: one number, of which `teacher_steps` is a
        multiple.
    """

    steps: tuple[int, ...] = setting((1,), least=1)

    @property
    def places(self) -> int:
        """Where each step lands."""
        return self.steps[0]

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """One stage."""
        name = self.parts.name
        if len(self.steps) != 1 or self.teacher_steps % self.steps[0]:
            raise Refused(
                f"{name}.steps={self.steps}: one number of steps, of which "
                f"{name}.teacher_steps={self.teacher_steps} is a multiple"
            )
        return super().plan()

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """At those of its steps."""
        return on_grid(num, self.steps[0])

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far a step lands from where the teacher went, per example, [B]."""
        z, schedule, (num,) = batch["noise"], self.parts.schedule, self.steps
        t = batch["step"] / jnp.float32(num)
        start = schedule(t)
        denoise = self.parts.model.denoiser(params, batch.get("label"), dropout_key)
        truth = predict(batch["image"], z, start, "x")
        if num > 1:
            below = arcs.angle(schedule, (batch["step"] - 1) / jnp.float32(num))
            delta = expand(arcs.angle(schedule, t) - below, z)
            v = (jnp.cos(delta) * z - batch["image"]) / jnp.sin(delta)
            truth = predict(v, z, start, "v")
        return self.difference(state, denoise(z, start), truth)
