"""LSUN bedrooms 128x128: the paper's teacher, and its ladder from 1024 steps to one.

    python -m pd_jax.prepare --dataset=lsun/bedroom
    python -m pd_jax.main --config=configs/lsun_bedroom128.py

Salimans & Ho 2022, section 5 and figure 4. The U-Net has 139.6 M weights and 129.9
GFLOP a forward pass of one image.

ESTIMATE

Variants: `:improved` averages the students' weights too (`pd_jax.recipes.improved`; not
measured here); `:smoke` is a miniature on made pictures, for a look at the files.
"""

from pd_jax import recipes


def get_config(variant: str = ""):
    return recipes.lsun("lsun/bedroom", variant)
