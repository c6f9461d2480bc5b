"""ImageNet 64x64, class-conditional: the paper's teacher, and its ladder to one step.

    python -m pd_jax.prepare --dataset=imagenet_resized/64x64
    python -m pd_jax.main --config=configs/imagenet64.py

Salimans & Ho 2022, figure 4: FID 16.1, 7.4, 3.9, 2.95 with 1, 2, 4, 8 steps. The U-Net
has 295.9 M weights and 210.7 GFLOP a forward pass of one image.

At 40% of the peak: 7100 chip-hours on TPU v5e, 1400 on H100; 35% of it for the teacher
(`--mode=estimate`, not measured). 64 chips of v5e need `teacher.microbatches=8` and
`ladder.microbatches=8`. The teacher's 550 000 updates are this file's choice.

Variants: `:improved` averages the students' weights too
(`pd_jax.config.recipes.improved`; not
measured here); `:smoke` is a miniature on made pictures, for a look at the files.

Variant `:boot`, or `:boot:smoke` in miniature, distils the same teacher to one step
without data. Gu et al. 2023 (2306.05544): FID 16.3, on a teacher of theirs. Never run
here; batch, updates, rates and the grid of 20 intervals are this file's choice. On
H100 the student takes 39.4 GB with 32 images a chip, as XLA compiles its step for one,
1.94 PFLOP an update, and 136 chip-hours at 40% of the peak (`--mode=estimate`).
"""

from ml_collections import ConfigDict

from pd_jax.config import recipes


def _boot(student: ConfigDict) -> None:
    student.batch = 1024
    student.updates = 100_000
    student.learning_rate = 1e-4
    student.ema = 0.9999
    student.grid = 20
    student.solver = "ddim"


METHODS = {"boot": _boot}


def get_config(variant: str = ""):
    name, smoke = recipes.parse(variant, "improved", *METHODS)
    method = name if name in METHODS else ""
    config = recipes.paper("shapes" if smoke else "tfds", 1024, method)
    config.data.flip = True
    config.model.output = "both"
    config.model.ch = 192
    config.model.emb_ch = 768
    config.model.ch_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = 3
    config.model.attn_resolutions = (8, 16, 32)
    config.model.head_dim = 64
    config.model.num_classes = 1000
    config.teacher.batch = 2048
    config.teacher.updates = 550_000
    config.teacher.learning_rate = 3e-4
    config.teacher.dropout = 0.1
    if method:
        METHODS[method](config.student)
    else:
        config.ladder.batch = 2048
        config.ladder.learning_rate = (1e-4,)
    if name == "improved":
        recipes.improved(config)
    if smoke:
        recipes.smoke_unet(config)
        config.data.num_classes = config.model.num_classes = 10
        return config
    config.data.dataset = "imagenet_resized/64x64"
    config.data.size = 64
    config.data.label_key = "label"
    return config
