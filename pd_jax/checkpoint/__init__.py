"""Checkpoints of stages, their checksums, and released files."""

from pd_jax.checkpoint.released import load_released
from pd_jax.checkpoint.stages import FORMAT, SKIPPED, Damaged, StageCheckpoints

__all__ = ["FORMAT", "SKIPPED", "Damaged", "StageCheckpoints", "load_released"]
