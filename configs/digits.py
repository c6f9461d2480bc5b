"""Handwritten digits, 8x8: a teacher trained from nothing, and distilled to one step.

    python -m pd_jax.main --config=configs/digits.py

scikit-learn's digits, 1500 of 1797 for training; 32 -> 16 -> 8 -> 4 -> 2 -> 1 steps.

Two CPU cores: 1.3 minutes. Frechet distance on pixels with 1, 2, 4, 8 and 16 steps:
students 0.88, 0.82, 0.80, 0.78, 0.77; teacher 17, 4.8, 2.0, 1.2, 0.88, and 0.67 with
256 steps. Dropout keeps the teacher from learning 1500 images by heart; one that does
has a lower distance (0.48 with model.emb_ch=256, after 3000 updates without it) and is
harder to distil.

The same teacher in other ways: variant `:consistency_distillation`, 1.5 minutes, 0.67,
0.84 and 1.03 with 1, 2 and 4 steps; variant `:diff_instruct`, 3.4 minutes, 1.01 with
one; `:continuous_consistency`, 0.97 with one. Seeds 0 and 1, on a GPU:
`:consistency_training` 0.94 and 0.92 with one step, 0.51 with two; `:boot` 1.01 and
1.06; `:shortcut` 1.55 and 1.60, 0.51 and 0.52 with four; `:tract` 0.95 with one, seed
1. Others are not measured.

Variant `:smoke`, or `:METHOD:smoke`: everything in seconds, for a look at the files,
not at quality.
"""

from ml_collections import ConfigDict

from pd_jax.config import default, recipes


def _progressive(ladder: ConfigDict) -> None:
    ladder.start = 32
    ladder.updates = (400, 600, 800, 1000, 1200)
    ladder.learning_rate = (2e-3,)
    ladder.decay = "linear"
    ladder.ema = 0.99


def _consistency_distillation(student: ConfigDict) -> None:
    student.batch = 64
    student.updates = 6600
    student.learning_rate = 2e-3
    student.grid = 16
    student.doublings = 1
    student.solver = "heun"
    student.decay = "linear"
    student.ema = 0.99


def _diff_instruct(student: ConfigDict) -> None:
    student.updates = 4000
    student.fake_updates = 5
    student.fake_learning_rate = 2e-3
    student.gap_weight = "dmd"
    student.decay = "cosine"
    student.ema = 0.998


def _boot(student: ConfigDict) -> None:
    student.updates = 4000
    student.learning_rate = 2e-3
    student.grid = 32
    student.decay = "linear"
    student.ema = 0.99


def _consistency_training(student: ConfigDict) -> None:
    student.updates = 4000
    student.learning_rate = 2e-3
    student.grid = 64
    student.doublings = 3
    student.decay = "linear"
    student.ema = 0.99


def _imitation(student: ConfigDict) -> None:
    student.updates = 2000
    student.learning_rate = 2e-3
    student.decay = "linear"
    student.ema = 0.99


def _knowledge_distillation(student: ConfigDict) -> None:
    student.updates = 6000
    student.learning_rate = 2e-3
    student.pairs = 20_000
    student.decay = "linear"
    student.ema = 0.99


def _continuous_consistency(student: ConfigDict) -> None:
    student.updates = 4000
    student.learning_rate = 2e-3
    student.time_mean = 0.0
    student.time_std = 1.6
    student.normalized = False
    student.tangent_warmup = 500
    student.decay = "linear"
    student.ema = 0.99


def _mean_flow(student: ConfigDict) -> None:
    student.updates = 4000
    student.learning_rate = 2e-3
    student.time_mean = 0.0
    student.time_std = 1.6
    student.same = 0.25
    student.own_velocity = True
    student.power = 0.0
    student.decay = "linear"
    student.ema = 0.99


def _rectified_flow(student: ConfigDict) -> None:
    student.updates = 6000
    student.learning_rate = 2e-3
    student.pairs = 20_000
    student.decay = "linear"
    student.ema = 0.99


def _shortcut(student: ConfigDict) -> None:
    student.updates = 4000
    student.learning_rate = 2e-3
    student.grid = 32
    student.average = 0.99
    student.decay = "linear"
    student.ema = 0.99


def _trajectory(student: ConfigDict) -> None:
    student.updates = 4000
    student.learning_rate = 2e-3
    student.grid = 32
    student.solver = "ddim"
    student.average = 0.95
    student.compare = "arc"
    student.decay = "linear"
    student.ema = 0.99


def _tract(student: ConfigDict) -> None:
    student.start = 32
    student.steps = (4, 1)
    student.updates = (1600, 2400)
    student.learning_rate = 2e-3
    student.weighting = "snr_plus_1"
    student.decay = "linear"
    student.ema = 0.99


METHODS = {
    "boot": _boot,
    "consistency_distillation": _consistency_distillation,
    "consistency_training": _consistency_training,
    "continuous_consistency": _continuous_consistency,
    "diff_instruct": _diff_instruct,
    "imitation": _imitation,
    "knowledge_distillation": _knowledge_distillation,
    "mean_flow": _mean_flow,
    "rectified_flow": _rectified_flow,
    "shortcut": _shortcut,
    "tract": _tract,
    "trajectory": _trajectory,
}


def get_config(variant: str = ""):
    method, smoke = recipes.parse(variant, *METHODS)
    config = default("digits", "mlp", **({"student": method} if method else {}))
    config.teacher.updates = 2500
    config.teacher.warmup_updates = 100
    config.teacher.decay = "linear"
    config.teacher.weighting = "snr_plus_1"
    config.teacher.dropout = 0.1
    config.teacher.ema = 0.99
    if method in ("continuous_consistency", "mean_flow"):
        config.model.time_scale = 10.0  # whose derivative by time is learnt from
    METHODS.get(method, _progressive)(config[config.chain[-1]])
    config.run.checkpoint_updates = 1000
    config.run.substeps = 10  # a loop without convolutions is fast on CPU too
    if smoke:
        config.model.width = 32
        config.model.num_blocks = 1
        recipes.smoke(config)
    return config
