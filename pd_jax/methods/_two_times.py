"""What methods share whose model knows two times: V(z, t, s), the arc from t to s."""

import dataclasses

import jax

from pd_jax.methods._joined import Joined
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TrainState


@dataclasses.dataclass(frozen=True)
class TwoTimes(Joined):
    """A joined method of two times; sampled along the path."""

    sampler = "path"

    def begin(self, handed_over: dict, stage: Stage, key: jax.Array) -> TrainState:
        """The student starts from weights that know a second time, without effect."""
        model, shape = self.parts.model, self.parts.shape
        weights = model.with_second_time(handed_over[MODEL], shape)
        return super().begin(handed_over | {MODEL: weights}, stage, key)
