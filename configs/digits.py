"""Handwritten digits, 8x8, from a trained teacher down to one step.

python -m pd_jax.main --config=configs/digits.py
"""

from pd_jax import names
from pd_jax.config import default


def get_config(variant: str = ""):
    names.check(variant, ("", "smoke"), "variant")
    config = default("digits", "mlp")
    config.teacher.updates = 2500
    config.teacher.warmup_updates = 100
    config.teacher.decay = "linear"
    config.teacher.weighting = "snr_plus_1"
    config.teacher.dropout = 0.1
    config.teacher.ema = 0.99
    config.ladder.start = 32
    config.ladder.updates = (400, 600, 800, 1000, 1200)
    config.ladder.learning_rate = (2e-3,)
    config.ladder.decay = "linear"
    config.ladder.ema = 0.99
    if variant == "smoke":
        config.model.width = 32
        config.model.num_blocks = 1
        config.teacher.updates = 100
        config.ladder.start = 8
        config.ladder.updates = (40,)
        config.eval.teacher_steps = (8, 4, 2, 1)
        config.eval.num_samples = 256
        config.eval.paired_samples = 64
        config.eval.reference_steps = 32
        config.run.checkpoint_updates = 20
        config.run.log_updates = 10
    return config
