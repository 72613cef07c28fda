"""Clip art: what is rendered, what counts as a thing, and what is said where the renderer is missing."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from qil_jax.errors import QilError
from qil_jax.scenes.assets import Kind
from qil_jax.scenes.drawings import SIDE, is_thing, name_of, rendered, select_drawings


def svg(shapes: str, title: str = "A red fox", size: str = 'width="50" height="50"') -> bytes:
    about = f"<metadata xmlns:dc='http://purl.org/dc/elements/1.1/'><dc:title>{title}</dc:title></metadata>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{about}{shapes}</svg>'.encode()


DISC = svg('<circle cx="25" cy="25" r="20" fill="#c81e14"/>')
SMALL = svg('<circle cx="25" cy="25" r="5" fill="red"/>')
NARROW = svg('<ellipse cx="25" cy="25" rx="22" ry="5" fill="red"/>')
LINES = svg('<circle cx="25" cy="25" r="20" fill="none" stroke="black"/>')
PANEL = svg('<rect x="5" y="5" width="40" height="40" fill="red"/>')
EMPTY = svg("")
BROKEN = b"<svg"


def test_what_is_drawn_fills_its_box():
    pixels = rendered(DISC.decode())
    assert pixels is not None and pixels.shape == (SIDE * 4 // 5, SIDE * 4 // 5, 4)
    assert pixels[80, 80].tolist() == [200, 30, 20, 255] and pixels[0, 0, 3] == 0


def test_sizes_in_paper_units_are_drawn():
    pixels = rendered(svg('<circle cx="25" cy="25" r="20"/>', size='width="40pt" height="15mm"').decode())
    assert pixels is not None and is_thing(pixels)


@pytest.mark.parametrize("drawing", [SMALL, NARROW, LINES, PANEL], ids=["small", "narrow", "lines", "panel"])
def test_what_is_no_thing(drawing):
    pixels = rendered(drawing.decode())
    assert pixels is not None and not is_thing(pixels)


def test_a_selection_of_an_archive():
    root = "./usr/share/openclipart/svg"
    axe = svg('<path d="M5 5h40v40z"/>', "&amp;quot;Axe&quot; 2")
    kept = {f"{root}/animals/fox.svg": DISC, f"{root}/tools/axe.svg": axe}
    dropped = {
        f"{root}/animals/fox_again.svg": DISC,
        f"{root}/logos/one.svg": svg('<path d="M5 5h40l-40 40z"/>'),
        f"{root}/recreation/games/cards/white/ace.svg": svg('<path d="M5 5h40l-30 40z"/>'),
        f"{root}/computer/icons/folder_red.svg": svg('<path d="M5 5h40l-20 40z"/>'),
        f"{root}/special/a.svg": svg('<path d="M5 5h40l-10 40z"/>'),
        f"{root}/animals/empty.svg": EMPTY,
        f"{root}/animals/broken.svg": BROKEN,
        f"{root}/animals/panel.svg": PANEL,
        "./usr/share/doc/openclipart-svg/copyright": b"public domain",
    }
    chosen = select_drawings(kept | dropped, "CC0-1.0")
    assert [(stored.file, stored.name) for _, stored in chosen] == [
        ("animals_fox.png", "a red fox"),
        ("tools_axe.png", "axe"),
    ]
    assert {(stored.kind, stored.licence) for _, stored in chosen} == {(Kind.OBJECT, "CC0-1.0")}
    first = np.asarray(Image.open(io.BytesIO(chosen[0][0])))
    np.testing.assert_array_equal(first, rendered(DISC.decode()))


def test_drawings_without_a_title_have_a_name():
    assert name_of("<svg/>") == "drawing" and name_of("<title>1 2 3</title>") == "drawing"
    assert name_of("<title>The Very Large and Old Tree</title>") == "the very large and"


def test_a_missing_renderer_is_said_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(QilError) as raised:
        rendered(DISC.decode())
    assert str(raised.value) == "clip art needs resvg_py: pip install 'qil_jax[data]'"
