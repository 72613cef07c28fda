"""Photoshop documents to plain layers whose alpha blend is the document's image (arXiv 2512.15603, section 4.1)."""

import dataclasses
import io
import logging
import warnings

import numpy as np
from psd_tools import PSDImage
from psd_tools.api.layers import Group, Layer
from psd_tools.constants import BlendMode, Tag

from qil_jax.documents.fit import Piece, Raster, fit, flatten, piece_of, recolour
from qil_jax.documents.limits import PSDLimits
from qil_jax.documents.psd_compositor import composite, get_color_channels, is_plain, nothing, pixels, put, to_rgba
from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.layers.boxed_layer import Box, BoxedLayer
from qil_jax.layers.compositing import composite_8bit, psnr
from qil_jax.layers.photoshop import (
    UNDRAWN,
    Feature,
    features_of,
    name_of,
    psnr_stored,
    psnr_thumbnail,
    rgba,
    stored_picture,
)
from qil_jax.layers.visibility import visible_box

NOT_DRAWN = {"dropshadow", "innershadow", "outerglow", "innerglow", "satin", "bevelemboss"}
"""Layer effects that psd-tools does not draw."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PSDDocument:
    """A document as plain layers, bottom to top, and how well they reproduce its image.

    Attributes:
      layers: plain layers, each in its own box on the canvas.
      size: width and height of the canvas in pixels.
      mode: colour mode and bits per channel, such as "RGB 8".
      psnr_compositor: PSNR in dB of the layers' composite against psd-tools' composite (`layers.compositing.psnr`).
      psnr_stored: PSNR in dB of the layers' composite against the image that the document stores; None if it stores
        none.
      psnr_thumbnail: PSNR in dB of the layers' composite against the document's thumbnail; None if it has none.
      notes: content that was merged into other layers, added, or not rendered, and what the layers' composite does not
        look like, one sentence each.
    """

    layers: tuple[BoxedLayer, ...]
    size: tuple[int, int]
    mode: str
    psnr_compositor: float
    psnr_stored: float | None
    psnr_thumbnail: float | None
    notes: tuple[str, ...]


def read_psd(data: bytes, limits: PSDLimits) -> PSDDocument:
    """The plain layers of a document that psd-tools can open.

    Memory: every layer's own box in 8 bits, and a few canvases in fp32. Documents can be malicious: call this in a
    separate process with limits (`sandbox.py`).

    Raises:
      Dropped: if the document is unreadable, too large, or without layers.
    """
    logging.getLogger("psd_tools").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            psd = PSDImage.open(io.BytesIO(data), max_alloc_bytes=limits.max_alloc_bytes)
        except Exception as error:
            raise Dropped(Reason.UNREADABLE, f"{type(error).__name__}: {error}"[:300]) from error
        if psd.width * psd.height > limits.pixels:
            raise Dropped(Reason.TOO_LARGE, f"{psd.width} x {psd.height} pixels, {limits.pixels} at most")
        if not len(psd):
            raise Dropped(Reason.NO_LAYERS, f"only a merged picture in {psd.color_mode.name} {psd.depth} bit")
        try:
            return _read(psd, limits)
        except (Dropped, MemoryError):
            raise
        except Exception as error:
            raise Dropped(Reason.UNREADABLE, f"drawing it: {type(error).__name__}: {error}"[:300]) from error


def _read(psd: PSDImage, limits: PSDLimits) -> PSDDocument:
    unpacking = _Unpacking(psd, limits)
    pieces = unpacking.items(psd, [], psd.viewbox)
    layers = [
        BoxedLayer(pixels=to_rgba(piece, psd), left=piece.left, top=piece.top, name=piece.name)
        for piece in pieces
        if piece.alpha.any()
    ]
    if not layers:
        raise Dropped(Reason.NO_LAYERS, "no layer shows anything on the canvas")
    size = psd.width, psd.height
    ours, drawn, stored = composite_8bit(layers, size), rgba(composite(psd)), stored_picture(psd)
    document = PSDDocument(
        layers=tuple(layers),
        size=size,
        mode=f"{psd.color_mode.name} {psd.depth}",
        psnr_compositor=psnr(ours, drawn),
        psnr_stored=None if stored is None else psnr_stored(ours, stored),
        psnr_thumbnail=psnr_thumbnail(ours, psd),
        notes=tuple(unpacking.notes),
    )
    return dataclasses.replace(document, notes=(*document.notes, *_differences(document, limits)))


def _differences(document: PSDDocument, limits: PSDLimits) -> list[str]:
    """A sentence for each picture of the document that the layers' composite does not look like."""
    found = [
        ("psd-tools' composite", document.psnr_compositor, limits.recomposition_psnr),
        ("the stored picture", document.psnr_stored, limits.recomposition_psnr),
        ("the thumbnail", document.psnr_thumbnail, limits.thumbnail_psnr),
    ]
    return [f"unlike {what}: {x:.1f} dB" for what, x, enough in found if x is not None and x < enough]


def require_expressed(document: PSDDocument, limits: PSDLimits) -> None:
    """Refuse a document whose layers do not give its picture.

    Raises:
      Dropped: with the figures: if it is not expressible by alpha blending of layers, or not as its program drew it.
    """
    drawn, stored, thumbnail = document.psnr_compositor, document.psnr_stored, document.psnr_thumbnail
    figures = f"{drawn:.1f} dB against psd-tools' composite"
    figures += ", no stored picture" if stored is None else f", {stored:.1f} dB against the stored picture"
    figures += "" if thumbnail is None else f", {thumbnail:.1f} dB against the thumbnail"
    if max(drawn, stored or 0) < limits.recomposition_psnr:
        raise Dropped(Reason.NOT_EXPRESSIBLE, f"{figures}; {limits.recomposition_psnr:g} dB needed")
    if stored is not None and stored < limits.stored_psnr:
        notes = "; ".join(note for note in document.notes if "not drawn" in note)
        raise Dropped(Reason.MISDRAWN, f"{figures}; {limits.stored_psnr:g} dB needed{'; ' * bool(notes)}{notes}")


class _Unpacking:
    """The traversal of a document's tree. A scope is the list of pieces of an isolated group, or of the document."""

    def __init__(self, psd: PSDImage, limits: PSDLimits):
        self.psd, self.limits, self.channels = psd, limits, get_color_channels(psd)
        self.notes: list[str] = []

    def items(self, parent: PSDImage | Group, scope: list[Piece], box: Box) -> list[Piece]:
        """Append the visible children of a group to a scope."""
        for layer in parent:
            if layer.is_visible() and not layer.clipping:
                self.item(layer, scope, box)
        return scope

    def item(self, layer: Layer, scope: list[Piece], box: Box) -> None:
        """Append one layer or group, with the layers that are clipped to it, to a scope."""
        self._note_undrawn(layer)
        clips = [clip for clip in layer.clip_layers if clip.is_visible()]
        group = isinstance(layer, Group)
        whole = layer.opacity == 255 and not {Feature.MASK, Feature.EFFECTS} & features_of(layer)
        artboard = layer.kind == "artboard"
        if layer.kind in ADJUSTMENTS or _blends(layer):
            self._bake(layer, scope, box)
        elif _knocks_out(layer) or (group and any(map(_knocks_out, layer.descendants()))):
            self._knocking_out(layer, scope, box)
        elif group:
            self._group(layer, scope, box, trust=whole and not clips and not artboard)
        elif clips:
            self._clipped(layer, clips, scope, box)
        else:
            piece = self._leaf(layer, box)
            if piece is not None:
                scope.append(piece)

    def _leaf(self, layer: Layer, box: Box) -> Piece | None:
        if is_plain(layer):
            return pixels(layer, box)
        return piece_of(put(layer, nothing(box, self.channels), without_clips=True), name_of(layer))

    def _clipped(self, base: Layer, clips: list[Layer], scope: list[Piece], box: Box) -> None:
        """Append a layer and those clipped to it, which show only where it does."""
        piece = self._leaf(base, box)
        if piece is None:
            return
        inner = [piece]
        for clip in clips:
            self.item(clip, inner, piece.box)
        wanted = put(base, nothing(piece.box, self.channels))
        self._settle(inner, wanted, name_of(base), scope)

    def _group(self, group: Group, scope: list[Piece], box: Box, *, trust: bool) -> None:
        """Append a group, fitted on a scope of its own unless `trust` says that its children alone reproduce it."""
        if trust and group.blend_mode is BlendMode.PASS_THROUGH:
            self.items(group, scope, box)
            return
        inner = self.items(group, [], box)
        for clip in group.clip_layers:
            if clip.is_visible():
                self.item(clip, inner, box)
        if trust:
            scope.extend(inner)
            return
        if group.blend_mode is BlendMode.PASS_THROUGH and any(map(_needs_backdrop, group.descendants())):
            self._bake(group, scope, box)
            return
        self._settle(inner, put(group, nothing(box, self.channels)), name_of(group), scope)

    def _knocking_out(self, layer: Layer, scope: list[Piece], box: Box) -> None:
        """Append a layer that knocks out what is below it: its pieces go on top, then the whole scope is fitted."""
        wanted = put(layer, flatten(scope, box, self.channels))
        leaf = self._leaf(layer, box) if not isinstance(layer, Group) else None
        inner = [leaf] if leaf else []
        if isinstance(layer, Group):
            self.items(layer, inner, box)
        scope.extend(inner)
        result = fit(scope, wanted, name_of(layer))
        self.notes.append(f"'{name_of(layer)}' knocks out what is below it, {result.repaired:.1%} repaired")

    def _settle(self, inner: list[Piece], wanted: Raster, name: str, scope: list[Piece]) -> None:
        """Append a scope fitted to its image, or one flat piece if too many of its pixels would be repaired."""
        kept = len(inner)
        result = fit(inner, wanted, name)
        if result.repaired > self.limits.repaired:
            flat = piece_of(wanted, name)
            inner = [] if flat is None else [flat]
            self.notes.append(f"'{name}' is kept as one layer: its {kept} parts alone do not give its picture")
        scope.extend(inner)

    def _bake(self, layer: Layer, scope: list[Piece], box: Box) -> None:
        """Apply a layer that changes the colours below it, as an adjustment does, to the pieces below it."""
        what = f"'{name_of(layer)}' ({layer.blend_mode.name.lower().replace('_', ' ')} {layer.kind})"
        before = flatten(scope, box, self.channels)
        wanted = put(layer, before)
        touched = np.abs(wanted.colour * wanted.alpha - before.colour * before.alpha).max(-1) > 0
        touched |= np.abs(wanted.alpha - before.alpha)[..., 0] > 0
        box_touched = visible_box(touched)
        if box_touched is None:
            self.notes.append(f"{what} changes nothing")
            return
        left, top, right, bottom = box_touched
        part = box[0] + left, box[1] + top, box[0] + right, box[1] + bottom
        recolour(scope, part, lambda backdrop: put(layer, backdrop))
        result = fit(scope, wanted, name_of(layer))
        added = "; where nothing was below it, it is a layer of its own" if result.added else ""
        self.notes.append(f"{what} is baked into what it covers, {result.repaired:.1%} repaired{added}")

    def _note_undrawn(self, layer: Layer) -> None:
        features = features_of(layer)
        undrawn = [feature for feature in UNDRAWN if feature in features]
        if Feature.EFFECTS in features:
            drawn = {effect.name.lower() for effect in layer.effects if effect.enabled}
            undrawn += sorted(drawn & NOT_DRAWN) if drawn else ["effects of an old kind"]
        if undrawn:
            self.notes.append(f"'{name_of(layer)}': not drawn: {', '.join(undrawn)}")


ADJUSTMENTS = {
    "blackandwhite", "brightnesscontrast", "channelmixer", "colorbalance", "colorlookup", "curves", "exposure",
    "gradientmap", "huesaturation", "invert", "levels", "photofilter", "posterize", "selectivecolor", "threshold",
    "vibrance",
}  # fmt: skip


def _blends(layer: Layer) -> bool:
    return Feature.BLEND_MODE in features_of(layer)


def _needs_backdrop(layer: Layer) -> bool:
    return layer.kind in ADJUSTMENTS or (_blends(layer) and not layer.clipping)


def _knocks_out(layer: Layer) -> bool:
    return bool(layer.tagged_blocks.get_data(Tag.KNOCKOUT_SETTING, 0))
