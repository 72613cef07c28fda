"""Reduction of the number of layers at an unchanged composite: non-overlapping or neighbouring layers are merged.

ArXiv 2512.15603, section 4.1, merges layers that do not overlap; the grouping rule is that of LayerD's evaluation code
(arXiv 2509.25134).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from qil_jax.layers.boxed_layer import BoxedLayer, intersection, window
from qil_jax.layers.compositing import put_over

Groups = list[list[int]]
"""Groups of indices of layers, from the bottom group up, each bottom to top."""


def front_to_back_groups(layers: Sequence[BoxedLayer]) -> Groups:
    """Groups of layers by depth: the members of a group are overlapped by layers of groups in front of it only.

    LayerD's rule: the front group holds the layers that share no pixel of positive alpha with a layer above them; it is
    removed, and the rule applied to the rest. Layers that never overlap have no true order; this one is canonical.

    Time: pairs of layers whose boxes intersect are compared pixel by pixel.
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
    alphas = [x.pixels[window(x.box, common)][..., 3] for x in (a, b)]
    return bool(np.logical_and(*alphas).any())


def absorbed(is_small: Sequence[bool]) -> Groups:
    """Contiguous groups in which each small layer joins the one below it; those at the bottom join the next above."""
    groups: Groups = []
    for i, small in enumerate(is_small):
        if groups and (small or all(is_small[j] for j in groups[-1])):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def cheapest_merges(visible: Float[np.ndarray, " l"], count: int) -> Groups:
    """Partition into at most `count` contiguous groups, by joining neighbours repeatedly.

    Each step joins the two neighbours of which the smaller one has the least visible area.

    Args:
      visible: visible area of each layer in the composite, in pixels.
      count: maximum number of groups.
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

    Where only one member of a group is visible its pixel is kept unchanged. Where several are, the new pixel is rounded
    so that its composite with everything below it is as near to the exact one as 8 bits allow: rounding errors do not
    accumulate from layer to layer.

    Args:
      layers: layers to merge, bottom to top.
      groups: partition of the layers' indices. Members of a group that overlap must keep their order.
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
    """8-bit straight pixels of about `alpha` whose blend over `below` is nearest to `wanted` (both premultiplied).

    Over an opaque ground alpha is rounded up, because a higher alpha can still produce every colour; elsewhere to the
    value that brings the total alpha nearest to the wanted one.
    """
    step, through = 1 / 255, 1 - below[:, 3]
    needed = np.divide(wanted[:, 3] - below[:, 3], through, out=alpha.copy(), where=through > step / 2)
    nearest = np.rint(np.clip(needed, alpha - step, alpha + step).clip(0, 1) * 255)
    alpha = np.where(through > step / 2, nearest, np.ceil(alpha * 255 - 1e-3))[:, None] / np.float32(255)
    colour = wanted[:, :3] - (1 - alpha) * below[:, :3]
    colour = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0)
    return np.rint(np.concatenate([np.clip(colour, 0, 1), alpha], 1) * 255).astype(np.uint8)
