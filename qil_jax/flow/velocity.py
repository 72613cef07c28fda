"""The training loss of rectified flow: noise levels, noised tokens, and the error of the velocity (paper.md 3.1).

sigma is 1 at noise and 0 at data, as in diffusers: x = (1 - sigma) x0 + sigma noise, and the velocity is noise - x0.
The paper counts time the other way round.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowLoss:
    """What the paper leaves open of its loss (paper.md 8).

    Attributes:
      location, scale: of the normal variable whose sigmoid is the noise level.
      shift: bends noise levels as the sampler does, s u / (1 + (s - 1) u); None: by the tokens of one picture,
        sqrt(tokens / 256).
      composite, layer: weight of the composite's tokens, and of a layer's.
      dropped: share of samples whose prompt is replaced by `no_prompt`, for guidance.
      no_prompt: what the sampler gives as negative prompt.
    """

    location: float = 0.0
    scale: float = 1.0
    shift: float | None = None
    composite: float = 1.0
    layer: float = 1.0
    dropped: float = 0.1
    no_prompt: str = " "

    def __post_init__(self) -> None:
        if self.scale < 0 or min(self.composite, self.layer) < 0 or (self.shift is not None and self.shift <= 0):
            raise ValueError("FlowLoss: scale and weights must not be negative, shift must be positive")
        if not 0 <= self.dropped <= 1:
            raise ValueError(f"FlowLoss: dropped {self.dropped} must lie between 0 and 1")


def draw_sigma(
    normal: Float[Array, " b"], config: FlowLoss, *, shift: Float[Array, "..."] | float
) -> Float[Array, " b"]:
    """Noise levels from standard normal draws: logit-normal, then shifted (by one number, or one per row)."""
    u = jax.nn.sigmoid(config.location + config.scale * normal)
    return shift * u / (1 + (shift - 1) * u)


def noised(
    clean: Float[Array, "b t c"], noise: Float[Array, "b t c"], sigma: Float[Array, " b"], moving: Bool[Array, "b t"]
) -> Float[Array, "b t c"]:
    """Clean tokens and noise mixed where `moving`; conditions and padding stay as they are."""
    level = sigma[:, None, None]
    return jnp.where(moving[..., None], (1 - level) * clean + level * noise, clean)


def velocity_errors(
    velocity: Float[Array, "b t c"], clean: Float[Array, "b t c"], noise: Float[Array, "b t c"]
) -> Float[Array, "b t"]:
    """Mean squared error of each token's velocity, in fp32."""
    return jnp.mean(jnp.square(velocity.astype(jnp.float32) - (noise - clean)), axis=-1)
