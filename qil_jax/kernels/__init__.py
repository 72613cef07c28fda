"""Attention on a mesh: which kernel each device runs, and how keys meet queries that other devices hold."""

from qil_jax.kernels.attend import attend_for, attend_on
from qil_jax.kernels.plan import AttentionPlan, Blocks, Spread, plan_attention

__all__ = ["AttentionPlan", "Blocks", "Spread", "attend_for", "attend_on", "plan_attention"]
