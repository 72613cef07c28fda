"""The training loss of rectified flow: noise levels, noised tokens, and the error of the velocity (paper.md 3.1).

sigma is 1 at noise and 0 at data, as in diffusers: x = (1 - sigma) x0 + sigma noise, and the velocity is noise - x0.
The paper counts time the other way round.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from qil_jax.errors import QilError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowLoss:
    """What the paper leaves open of its loss (paper.md 8).

    Attributes:
      logit_mean, logit_std: of the normal variable whose sigmoid is the noise level.
      shift: bends noise levels as the sampler does, s u / (1 + (s - 1) u); None: by the tokens of one picture,
        sqrt(tokens / 256).
      composite_weight, layer_weight: weight of the composite's tokens, and of a layer's.
      caption_dropout: share of samples whose prompt is replaced by `no_prompt`, for guidance.
      no_prompt: what the sampler gives as negative prompt.
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
    """Noise levels from standard normal draws: logit-normal, then shifted (by one number, or one per row)."""
    u = jax.nn.sigmoid(config.logit_mean + config.logit_std * normal)
    return shift * u / (1 + (shift - 1) * u)


def noised(
    clean: Float[Array, "b t c"], noise: Float[Array, "b t c"], sigma: Float[Array, " b"], is_target: Bool[Array, "b t"]
) -> Float[Array, "b t c"]:
    """Clean tokens and noise mixed where `is_target`; conditions and padding stay as they are."""
    level = sigma[:, None, None]
    return jnp.where(is_target[..., None], (1 - level) * clean + level * noise, clean)


def velocity_errors(
    velocity: Float[Array, "b t c"], clean: Float[Array, "b t c"], noise: Float[Array, "b t c"]
) -> Float[Array, "b t"]:
    """Mean squared error of each token's velocity, in fp32."""
    return jnp.mean(jnp.square(velocity.astype(jnp.float32) - (noise - clean)), axis=-1)
