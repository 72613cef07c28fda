"""The layers of documents reproduce psd-tools' own composite, by a measure implemented here."""

import io
import struct
from pathlib import Path

import numpy as np
import psd_files
import pytest
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import BlendMode

from qil_jax.documents.limits import PSDLimits
from qil_jax.documents.psd import PSDDocument, read_psd, require_expressed
from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.layers.compositing import composite

CARRIED = Path(__file__).parent / "files"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "psd"
ALL_MODES = [mode for mode in BlendMode if mode not in (BlendMode.PASS_THROUGH, BlendMode.DISSOLVE)]

KEPT = {
    "16bit5x5.psd": 3,
    "1layer.psd": 1,
    "adjustment-fillers.psd": 6,
    "adjustment_clipping.psd": 2,
    "clipping-mask.psb": 5,
    "hidden-groups.psd": 2,
    "layer-name-emoji.psd": 1,
    "mask-density-layermask.psd": 5,
    "opacity-fill.psd": 1,
    "pass-through.psd": 3,
    "passthrough_opacity.psd": 2,
    "semi-transparent-layers.psd": 3,
    "vector-mask2.psd": 10,
}
DROPPED = {
    "4x4_16bit_lab.psd": Reason.MISDRAWN,
    "4x4_16bit_multichannel.psd": Reason.NO_LAYERS,
    "4x4_8bit_index_color.psd": Reason.NO_LAYERS,
    "dissolve.psd": Reason.MISDRAWN,
    "group-clipping.psd": Reason.MISDRAWN,
}


def decibels(document: PSDDocument, picture: Image.Image) -> float:
    """PSNR of premultiplied RGBA in double precision."""
    wanted = np.asarray(picture.convert("RGBA"), np.float64) / 255
    wanted[..., :3] *= wanted[..., 3:]
    error = np.mean(np.square(composite(document.layers, document.size) - wanted))
    return float(-10 * np.log10(error + 1e-12))


def kept(data: bytes) -> PSDDocument:
    """The document, if it is not dropped."""
    document = read_psd(data, PSDLimits())
    require_expressed(document, PSDLimits())
    return document


def read(data: bytes) -> PSDDocument:
    """The document, after a check that it composes to what psd-tools draws."""
    document = read_psd(data, PSDLimits())
    drawn = PSDImage.open(io.BytesIO(data)).composite(ignore_preview=True)
    assert decibels(document, drawn) >= 40
    width, height = document.size
    for layer in document.layers:
        rows, columns = layer.window
        assert 0 <= rows.start < rows.stop <= height and 0 <= columns.start < columns.stop <= width
    return document


@pytest.mark.parametrize("name", sorted(KEPT))
@pytest.mark.full
def test_carried_documents_are_kept(name):
    data = (CARRIED / name).read_bytes()
    assert len(read(data).layers) == len(kept(data).layers) == KEPT[name]


@pytest.mark.parametrize("name", sorted(DROPPED))
def test_carried_documents_that_cannot_be_layers(name):
    with pytest.raises(Dropped) as dropped:
        kept((CARRIED / name).read_bytes())
    assert dropped.value.reason is DROPPED[name] and len(dropped.value.detail) > 10


def test_every_carried_document_is_tested():
    assert {path.name for path in CARRIED.glob("*.ps[db]")} == {*KEPT, *DROPPED}


def test_a_design_keeps_its_parts():
    document = read(psd_files.design())
    assert [layer.name for layer in document.layers] == [
        "ground", "disc", "noise", "soft", "Basis \u4e2d\u6587 \U0001f600", "clipped", "masked",
    ]  # fmt: skip
    assert any("'shade' (multiply pixel) is baked" in note for note in document.notes)
    clipped = document.layers[5]
    assert clipped.left >= 20 and clipped.pixels.shape[1] <= 24  # no wider than what it is clipped to


@pytest.mark.parametrize("mode", ALL_MODES, ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("alpha", ["soft", "random"])
def test_blend_modes_are_baked_without_losing_layers(mode, alpha):
    psd = psd_files.document()
    psd.create_pixel_layer(psd_files.texture(0), name="ground")
    psd.create_pixel_layer(psd_files.texture(1, 20, 20, alpha="soft"), name="thing", top=10, left=10)
    psd.create_pixel_layer(psd_files.texture(2, 30, 30, alpha=alpha), name="blend", top=5, left=5, blend_mode=mode)
    names = [layer.name for layer in read(psd_files.saved(psd)).layers]
    assert names == (["ground", "thing", "blend"] if mode is BlendMode.NORMAL else ["ground", "thing"])


@pytest.mark.parametrize("mode", [BlendMode.MULTIPLY, BlendMode.SCREEN, BlendMode.DIFFERENCE])
def test_blend_modes_over_transparency(mode):
    psd = psd_files.document()
    psd.create_pixel_layer(psd_files.texture(1, 20, 20, alpha="random"), name="thing", top=10, left=10)
    psd.create_pixel_layer(psd_files.texture(2, 30, 30, alpha="soft"), name="blend", top=15, left=15, blend_mode=mode)
    document = read(psd_files.saved(psd))
    assert sorted(layer.name for layer in document.layers) == ["blend", "thing"]


@pytest.mark.parametrize("opacity", [0, 1, 100, 254])
def test_opacity_of_a_group_goes_to_its_layers(opacity):
    psd = psd_files.document()
    psd.create_pixel_layer(psd_files.texture(0), name="ground")
    group = psd.create_group(name="group", blend_mode=BlendMode.NORMAL)
    group.create_pixel_layer(psd_files.texture(1, 30, 30, alpha="soft"), name="lower")
    group.create_pixel_layer(psd_files.texture(2, 30, 30, alpha="random"), name="upper", top=10, left=10)
    group.opacity = opacity
    names = [layer.name for layer in read(psd_files.saved(psd)).layers]
    assert names == (["ground", "lower", "upper"] if opacity else ["ground"])


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_other_colour_modes(mode):
    psd = psd_files.document(mode)
    psd.create_pixel_layer(psd_files.texture(0).convert(mode), name="ground")
    psd.create_pixel_layer(psd_files.texture(1, 20, 20).convert(mode), name="thing", top=10, left=10)
    assert len(read(psd_files.saved(psd)).layers) == 2


def header(width: int, height: int, version: int = 1) -> bytes:
    return b"8BPS" + struct.pack(">H6xHIIHH", version, 3, height, width, 8, 3) + bytes(12)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.UNREADABLE),
        (b"not a document at all", Reason.UNREADABLE),
        (header(300_000, 300_000, 2), Reason.UNREADABLE),
        (psd_files.saved(psd_files.document()), Reason.NO_LAYERS),
        (psd_files.design()[:2000], Reason.UNREADABLE),
    ],
)
def test_what_is_no_document(data, reason):
    with pytest.raises(Dropped) as dropped:
        read_psd(data, PSDLimits())
    assert dropped.value.reason is reason


def test_the_canvas_is_limited_before_pixels_are_read():
    with pytest.raises(Dropped, match="48 x 48 pixels, 2000 at most"):
        read_psd(psd_files.design(), PSDLimits(pixels=2000))


@pytest.mark.full
@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real documents is not here")
def test_real_documents():
    """Each is kept at 40 dB or dropped for a reason, and most that hold layers are kept."""
    count, candidates = 0, 0
    for path in sorted(SHARED.glob("*.ps[db]")):
        data = path.read_bytes()
        try:
            document = kept(data)
        except Dropped as dropped:
            assert dropped.detail
            document = None
        else:
            assert max(document.psnr_compositor, document.psnr_stored or 0) >= 40
            assert document.psnr_stored is None or document.psnr_stored >= 30
        try:
            psd = PSDImage.open(io.BytesIO(data))
        except ValueError:
            continue
        if psd.color_mode.name == "RGB" and psd.depth == 8 and sum(x.kind == "pixel" for x in psd.descendants()) >= 2:
            candidates += 1
            count += document is not None
    assert count >= 0.7 * candidates > 0


def test_layers_and_stored_picture_that_disagree_are_noted_and_dropped():
    """Damage to one layer is in what psd-tools draws too, but not in the stored picture, nor in the thumbnail."""
    psd = psd_files.document(side=96)
    psd.create_pixel_layer(psd_files.texture(0, 96, 96), name="ground")
    disc = psd.create_pixel_layer(psd_files.texture(1, 60, 60, alpha="soft"), name="disc", top=10, left=10)
    right = psd.composite(force=True)
    psd_files.with_thumbnail(psd, right)
    sound = kept(psd_files.with_stored_picture(psd, right))
    assert sound.psnr_stored > 45 and sound.psnr_thumbnail > 30 and not sound.notes
    disc.left += 6
    moved = psd_files.with_stored_picture(psd, right)
    with pytest.raises(Dropped, match=r"misdrawn.* dB against the stored picture, .* dB against the thumbnail; 30 dB"):
        kept(moved)
    document = read_psd(moved, PSDLimits())
    assert document.psnr_compositor > 45 and document.psnr_stored < 30 and document.psnr_thumbnail < 25
    assert [note.split(":")[0] for note in document.notes] == ["unlike the stored picture", "unlike the thumbnail"]
    lenient = PSDLimits(stored_psnr=document.psnr_stored - 1)
    require_expressed(document, lenient)
    white = Image.new("RGBA", (96, 96), "white")
    disc.left -= 6
    spoilt = read_psd(psd_files.with_stored_picture(psd, white), PSDLimits())
    assert spoilt.psnr_thumbnail > 30 and [note.split(":")[0] for note in spoilt.notes] == ["unlike the stored picture"]
