"""MeanFlow: the mean velocity of any part of the path, by its own derivative.

The model knows two times, V(z, t, s), of the arc of length delta = phi_t - phi_s. Of
an arc whose end stays where it is while its start moves along the path

    cos(delta) (V - v) + sin(delta) (z + dV/dphi) = 0                         (1)

which is the paper's identity u = v - (t - r) du/dt, of lines, in arcs: both have the
same map, and the form (1) has no pole. The left side at the model's weights, g, makes
the target: V(z_t, t, s) -> V - g, its gradient stopped. At s = t that is v.

Source: Geng et al. 2025 (2505.13447), equation 6 and algorithm 1; with `own_velocity`
the improved form of Geng et al. 2025 (2512.02012): the derivative is along the model's
own v = V(z, t, t), of the same mean and less variance. Theirs is a second head.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax import arcs
from pd_jax.diffusion import expand, predict, weighted_mse
from pd_jax.methods import _draws
from pd_jax.methods._derivative import Derived, adaptive, derivative
from pd_jax.training.method import setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TrainState


@dataclasses.dataclass(frozen=True)
class Method(Derived):
    """MeanFlow.

    Attributes:
      same: share of the examples whose two times are one, which learn v.
      own_velocity: the derivative is along the model's own v.
      power: losses are divided by (|error|^2 + constant)^power of their own; 0: they
        stay squared errors, whose fixed point is the flow in few dimensions, too.
      constant: see `power`.
    """

    time_mean: float = -0.4
    time_std: float = setting(1.0, least=0.0)
    same: float = setting(0.75, least=0.0, below=1.0)
    own_velocity: bool = False
    power: float = setting(1.0, least=0.0)
    constant: float = setting(0.01, least=0.0)

    sampler = "path"

    @property
    def forwards(self) -> int:
        """One more where the model's own v is asked for."""
        return super().forwards + self.own_velocity

    def begin(self, handed_over: dict, stage: Stage, key: jax.Array) -> TrainState:
        """The student starts from weights that know a second time, without effect."""
        model, shape = self.parts.model, self.parts.shape
        weights = model.with_second_time(handed_over[MODEL], shape)
        return super().begin(handed_over | {MODEL: weights}, stage, key)

    def times(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Times t >= s, [B] each."""
        law = self.time_mean, self.time_std
        one, other = (self.drawn_times(_draws.fold(keys, i), *law) for i in (0, 1))
        same = _draws.uniform_times(_draws.fold(keys, 2)) < self.same
        t = jnp.maximum(one, other)
        return t, jnp.where(same, t, jnp.minimum(one, other))

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far V is from V - g of equation 1, per example, [B]."""
        schedule, model = self.parts.schedule, self.parts.model
        t, s = self.times(keys)
        z, v = self.path(state, batch, keys, t)
        logsnr, until = schedule(t), schedule(s)
        denoise = model.denoiser(params, batch.get("label"), dropout_key)
        delta = arcs.angle(schedule, t) - arcs.angle(schedule, s)
        along = denoise(z, logsnr, logsnr).v if self.own_velocity else v
        own, change = derivative(denoise, z, logsnr, until, along, jnp.sin(delta))
        cos, sin = (expand(f(delta), z) for f in (jnp.cos, jnp.sin))
        target = jax.lax.stop_gradient(own - cos * (own - v) - sin * z - change)
        truth = predict(target, z, logsnr, "v")
        losses = weighted_mse(denoise(z, logsnr, until), truth, self.weighting)
        return adaptive(losses, z[0].size, self.power, self.constant)
