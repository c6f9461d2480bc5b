"""Knowledge distillation: the teacher's whole sampler in one step.

Pairs of a noise and the teacher's sample of it, x = sampler(eps), made once; then

    student(eps, t = 1) -> x

Source: Luhman & Luhman 2021 (2101.02388). They compare |x - x'|, or its square as
`loss="squared"` does; weights there start from the teacher's, too.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax import samplers
from pd_jax.diffusion import predict
from pd_jax.methods._single import Compared
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Method(Compared):
    """Knowledge distillation.

    Attributes:
      steps: sampling steps of the student: one.
      pairs: how many are made, before the first update; kept in the run's folder.
      teacher_steps: sampling steps of the teacher for each.
      teacher_sampler: its sampler; "" for the config's.
    """

    steps: tuple[int, ...] = setting((1,), least=1, below=2)
    pairs: int = setting(100_000, least=1, below=2**31)
    teacher_steps: int = setting(64, least=1, below=2**23)
    teacher_sampler: str = ""

    data = "pairs"
    taught = False  # but by its pairs
    sampler = "ddim"
    forwards = 3  # beside pairs x teacher_steps before

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """One stage."""
        name = self.parts.name
        if self.teacher_sampler:
            samplers.get(self.teacher_sampler)
        if self.check_updates:
            raise Refused(
                f"{name}.check_updates={self.check_updates}: no pairs are held back "
                "to measure on; give 0"
            )
        return super().plan()

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far the one step is from the teacher's sample, per example, [B]."""
        z, start = batch["noise"], self.parts.schedule(jnp.ones(len(keys)))
        denoise = self.parts.model.denoiser(params, batch.get("label"), dropout_key)
        truth = predict(batch["image"], z, start, "x")
        return self.difference(state, denoise(z, start), truth)
