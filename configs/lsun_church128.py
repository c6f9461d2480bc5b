"""LSUN churches 128x128: the paper's teacher, and its ladder from 1024 steps to one.

    python -m pd_jax.prepare --dataset=lsun/church_outdoor
    python -m pd_jax.main --config=configs/lsun_church128.py

Salimans & Ho 2022, section 5 and figure 4. The U-Net has 139.6 M weights and 129.9
GFLOP a forward pass of one image.

At 40% of the peak: 3700 chip-hours on TPU v5e, 730 on H100; 23% of it for the teacher
(`--mode=estimate`, not measured; it says which `microbatches` a chip needs). The
teacher's 300 000 updates are this project's choice.

Variants: `:improved` averages the students' weights too
(`pd_jax.config.recipes.improved`; not
measured here); `:smoke` is a miniature on made pictures, for a look at the files.
"""

from pd_jax.config import recipes


def get_config(variant: str = ""):
    return recipes.lsun("lsun/church_outdoor", variant)
