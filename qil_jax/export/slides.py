"""Slides read as layers: what a layer can say of a shape (place, size, mirroring, opacity), and what it cannot.

A slide is DrawingML (ECMA-376, parts 20.1 and 19.3), in which a picture's looks are elements within its own. Those that
change nothing or that a layer can say are listed here; a shape that has any other is refused.
"""

import dataclasses
import math
from typing import Any

from pptx.oxml.ns import qn

from qil_jax.errors import QilError
from qil_jax.export.bounds import require_depth
from qil_jax.export.nodes import GroupNode, ReadNode
from qil_jax.export.placed import PlacedPicture

PLAIN: dict[str, set[str]] = {
    "pic": {"nvPicPr", "blipFill", "spPr", "extLst"},
    "nvPicPr": {"cNvPr", "cNvPicPr", "nvPr"},
    "nvPr": {"ph", "custDataLst", "extLst"},
    "blipFill": {"blip", "srcRect", "stretch"},
    "blip": {"alphaModFix", "extLst"},
    "spPr": {"xfrm", "prstGeom", "noFill", "ln", "effectLst", "effectDag", "extLst"},
    "grpSpPr": {"xfrm", "noFill", "effectLst", "effectDag", "extLst"},
    "ln": {"noFill", "prstDash", "custDash", "round", "bevel", "miter", "headEnd", "tailEnd", "extLst"},
    "effectLst": set(),
    "effectDag": set(),
}
"""What an element may hold for its picture or group to be a layer; of others it does not matter."""
EXTRAS = {
    "grayscl": "is shown in greys",
    "biLevel": "is shown in black and white",
    "duotone": "is recoloured",
    "clrChange": "has a colour made transparent",
    "lum": "has another brightness or contrast",
    "softEdge": "has soft edges",
    "outerShdw": "has a shadow",
    "innerShdw": "has a shadow",
    "prstShdw": "has a shadow",
    "glow": "glows",
    "reflection": "has a reflection",
    "custGeom": "is cropped to a shape",
    "tile": "is tiled",
    "ln": "has an outline",
    "style": "has a style of the theme",
}
"""What messages say of an element that a layer cannot; for others its name."""
KINDS = {
    "pic": "picture",
    "grpSp": "group",
    "sp": "shape",
    "cxnSp": "line",
    "graphicFrame": "table, chart or other object",
    "contentPart": "drawing in ink",
}
"""What messages call a shape, by its element."""
WHOLE = 100_000
"""The unit of DrawingML's shares."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """The map from a group's inner coordinates in EMU to those of the canvas along one axis: scale * inner + shift."""

    scale: float = 1.0
    shift: float = 0.0

    def inside(self, xfrm: Any, along: str) -> "Axis":
        """The map of a group within, by its transform `a:xfrm`; `along` is x or y."""
        if xfrm is None or xfrm.chOff is None or xfrm.chExt is None or xfrm.off is None or xfrm.ext is None:
            return self
        start, first = getattr(xfrm.off, along), getattr(xfrm.chOff, along)
        length, inner = getattr(xfrm.ext, f"c{along}"), getattr(xfrm.chExt, f"c{along}")
        scale = length / inner if inner else 1.0
        if _is_flipped(xfrm, along):
            start, scale = start + length, -scale
        return Axis(scale=self.scale * scale, shift=self.scale * (start - scale * first) + self.shift)

    def span(self, xfrm: Any, along: str) -> tuple[int, int, bool]:
        """Start and length of a picture in whole pixels of the canvas, one at least, and whether it is mirrored."""
        start = getattr(xfrm.off, along)
        ends = sorted(self.scale * x + self.shift for x in (start, start + getattr(xfrm.ext, f"c{along}")))
        return round(ends[0]), max(1, round(ends[1] - ends[0])), _is_flipped(xfrm, along) != (self.scale < 0)


def nodes_of_slide(slide: Any, pixel: float) -> tuple[ReadNode, ...]:
    """What is shown on a slide of python-pptx, bottom to top, on a canvas whose pixels are `pixel` EMU long.

    Raises:
      QilError: naming a shape and what of it no layer can say.
    """
    background = slide._element.cSld.find(qn("p:bg"))
    if background is not None and background.find(f"{qn('p:bgPr')}/{qn('a:noFill')}") is None:
        raise QilError("the slide has a background of its own: reset it, and put it on the slide as a picture")
    axis = Axis(scale=1 / pixel)
    return _nodes(slide.shapes._spTree, slide.part, (axis, axis), 0)


def _nodes(shapes: Any, part: Any, axes: tuple[Axis, Axis], depth: int) -> tuple[ReadNode, ...]:
    require_depth(depth)
    found: list[ReadNode] = []
    for shape in shapes:
        kind = _local(shape)
        properties = next(shape.iter(qn("p:cNvPr")), None)
        if kind in ("nvGrpSpPr", "grpSpPr", "extLst") or _is_hidden(properties) or _is_empty_placeholder(shape):
            continue
        name = "" if properties is None else properties.get("name", "")
        extra = _extra(shape) if kind in ("pic", "grpSp") else "is no picture"
        if extra is not None:
            what = "text box" if shape.find(f".//{qn('p:cNvSpPr')}[@txBox='1']") is not None else KINDS.get(kind, kind)
            fix = "undo it, hide it, or save it as a PNG and insert that"
            raise QilError(f"{what} '{name}' {extra}, which no layer can say: {fix}")
        if kind == "pic":
            found.append(_picture(shape, name, part, axes))
            continue
        inner = axes[0].inside(shape.grpSpPr.xfrm, "x"), axes[1].inside(shape.grpSpPr.xfrm, "y")
        found.append(GroupNode(name=name, nodes=_nodes(shape, part, inner, depth + 1)))
    return tuple(found)


def _picture(shape: Any, name: str, part: Any, axes: tuple[Axis, Axis]) -> PlacedPicture:
    xfrm, blip = shape.spPr.xfrm, shape.blipFill.find(qn("a:blip"))
    if xfrm is None or xfrm.off is None or xfrm.ext is None:
        raise QilError(f"picture '{name}' has no place of its own: move it once")
    if blip is None or blip.rEmbed is None:
        raise QilError(f"picture '{name}' is a link to a file: insert the file itself")
    opacity = math.prod((_share(x.get("amt", "100%")) for x in blip.iterchildren(qn("a:alphaModFix"))), start=1.0)
    if not 0 <= opacity <= 1:
        raise QilError(f"picture '{name}' has the opacity {opacity}: set its transparency to 0 to 100 %")
    (left, width, is_mirrored), (top, height, is_upside_down) = (
        axis.span(xfrm, along) for axis, along in zip(axes, "xy", strict=True)
    )
    return PlacedPicture(
        name=name,
        data=part.related_part(blip.rEmbed).blob,
        left=left,
        top=top,
        size=(width, height),
        opacity=opacity,
        is_mirrored=is_mirrored,
        is_upside_down=is_upside_down,
    )


def _extra(shape: Any) -> str | None:
    """What of a picture or a group no layer can say; None if it has nothing of the kind."""
    own = shape.spPr if _local(shape) == "pic" else shape.grpSpPr
    if own.xfrm is not None and own.xfrm.rot:
        return "is turned"
    if _local(shape) == "grpSp":
        return _unlisted(own)
    geometry = own.find(qn("a:prstGeom"))
    if geometry is not None and geometry.get("prst") != "rect":
        return f"is cropped to a shape ({geometry.get('prst')})"
    if any(_share(x) for side in shape.iter(qn("a:srcRect"), qn("a:fillRect")) for x in side.attrib.values()):
        return "is cropped"
    return _unlisted(shape)


def _unlisted(element: Any) -> str | None:
    """The first thing within an element that is not `PLAIN`."""
    allowed = PLAIN.get(_local(element))
    if allowed is None:
        return None
    for child in element.iterchildren("{*}*"):
        name = _local(child)
        if name not in allowed:
            if _local(element) == "ln":
                return EXTRAS["ln"]
            return "has a fill" if name.endswith("Fill") else EXTRAS.get(name, f"has {name}")
        found = _unlisted(child)
        if found is not None:
            return found
    return None


def _share(text: str) -> float:
    """A share as DrawingML writes it: in thousandths of a per cent, or in per cent with the sign."""
    return float(text[:-1]) / 100 if text.endswith("%") else int(text) / WHOLE


def _is_flipped(xfrm: Any, along: str) -> bool:
    return bool(xfrm.flipH if along == "x" else xfrm.flipV)


def _is_hidden(properties: Any) -> bool:
    """Whether a shape is hidden in the selection pane."""
    return properties is not None and properties.get("hidden") in ("1", "true")


def _is_empty_placeholder(shape: Any) -> bool:
    """Whether a shape only asks for text, which no presentation shows."""
    is_placeholder = _local(shape) == "sp" and shape.find(f"{qn('p:nvSpPr')}/{qn('p:nvPr')}/{qn('p:ph')}") is not None
    return is_placeholder and not "".join(shape.itertext()).strip()


def _local(element: Any) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]
