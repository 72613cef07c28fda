"""The campaigns of broken files of layers: PSD, ORA, PPTX and ZIP, each read as `qil export` reads it.

What is read nevertheless must be what another, simpler reader finds in the file: nothing may differ in silence.
"""

import contextlib
import io
import json
import logging
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import BlendMode

from qil_jax.export import bounds, formats
from qil_jax.export.format import Format
from qil_jax.layers.compositing import blended
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from tools.fuzz.cases import ROOT, Case, mutate
from tools.fuzz.damage import damaged_archive, damaged_json, damaged_xml, members_of
from tools.fuzz.isolated import judged, outcome

CARRIED = ROOT / "tests" / "documents" / "files"
LARGEST_CARRIED = 40_000
"""Bytes of documents that are carried and broken; larger ones would take most of the time."""
MOST_PIXELS = 1 << 20
"""Pixels of all layers in a campaign, in place of `bounds.MOST_PIXELS`."""
NEAR = 3.0
"""Levels of 255 by which two ways of blending may differ, as each rounds each layer."""
Pixels = np.ndarray


def psd(seeds: range, folder: Path) -> Iterator[Case]:
    """Photoshop documents: bytes changed, two documents spliced."""
    logging.getLogger("psd_tools").setLevel(logging.CRITICAL)  # it warns of every damage that it meets
    originals = [*_originals(Format.PSD, folder), *_carried()]
    yield from _campaign(Format.PSD, seeds, folder, lambda rng: _spliced(originals, rng), _psd_differs)


def ora(seeds: range, folder: Path) -> Iterator[Case]:
    """OpenRaster: members exchanged, attributes of stack.xml changed."""
    originals = [members_of(data) for data in _originals(Format.ORA, folder)]
    yield from _campaign(Format.ORA, seeds, folder, lambda rng: _archive(originals, rng), _ora_differs)


def pptx(seeds: range, folder: Path) -> Iterator[Case]:
    """Presentations: parts exchanged, attributes of the slide and of other parts changed."""
    originals = [members_of(data) for data in _originals(Format.PPTX, folder)]
    yield from _campaign(Format.PPTX, seeds, folder, lambda rng: _presentation(originals, rng), _pptx_differs)


def zip(seeds: range, folder: Path) -> Iterator[Case]:
    """Archives of PNGs: members exchanged, values of the manifest changed."""
    originals = [members_of(data) for data in _originals(Format.ZIP, folder)]
    yield from _campaign(Format.ZIP, seeds, folder, lambda rng: _archive(originals, rng), _zip_differs)


def tree(seed: int) -> LayerTree:
    """A small stack of layers, some of which are groups."""
    rng = np.random.default_rng(seed)
    side, layers = (int(rng.integers(5, 14)), int(rng.integers(5, 14))), int(rng.integers(1, 4))
    outer = _stack(rng, *side, layers)
    if seed % 2:
        return LayerTree(layered=outer)
    inner = LayerTree(layered=_stack(rng, 4, 5, 2))
    group = Group(tree=inner, left=int(rng.integers(0, 3)), top=int(rng.integers(0, 3)))
    pixels = outer.layers.copy()
    pixels[0] = group.put(inner.layered.composite_8bit(), outer.size)
    return LayerTree(layered=LayeredImage(layers=pixels, names=outer.names), groups={0: group})


def _stack(rng: np.random.Generator, height: int, width: int, layers: int) -> LayeredImage:
    pixels = rng.integers(0, 256, (layers, height, width, 4), np.uint8)
    pixels[..., 3] = rng.choice([0, 128, 255], pixels.shape[:3])
    return LayeredImage(layers=pixels, names=tuple(f"layer {i} \u00e4" for i in range(layers)), caption="a caption")


def _originals(format: Format, folder: Path) -> list[bytes]:
    files = [folder / f"original {i}.{format}" for i in range(4)]
    for i, file in enumerate(files):
        formats.write(tree(i), file, format)
    return [file.read_bytes() for file in files]


def _carried() -> list[bytes]:
    return [file.read_bytes() for file in sorted(CARRIED.glob("*.psd")) if file.stat().st_size < LARGEST_CARRIED]


def _campaign(
    format: Format,
    seeds: range,
    folder: Path,
    make: Callable[[random.Random], bytes],
    differs: Callable[[bytes, LayerTree], str],
) -> Iterator[Case]:
    bounds.MOST_PIXELS = MOST_PIXELS
    file = folder / f"case.{format}"

    def judge(seed: int) -> Case:
        data = make(random.Random(seed))
        file.write_bytes(data)

        def attempt() -> str:
            read = formats.read(file)
            return differs(data, read) or _written_differs(read, folder / "again.zip")

        return outcome(seed, str(format), attempt)

    yield from judged(seeds, judge)


def _spliced(originals: list[bytes], rng: random.Random) -> bytes:
    one, other = rng.choice(originals), rng.choice(originals)
    if rng.random() < 0.2:
        at = rng.randrange(len(one))
        return one[:at] + other[min(at, len(other) - 1) :]
    return mutate(one, rng)


def _archive(originals: list[dict[str, bytes]], rng: random.Random) -> bytes:
    one, other = rng.choice(originals), rng.choice(originals)
    return damaged_archive(one, other, rng, xml=damaged_xml, json=_json)


def _presentation(originals: list[dict[str, bytes]], rng: random.Random) -> bytes:
    """A presentation whose slide is damaged in most cases, since most of its other parts are never read."""
    one, other = rng.choice(originals), rng.choice(originals)
    if rng.random() < 0.7:
        name = rng.choice([name for name in one if name.startswith(("ppt/slides/slide", "ppt/presentation.xml"))])
        one = {**one, name: damaged_xml(one[name], rng)}
        if rng.random() < 0.8:
            return _packed(one)
    return damaged_archive(one, other, rng, xml=damaged_xml, rels=damaged_xml)


def _packed(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def _json(text: bytes, rng: random.Random) -> bytes:
    try:
        return damaged_json(json.loads(text), rng)
    except (ValueError, TypeError, RecursionError):  # it was damaged before, or is no object
        return mutate(text, rng)


def _written_differs(read: LayerTree, file: Path) -> str:
    """What a ZIP of the layers does not give back; empty if it gives back all."""
    file.unlink(missing_ok=True)
    formats.write(read, file, Format.ZIP)
    ours, again = read.leaves(), formats.read(file).leaves()
    is_same = ours.names == again.names and np.array_equal(ours.layers, again.layers)
    return "" if is_same else "it is another once it was written and read again"


def _unlike(ours: Pixels, theirs: Pixels, what: str) -> str:
    """Description of two RGBA pictures that differ over black or white; empty if they do not."""
    if ours.shape != theirs.shape:
        return f"{what} has {theirs.shape[1::-1]} pixels, not {ours.shape[1::-1]}"
    pairs = [(blended(ours, x, np.float64), blended(theirs, x, np.float64)) for x in ((0, 0, 0), (255, 255, 255))]
    most = max(float(np.abs(one - other).max()) for one, other in pairs)
    return f"{what} differs by {most:.0f} levels" if most > NEAR else ""


def _psd_differs(data: bytes, read: LayerTree) -> str:
    """psd-tools draws the document by code of its own; translucent layers of pass-through groups it draws otherwise.

    A damaged colour profile may tell colours far apart that rounding tells apart by one, so the drawing without it may
    be the one that is alike.
    """
    document = PSDImage.open(io.BytesIO(data))
    if any(layer.blend_mode is BlendMode.PASS_THROUGH for layer in document.descendants()):
        return ""
    try:
        drawn = [document.composite(ignore_preview=True, force=True, apply_icc=x) for x in (True, False)]
    except Exception:  # it draws less than is read
        return ""
    ours = read.leaves().composite_8bit()
    found = [_unlike(ours, np.asarray(theirs.convert("RGBA")), "what psd-tools draws") for theirs in drawn]
    return found[0] if all(found) else ""


def _ora_differs(data: bytes, read: LayerTree) -> str:
    """Pillow blends the pictures where stack.xml says."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        image = ElementTree.fromstring(archive.read("stack.xml"))
        canvas = Image.new("RGBA", (int(image.get("w", 0)), int(image.get("h", 0))))
        theirs = np.asarray(_ora_blended(image[0], archive, canvas))
    return _unlike(read.leaves().composite_8bit(), theirs, "what Pillow blends")


def _ora_blended(stack: ElementTree.Element, archive: zipfile.ZipFile, canvas: Image.Image) -> Image.Image:
    for element in reversed(stack):
        if element.get("visibility", "visible") == "hidden":
            continue
        if element.tag == "stack":
            canvas = Image.alpha_composite(canvas, _ora_blended(element, archive, Image.new("RGBA", canvas.size)))
            continue
        picture = Image.open(io.BytesIO(archive.read(element.attrib["src"]))).convert("RGBA")
        opacity = float(element.get("opacity", 1))
        picture.putalpha(picture.getchannel("A").point([round(opacity * alpha) for alpha in range(256)]))
        placed = Image.new("RGBA", canvas.size)
        with contextlib.suppress(OverflowError):  # it lies far outside
            placed.paste(picture, (int(element.get("x", 0)), int(element.get("y", 0))))
        canvas = Image.alpha_composite(canvas, placed)
    return canvas


def _pptx_differs(data: bytes, read: LayerTree) -> str:
    """Every picture of the slide that is not hidden is a layer."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        slides = [name for name in archive.namelist() if name.startswith("ppt/slides/slide")]
        shown = [_shown_pictures(ElementTree.fromstring(archive.read(name))) for name in slides]
    found = len(read.leaves().names)
    return "" if found in shown else f"{found} layers of slides of {shown} pictures"


def _shown_pictures(element: ElementTree.Element) -> int:
    names = [x for child in element for x in child if child.tag.endswith(("nvPicPr", "nvGrpSpPr"))]
    if any(name.get("hidden", "0") not in ("0", "false") for name in names if name.tag.endswith("cNvPr")):
        return 0
    return int(element.tag.endswith("}pic")) + sum(map(_shown_pictures, element))


def _zip_differs(data: bytes, read: LayerTree) -> str:
    """The layers are the pictures that the manifest lists, in its order and under its names."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        listed = json.loads(archive.read("manifest.json"))["layers"]
        files = [io.BytesIO(archive.read(entry["file"])) for entry in listed]
    theirs = [np.asarray(Image.open(file).convert("RGBA")) for file in files]
    names = tuple(entry["name"] for entry in listed)
    is_same = read.layered.names == names and np.array_equal(read.layered.layers, np.stack(theirs))
    return "" if is_same else "its layers are not those that the manifest lists"
