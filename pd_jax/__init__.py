"""pd_jax: turning a slow diffusion sampler into a few-step one."""

__version__ = "0.1.0"
