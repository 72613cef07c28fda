"""Refinement: a stack of a model's size at the size of the picture that it decomposes, with the picture's edges.

Per pixel, layer i has the share w_i = a_i prod_{j>i} (1 - a_j) of what is seen, and what shows through all layers is
one share more, so that shares add up to 1. Shares, not alphas, are what a picture can tell: near an edge they are an
affine function of its colours. So a guided filter (He and Sun, "Fast Guided Filter", arXiv 1505.00996) is fitted on the
stack's pixels, where shares and mean colours are known, and read at the picture's. What the means of the result miss of
the stack's shares is added; then both are done once more on pixels of half the size. Where no share differs among
neighbours, nothing changes.

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
from jaxtyping import Bool, Float32, Shaped, UInt8

from qil_jax.layers.exact import fit_colours
from qil_jax.layers.filtering import resampled, resize_layers
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.limits import Edges

EPSILON = 1e-5
"""Regularisation of the guided filter, for colours in [0, 1]."""
SHRINKING = 3.0
"""How much of a slope goes for the part of the variance that a fit leaves."""
POOR = 1e-3
"""Variance that a fit leaves at which a window counts half."""
CORRECTIONS = 6
"""How often what the means of the shares miss is added."""
SLACK = 1.0
"""How far a share may leave the range of its neighbours in the stack, relative to that range: what is soft stays so."""
SURE = 4 / 255
"""Difference of the shares of neighbours up to which there is no edge: a decoder's alphas are noisy."""
FAINT = 2 / 255
"""Smallest share of a layer; and weight of the stack's own alpha, which decides where nothing reaches a layer."""
HALO = 18
"""Rows of the stack around those that are refined: as far as a pixel's result depends on others."""
PART = 1 << 22
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
    layers, apart = np.empty((len(stack), height, width, 4), np.uint8), _apart(stack[..., 3] > 0)

    def refine_rows(first: int, last: int) -> None:
        least, most = max(0, first - HALO), min(high, last + HALO)
        seen = range(-(-least * height // high), most * height // high)
        cells = Cells(Grid(high, height, seen), Grid(wide, width))
        halves = Cells(Grid(min(2 * high, height), height, seen), Grid(min(2 * wide, width), width))
        rows = cells.rows.cells
        found = _refined(stack[:, rows.start : rows.stop], picture[seen.start : seen.stop], cells, halves, apart)
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
        return values[..., self.lower] * (1 - self.weight) + values[..., self.upper] * self.weight

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
        return wide[:, rows.lower] * (1 - weight) + wide[:, rows.upper] * weight

    def mean(self, values: Float32[np.ndarray, "n y x"]) -> Float32[np.ndarray, "n h w"]:
        """Means of pixels over the cells."""
        high = self.rows.mean(values)
        return np.ascontiguousarray(self.columns.mean(high.transpose(0, 2, 1)).transpose(0, 2, 1))


def shares_of(alphas: Float32[np.ndarray, "l y x"]) -> Float32[np.ndarray, "s y x"]:
    """What each layer has of what is seen, bottom to top, and what shows through all of them."""
    shares, through = np.empty((len(alphas) + 1, *alphas.shape[1:]), np.float32), np.ones_like(alphas[0])
    for i in reversed(range(len(alphas))):
        shares[i] = alphas[i] * through
        through = through * (1 - alphas[i])
    shares[-1] = through
    return shares


def _refined_shares(
    shares: Float32[np.ndarray, "s h w"], guide: Float32[np.ndarray, "c y x"], cells: Cells, halves: Cells
) -> Float32[np.ndarray, "s y x"]:
    """Shares on the pixels of a guide."""
    plain = cells.spread(shares)
    edge = has_edge(shares)
    if not edge.any():
        return plain
    found = _corrected(_filtered(shares, guide, cells), shares, cells)
    found = _corrected(_filtered(halves.mean(found), guide, halves), shares, cells)
    weight = cells.spread(neighbours(edge.astype(np.float32)[None])[1])
    found = plain + weight * (found - plain)
    return _valid(np.where(found < FAINT, 0, found))


def has_edge(shares: Float32[np.ndarray, "s h w"]) -> Bool[np.ndarray, "h w"]:
    """Where a share differs among neighbours."""
    low, high = neighbours(shares)
    return (high - low).max(axis=0) > SURE


def _filtered(shares: np.ndarray, guide: np.ndarray, cells: Cells) -> np.ndarray:
    """Shares by a guided filter with windows of 3 x 3 cells, read at the guide's pixels."""
    slopes, offsets = _affine(shares, cells.mean(guide))
    found = cells.spread(offsets)
    for channel, pixels in enumerate(guide):
        found += cells.spread(slopes[:, channel]) * pixels
    low, high = neighbours(shares)
    slack = SLACK * (high - low)
    return _valid(np.clip(found, cells.spread(low - slack), cells.spread(high + slack), out=found))


def _corrected(found: np.ndarray, shares: np.ndarray, cells: Cells) -> np.ndarray:
    """Shares whose means over cells are as given, as far as shares allow."""
    for _ in range(CORRECTIONS):
        found += cells.spread(shares - cells.mean(found))
        found = _valid(found)
    return found


def _valid(shares: np.ndarray) -> np.ndarray:
    """Shares in [0, 1] that add up to 1."""
    np.clip(shares, 0, 1, out=shares)
    shares /= np.maximum(shares.sum(axis=0), np.finfo(np.float32).tiny)
    return shares


def _affine(
    shares: Float32[np.ndarray, "s h w"], guide: Float32[np.ndarray, "c h w"]
) -> tuple[Float32[np.ndarray, "s c h w"], Float32[np.ndarray, "s h w"]]:
    """Slopes and offsets of shares as affine functions of the guide, fitted in windows and averaged over them.

    A window of nine cells fits four numbers, and would follow a texture under a soft shadow. So slopes shrink by what a
    fit leaves of the share's variance, and a window counts the less the more it leaves.
    """
    shares, guide = shares.astype(np.float64), guide.astype(np.float64)
    mean_shares, mean_guide = _box(shares), _box(guide)
    variance = _box(guide[:, None] * guide) - mean_guide[:, None] * mean_guide
    inverse = np.linalg.inv(np.moveaxis(variance, (0, 1), (-2, -1)) + EPSILON * np.eye(len(guide)))
    slopes = np.empty((len(shares), *guide.shape), np.float32)
    offsets = np.empty(shares.shape, np.float32)
    for i, share in enumerate(shares):
        covariance = _box(guide * share) - mean_guide * mean_shares[i]
        slope = np.einsum("yxcd,dyx->cyx", inverse, covariance)
        whole = np.maximum(_box(share * share) - mean_shares[i] ** 2, 0)
        left = np.maximum(whole - (slope * covariance).sum(axis=0), 0)
        slope *= np.clip(1 - SHRINKING * left / (whole + EPSILON), 0, 1)
        weight = 1 / (left + POOR)
        near = _box(weight)
        slopes[i] = _box(weight * slope) / near
        offsets[i] = _box(weight * (mean_shares[i] - (slope * mean_guide).sum(axis=0))) / near
    return slopes, offsets


def _box(values: np.ndarray) -> np.ndarray:
    """Means over windows of 3 x 3, which end at the border, along the last two axes."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1)] * 2)
    sums = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    sums = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:]
    high, wide = (np.full(n, 3.0) for n in values.shape[-2:])
    for count in (high, wide):
        count[0] -= 1
        count[-1] -= 1
    return sums / (high[:, None] * wide)


def neighbours(
    values: Shaped[np.ndarray, "*n h w"],
) -> tuple[Shaped[np.ndarray, "*n h w"], Shaped[np.ndarray, "*n h w"]]:
    """The smallest and the largest value in windows of 3 x 3, along the last two axes."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1)] * 2, mode="edge")
    found = []
    for most in (np.minimum, np.maximum):
        high = most(most(padded[..., :-2, :], padded[..., 1:-1, :]), padded[..., 2:, :])
        found.append(most(most(high[..., :-2], high[..., 1:-1]), high[..., 2:]))
    return found[0], found[1]


def _refined(
    stack: UInt8[np.ndarray, "l h w 4"],
    picture: UInt8[np.ndarray, "y x 4"],
    cells: Cells,
    halves: Cells,
    apart: Sequence[tuple[int, int]],
) -> UInt8[np.ndarray, "l y x 4"]:
    """Some rows of a stack at a picture's size; their colours do not blend to the picture yet."""
    straight = np.moveaxis(stack, 3, 1).astype(np.float32) / 255
    guide = _guide(picture)
    shares = shares_of(straight[:, 3])
    found = _refined_shares(shares, guide, cells, halves)
    pixels = np.empty((len(stack), *picture.shape), np.uint8)
    plain = cells.spread(straight[:, 3])
    for i, j in apart:
        _separate(found[i], found[j])
        _separate(plain[i], plain[j])
    pixels[..., 3] = np.rint(255 * _alphas(found, plain))
    colours, weights = _colours(straight, shares, cells.mean(guide[:3]))
    for i in range(len(stack)):
        colour = cells.spread(colours[i] * weights[i]) / cells.spread(weights[i : i + 1])
        pixels[i, ..., :3] = np.moveaxis(np.rint(255 * colour.clip(0, 1)), 0, -1)
    return pixels


def _guide(picture: UInt8[np.ndarray, "y x 4"]) -> Float32[np.ndarray, "c y x"]:
    """Premultiplied colours in [0, 1], and alpha where a picture is not opaque."""
    planes = np.moveaxis(picture, -1, 0).astype(np.float32) / 255
    if (picture[..., 3] == 255).all():
        return planes[:3]
    planes[:3] *= planes[3]
    return planes


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


def _alphas(shares: Float32[np.ndarray, "s y x"], plain: Float32[np.ndarray, "l y x"]) -> Float32[np.ndarray, "l y x"]:
    """Alphas of given shares; those that the stack has where nothing reaches a layer."""
    alphas, through = np.empty_like(plain), np.ones_like(plain[0])
    for i in reversed(range(len(plain))):
        weight = np.maximum(FAINT - through / 8, 0)
        alphas[i] = (shares[i] + weight * plain[i]) / np.maximum(through + weight, np.finfo(np.float32).tiny)
        through = np.maximum(through - shares[i], 0)
    return alphas.clip(0, 1, out=alphas)


def _colours(
    straight: Float32[np.ndarray, "l 4 h w"], shares: Float32[np.ndarray, "s h w"], guide: Float32[np.ndarray, "3 h w"]
) -> tuple[Float32[np.ndarray, "l 3 h w"], Float32[np.ndarray, "l h w"]]:
    """Colours of the layers, and their weights where they are interpolated.

    What the layers' blend misses of the picture's means is taken from where a layer is seen to where it is seen less.
    """
    colours, alphas = straight[:, :3].copy(), straight[:, 3]
    reach = _box(_box(alphas[:, None]))
    near = (_box(_box(colours * alphas[:, None])) / np.maximum(reach, 1e-6)).astype(np.float32)
    colours = np.where((alphas[:, None] == 0) & (reach > 1e-4), near, colours)
    seen = shares[:-1, None]
    missed = guide - (seen * colours).sum(axis=0)
    missed = missed / np.maximum((seen * seen).sum(axis=0), 1e-3)
    weight = _box(_box(seen * seen))
    colours = colours + (_box(_box(seen**3 * missed)) / (weight + 0.05)).astype(np.float32)
    return colours, np.maximum(alphas, 1e-3)
