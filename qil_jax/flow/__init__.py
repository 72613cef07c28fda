"""Rectified flow: noise levels, guidance, and Euler steps."""

from qil_jax.choices import Rescale
from qil_jax.flow.guidance import guide
from qil_jax.flow.sampler import euler, euler_step
from qil_jax.flow.schedule import Schedule, TimeShift, mu

__all__ = ["Rescale", "Schedule", "TimeShift", "euler", "euler_step", "guide", "mu"]
