"""The losses of the RGBA-VAE: reconstruction, LPIPS and regularisation (docs/specification.md, 8).

The paper only names the terms (arXiv 2512.15603, section 3.1); the formulas are AlphaVAE's (arXiv 2507.09308).
Pictures are RGBA in [-1, 1]; opacity is (alpha + 1) / 2.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from qil_jax.choices import Reconstruction
from qil_jax.errors import QilError
from qil_jax.models.rgba_vae import Posterior

PerceptualLoss = Callable[[Float[Array, "b y x 3"], Float[Array, "b y x 3"]], Float[Array, " b"]]
"""A function that computes the distance of each pair from two batches of RGB pictures in [-1, 1]."""

BACKGROUND_MEAN = (-0.0357, -0.0811, -0.1797)
BACKGROUND_SQUARE = (0.3163, 0.3060, 0.3634)
"""First and second moment of a random background's colours, from ImageNet, in [-1, 1], as in AlphaVAE."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAELoss:
    """Weights of the terms, all 0 or more; 0 omits a term. The defaults are AlphaVAE's.

    Attributes:
      reconstruction: kind of the pixel term.
      pixel: weight of the pixel term.
      colour: weight of the absolute error of unblended colours at pixels that are not transparent.
      perceptual: weight of LPIPS after blending over black and over white; needs `perceptual_weights`.
      perceptual_weights: file written by `qil convert-lpips`; without it the term is off, and a line is printed.
      kl: weight of the KL divergence from N(0, 1), summed over latents and divided by the number of colour values.
      reference_kl: weight of the KL divergence from the initial VAE's posterior, over black and white backgrounds.
    """

    reconstruction: Reconstruction = Reconstruction.AB_MSE
    pixel: float = 1.0
    colour: float = 0.0
    perceptual: float = 0.5
    perceptual_weights: str | None = None
    kl: float = 1e-6
    reference_kl: float = 1e-16

    def __post_init__(self) -> None:
        if min(self.pixel, self.colour, self.perceptual, self.kl, self.reference_kl) < 0:
            raise QilError("VAELoss: weights must not be negative")


def blend(pictures: Float[Array, "b y x 4"], background: Float[Array, "..."] | float) -> Float[Array, "b y x 3"]:
    """Blend straight RGBA over a background, which is a number or an array that broadcasts to [b, y, x, 3]."""
    alpha = (pictures[..., 3:] + 1) / 2
    return pictures[..., :3] * alpha + background * (1 - alpha)


def ab_mse(made: Float[Array, "b y x 4"], true: Float[Array, "b y x 4"]) -> Float[Array, " b"]:
    """Expected squared error after blending over a random background b: |P|^2 - 2 D <E[b], P> + D^2 sum E[b^2].

    P is the difference of the premultiplied colours and D that of the alphas; the result is the mean over pixels and
    colours.
    """
    alphas = (made[..., 3:] + 1) / 2, (true[..., 3:] + 1) / 2
    p = made[..., :3] * alphas[0] - true[..., :3] * alphas[1]
    d = alphas[0] - alphas[1]
    first, second = (jnp.asarray(m, p.dtype) for m in (BACKGROUND_MEAN, BACKGROUND_SQUARE))
    return jnp.mean(p**2 - 2 * d * first * p + d**2 * second, axis=(1, 2, 3))


def ab_l1(
    made: Float[Array, "b y x 4"], true: Float[Array, "b y x 4"], background: Float[Array, "b 3"]
) -> Float[Array, " b"]:
    """Mean absolute error after blending over one background per picture."""
    over = background[:, None, None]
    return jnp.mean(jnp.abs(blend(made, over) - blend(true, over)), axis=(1, 2, 3))


def colour_error(made: Float[Array, "b y x 4"], true: Float[Array, "b y x 4"]) -> Float[Array, " b"]:
    """Mean absolute error of straight colours over the pixels that are not transparent."""
    shown = (true[..., 3:] > -1).astype(made.dtype)
    total = jnp.sum(shown * jnp.abs(made[..., :3] - true[..., :3]), axis=(1, 2, 3))
    return total / jnp.maximum(3 * jnp.sum(shown, axis=(1, 2, 3)), 1)


def kl_normal(posterior: Posterior) -> Float[Array, " b"]:
    """KL divergence of the posterior from N(0, 1), summed over latents."""
    mean, logvar = posterior.mean, posterior.logvar
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=(1, 2, 3))


def kl_between(posterior: Posterior, reference: Posterior) -> Float[Array, " b"]:
    """KL divergence of the posterior from another one, summed over latents."""
    ratio = jnp.exp(posterior.logvar - reference.logvar)
    distance = (posterior.mean - reference.mean) ** 2 * jnp.exp(-reference.logvar)
    return 0.5 * jnp.sum(distance + ratio - 1 - posterior.logvar + reference.logvar, axis=(1, 2, 3))


def opaque(rgb: Float[Array, "b y x 3"]) -> Float[Array, "b y x 4"]:
    """RGB pictures with an opaque alpha channel, which is 1 in the range [-1, 1]."""
    return jnp.concatenate([rgb, jnp.ones_like(rgb[..., :1])], axis=-1)


def straight_through_clip(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Values clipped to [-1, 1] with the gradient of the identity, so that it does not vanish outside."""
    return x - jax.lax.stop_gradient(x - jnp.clip(x, -1, 1))


def reconstruction_terms(
    made: Float[Array, "b y x 4"],
    true: Float[Array, "b y x 4"],
    config: VAELoss,
    *,
    background: Float[Array, "b 3"],
    perceptual_loss: PerceptualLoss | None,
) -> dict[str, Float[Array, " b"]]:
    """The unweighted terms that compare pixels, per picture.

    Args:
      made: reconstruction, clipped to [-1, 1].
      background: background colours for AB_L1, in [-1, 1].
      perceptual_loss: function that computes LPIPS; None: no perceptual term.
    """
    pixel = ab_mse(made, true) if config.reconstruction is Reconstruction.AB_MSE else ab_l1(made, true, background)
    terms = {"pixel": pixel, "colour": colour_error(made, true)}
    if perceptual_loss is not None:
        black, white = (perceptual_loss(blend(made, c), blend(true, c)) for c in (-1.0, 1.0))
        terms["perceptual"] = (black + white) / 2
    return terms
