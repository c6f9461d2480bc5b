"""CIFAR-10: the paper's teacher, and its ladder from 8192 steps to one.

    python -m pd_jax.prepare --dataset=cifar10
    python -m pd_jax.main --config=configs/cifar10.py

Salimans & Ho 2022, table 2 and figure 4: FID 9.12, 4.51, 3.00, 2.57 with 1, 2, 4, 8
steps. The U-Net has 60.0 M weights and 34.1 GFLOP a forward pass of one image.

At 40% of the peak: 107 chip-hours on TPU v5e, 21 on H100; 39% of it for the teacher
and 12% for evaluation (`--mode=estimate`, not measured). The teacher's 800 000 updates
are this file's choice.

Variants: `:improved` averages the students' weights too
(`pd_jax.config.recipes.improved`; not
measured here); `:smoke` is a miniature on made pictures, for a look at the files.
"""

from pd_jax.config import recipes
from pd_jax.runtime import registry


def get_config(variant: str = ""):
    registry.check(variant, ("", "improved", "smoke"), "variant")
    config = recipes.paper("shapes" if variant == "smoke" else "tfds", start=8192)
    config.data.flip = True
    config.model.output = "x"
    config.model.ch = 256
    config.model.emb_ch = 1024
    config.model.ch_mult = (1, 1, 1)
    config.model.num_res_blocks = 3
    config.model.attn_resolutions = (8, 16)
    config.model.num_heads = 1
    config.teacher.updates = 800_000
    config.teacher.learning_rate = 2e-4
    config.teacher.dropout = 0.2
    config.teacher.weight_decay = 1e-3
    config.ladder.learning_rate = (5e-5,)
    if variant == "smoke":
        recipes.smoke_unet(config)
        return config
    config.data.dataset = "cifar10"
    config.data.size = 32
    if variant == "improved":
        recipes.improved(config)
    return config
