"""Handwritten digits, 8x8: a teacher trained from nothing, and distilled to one step.

    python -m pd_jax.main --config=configs/digits.py

scikit-learn's digits, 1500 of 1797 for training; 32 -> 16 -> 8 -> 4 -> 2 -> 1 steps.

Two CPU cores: 1.3 minutes. Frechet distance on pixels with 1, 2, 4, 8 and 16 steps:
students 0.88, 0.82, 0.80, 0.78, 0.77; teacher 17, 4.8, 2.0, 1.2, 0.88, and 0.67 with
256 steps. Dropout keeps the teacher from learning 1500 images by heart; one that does
has a lower distance (0.48 with model.emb_ch=256, after 3000 updates without it) and is
harder to distil.

Variant `:smoke`: everything in seconds, for a look at the files, not at quality.
"""

from pd_jax.config import default, recipes
from pd_jax.runtime import registry


def get_config(variant: str = ""):
    registry.check(variant, ("", "smoke"), "variant")
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
    config.run.checkpoint_updates = 1000
    config.run.substeps = 10  # a loop without convolutions is fast on CPU too
    if variant == "smoke":
        config.model.width = 32
        config.model.num_blocks = 1
        recipes.smoke(config)
    return config
