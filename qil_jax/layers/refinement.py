"""Refinement: a stack of a model's size at the size of the picture that it decomposes, with the picture's edges.

Per pixel, layer i has the share w_i = a_i prod_{j>i} (1 - a_j) of what is seen, and what shows through all layers is
one share more, so that shares add up to 1. Shares, not alphas, are what a picture can tell: near an edge they are an
affine function of its colours. So a guided filter (He and Sun, "Fast Guided Filter", arXiv 1505.00996) is fitted on the
stack's pixels, where shares and mean colours are known, and read at the picture's. What the means of the result miss of
the stack's shares is added. Both are done again on pixels of half the size, and so on down to those of the picture, on
the smallest twice. Where no share differs among neighbours, nothing changes.

Alphas follow from the shares front to back. Colours are the stack's, moved to the picture's where a layer is seen, and
changed as little as possible so that the layers blend to the picture (`exact`).
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from qil_jax.choices import Edges
from qil_jax.layers.exact import fit_colours
from qil_jax.layers.filtering import resampled, resize_layers
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.ownership import reassigned
from qil_jax.layers.shares import FAINT, alphas_of, has_edge, shares_of, valid
from qil_jax.layers.windows import Guide, neighbours, window_mean

EPSILON = 1e-5
"""Regularisation of the fits, for values in [0, 1]."""
SHRINKING = 1.0
"""How much of a slope goes for the part of the variance that a fit leaves."""
CORRECTIONS = 4
"""How often what the means of the shares miss is added."""
SLACK = 1.0
"""How far a share may leave the range of its neighbours in the stack, relative to that range: what is soft stays so."""
PART = 1 << 23
"""Values, of all shares together, that a thread refines at once, the halo apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refinement:
    """What refinement did.

    Attributes:
      scale: pixels of the picture for each pixel of the stack along a side, width first.
      edges: share of the picture where edges were looked for, since a layer's share differs among neighbours.
    """

    scale: tuple[float, float]
    edges: float

    def report(self) -> dict[str, Any]:
        """JSON values for the record of a result."""
        return {"scale": [round(side, 4) for side in self.scale], "edges": round(self.edges, 4)}


def at_size(
    layered: LayeredImage, picture: UInt8[np.ndarray, "y x 4"], edges: Edges
) -> tuple[LayeredImage, Refinement | None]:
    """A stack at the size of the picture that it decomposes, and how it was refined.

    It is interpolated, without a report, where `edges` are plain or no side of the picture is longer than the stack's.
    """
    height, width = picture.shape[:2]
    if edges is Edges.REFINED and (width > layered.size[0] or height > layered.size[1]):
        return refine(layered, picture)
    return dataclasses.replace(layered, layers=resize_layers(layered.layers, (width, height))), None


def refine(layered: LayeredImage, picture: UInt8[np.ndarray, "y x 4"]) -> tuple[LayeredImage, Refinement]:
    """A stack at a picture's size, with edges and colours of the picture where it shows them.

    Layers keep the pixels that they surely own, what is soft stays soft where the picture shows no edge, and layers
    that share no pixel share none afterwards. Where the stack covers as much as the picture, the result blends to it
    within 1/255. What other layers hide stays as the stack has it, interpolated. Memory beside that of the result does
    not depend on the picture's height.

    Args:
      layered: the stack, of any size; if a side is longer than the picture's, it is reduced first.
      picture: straight RGBA, the picture that the stack decomposes.

    Returns:
      The refined stack, and what was done.
    """
    height, width = picture.shape[:2]
    wide, high = min(layered.size[0], width), min(layered.size[1], height)
    stack = layered.layers
    if layered.size != (wide, high):
        stack = np.stack([resampled(layer, (wide, high)) for layer in stack])
    stack = reassigned(stack, resampled(picture, (wide, high)))
    channels = 3 if (picture[..., 3] == 255).all() else 4
    layers, apart = np.empty((len(stack), height, width, 4), np.uint8), _apart(stack[..., 3] > 0)
    factors = _factors(max(width / wide, height / high))
    halo = (CORRECTIONS + 1) * (len(factors) + 1) + 4  # rows of the stack on which a row depends

    def refine_rows(first: int, last: int) -> None:
        least, most = max(0, first - halo), min(high, last + halo)
        seen = range(-(-least * height // high), most * height // high)
        grids = [
            Cells(Grid(min(times * high, height), height, seen), Grid(min(times * wide, width), width))
            for times in factors
        ]
        rows = grids[0].rows.cells
        part, shown = stack[:, rows.start : rows.stop], picture[seen.start : seen.stop]
        found = _refined(part, shown, grids, apart, channels)
        top, bottom = first * height // high, last * height // high
        layers[:, top:bottom] = found[:, top - seen.start : bottom - seen.start]

    rows = max(1, PART * high // (height * width * (len(stack) + 1)))
    firsts = range(0, high, rows)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(refine_rows, firsts, (min(first + rows, high) for first in firsts)))
    fit_colours(layers, picture)
    edges = float(has_edge(shares_of(stack[..., 3].astype(np.float32) / 255)).mean())
    refined = dataclasses.replace(layered, layers=layers)
    return refined, Refinement(scale=(width / wide, height / high), edges=edges)


class Grid:
    """Cells of equal length over the pixels of an axis, or the part of them that covers some of the pixels.

    Attributes:
      cells: the cells' numbers that the part covers.
    """

    def __init__(self, count: int, length: int, pixels: range | None = None):
        """`count` cells over `length` pixels, not more cells than pixels; `pixels`: all by default."""
        pixels = range(length) if pixels is None else pixels
        ratio = count / length
        self.cells = range(pixels.start * count // length, -(-pixels.stop * count // length))
        edges = np.clip(np.arange(self.cells.start, self.cells.stop + 1) / ratio, pixels.start, pixels.stop)
        self.edges = edges - pixels.start
        centres = (np.arange(pixels.start, pixels.stop) + 0.5) * ratio - 0.5 - self.cells.start
        centres = centres.clip(0, len(self.cells) - 1)
        self.lower = np.minimum(centres.astype(np.int64), max(len(self.cells) - 2, 0))
        self.upper = np.minimum(self.lower + 1, len(self.cells) - 1)
        self.weight = (centres - self.lower).astype(np.float32)

    def spread(self, values: Float32[np.ndarray, "*n c"]) -> Float32[np.ndarray, "*n p"]:
        """Values at the cells' centres, interpolated linearly along the last axis."""
        # take, since an index after an ellipsis would give a transposed array
        return np.take(values, self.lower, -1) * (1 - self.weight) + np.take(values, self.upper, -1) * self.weight

    def mean(self, values: Float32[np.ndarray, "n p *m"]) -> Float32[np.ndarray, "n c *m"]:
        """Means of pixels over the cells, along the second axis."""
        whole = self.edges.astype(np.int64)
        first, last = whole[:-1], np.minimum(whole[1:], values.shape[1] - 1)
        part = (self.edges - whole).astype(np.float32).reshape(-1, *[1] * (values.ndim - 2))
        sums = np.add.reduceat(values, first, axis=1)
        sums += values[:, last] * part[1:] - values[:, first] * part[:-1]
        return sums / np.diff(self.edges).astype(np.float32).reshape(-1, *[1] * (values.ndim - 2))


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of a stack over the pixels of a picture, or of some of its rows."""

    rows: Grid
    columns: Grid

    def spread(self, values: Float32[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n y x"]:
        """Values at the cells' centres, interpolated bilinearly."""
        wide, rows = self.columns.spread(values), self.rows
        weight = rows.weight[:, None]
        return np.take(wide, rows.lower, 1) * (1 - weight) + np.take(wide, rows.upper, 1) * weight

    def mean(self, values: Float32[np.ndarray, "n y x"]) -> Float32[np.ndarray, "n h w"]:
        """Means of pixels over the cells."""
        high = self.rows.mean(values)
        return np.ascontiguousarray(self.columns.mean(high.transpose(0, 2, 1)).transpose(0, 2, 1))


def _factors(scale: float) -> list[int]:
    """Cells along a side of each pixel of a stack, where the picture has `scale`: doubled down to whole pixels."""
    return [2**level for level in range(max(1, int(np.log2(scale))) + 1)]


def _refined_shares(
    shares: Float32[np.ndarray, "s h w"], guide: Float32[np.ndarray, "c y x"], grids: Sequence[Cells]
) -> Float32[np.ndarray, "s y x"]:
    """Shares on the pixels of a guide; `grids` are the stack's cells, and smaller ones."""
    cells, plain = grids[0], grids[0].spread(shares)
    edge = has_edge(shares)
    there = shares.any(axis=(1, 2))
    if not edge.any():
        return plain
    shares, found = shares[there], plain[there]
    for grid in grids:
        means = Guide(grid.mean(guide), epsilon=EPSILON, shrinking=SHRINKING)
        for _ in range(2 if grid is grids[-1] else 1):  # what the finest pixels show tells most
            coarse = shares if grid is cells else grid.mean(found)
            found = _corrected(_filtered(coarse, means, guide, grid), shares, cells)
    weight = cells.spread(neighbours(edge.astype(np.float32)[None])[1])
    found = plain[there] + weight * (found - plain[there])
    plain[there] = np.where(weight > 0, valid(np.where(found < FAINT, 0, found)), plain[there])
    return plain


def _filtered(
    shares: Float32[np.ndarray, "s h w"], means: Guide, guide: Float32[np.ndarray, "c y x"], cells: Cells
) -> Float32[np.ndarray, "s y x"]:
    """Shares by a guided filter with windows of 3 x 3 cells, read at the guide's pixels; `means` are the cells'."""
    slopes, offsets = means.fits(shares)
    found = cells.spread(offsets)
    for channel, pixels in enumerate(guide):
        found += cells.spread(slopes[:, channel]) * pixels
    low, high = neighbours(shares)
    slack = SLACK * (high - low)
    return valid(np.clip(found, cells.spread(low - slack), cells.spread(high + slack), out=found))


def _corrected(found: np.ndarray, shares: np.ndarray, cells: Cells) -> np.ndarray:
    """Shares whose means over cells are as given, as far as shares allow."""
    for _ in range(CORRECTIONS):
        found += cells.spread(shares - cells.mean(found))
        found = valid(found)
    return found


def _refined(
    stack: UInt8[np.ndarray, "l h w 4"],
    picture: UInt8[np.ndarray, "y x 4"],
    grids: Sequence[Cells],
    apart: Sequence[tuple[int, int]],
    channels: int,
) -> UInt8[np.ndarray, "l y x 4"]:
    """Some rows of a stack at a picture's size; their colours do not blend to the picture yet."""
    straight, cells = np.moveaxis(stack, 3, 1).astype(np.float32) / 255, grids[0]
    guide = _guide(picture, channels)
    shares = shares_of(straight[:, 3])
    found = _refined_shares(shares, guide, grids)
    pixels = np.empty((len(stack), *picture.shape), np.uint8)
    plain = cells.spread(straight[:, 3])
    for i, j in apart:
        _separate(found[i], found[j])
        _separate(plain[i], plain[j])
    pixels[..., 3] = np.rint(255 * alphas_of(found, plain))
    colours, weights = _colours(straight, shares, cells.mean(guide[:3]))
    for i in range(len(stack)):
        colour = cells.spread(colours[i] * weights[i]) / cells.spread(weights[i : i + 1])
        pixels[i, ..., :3] = np.moveaxis(np.rint(255 * colour.clip(0, 1)), 0, -1)
    return pixels


def _guide(picture: UInt8[np.ndarray, "y x 4"], channels: int) -> Float32[np.ndarray, "c y x"]:
    """Premultiplied colours in [0, 1] and, as a fourth channel, alpha."""
    planes = np.moveaxis(picture, -1, 0).astype(np.float32) / 255
    planes[:3] *= planes[3]
    return planes[:channels]


def _apart(shows: Bool[np.ndarray, "l h w"]) -> list[tuple[int, int]]:
    """Pairs of layers that meet among neighbours, but share no pixel."""
    grown = [neighbours(neighbours(layer)[1])[1] for layer in shows]
    pairs = itertools.combinations(range(len(shows)), 2)
    return [(i, j) for i, j in pairs if (grown[i] & grown[j]).any() and not (shows[i] & shows[j]).any()]


def _separate(first: Float32[np.ndarray, "y x"], second: Float32[np.ndarray, "y x"]) -> None:
    """Give what two layers have of the same pixel to the one that has more, in place."""
    both = (first > 0) & (second > 0)
    if both.any():
        whole, is_first = first + second, first >= second
        first[both], second[both] = (whole * is_first)[both], (whole * ~is_first)[both]


def _colours(
    straight: Float32[np.ndarray, "l 4 h w"], shares: Float32[np.ndarray, "s h w"], guide: Float32[np.ndarray, "3 h w"]
) -> tuple[Float32[np.ndarray, "l 3 h w"], Float32[np.ndarray, "l h w"]]:
    """Colours of the layers, and their weights where they are interpolated.

    What the layers' blend misses of the picture's means is taken from where a layer is seen to where it is seen less.
    """
    colours, alphas = straight[:, :3].copy(), straight[:, 3]
    reach = window_mean(window_mean(alphas[:, None]))
    near = (window_mean(window_mean(colours * alphas[:, None])) / np.maximum(reach, 1e-6)).astype(np.float32)
    colours = np.where((alphas[:, None] == 0) & (reach > 1e-4), near, colours)
    seen = shares[:-1, None]
    missed = guide - (seen * colours).sum(axis=0)
    missed = missed / np.maximum((seen * seen).sum(axis=0), 1e-3)
    weight = window_mean(window_mean(seen * seen))
    colours = colours + (window_mean(window_mean(seen**3 * missed)) / (weight + 0.05)).astype(np.float32)
    return colours, np.maximum(alphas, 1e-3)
