"""32x32 crops of two photographs: real colour pictures that every machine has.

    python -m pd_jax.main --config=configs/photos32.py

All crops of the two photographs in scikit-learn but for a strip, which is held back
for evaluation; mirrored half of the time. The paper's CIFAR-10 network at half the
width, and the ladder 256 -> 1: the largest honest run that needs no download. Batch,
updates and rates are this project's choice.

At 40% of the peak: 50 minutes on one TPU v5e, 10 minutes on one H100
(`--mode=estimate`, not measured). FID needs weights in `eval.inception`.

Variant `:smoke`: a miniature for two CPU cores, for a look at the files.
"""

from pd_jax.config import recipes
from pd_jax.runtime import registry


def get_config(variant: str = ""):
    registry.check(variant, ("", "smoke"), "variant")
    config = recipes.paper("photos", start=256)
    config.model.output = "v"
    config.model.ch = 128
    config.model.emb_ch = 512
    config.model.ch_mult = (1, 1, 1)
    config.model.num_res_blocks = 3
    config.model.attn_resolutions = (8, 16)
    config.teacher.updates = 20_000
    config.teacher.learning_rate = 3e-4
    config.teacher.ema = 0.999
    config.ladder.updates = (2_000,) * 6 + (4_000,) * 2
    config.ladder.learning_rate = (2e-4,)
    config.ladder.ema = 0.99
    config.eval.num_samples = 10_000
    config.eval.num_reference = 10_000
    config.eval.teacher_steps = (256, 64, 32, 16, 8, 4, 2, 1)
    config.run.checkpoint_updates = 1000
    if variant == "smoke":
        recipes.smoke_unet(config)
        config.data.size = 16
        config.eval.num_reference = 500
    return config
