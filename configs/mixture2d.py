"""Eight narrow Gaussians on a ring, distilled from their exact denoiser.

    python -m pd_jax.main --config=configs/mixture2d.py

No teacher is trained: the first student starts from fresh weights and learns from the
closed form. Every row says how far its samples land from the exact probability-flow
map; `landing.png` shows it, the same noise in the same colour.

Two CPU cores: 2 minutes. RMSE to the exact map with 1, 2, 4, 8 and 16 steps: students
0.034, 0.035, 0.032, 0.031, 0.026; DDIM with the exact denoiser 0.71, 0.39, 0.17, 0.069,
0.027.

Variant `:consistency_distillation`, 1 minute: 0.051 with one step. More steps noise
anew, so that RMSE says nothing about them; their Frechet distance stays below 0.001,
DDIM's is 1.0, 0.24 and 0.022 with 1, 2 and 4 steps.

Other variants, seeds 0 and 1, with one step: `:knowledge_distillation` 0.007 twice;
`:tract` 0.039 and 0.036; `:boot` 0.043 and 0.045; `:shortcut` 0.061 and 0.065;
`:trajectory` 0.069 and 0.070, with four steps 0.041 and 0.043; `:consistency_training`
0.140 and 0.137; `:continuous_consistency` 0.029 twice; `:mean_flow` 0.128 twice.
`:rectified_flow` 0.030 and 0.027, and its own many steps within 0.031 and 0.029.

Variant `:diff_instruct`, 6 minutes: one step, no noise is tied to a sample. All 8 modes
with shares within 0.007 of 1/8, 98% of samples within 4 standard deviations of one, and
0.045 to 0.049 of the true 0.05 there.

Variant `:smoke`, or `:METHOD:smoke`: everything in seconds, for a look at the files,
not at quality.
"""

from ml_collections import ConfigDict

from pd_jax.config import default, recipes


def _progressive(ladder: ConfigDict) -> None:
    ladder.start = 32
    ladder.batch = 512
    ladder.updates = (2500, 800, 800, 800, 800)
    ladder.learning_rate = (1e-3,)
    ladder.weighting = "snr_plus_1"
    ladder.decay = "linear"
    ladder.ema = 0.99


def _consistency_distillation(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 3000
    student.grid = 16
    student.solver = "ddim"
    student.decay = "linear"
    student.ema = 0.99


def _diff_instruct(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 6000
    student.fake_updates = 5
    student.fake_learning_rate = 2e-3
    student.gap_weight = "dmd"
    student.decay = "cosine"
    student.ema = 0.998


def _boot(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 6000
    student.grid = 16
    student.decay = "linear"
    student.ema = 0.99


def _consistency_training(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 6000
    student.grid = 64
    student.doublings = 3
    student.decay = "linear"
    student.ema = 0.99


def _imitation(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 3000
    student.decay = "linear"
    student.ema = 0.99


def _knowledge_distillation(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 6000
    student.teacher_sampler = "heun"
    student.decay = "linear"
    student.ema = 0.99


def _continuous_consistency(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 3000
    student.time_mean = 0.0
    student.time_std = 1.6
    student.normalized = False
    student.tangent_warmup = 500
    student.decay = "linear"
    student.ema = 0.99


def _mean_flow(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 3000
    student.time_mean = 0.0
    student.time_std = 1.6
    student.same = 0.25
    student.own_velocity = True
    student.power = 0.0
    student.decay = "linear"
    student.ema = 0.99


def _rectified_flow(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 6000
    student.teacher_sampler = "heun"
    student.decay = "linear"
    student.ema = 0.99


def _shortcut(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 6000
    student.grid = 16
    student.average = 0.99
    student.decay = "linear"
    student.ema = 0.99


def _trajectory(student: ConfigDict) -> None:
    student.batch = 512
    student.updates = 4000
    student.grid = 16
    student.solver = "ddim"
    student.teacher_steps = 4
    student.average = 0.0
    student.compare = "arc"
    student.decay = "linear"
    student.ema = 0.99


def _tract(student: ConfigDict) -> None:
    student.batch = 512
    student.start = 32
    student.steps = (2, 1)
    student.updates = (2500, 1500)
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
    config = default("ring2d", "mlp", **({"student": method} if method else {}))
    config.model.width = 128
    config.teacher.exact = True
    if method in ("continuous_consistency", "mean_flow"):
        config.model.time_scale = 10.0  # whose derivative by time is learnt from
    METHODS.get(method, _progressive)(config[config.chain[-1]])
    config.eval.clip = False  # the ring's points leave [-1, 1]
    config.eval.paired_samples = 4000
    if smoke:
        config.model.width = 32
        config.model.num_blocks = 1
        recipes.smoke(config)
        config.eval.num_samples = 500
        config.eval.paired_samples = 100
    return config
