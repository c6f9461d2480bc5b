"""Eight narrow Gaussians on a ring, taught by their exact denoiser."""

from pd_jax import names
from pd_jax.config import default


def get_config(variant: str = ""):
    names.check(variant, ("", "smoke"), "variant")
    config = default("ring2d", "mlp")
    config.model.width = 256
    config.model.num_blocks = 3
    config.teacher.exact = True
    config.ladder.start = 32
    config.ladder.batch = 512
    config.ladder.updates = (3000, 1000, 1000, 1000, 1000)
    config.ladder.learning_rate = (1e-3,)
    config.ladder.weighting = "snr_plus_1"
    config.ladder.decay = "linear"
    config.ladder.ema = 0.99
    config.eval.clip = False
    config.eval.paired_samples = 4000
    return config
