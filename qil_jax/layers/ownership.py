"""Ownership: which layer has a pixel of a model's stack, where the picture shows that another one has it.

A model misses tips and stalks and leaves them in the bottom layer, or takes some of the bottom with a thing. Where an
upper layer meets the bottom one and what they blend to misses the picture, a pixel goes to the one or the other by the
odds of their shares nearby, and by how well each explains the picture: the bottom as it is painted, moved by what it
misses where it is seen, and no better than it does so nearby; the other by the picture's colours where it is seen. An
affine fit to the picture then takes out what is no edge there. All is repeated, for a tip grows from its base.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int, UInt8

from qil_jax.layers.shares import alphas_of, shares_of, valid
from qil_jax.layers.windows import Guide, neighbours, window_mean

ROUNDS = 6
DEVIATION = 0.06
"""Standard deviation of a layer's colours about those that explain it, for colours in [0, 1]."""
SPREAD = 0.3
"""How much of what the bottom misses nearby, squared, is added to its variance: photographs are painted blurred."""
FARTHEST = 0.6, 0.2
"""Distances of colours beyond which the bottom, and another layer, explain no worse: they may have further colours."""
AGREES = 0.2
"""Distance from the picture at which the painted bottom counts less as being seen."""
MISSED = 0.35
"""Distance of the blend from the picture at which there is something to mend."""
HARDLY = 0.05
"""The fourth power of that distance, relative to MISSED, up to which nothing is moved."""
SURE = 0.9
"""Share from which on, with all its neighbours, a pixel of an upper layer is surely its own."""
SOLID = 0.65
"""Share that a layer has to have within two pixels: shadows and glass are not made solid."""
MEETING = 0.1
"""Difference of shares within two pixels from which on layers meet."""
CLEAR = 4 / 255
"""Share of what shows through all layers from which on nothing is moved: where decoders mean 255, they give 252."""
OTHERS = 0.02
"""Alpha of a third layer within two pixels from which on nothing is moved."""
HAZE = 0.2
"""Share that a layer has to gain."""
EPSILON = 1e-3
"""Regularisation of the affine fit."""
SHRINKING = 3.0
"""How much of its slopes goes for the part of the variance that the fit leaves."""
REACH = 16
"""Pixels around those that may be moved on which they depend."""
FEW = 0.02
"""Share of pixels nearby at which what they show of the bottom counts half."""
LITTLE = 1e-4


def reassigned(
    stack: UInt8[np.ndarray, "l h w 4"], picture: UInt8[np.ndarray, "h w 4"]
) -> UInt8[np.ndarray, "l h w 4"]:
    """A stack whose layers have the pixels that are theirs, as far as a picture of its size shows it.

    What an upper layer surely owns stays its own, and so does what three layers share, or what is not opaque. What the
    bottom layer hides stays as it is painted; a layer's new pixels get the picture's colours of it nearby.
    """
    if len(stack) == 1:
        return stack
    straight = np.moveaxis(stack, 3, 1).astype(np.float32) / 255
    seen = np.moveaxis(picture[..., :3], 2, 0).astype(np.float32) / 255
    shares = shares_of(straight[:, 3])
    missed = _squared(seen - (shares[:-1, None] * straight[:, :3]).sum(axis=0))
    clear = np.maximum(shares[-1], 1 - picture[..., 3] / 255) > CLEAR
    fixed = (neighbours(shares[1:-1])[0] > SURE).any(axis=0) | clear
    movable = neighbours((1 - np.exp(HARDLY - (missed / MISSED**2) ** 2)).clip(0, 1))[1] * ~fixed
    if not movable.any():
        return stack
    part = tuple(slice(max(0, at.min() - REACH), at.max() + REACH + 1) for at in np.nonzero(movable))
    found = stack.copy()
    found[:, *part] = _reassigned(stack[:, *part], straight[..., *part], seen[:, *part], movable[part])
    return found


@dataclasses.dataclass(frozen=True)
class _Evidence:
    """What tells whose a pixel is, and does not change from round to round."""

    picture: Float32[np.ndarray, "3 h w"]
    colours: Float32[np.ndarray, "l 3 h w"]
    nearby_alphas: Float32[np.ndarray, "u h w"]  # the largest within two pixels of the upper layers
    movable: Float32[np.ndarray, "h w"]
    guide: Guide


def _reassigned(
    stack: UInt8[np.ndarray, "l h w 4"],
    straight: Float32[np.ndarray, "l 4 h w"],
    picture: Float32[np.ndarray, "3 h w"],
    movable: Float32[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "l h w 4"]:
    colours, alphas = straight[:, :3], straight[:, 3]
    evidence = _Evidence(
        picture, colours, _twice(alphas[1:], 1), movable, Guide(picture, epsilon=EPSILON, shrinking=SHRINKING)
    )
    shares = given = shares_of(alphas)
    for _ in range(ROUNDS):
        shares = _moved(shares, evidence)
    upper = shares[1:-1]
    haze = np.where((upper < HAZE) & (upper > given[1:-1]), upper - given[1:-1], 0)
    upper -= haze
    shares[0] += haze.sum(axis=0)
    found = stack.copy()
    found[1:, ..., 3] = np.where(movable > 0, np.rint(255 * alphas_of(shares, alphas)[1:]), stack[1:, ..., 3])
    for i in range(1, len(stack)):
        is_new = (stack[i, ..., 3] < 64) & (found[i, ..., 3] > 64)
        if is_new.any():
            new = _nearby(shares[i], picture, colours[i])
            found[i][is_new, :3] = np.rint(255 * new.clip(0, 1)).transpose(1, 2, 0)[is_new]
    return found


def _moved(shares: Float32[np.ndarray, "s h w"], evidence: _Evidence) -> Float32[np.ndarray, "s h w"]:
    """The shares after a round."""
    picture, colours = evidence.picture, evidence.colours
    apart = picture - colours[0]
    agrees = shares[0] ** 2 * np.exp(-_squared(apart) / (2 * AGREES**2))
    reach = _blurred(agrees, 3) + FEW
    ground = colours[0] + _blurred(agrees * apart, 3) / reach
    missed = _squared(picture - ground)
    variance = DEVIATION**2 + SPREAD * _blurred(agrees * missed, 3) / reach
    top, near, nearby = _nearest(shares, picture, colours)
    other = _squared(picture - nearby)
    known = (reach - FEW) / (_blurred(shares[0] ** 2, 3) + FEW)
    gain = np.minimum(missed, FARTHEST[0] ** 2) / (2 * variance)
    gain -= np.minimum(other, FARTHEST[1] ** 2) / (2 * DEVIATION**2)
    odds = np.log((near + LITTLE) / (_blurred(shares[0], 1) + LITTLE)) + known * gain
    belongs = 1 / (1 + np.exp(-odds.clip(-30, 30)))

    weight = evidence.movable * _where_layers_meet(shares, evidence.nearby_alphas, top)
    held = np.take_along_axis(shares[1:-1], top[None], axis=0)[0]
    both = shares[0] + held
    held = held + weight * (both * belongs - held)
    moved = shares.copy()
    moved[0] = both - held
    np.put_along_axis(moved[1:-1], top[None], held[None], axis=0)
    slopes, offsets = evidence.guide.fits(moved)
    fitted = ((slopes * picture).sum(axis=1) + offsets).clip(0, 1)
    fitted = moved + weight * (fitted - moved)
    fitted[:-1] *= (moved[:-1] > 0) | (neighbours(moved[:-1])[1] > HAZE)
    return valid(fitted)


def _nearest(
    shares: Float32[np.ndarray, "s h w"], picture: Float32[np.ndarray, "3 h w"], colours: Float32[np.ndarray, "l 3 h w"]
) -> tuple[Int[np.ndarray, "h w"], Float32[np.ndarray, "h w"], Float32[np.ndarray, "3 h w"]]:
    """The upper layer that has most nearby, counted from 0, its share there, and the picture's colours of it."""
    top = np.zeros(picture.shape[1:], np.int64)
    near, nearby = np.zeros_like(shares[0]), colours[1].copy()
    for i, share in enumerate(shares[1:-1]):
        here = _blurred(share, 1)
        nearer = here > near
        if nearer.any():
            top[nearer], near[nearer] = i, here[nearer]
            nearby[:, nearer] = _nearby(share, picture, colours[i + 1])[:, nearer]
    return top, near, nearby


def _nearby(
    share: Float32[np.ndarray, "h w"], picture: Float32[np.ndarray, "3 h w"], painted: Float32[np.ndarray, "3 h w"]
) -> Float32[np.ndarray, "3 h w"]:
    """The picture's colours where a layer is seen nearby; those painted where it is not."""
    weight = share * share
    reach = _blurred(weight, 2)
    return np.where(reach > LITTLE, _blurred(weight * picture, 2) / np.maximum(reach, LITTLE), painted)


def _where_layers_meet(
    shares: Float32[np.ndarray, "s h w"], nearby_alphas: Float32[np.ndarray, "u h w"], top: Int[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w"]:
    """1 where pixels of the bottom layer and of a solid upper one, `top`, may be exchanged, else 0; soft between."""
    low, high = (_twice(shares[:-1], i) for i in (0, 1))
    meets = window_mean(((high - low).max(axis=0) > MEETING).astype(np.float32))
    solid = (np.take_along_axis(high[1:], top[None], axis=0)[0] - SOLID).clip(0, 0.1) / 0.1
    others = nearby_alphas.copy()
    np.put_along_axis(others, top[None], 0, axis=0)
    return meets * solid * (others.max(axis=0) < OTHERS)


def _twice(values: np.ndarray, which: int) -> np.ndarray:
    """The smallest (0) or the largest (1) value within two pixels."""
    return neighbours(neighbours(values)[which])[which]


def _blurred(values: np.ndarray, radius: int) -> np.ndarray:
    return window_mean(window_mean(values, radius), radius)


def _squared(colours: Float32[np.ndarray, "3 h w"]) -> Float32[np.ndarray, "h w"]:
    return (colours * colours).sum(axis=0)
