"""The transformer's attention and products on a mesh, with their collectives written out."""

from qil_jax.choices import Spread
from qil_jax.kernels.attend import attend_for, attend_on
from qil_jax.kernels.plan import AttentionPlan, Blocks, plan_attention
from qil_jax.kernels.products import with_scattered_sums

__all__ = ["AttentionPlan", "Blocks", "Spread", "attend_for", "attend_on", "plan_attention", "with_scattered_sums"]
