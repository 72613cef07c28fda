"""Access to psd-tools' compositor, whose inner class composes onto any backdrop, as its public functions cannot.

Everything here depends on psd-tools 1.26; `tests/documents/test_psd.py` fails where another version draws differently.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from psd_tools import PSDImage
from psd_tools.api.layers import Layer
from psd_tools.api.pil_io import get_pil_mode, post_process
from psd_tools.api.utils import get_color_channels
from psd_tools.composite.composite import Compositor, _document_backdrop
from psd_tools.composite.widen import make_widen
from psd_tools.constants import Resource, Tag

from qil_jax.documents.fit import Piece, Raster, piece_of
from qil_jax.layers.boxed_layer import Box, intersection
from qil_jax.layers.photoshop import Feature, features_of, name_of

PLAIN_KINDS = {"pixel", "type", "smartobject"}


def nothing(box: Box, channels: int) -> Raster:
    """A transparent image."""
    height, width = box[3] - box[1], box[2] - box[0]
    colour = np.ones((height, width, channels), np.float32)
    return Raster(colour=colour, alpha=np.zeros((height, width, 1), np.float32), box=box)


def put(layer: Layer, backdrop: Raster, *, without_clips: bool = False) -> Raster:
    """The backdrop composed with a layer or group, including masks, effects, clipping and blend mode."""
    clips = set(map(id, layer.clip_layers)) if without_clips else set()
    psd = layer._psd
    compositor = Compositor(
        backdrop.box,
        backdrop.colour,
        backdrop.alpha,
        lambda x: x.is_visible() and id(x) not in clips,
        document_backdrop=lambda: _document_backdrop(psd, backdrop.box),
        widen=make_widen(psd),
        color_mode=psd.color_mode,
    )
    compositor.apply(layer, clip_compositing=True)
    alpha = 1 - (1 - backdrop.alpha) * (1 - compositor.alpha)
    colour = np.broadcast_to(compositor.result_over_backdrop(), backdrop.colour.shape)
    return Raster(colour=colour.astype(np.float32), alpha=alpha.astype(np.float32), box=backdrop.box)


def is_plain(layer: Layer) -> bool:
    """Whether a layer consists only of stored pixels, an opacity and a fill opacity."""
    if layer.kind not in PLAIN_KINDS or not layer.has_pixels() or layer.has_stroke():
        return False
    return not {Feature.MASK, Feature.EFFECTS} & features_of(layer)


def pixels(layer: Layer, canvas: Box) -> Piece | None:
    """The stored pixels of a plain layer; None if none of them is visible on the canvas."""
    common = intersection(layer.bbox, canvas)
    colour = layer.numpy("color") if common else None
    if common is None or colour is None:
        return None
    shape = layer.numpy("shape")
    alpha = np.ones((*colour.shape[:2], 1), np.float32) if shape is None else shape
    fill = layer.tagged_blocks.get_data(Tag.BLEND_FILL_OPACITY, 255)
    alpha = alpha * np.float32(layer.opacity * fill / 255**2)
    colour = make_widen(layer._psd)(colour, get_color_channels(layer._psd))
    left, top = common[0] - layer.left, common[1] - layer.top
    cut = np.s_[top : top + common[3] - common[1], left : left + common[2] - common[0]]
    return piece_of(Raster(colour=colour[cut], alpha=alpha[cut], box=common), name_of(layer))


def to_rgba(piece: Piece, psd: PSDImage) -> UInt8[np.ndarray, "y x 4"]:
    """A piece as straight 8-bit RGBA in sRGB, converted by the document's colour profile if it has one."""
    profile = None
    if Resource.ICC_PROFILE in psd.image_resources:
        profile = psd.image_resources.get_data(Resource.ICC_PROFILE)
    mode = get_pil_mode(psd.color_mode)
    bands = [Image.fromarray(np.ascontiguousarray(piece.colour[..., i])) for i in range(piece.colour.shape[2])]
    if mode in ("1", "L"):
        image = bands[0]
    else:
        mode = "RGB" if mode == "P" else mode
        image = Image.merge(mode, bands[: len(Image.new(mode, (1, 1)).getbands())])
    colour = np.asarray(post_process(image, None, profile).convert("RGB"))
    return np.concatenate([colour, piece.alpha], -1)


def composite(psd: PSDImage) -> Image.Image:
    """The whole document as psd-tools draws it from its layers, in RGBA or the document's own mode."""
    return psd.composite(ignore_preview=True)
