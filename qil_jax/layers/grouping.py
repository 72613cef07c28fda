"""Fewer layers, same picture: layers that do not overlap are grouped, neighbours merged (paper.md 4 and 7.1)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from qil_jax.layers.boxed_layer import BoxedLayer, intersection, window
from qil_jax.layers.compositing import put_over

Groups = list[list[int]]
"""Indices of layers, bottom to top, group by group from the bottom."""


def front_to_back_groups(layers: Sequence[BoxedLayer]) -> Groups:
    """Layers by depth: each group's members overlap no layer above them but those in groups in front.

    LayerD's rule (paper.md 7.1): a layer is in front if it shares no pixel of positive alpha with a layer above it;
    the front group is taken away, and so on. Layers that never overlap have no true order, and this one is canonical.

    Time: pairs of layers whose boxes meet are compared pixel by pixel.
    """
    boxes = np.array([layer.box for layer in layers]).reshape(-1, 4)
    depth = np.zeros(len(layers), int)
    for i in range(len(layers) - 1, -1, -1):
        above = boxes[i + 1 :]
        meet = (above[:, :2] < boxes[i, 2:]).all(1) & (boxes[i, :2] < above[:, 2:]).all(1)
        candidates = i + 1 + np.flatnonzero(meet)
        for j in candidates[np.argsort(-depth[candidates], kind="stable")]:
            if depth[j] < depth[i]:
                break  # only a deeper one could push it further back
            if overlap(layers[i], layers[j]):
                depth[i] = depth[j] + 1
    return [np.flatnonzero(depth == d).tolist() for d in range(depth.max(initial=-1), -1, -1)]


def overlap(a: BoxedLayer, b: BoxedLayer) -> bool:
    """Whether two layers share a pixel of positive alpha."""
    common = intersection(a.box, b.box)
    if common is None:
        return False
    parts = [x.pixels[window(x.box, common)][..., 3] for x in (a, b)]
    return bool(np.logical_and(*parts).any())


def cheapest_merges(visible: Float[np.ndarray, " l"], count: int) -> Groups:
    """Contiguous groups, `count` at most: again and again the neighbours are joined of which the smaller shows least.

    Args:
      visible: how much of each layer the composite shows, in pixels.
      count: of groups wanted.
    """
    groups = [[i] for i in range(len(visible))]
    shown = visible.tolist()
    while len(groups) > max(1, count):
        costs = [min(pair) for pair in zip(shown[:-1], shown[1:], strict=True)]
        i = int(np.argmin(costs))
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
        shown[i : i + 2] = [shown[i] + shown[i + 1]]
    return groups


def merge(layers: Sequence[BoxedLayer], groups: Groups, size: tuple[int, int]) -> list[BoxedLayer]:
    """One layer per group; the composite stays within 1/255 of that of the layers in the groups' order.

    Where one member of a group shows alone its pixel is kept as it is. Where several mix, the new pixel is rounded so
    that the composite of all that lies below it and itself is as near as 8 bits allow to the exact one: errors of
    rounding do not add up from layer to layer.

    Args:
      layers: bottom to top.
      groups: every index once. Members that overlap must be in their order.
      size: width and height of the canvas.

    Memory: two canvases in fp32 and one of a group.
    """
    exact, rounded = (np.zeros((size[1], size[0], 4), np.float32) for _ in range(2))
    merged = []
    for group in groups:
        members = [layers[i] for i in group]
        for member in members:
            put_over(exact, member)
        layer = members[0] if len(members) == 1 else _join(members, exact, rounded)
        put_over(rounded, layer)
        merged.append(layer)
    return merged


def _join(members: Sequence[BoxedLayer], exact: np.ndarray, rounded: np.ndarray) -> BoxedLayer:
    boxes = np.array([member.box for member in members])
    left, top = map(int, boxes[:, :2].min(0))
    right, bottom = map(int, boxes[:, 2:].max(0))
    here = np.s_[top:bottom, left:right]
    pixels = np.zeros((bottom - top, right - left, 4), np.uint8)
    count = np.zeros((bottom - top, right - left), np.int32)
    through = np.ones((bottom - top, right - left), np.float32)
    for member in members:
        inside = window((left, top, right, bottom), member.box)
        shows = member.pixels[..., 3] > 0
        count[inside] += shows
        through[inside] *= 1 - member.pixels[..., 3].astype(np.float32) / 255
        np.copyto(pixels[inside], member.pixels, where=shows[..., None])
    mixed = np.nonzero(count > 1)
    if len(mixed[0]):
        pixels[mixed] = _rounded(exact[here][mixed], rounded[here][mixed], 1 - through[mixed])
    names = " + ".join(dict.fromkeys(member.name for member in members if member.name))
    return BoxedLayer(pixels=pixels, left=left, top=top, name=names[:200])


def _rounded(
    wanted: Float[np.ndarray, "p 4"], below: Float[np.ndarray, "p 4"], alpha: Float[np.ndarray, " p"]
) -> UInt8[np.ndarray, "p 4"]:
    """8-bit straight pixels of about `alpha` that, over `below`, come nearest to `wanted` (both premultiplied).

    Over an opaque ground alpha is rounded up, because a pixel that covers more can still reach every colour;
    elsewhere to whichever of its neighbours brings the total alpha nearest to the wanted one.
    """
    step, through = 1 / 255, 1 - below[:, 3]
    needed = np.divide(wanted[:, 3] - below[:, 3], through, out=alpha.copy(), where=through > step / 2)
    nearest = np.rint(np.clip(needed, alpha - step, alpha + step).clip(0, 1) * 255)
    alpha = np.where(through > step / 2, nearest, np.ceil(alpha * 255 - 1e-3))[:, None] / np.float32(255)
    colour = wanted[:, :3] - (1 - alpha) * below[:, :3]
    colour = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0)
    return np.rint(np.concatenate([np.clip(colour, 0, 1), alpha], 1) * 255).astype(np.uint8)
