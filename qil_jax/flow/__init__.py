"""Rectified flow: noise levels, guidance, and the Euler loop."""

from qil_jax.flow.guidance import guide
from qil_jax.flow.sampler import euler
from qil_jax.flow.schedule import Schedule, TimeShift, mu
from qil_jax.limits import Rescale

__all__ = ["Rescale", "Schedule", "TimeShift", "euler", "guide", "mu"]
