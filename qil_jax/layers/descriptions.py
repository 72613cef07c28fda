"""What a user says of single layers: it goes into the prompt, and names, chooses and orders the layers that were made.

The released weights were not trained on such prompts.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qil_jax.layers.boxed_layer import Box, intersection
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.visibility import visible_box
from qil_jax.options import CLOSED, Text

SOLID = 127
"""Alpha above which a pixel counts for a layer's box."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerDescription:
    """What a layer should show, and where.

    Attributes:
      text: what it shows, such as "a red kite"; empty if nothing is said.
      box: left, top, right, bottom on the canvas, in pixels; None if nothing is said.
    """

    __pydantic_config__ = CLOSED
    text: Text = ""
    box: Box | None = None

    def resized(self, size: tuple[int, int], to: tuple[int, int]) -> "LayerDescription":
        """The description on a canvas that was resized from `size` to `to`, width and height."""
        if self.box is None or size == to:
            return self
        left, top, right, bottom = (round(x * to[i % 2] / size[i % 2]) for i, x in enumerate(self.box))
        return dataclasses.replace(self, box=(left, top, right, bottom))


def described_prompt(prompt: str, descriptions: Sequence[LayerDescription]) -> str:
    """The prompt followed by a line for each described layer: "Layer 2 of 3, from the bottom: a red kite"."""
    lines = [
        f"Layer {number} of {len(descriptions)}, from the bottom: {said.text}"
        for number, said in enumerate(descriptions, start=1)
        if said.text
    ]
    return "\n".join([prompt, *lines] if prompt.strip() else lines) or prompt


def apply_descriptions(layered: LayeredImage, descriptions: Sequence[LayerDescription]) -> LayeredImage:
    """Find the layer that each description means, name it, and bring the layers into the described order.

    Layers are found by their boxes, the most overlapping pair (intersection over union) first; descriptions without a
    box, and those whose box no layer touches, get the layers that are left, from the bottom up. Two layers change
    places only where they do not overlap, so that the blend stays. What cannot be found or moved is told in
    `decisions`.
    """
    found = _found(layered, descriptions)
    names, decisions = list(layered.names), list(layered.decisions)
    for number, said in enumerate(descriptions):
        if number not in found:
            decisions.append(f"description {number + 1} ({said.text or said.box}): no layer is left for it")
        elif said.text:
            names[found[number]] = said.text
    wanted = {layer: number for number, layer in found.items()}
    order = _ordered(layered, wanted)
    upset = [
        f"{names[a]} stays below {names[b]}, which it overlaps"
        for i, a in enumerate(order)
        for b in order[i + 1 :]
        if a in wanted and b in wanted and wanted[a] > wanted[b]
    ]
    return dataclasses.replace(
        layered,
        layers=layered.layers[order],
        names=tuple(names[i] for i in order),
        decisions=(*decisions, *upset),
    )


def _found(layered: LayeredImage, descriptions: Sequence[LayerDescription]) -> dict[int, int]:
    """The layer of each description, by the description's number."""
    boxes = [visible_box(pixels[..., 3] > SOLID) for pixels in layered.layers]
    pairs = [
        (-overlap, number, layer)
        for number, said in enumerate(descriptions)
        for layer, box in enumerate(boxes)
        if said.box is not None and box is not None and (overlap := _overlap(said.box, box)) > 0
    ]
    found: dict[int, int] = {}
    for _, number, layer in sorted(pairs):
        if number not in found and layer not in found.values():
            found[number] = layer
    left = iter([layer for layer in range(len(boxes)) if layer not in found.values()])
    for number in range(len(descriptions)):
        if number not in found and (layer := next(left, None)) is not None:
            found[number] = layer
    return found


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    common = intersection(a, b)
    return 0.0 if common is None else area(common) / (area(a) + area(b) - area(common))


def _ordered(layered: LayeredImage, wanted: dict[int, int]) -> list[int]:
    """The order of the layers after all swaps of neighbours that are wanted and change no pixel of the blend."""
    shown, order = layered.layers[..., 3] > 0, list(range(len(layered.layers)))
    for _ in order:
        for i in range(len(order) - 1):
            lower, upper = order[i], order[i + 1]
            is_wanted = lower in wanted and upper in wanted and wanted[lower] > wanted[upper]
            if is_wanted and not bool(np.any(shown[lower] & shown[upper])):
                order[i : i + 2] = [upper, lower]
    return order
