"""OpenRaster as other programs leave it: what alpha blending can show is read, everything else is refused by name."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from qil_jax.cli import export
from qil_jax.errors import QilError
from qil_jax.export import formats
from qil_jax.export.png import encoded

PIXELS = np.full((4, 6, 4), 200, np.uint8)
BASE = '<layer name="Background" src="data/a.png"/>'


def ora(folder: Path, layers: str, *, root: str = "<stack>", more: str = "") -> Path:
    """A file of these layers, topmost first."""
    with zipfile.ZipFile(folder / "a.ora", "w") as archive:
        archive.writestr("stack.xml", f'<image w="6" h="4">{root}{layers}</stack>{more}</image>')
        archive.writestr("data/a.png", encoded([PIXELS])[0])
    return folder / "a.ora"


@pytest.mark.parametrize("opacity", ["1.5", "2", "-1", "nan", "inf", "half"])
@pytest.mark.parametrize("kind", ['<layer src="data/a.png" ', "<stack "])
def test_an_opacity_that_is_none_is_refused_by_name(tmp_path, opacity, kind):
    top = f'{kind} name="shade" opacity="{opacity}"/>'
    with pytest.raises(QilError, match=r"a.ora: (layer|group) 'shade' has the opacity"):
        formats.read(ora(tmp_path, top + BASE))


@pytest.mark.parametrize(("opacity", "alpha"), [("0", 0), ("0.5", 100), ("1.000000", 200)])
def test_an_opacity_goes_into_alpha(tmp_path, opacity, alpha):
    got = formats.read(ora(tmp_path, f'<layer src="data/a.png" opacity="{opacity}"/>')).layered
    assert np.unique(got.layers[..., 3]) == [alpha]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ('<text name="Title" x="3">Hello</text>', "text 'Title' is no layer of pixels"),
        ("<stack><filter/></stack>", "filter is no layer of pixels"),
        ('<layer name="a" src="data/a.png"><mask src="data/a.png"/></layer>', "layer 'a' has more than pixels, mask"),
        ('<layer name="a" composite-op="svg:multiply" src="data/a.png"/>', "layer 'a' has the blend mode svg:multiply"),
        ('<stack name="g" opacity="0.5"/>', "group 'g' has an opacity"),
        ('<stack name="g" x="8"/>', "group 'g' has an offset"),
        ('<layer name="a" src="data/a.png" x="left"/>', "layer 'a' has the x 'left', which is no number"),
    ],
)
def test_what_no_layer_can_say_is_refused_by_name_unless_it_is_hidden(tmp_path, layers, words, capsys):
    with pytest.raises(QilError, match=words):
        formats.read(ora(tmp_path, layers + BASE))
    hidden = layers.replace(" ", ' visibility="hidden" ', 1)
    if hidden != layers:
        file = ora(tmp_path, hidden + BASE)
        assert export.main([str(file), "--to", "png", "--out", str(tmp_path / "out")]) == 0
        assert "1 layers" in capsys.readouterr().out
        assert formats.read(file).layered.names == ("Background",)


@pytest.mark.parametrize(
    ("root", "more", "words"),
    [
        ('<stack opacity="0.5">', "", "group has an opacity"),
        ('<stack composite-op="svg:multiply">', "", "blend mode"),
        ("<stack>", "<stack/>", "holds group, group: it needs one stack"),
        ("<stack>", '<text name="t"/>', "holds group, text 't': it needs one stack"),
    ],
)
def test_the_outermost_stack_is_judged_too(tmp_path, root, more, words):
    with pytest.raises(QilError, match=words):
        formats.read(ora(tmp_path, BASE, root=root, more=more))
