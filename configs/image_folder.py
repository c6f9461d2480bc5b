"""A folder of your own pictures: a teacher of them, distilled to one step.

    python -m pd_jax.main --config=configs/image_folder.py --config.data.path=FOLDER

PNG, JPEG, WebP and more of any size in one folder (with `--config.data.labels=True` and
`--config.model.num_classes=N`: in N folders, one for each class). Pictures are cropped
to their central square and averaged down to `data.size`, 32 pixels here.

Sized to be waited for: some 15 minutes on two free CPU cores (estimated: a teacher's
update takes 0.45 s of CPU time). It is a first look, not good pictures. For those raise
`teacher.updates` and `ladder.updates` first, then both batches, `model.ch` and
`data.size`. All numbers are this project's choice.

Variants: `:large` is the paper's CIFAR-10 network on 64 pixels for some ten thousand
pictures, at 40% of the peak 34 chip-hours on TPU v5e, 6.7 on H100 (`--mode=estimate`,
not measured); `:improved` is that, and averages the students' weights too
(`pd_jax.config.recipes.improved`; not measured here); `:smoke` is a miniature on the
two photographs in scikit-learn, unless `data.path` says otherwise, for a look at the
files.
"""

import importlib.resources

from ml_collections import ConfigDict

from pd_jax.config import recipes
from pd_jax.runtime import registry


def get_config(variant: str = ""):
    registry.check(variant, ("", "large", "improved", "smoke"), "variant")
    config = recipes.paper("image_folder", start=256 if variant else 16)
    config.data.flip = True
    config.model.output = "v"
    if variant:
        _large(config)
    else:
        _small(config)
    if variant == "smoke":
        recipes.smoke_unet(config)
        config.data.size = 16
        config.data.path = str(importlib.resources.files("sklearn.datasets") / "images")
    if variant == "improved":
        recipes.improved(config)
    return config


def _small(config: ConfigDict) -> None:
    config.data.size = 32
    config.model.ch = 32
    config.model.emb_ch = 128
    config.model.ch_mult = (1, 1, 2)
    config.model.num_res_blocks = 1
    config.model.attn_resolutions = (8,)
    config.teacher.batch = 16
    config.teacher.updates = 1500
    config.teacher.learning_rate = 5e-4
    config.teacher.warmup_updates = 100
    config.teacher.decay = "linear"
    config.teacher.ema = 0.995
    config.ladder.batch = 16
    config.ladder.updates = (150,)
    config.ladder.learning_rate = (5e-4,)
    config.ladder.ema = 0.95
    config.eval.num_samples = 250
    config.eval.paired_samples = 50
    config.eval.reference_steps = 64
    config.eval.teacher_steps = (16, 8, 4, 2, 1)
    config.run.substeps = 1  # XLA:CPU is slow with convolutions in a loop
    config.run.eval_batch = 50
    config.run.checkpoint_updates = 500
    config.run.log_updates = 50


def _large(config: ConfigDict) -> None:
    config.data.size = 64
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
