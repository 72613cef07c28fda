"""Presentations as PowerPoint and LibreOffice leave them: edits that a layer can say come back, others are refused."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pptx import Presentation
from pptx.oxml import parse_xml
from pptx.oxml.ns import nsdecls, qn
from pptx.util import Emu

from qil_jax.cli import export
from qil_jax.errors import QilError
from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.export.png import encoded
from qil_jax.layers.layered_image import LayeredImage

WIDTH, HEIGHT, PIXEL = 120, 100, 9525
LEFT, TOP, SIDE = 10, 20, 30
HUNDREDTH = 360
"""EMU of 1/100 mm."""


def content() -> LayeredImage:
    """An opaque layer, and a square of noise above."""
    layers = np.zeros((2, HEIGHT, WIDTH, 4), np.uint8)
    layers[0] = (20, 60, 120, 255)
    square = np.random.default_rng(0).integers(1, 256, (SIDE, SIDE, 4), np.uint8)
    layers[1, TOP : TOP + SIDE, LEFT : LEFT + SIDE] = square
    return LayeredImage(layers=layers, names=("ground", "square"))


Edit = Callable[[Any, Any, Any], object]


def edited(folder: Path, edit: Edit) -> Path:
    """The presentation of `content` after an edit of its slide, the picture of the square, or its element."""
    file = folder / "a.pptx"
    formats.write(content(), file, Format.PPTX)
    presentation = Presentation(str(file))
    slide = presentation.slides[0]
    picture = slide.shapes[1]
    edit(slide, picture, picture._element)
    presentation.save(str(file))
    return file


def square(file: Path) -> np.ndarray:
    """The layer of the square after reading."""
    return formats.read(file).leaves().layers[-1]


def put(pixels: np.ndarray, left: int, top: int) -> np.ndarray:
    canvas = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    canvas[top : top + len(pixels), left : left + pixels.shape[1]] = pixels
    return canvas


def pixels() -> np.ndarray:
    return content().layers[1, TOP : TOP + SIDE, LEFT : LEFT + SIDE]


def xml(name: str, inside: str = "", **attributes: str) -> Any:
    """An element of DrawingML."""
    text = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return parse_xml(f"<{name} {nsdecls('a', 'p', 'r')}{text}>{inside}</{name}>")


def group(slide: Any, picture: Any, *, move: int = 0, scale: int = 1, flip: bool = False) -> Any:
    """The picture in a group that was moved and scaled as a whole: its outer box differs from its inner one."""
    made = slide.shapes.add_group_shape([picture])
    xfrm = made._element.grpSpPr.xfrm
    xfrm.off.x += move * PIXEL
    xfrm.ext.cx, xfrm.ext.cy = xfrm.ext.cx * scale, xfrm.ext.cy * scale
    xfrm.flipH = flip
    return made


def test_a_group_that_was_moved_is_where_it_is_shown(tmp_path):
    file = edited(tmp_path, lambda slide, picture, _: group(slide, picture, move=7))
    np.testing.assert_array_equal(square(file), put(pixels(), LEFT + 7, TOP))


def test_groups_within_groups_add_up(tmp_path):
    def edit(slide, picture, _):
        inner = group(slide, picture, move=7)
        group(slide, inner, move=-3, flip=True)

    np.testing.assert_array_equal(square(edited(tmp_path, edit)), put(pixels()[:, ::-1], LEFT + 4, TOP))


def test_a_group_that_was_scaled_is_as_large_as_shown(tmp_path):
    got = square(edited(tmp_path, lambda slide, picture, _: group(slide, picture, scale=2)))
    assert (got[TOP : TOP + 2 * SIDE, LEFT : LEFT + 2 * SIDE, 3] > 0).all()
    assert (got[..., 3] > 0).sum() == 4 * SIDE * SIDE
    small = got[TOP : TOP + 2 * SIDE, LEFT : LEFT + 2 * SIDE].reshape(SIDE, 2, SIDE, 2, 4).mean((1, 3))
    assert np.abs(small[1:-1, 1:-1, 3] - pixels()[1:-1, 1:-1, 3]).mean() < 40, "the same picture, softened"


def test_a_picture_that_was_scaled_beyond_the_slide_shows_its_part(tmp_path):
    def edit(_, picture, __):
        picture.left, picture.top, picture.width, picture.height = (
            Emu(x * PIXEL) for x in (-1_000_000, -1_000_000, 2_000_000, 2_000_000)
        )

    assert (square(edited(tmp_path, edit))[..., 3] > 0).all()


@pytest.mark.parametrize(
    ("attributes", "flipped"),
    [({"flipH": "1"}, (1, -1)), ({"flipV": "true"}, (-1, 1)), ({"flipH": "1", "flipV": "1"}, (-1, -1))],
)
def test_flips_come_back(tmp_path, attributes, flipped):
    file = edited(tmp_path, lambda _, __, pic: [pic.spPr.xfrm.set(*pair) for pair in attributes.items()])
    np.testing.assert_array_equal(square(file), put(pixels()[:: flipped[0], :: flipped[1]], LEFT, TOP))


def test_transparency_goes_into_alpha(tmp_path):
    edit = lambda _, __, pic: pic.find(".//" + qn("a:blip")).append(xml("a:alphaModFix", amt="50000"))
    expected = put(pixels(), LEFT, TOP)
    expected[..., 3] = np.rint(expected[..., 3] * 0.5)
    np.testing.assert_array_equal(square(edited(tmp_path, edit)), expected)


def test_what_the_selection_pane_hides_is_left_out(tmp_path, capsys):
    def edit(slide, picture, pic):
        pic.nvPicPr.cNvPr.set("hidden", "1")
        pic.spPr.xfrm.rot = 30
        slide.shapes.add_textbox(0, 0, 914400, 300000)._element.nvSpPr.cNvPr.set("hidden", "true")

    file = edited(tmp_path, edit)
    assert export.main([str(file), "--to", "png", "--out", str(tmp_path / "out")]) == 0
    assert "1 layers" in capsys.readouterr().out
    assert formats.read(tmp_path / "out").layered.names == ("ground",)


def test_lengths_in_hundredths_of_millimetres_are_the_same_pixels(tmp_path):
    """As LibreOffice writes them, which also makes pictures one hundredth smaller."""
    file = tmp_path / "a.pptx"
    formats.write(content(), file, Format.PPTX)
    presentation = Presentation(str(file))
    rounded = lambda length: round(length / HUNDREDTH) * HUNDREDTH
    presentation.slide_width, presentation.slide_height = (
        Emu(rounded(x)) for x in (presentation.slide_width, presentation.slide_height)
    )
    for picture in presentation.slides[0].shapes:
        picture.left, picture.top = Emu(rounded(picture.left)), Emu(rounded(picture.top))
        picture.width, picture.height = (Emu(rounded(x) - HUNDREDTH) for x in (picture.width, picture.height))
    for subject in (presentation.core_properties.subject, ""):  # also where a program dropped the canvas's size
        presentation.core_properties.subject = subject
        presentation.save(str(file))
        got = formats.read(file).layered
        np.testing.assert_array_equal(got.layers, content().layers)


def test_the_canvas_stays_where_every_picture_was_scaled(tmp_path):
    def edit(slide, *_):
        for picture in slide.shapes:
            picture.width, picture.height = Emu(picture.width // 2), Emu(picture.height // 2)

    got = formats.read(edited(tmp_path, edit)).layered
    assert got.size == (WIDTH, HEIGHT)
    assert (got.layers[0, ..., 3] > 0).sum() == WIDTH * HEIGHT // 4


def test_presentations_of_others_have_the_resolution_of_their_largest_picture(tmp_path):
    presentation = Presentation()
    presentation.slide_width, presentation.slide_height = Emu(12_192_000), Emu(6_858_000)
    shapes = presentation.slides.add_slide(presentation.slide_layouts[6]).shapes
    sizes = (90, 80), (7, 7)
    large, small = map(io.BytesIO, encoded([np.full((*size, 4), 255, np.uint8) for size in sizes]))
    shapes.add_picture(large, Emu(0), Emu(0), presentation.slide_width, presentation.slide_height)
    shapes.add_picture(small, Emu(0), Emu(0))
    presentation.save(str(tmp_path / "a.pptx"))
    assert formats.read(tmp_path / "a.pptx").layered.size == (160, 90)


def geometry(pic: Any, shape: str) -> None:
    pic.spPr.find(qn("a:prstGeom")).set("prst", shape)


def blip(child: str, inside: str = "") -> Edit:
    return lambda _, __, pic: pic.find(".//" + qn("a:blip")).append(xml(child, inside))


def looks(child: str, inside: str = "", **attributes: str) -> Edit:
    return lambda _, __, pic: pic.spPr.append(xml(child, inside, **attributes))


RED = '<a:srgbClr val="ff0000"/>'
REFUSED: dict[str, Edit] = {
    "picture 'square' is turned": lambda _, __, pic: setattr(pic.spPr.xfrm, "rot", 30),
    "group '.*' is turned": lambda slide, p, _: setattr(group(slide, p)._element.grpSpPr.xfrm, "rot", 30),
    "picture 'square' is cropped,": lambda _, picture, __: setattr(picture, "crop_left", 0.1),
    "picture 'square' is cropped to a shape .ellipse": lambda _, __, pic: geometry(pic, "ellipse"),
    "picture 'square' is shown in greys": blip("a:grayscl"),
    "picture 'square' is recoloured": blip("a:duotone", RED + RED),
    "picture 'square' has another brightness": blip("a:lum"),
    "picture 'square' has alphaInv": blip("a:alphaInv"),
    "picture 'square' has soft edges": looks("a:effectLst", '<a:softEdge rad="63500"/>'),
    "picture 'square' has a shadow": looks("a:effectLst", f"<a:outerShdw>{RED}</a:outerShdw>"),
    "picture 'square' has an outline": looks("a:ln", f"<a:solidFill>{RED}</a:solidFill>", w="9525"),
    "picture 'square' has a fill": looks("a:solidFill", RED),
    "picture 'square' has scene3d": looks("a:scene3d"),
    "picture 'square' has the opacity 1.5": lambda _, __, pic: pic.find(".//" + qn("a:blip")).append(
        xml("a:alphaModFix", amt="150000")
    ),
    "text box 'TextBox 3' is no picture": lambda slide, *_: slide.shapes.add_textbox(0, 0, 99999, 99999),
    "shape '.*' is no picture": lambda slide, *_: slide.shapes.add_shape(1, 0, 0, 99999, 99999),
    "line '.*' is no picture": lambda slide, *_: slide.shapes.add_connector(1, 0, 0, 99999, 99999),
    "table, chart or other object '.*'": lambda slide, *_: slide.shapes.add_table(1, 1, 0, 0, 99999, 99999),
    "AlternateContent '' is no picture": lambda slide, *_: slide.shapes._spTree.append(
        parse_xml('<mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"/>')
    ),
    "the slide has a background": lambda slide, *_: slide.background.fill.solid(),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_no_layer_can_say_is_refused_by_name(tmp_path, words):
    with pytest.raises(QilError, match=f"a.pptx: {words}"):
        formats.read(edited(tmp_path, REFUSED[words]))


def test_what_changes_nothing_is_no_hindrance(tmp_path):
    """Lines without colour, empty effects, an empty placeholder, and notes of programs to themselves."""

    def edit(slide, picture, pic):
        pic.spPr.append(xml("a:ln", "<a:noFill/>", w="0"))
        pic.spPr.append(xml("a:effectLst"))
        pic.spPr.append(xml("a:extLst", '<a:ext uri="{x}"><a:ln><a:solidFill/></a:ln></a:ext>'))
        shape = slide.shapes.add_textbox(0, 0, 99999, 99999)._element
        shape.nvSpPr.find(qn("p:nvPr")).append(xml("p:ph", type="body"))

    got = formats.read(edited(tmp_path, edit)).layered
    np.testing.assert_array_equal(got.layers, content().layers)
