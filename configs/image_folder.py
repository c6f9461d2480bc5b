"""A folder of your own pictures: teacher and ladder with the paper's CIFAR-10 network.

    python -m pd_jax.main --config=configs/image_folder.py --config.data.path=FOLDER

PNG, JPEG or WebP of any size, in one folder (with `--config.data.labels=True` and
`--config.model.num_classes=N`: in N folders, one for each class). Pictures are cropped
to their central square and averaged down to `data.size`, 64 pixels here. The batch,
the updates and the ladder's start are this project's choice, for some ten thousand
pictures.

At 40% of the peak: 34 chip-hours on TPU v5e, 6.7 on H100 (`--mode=estimate`, not
measured).

Variants: `:improved` averages the students' weights too
(`pd_jax.config.recipes.improved`; not
measured here); `:smoke` is a miniature on the two photographs in scikit-learn, unless
`data.path` says otherwise, for a look at the files.
"""

import importlib.resources

from pd_jax.config import recipes
from pd_jax.runtime import registry


def get_config(variant: str = ""):
    registry.check(variant, ("", "improved", "smoke"), "variant")
    config = recipes.paper("image_folder", start=256)
    config.data.size = 64
    config.data.flip = True
    config.model.output = "v"
    config.model.ch = 128
    config.model.emb_ch = 512
    config.model.ch_mult = (1, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attn_resolutions = (16,)
    config.model.head_dim = 64
    config.teacher.updates = 200_000
    config.teacher.learning_rate = 2e-4
    config.teacher.dropout = 0.1
    config.ladder.updates = (20_000,)
    config.ladder.learning_rate = (1e-4,)
    config.eval.num_samples = 10_000
    config.eval.teacher_steps = (256, 64, 32, 16, 8, 4, 2, 1)
    if variant == "smoke":
        recipes.smoke_unet(config)
        config.data.size = 16
        config.data.path = str(importlib.resources.files("sklearn.datasets") / "images")
    if variant == "improved":
        recipes.improved(config)
    return config
