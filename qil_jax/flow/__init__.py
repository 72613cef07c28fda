"""Rectified flow: noise levels, guidance, and the Euler loop."""

from qil_jax.flow.guidance import Rescale, guide
from qil_jax.flow.sampler import euler
from qil_jax.flow.schedule import Schedule, TimeShift, mu

__all__ = ["Rescale", "Schedule", "TimeShift", "euler", "guide", "mu"]
