"""Detection of anomalous content, such as mosaics and blurs over faces or numbers, and watermarks.

arXiv 2512.15603, section 4.1, filters such layers without naming a detector (docs/specification.md, 9). `PatchDetector`
finds mosaic and blur; other anomalies need a user's own detector, an `AnomalyDetector`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import over_white


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anomaly:
    """One anomaly found in a layer.

    Attributes:
      kind: class of the anomaly, such as "mosaic".
      box: bounding box (left, top, right, bottom) of the anomaly in pixels of the canvas.
    """

    kind: str
    box: tuple[int, int, int, int]


@runtime_checkable
class AnomalyDetector(Protocol):
    """Finds anomalies in layers, bottom to top, on a canvas of `size` (width, height).

    A detector that works on the whole image blends it first: `layers.compositing.composite_8bit(layers, size)`.
    """

    def __call__(self, layers: Sequence[BoxedLayer], size: tuple[int, int]) -> list[Anomaly]:
        """The anomalies of a document's layers."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchDetector:
    """Finds mosaic and blur patches inside otherwise sharp images, layer by layer.

    A mosaic consists of uniform squares on a regular grid: along both axes the differences between neighbouring pixels
    are non-zero at every k-th position only. A blur is a compact region that has contrast over long distances but none
    between neighbours, in an image that has plenty of it elsewhere. Flat areas and smooth gradients of a design have
    neither, and an image that is soft everywhere is no anomaly. Drawn images, large parts of which are perfectly flat,
    contain many shapes that resemble either, so only photographs are searched. The composite is not: a smooth object on
    a sharp photograph is no blur of it. Of 300 scenes with landscapes one is refused.

    Attributes:
      blocks: side lengths, in pixels, of the mosaic squares that are searched for.
      min_area: least area of a reported patch as a share of the image, in [0, 1].
      max_flatness: share, in [0, 1], of pixels equal to their neighbours above which an image counts as drawn.
    """

    blocks: tuple[int, ...] = (6, 8, 10, 12, 14, 16, 20, 24, 32)
    min_area: float = 0.004
    max_flatness: float = 0.3

    def __call__(self, layers: Sequence[BoxedLayer], size: tuple[int, int]) -> list[Anomaly]:
        """Every patch found in any layer, in pixels of the canvas."""
        return [
            Anomaly(kind=a.kind, box=(a.box[0] + x.left, a.box[1] + x.top, a.box[2] + x.left, a.box[3] + x.top))
            for x in layers
            for a in self.patches(x.pixels)
        ]

    def patches(self, picture: UInt8[np.ndarray, "y x 4"]) -> list[Anomaly]:
        """The patches of one straight RGBA image: mosaics or, if there are none, blurs."""
        grey = over_white(picture)[..., :3].astype(np.float32).mean(-1)
        if min(grey.shape) < 64 or _flatness(grey) > self.max_flatness:
            return []
        found = []
        for block in self.blocks:
            mask = _mosaic(grey, block)
            found += _patches("mosaic", mask, self.min_area)
            if found:
                return found
        return [patch for patch in _patches("blur", _blur(grey), self.min_area) if _is_put_on(patch.box, grey.shape)]


def _flatness(grey: Float[np.ndarray, "y x"]) -> float:
    """Share of pixels that equal those to their right and below."""
    right, below = np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1]
    return float(np.mean((right == 0) & (below == 0)))


def _mosaic(grey: Float[np.ndarray, "y x"], block: int) -> Bool[np.ndarray, "y x"]:
    """Pixels around which, over 3 x 3 squares, differences fall on one of `block` offsets only, along both axes."""
    rows, columns = grey.shape[0] // block, grey.shape[1] // block
    covered = np.ones((rows, columns), bool)
    for axis in (0, 1):
        steps = np.abs(np.diff(grey, axis=axis, append=np.take(grey, [-1], axis)))
        steps = np.where(steps > 2, steps, 0)[: rows * block, : columns * block]
        cells = np.moveaxis(_cells(steps, block).sum(3 - 2 * axis), 1 + axis, 2)
        by_offset = ndimage.convolve(cells, np.full((3, 3, 1), 1 / 9), mode="constant")
        total = by_offset.sum(-1)
        # One edge of a flat shape is on one offset too: squares have a second step, one square further.
        twice = _cells(np.minimum(steps, np.roll(steps, block, axis)), block).sum((1, 3))
        again = ndimage.uniform_filter(twice, 3, mode="constant")
        covered &= (by_offset.max(-1) > 0.98 * total) & (total > 3 * block) & (again > 0.2 * total)
    mask = np.zeros(grey.shape, bool)
    mask[: rows * block, : columns * block] = covered.repeat(block, 0).repeat(block, 1)
    return mask


def _cells(x: Float[np.ndarray, "y x"], block: int) -> Float[np.ndarray, "rows block columns block"]:
    return x.reshape(x.shape[0] // block, block, x.shape[1] // block, block)


def _blur(grey: Float[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Pixels of soft regions that end abruptly in a sharp image; defocused regions fade instead."""
    fine = ndimage.uniform_filter(np.abs(ndimage.laplace(grey)), 17)
    coarse = np.sqrt(np.maximum(ndimage.uniform_filter(grey**2, 33) - ndimage.uniform_filter(grey, 33) ** 2, 0))
    sharp = np.median(fine)
    labels = np.empty(grey.shape, np.int32)
    count = ndimage.label((fine < 0.2 * sharp) & (coarse > 5) & (sharp > 3), output=labels)
    mask = np.zeros(grey.shape, bool)
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels)[:count], start=1):
        wide = slice(max(0, rows.start - 24), rows.stop + 24), slice(max(0, columns.start - 24), columns.stop + 24)
        inside = labels[wide] == label
        ring = ndimage.binary_dilation(inside, iterations=22) > ndimage.binary_dilation(inside, iterations=12)
        if ring.any() and np.percentile(fine[wide][ring], 25) > 4 * np.median(fine[wide][inside]):
            mask[wide] |= inside
    return mask


def _is_put_on(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> bool:
    """Whether a soft region may be an edit: inside the image, neither thin, tiny nor huge, unlike a sky."""
    width, height = box[2] - box[0], box[3] - box[1]
    inside = box[0] > 0 and box[1] > 0 and box[2] < shape[1] and box[3] < shape[0]
    return inside and min(width, height) >= 24 and max(width, height) <= min(3 * min(width, height), min(shape) // 2)


def _patches(kind: str, mask: Bool[np.ndarray, "y x"], min_area: float) -> list[Anomaly]:
    """The connected regions of a mask that are large and compact."""
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    found = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        area = np.count_nonzero(labels[rows, columns] == label)
        compact = area / ((rows.stop - rows.start) * (columns.stop - columns.start))
        if area >= min_area * mask.size and compact > 0.7:
            found.append(Anomaly(kind=kind, box=(columns.start, rows.start, columns.stop, rows.stop)))
    return found
