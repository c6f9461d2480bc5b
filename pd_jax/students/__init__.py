"""Students: weights with the sampler that they were made for, and their files."""

from pd_jax.students.student import Student

__all__ = ["Student"]
