"""Checkpoints of stages, their checksums, and released files."""

from pd_jax.checkpoint.released import load_released
from pd_jax.checkpoint.stages import FORMAT, Damaged, StageCheckpoints

__all__ = ["FORMAT", "Damaged", "StageCheckpoints", "load_released"]
