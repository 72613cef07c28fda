"""Exact recomposition: a stack changed as little as possible so that blending it returns a given picture.

Per pixel, layer i has the share w_i = a_i prod_{j>i} (1 - a_j) / A of the blend's straight colour sum_i w_i c_i, where
A is the blend's alpha. With a residual r to the picture's colour, the least change in the sense of sum_i |d_i|^2 is
d_i = w_i r / sum_j w_j^2. Colours that would leave [0, 255] are clipped, and the layers that can still move share what
is left, until nothing is.
"""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, UInt8

from qil_jax.errors import QilError
from qil_jax.layers.compositing import psnr
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.shares import shares_of
from qil_jax.programs import called

CLOSE = 0.25
"""Residual, in levels of 255, below which a pixel counts as solved: rounding adds at most half a level."""

PART = 1 << 14
"""Pixels that a thread solves at once: few enough for its cache."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exactness:
    """What exact recomposition found and changed.

    Attributes:
      psnr_before: PSNR in dB of the blend of the given layers against the picture; 99 for equal images.
      psnr_after: PSNR in dB of the blend of the changed layers.
      mean_change: mean absolute change of the colours, in levels of 255, over the pixels where a layer's alpha is > 0.
      alpha_repaired: share of the canvas where the alpha of a layer was changed.
    """

    psnr_before: float
    psnr_after: float
    mean_change: float
    alpha_repaired: float


def exact(layered: LayeredImage, picture: UInt8[np.ndarray, "y x 4"]) -> tuple[LayeredImage, Exactness]:
    """Change a stack so that its blend equals `picture` within 1/255, and report the change.

    Pixels at which the blend already rounds to the picture keep their bytes. Where the stack covers less than the
    picture, the bottom layer's alpha rises; where it covers more, alpha is cut from the top layer down. Elsewhere alpha
    stays, and so does the colour of a layer wherever its alpha is 0.

    Args:
      layered: the stack, on a canvas of the picture's size.
      picture: straight RGBA.

    Raises:
      QilError: if the sizes differ.
    """
    if layered.layers.shape[1:] != picture.shape:
        wide, high = layered.size
        raise QilError(
            f"a stack of {wide}x{high} pixels cannot return a picture of {picture.shape[1]}x{picture.shape[0]}: "
            f"resize one of them ({called('decompose')} --output-size input)"
        )
    stack, wanted = layered.layers.reshape(len(layered.layers), -1, 4), picture.reshape(-1, 4)
    parts = [slice(start, start + PART) for start in range(0, len(wanted), PART)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        solved = list(threads.map(lambda part: _solved(stack[:, part], wanted[part]), parts))
    layers, before, blend = (np.concatenate(pieces, axis=-2) for pieces in zip(*solved, strict=True))
    shown = (layers[..., 3] > 0) & (stack[..., 3] > 0)
    change = np.abs(layers[..., :3].astype(np.int16) - stack[..., :3]).sum(axis=-1, dtype=np.int32)
    return dataclasses.replace(layered, layers=layers.reshape(layered.layers.shape)), Exactness(
        psnr_before=psnr(before.reshape(picture.shape), picture),
        psnr_after=psnr(blend.reshape(picture.shape), picture),
        mean_change=float((change * shown).sum(dtype=np.float64) / max(1, 3 * np.count_nonzero(shown))),
        alpha_repaired=float((layers[..., 3] != stack[..., 3]).any(axis=0).mean()),
    )


def fit_colours(layers: UInt8[np.ndarray, "l y x 4"], picture: UInt8[np.ndarray, "y x 4"]) -> None:
    """Change colours in place, as little as possible, so that the blend's are those of `picture`; alphas stay."""
    stack, wanted = layers.reshape(len(layers), -1, 4), picture.reshape(-1, 4)

    def fit(part: slice) -> None:
        planes = np.ascontiguousarray(np.moveaxis(stack[:, part], 2, 1), np.float32)
        _fit_colours(planes, np.ascontiguousarray(wanted[part, :3].T, np.float32))
        stack[:, part] = np.moveaxis(planes, 1, 2)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(fit, [slice(start, start + PART) for start in range(0, len(wanted), PART)]))


def _solved(
    stack: UInt8[np.ndarray, "l n 4"], picture: UInt8[np.ndarray, "n 4"]
) -> tuple[UInt8[np.ndarray, "l n 4"], UInt8[np.ndarray, "n 4"], UInt8[np.ndarray, "n 4"]]:
    """Pixels of the changed stack, and the blends of the given and of the changed one."""
    planes = np.ascontiguousarray(np.moveaxis(stack, 2, 1), np.float32)  # channels first: numpy is faster on long rows
    target = np.ascontiguousarray(picture.T, np.float32)
    before = _blend(planes)
    off = np.flatnonzero((before != target).any(axis=0))
    part, wanted = planes[..., off], target[:, off]
    _fit_alpha(part, wanted[3])
    _fit_colours(part, wanted[:3])
    planes[..., off] = part
    solved, before, blend = (np.moveaxis(x.astype(np.uint8), -2, -1) for x in (planes, before, _blend(planes)))
    return solved, before, blend


def _blend(stack: Float[np.ndarray, "l 4 n"]) -> Float[np.ndarray, "4 n"]:
    """The blend in straight RGBA, rounded; black under alpha 0."""
    weights, total = _visibility(stack)
    out = np.empty(stack.shape[1:], np.float32)
    out[:3] = sum(weight * layer[:3] for weight, layer in zip(weights, stack, strict=True))
    out[3] = total * 255
    return np.rint(out, out=out)


def _fit_alpha(stack: Float[np.ndarray, "l 4 n"], alpha: Float[np.ndarray, " n"]) -> None:
    """Give the stack the picture's alpha: cut from the top down where it covers too much, raised at the bottom."""
    through, wanted = np.ones_like(alpha), 1 - alpha / 255
    for i in reversed(range(len(stack))):
        most = 1 - np.divide(wanted, through, out=np.ones_like(through), where=through > wanted)
        most = np.where(through > 0, np.rint(255 * most), stack[i, 3])  # what is hidden here stays
        stack[i, 3] = np.minimum(stack[i, 3], most) if i else most
        through *= 1 - stack[i, 3] / 255


def _fit_colours(stack: Float[np.ndarray, "l 4 n"], colour: Float[np.ndarray, "3 n"]) -> None:
    """Change the colours as little as possible so that the blend has the straight colour `colour`."""
    weights, total = _visibility(stack)
    residual = colour - sum(weight * layer[:3] for weight, layer in zip(weights, stack, strict=True))
    residual[:, total == 0] = 0
    for _ in range(len(stack) + 1):
        columns = np.flatnonzero((np.abs(residual) > CLOSE).any(axis=0))
        if not len(columns):
            break
        values, left, shares = stack[:, :3, columns], residual[:, columns], weights[:, columns]
        free = np.where(left > 0, values < 255, values > 0) * shares[:, None]
        step = left / np.maximum(np.einsum("lcn,lcn->cn", free, free), np.finfo(np.float32).tiny)
        moved = np.clip(values + free * step, 0, 255)
        residual[:, columns] = left - np.einsum("ln,lcn->cn", shares, moved - values)
        stack[:, :3, columns] = moved
    np.rint(stack, out=stack)


def _visibility(stack: Float[np.ndarray, "l 4 n"]) -> tuple[Float[np.ndarray, "l n"], Float[np.ndarray, " n"]]:
    """The share of each layer in the blend's straight colour, which add up to 1, and the blend's alpha."""
    shares = shares_of(stack[:, 3] / 255)
    total = 1 - shares[-1]
    return shares[:-1] * np.divide(1, total, out=np.zeros_like(total), where=total > 0), total
