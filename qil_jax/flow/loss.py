"""The loss of rectified flow: noise levels, noised tokens, error of the velocity (docs/specification.md, 8).

sigma is 1 at noise and 0 at data, as in diffusers: x = (1 - sigma) x0 + sigma noise, and the velocity is noise - x0.
In arXiv 2512.15603, 3.2, time runs in the opposite direction.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from qil_jax.errors import QilError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowLoss:
    """Hyperparameters of the flow loss that arXiv 2512.15603 does not specify.

    Attributes:
      logit_mean: mean of the normal variable whose sigmoid is the unshifted noise level.
      logit_std: standard deviation of the normal variable whose sigmoid is the unshifted noise level; not negative.
      shift: s in the shifted noise level s u / (1 + (s - 1) u), positive; None: sqrt(tokens / 256) of one picture.
      composite_weight: weight of the composite's tokens; not negative.
      layer_weight: weight of a layer's tokens; not negative.
      caption_dropout: share of samples whose prompt is replaced by `no_prompt`, in [0, 1].
      no_prompt: prompt that replaces dropped captions, and the sampler's negative prompt.
    """

    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float | None = None
    composite_weight: float = 1.0
    layer_weight: float = 1.0
    caption_dropout: float = 0.1
    no_prompt: str = " "

    def __post_init__(self) -> None:
        if (
            self.logit_std < 0
            or min(self.composite_weight, self.layer_weight) < 0
            or (self.shift is not None and self.shift <= 0)
        ):
            raise QilError("FlowLoss: logit_std and weights must not be negative, shift must be positive")
        if not 0 <= self.caption_dropout <= 1:
            raise QilError(f"FlowLoss: caption_dropout {self.caption_dropout} must lie between 0 and 1")


def draw_sigma(
    normal: Float[Array, " b"], config: FlowLoss, *, shift: Float[Array, "..."] | float
) -> Float[Array, " b"]:
    """Logit-normal noise levels from standard normal draws, shifted by one number or by one per row."""
    u = jax.nn.sigmoid(config.logit_mean + config.logit_std * normal)
    return shift * u / (1 + (shift - 1) * u)


def noised(
    clean: Float[Array, "b t c"], noise: Float[Array, "b t c"], sigma: Float[Array, " b"], is_target: Bool[Array, "b t"]
) -> Float[Array, "b t c"]:
    """Tokens (1 - sigma) clean + sigma noise where `is_target`; conditions and padding stay as they are."""
    level = sigma[:, None, None]
    return jnp.where(is_target[..., None], (1 - level) * clean + level * noise, clean)


def velocity_errors(
    velocity: Float[Array, "b t c"], clean: Float[Array, "b t c"], noise: Float[Array, "b t c"]
) -> Float[Array, "b t"]:
    """Mean squared error of each token's velocity, in fp32."""
    return jnp.mean(jnp.square(velocity.astype(jnp.float32) - (noise - clean)), axis=-1)
