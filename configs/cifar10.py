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

Variants by method distil the same teacher in other papers' ways, each `:METHOD`, or
`:METHOD:smoke` in miniature. Never run here. Of the student alone, on H100: the memory
of its step as XLA compiles it for one chip, FLOP of an update, and chip-hours at 40% of
the peak (`--mode=estimate`); FID as published, with 1 and 2 steps:

    method                    batch x updates   published    memory    TFLOP  hours
    knowledge_distillation    512 x  50 000     9.36         27.2 GB    52.2   1.83
    consistency_distillation  512 x 800 000     3.55, 2.93   27.9 GB     104   58.6
    consistency_training      128 x 200 000     3.86, 2.15    7.4 GB    17.4   2.44
    tract                     256 x 375 000     5.02         13.1 GB    43.5   11.4
    shortcut                   64 x 410 000     none          4.9 GB    10.9   3.13
    imitation                 128 x 100 000     none          6.7 GB    17.4   1.22

The papers' are batch, updates, learning rate, dropout, averages and the number of times
or steps. This project's are Adam with clipped gradients where they have RAdam, grids
that are uniform in the cosine schedule's time, and this teacher and network: only
TRACT's are these.

`:knowledge_distillation`, Luhman & Luhman 2021 (2101.02388): 25 epochs of 1 024 000
pairs, of a teacher of 100 steps. Squared error, where theirs is absolute. The pairs
take 2.4 chip-hours besides, and 25 GB of disk and of memory.
`:consistency_distillation`, Song et al. 2023 (2303.01469): 18 times, Heun's steps, no
average in the target. The figures are theirs with LPIPS, which needs a file of weights:
`student.loss="lpips"` and `perceptual.weights`; without, squared error of the data.
`:consistency_training`, easy consistency tuning, Geng et al. 2024 (2406.14548).
`:tract`, Berthelot et al. 2023 (2303.04248): 1024 to 32 to 1 steps, 96 million images,
averages by the rule of their code.
`:shortcut`, Frans et al. 2024 (2410.12557): their CelebA settings, from the teacher's
weights, where they start anew.
`:imitation`: the ladder's learning rate; no paper has it at this scale.
"""

from ml_collections import ConfigDict

from pd_jax.config import recipes


def _knowledge_distillation(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 50_000
    student.learning_rate = 2e-4
    student.warmup_updates = 5000
    student.ema = 0.995
    student.pairs = 1_024_000
    student.teacher_sampler = "ddim@quadratic"
    student.teacher_steps = 100


def _consistency_distillation(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 800_000
    student.learning_rate = 4e-4
    student.ema = 0.9999
    student.weighting = "constant"
    student.grid = 17
    student.solver = "heun"
    student.average = 0.0
    student.steps = (2, 1)


def _consistency_training(student: ConfigDict) -> None:
    student.batch = 128
    student.updates = 200_000
    student.learning_rate = 1e-4
    student.dropout = 0.2
    student.ema = 0.9999
    student.weighting = "constant"
    student.loss = "pseudo_huber"
    student.time_law = "ratio"
    student.grid = 2**7
    student.doublings = 7
    student.interval_weight = True
    student.steps = (2, 1)


def _tract(student: ConfigDict) -> None:
    student.batch = 256
    student.updates = (187_500,)
    student.learning_rate = 2e-4
    student.ema = 0.99996
    student.start = 1024
    student.steps = (32, 1)


def _shortcut(student: ConfigDict) -> None:
    student.batch = 64
    student.updates = 410_000
    student.learning_rate = 1e-4
    student.weight_decay = 0.1
    student.ema = 0.999
    student.grid = 128
    student.bootstrap = 0.125
    student.average = 0.999
    student.steps = (128, 4, 1)


def _imitation(student: ConfigDict) -> None:
    student.batch = 128
    student.updates = 100_000
    student.learning_rate = 5e-5
    student.decay = "linear"
    student.weighting = "truncated_snr"
    student.steps = (512, 4, 1)


METHODS = {
    "consistency_distillation": _consistency_distillation,
    "consistency_training": _consistency_training,
    "imitation": _imitation,
    "knowledge_distillation": _knowledge_distillation,
    "shortcut": _shortcut,
    "tract": _tract,
}


def get_config(variant: str = ""):
    name, smoke = recipes.parse(variant, "improved", *METHODS)
    method = name if name in METHODS else ""
    config = recipes.paper("shapes" if smoke else "tfds", 8192, method)
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
    if method:
        METHODS[method](config.student)
    else:
        config.ladder.learning_rate = (5e-5,)
    if name == "improved":
        recipes.improved(config)
    if smoke:
        recipes.smoke_unet(config)
        return config
    config.data.dataset = "cifar10"
    config.data.size = 32
    return config
