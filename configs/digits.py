"""scikit-learn's handwritten digits, 8x8, from a teacher to one step.
"""

from pd_jax.config import default


def get_config(variant: str = ""):
    config = default()
    config.data.name = "digits"
    config.model.width = 256
    config.model.num_blocks = 3
    config.teacher.updates = 4000
    config.teacher.warmup_updates = 100
    config.teacher.ema = 0.999
    config.ladder.start = 32
    config.ladder.updates = (800,)
    config.ladder.decay = "linear"
    if variant == "smoke":
        config.model.width = 32
        config.teacher.updates = 100
        config.ladder.start = 8
        config.ladder.updates = (40,)
        config.eval.teacher_steps = (16, 4, 1)
        config.eval.num_samples = 256
        config.eval.paired_samples = 64
        config.eval.reference_steps = 32
    return config
