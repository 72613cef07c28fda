"""What documents of Photoshop ask for is honoured, or refused by name; what differs from their own picture is said."""

import json

import numpy as np
import psd_files
import pytest
from PIL import Image
from psd_tools.constants import BlendMode

from qil_jax.cli.export import main
from qil_jax.documents.limits import PSDLimits
from qil_jax.documents.psd import read_psd
from qil_jax.errors import QilError
from qil_jax.export import formats


def badge(change):
    """A document whose only group holds a badge, of which one is changed."""
    psd = psd_files.document()
    psd.create_pixel_layer(psd_files.texture(0), name="ground")
    group = psd.create_group(name="group", blend_mode=BlendMode.NORMAL)
    layer = group.create_pixel_layer(psd_files.texture(1, 24, 24), name="badge", top=12, left=12)
    change(group, layer)
    return psd


OLD = "effects of an old kind"
CHANGES = {
    "old effects": (lambda _, layer: psd_files.effect(layer), "'badge' has effects", OLD),
    "oldest effects": (lambda _, layer: psd_files.oldest_effect(layer), "'badge' has effects", OLD),
    "of a group": (lambda group, _: psd_files.effect(group), "'group' has effects", OLD),
    "effects": (lambda _, layer: psd_files.effect(layer, present=True), "'badge' has effects", None),
    "Blend If": (lambda _, layer: psd_files.blend_if(layer), "'badge' has Blend If", "Blend If"),
    "channels": (lambda _, layer: psd_files.without_red(layer), "'badge' has channels that are", "channels that"),
    "artboard": (lambda group, _: psd_files.artboard(group, 2), "'group' has the background", "the background"),
    "cropped": (lambda group, _: psd_files.artboard(group, 1, (0, 0, 20, 48)), "'group' has layers that reach", None),
}
"""By name: what is done to the group or the badge, how it is refused, and what is noted where it is not."""
PLAIN = {
    "effects that are off": lambda _, layer: psd_files.effect(layer, enabled=False),
    "effects that are absent": lambda _, layer: psd_files.effect(layer, present=False),
    "a clear artboard": lambda group, _: psd_files.artboard(group, 1),
    "hidden": lambda _, layer: (psd_files.effect(layer), setattr(layer, "visible", False)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_layer_can_say_is_refused_or_noted(tmp_path, name):
    change, message, noted = CHANGES[name]
    data = psd_files.saved(badge(change))
    (tmp_path / "a.psd").write_bytes(data)
    with pytest.raises(QilError, match=f"a.psd: layer {message}"):
        main([str(tmp_path / "a.psd"), "--to", "png", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    notes = [note for note in read_psd(data, PSDLimits()).notes if "not drawn" in note]
    assert len(notes) == (noted is not None) and all(noted in note for note in notes)


@pytest.mark.parametrize("name", PLAIN)
def test_what_shows_nothing_is_no_reason(tmp_path, capsys, name):
    (tmp_path / "a.psd").write_bytes(psd_files.saved(badge(PLAIN[name])))
    assert main([str(tmp_path / "a.psd"), "--to", "png", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}: {1 if name == 'hidden' else 2} layers\n"


def test_another_picture_than_the_stored_one_is_said(tmp_path, capsys):
    file, out = tmp_path / "a.psd", tmp_path / "out"
    psd = badge(lambda group, layer: None)
    file.write_bytes(psd_files.with_stored_picture(psd, Image.fromarray(np.full((48, 48, 4), 255, np.uint8))))
    assert main([str(file), "--to", "zip", "--out", str(tmp_path / "out.zip")]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"{file}: the layers give another picture than the one that the document stores: ")
    assert main([str(tmp_path / "out.zip"), "--to", "png", "--out", str(out)]) == 0
    (decision,) = json.loads((out / "manifest.json").read_text())["decisions"]
    assert line == f"{file}: {decision}" and 5 < float(decision.split()[-2]) < 20


def test_names_that_end_with_nul(tmp_path):
    psd = badge(lambda _, layer: setattr(layer, "name", "badge\0"))
    (tmp_path / "a.psd").write_bytes(psd_files.saved(psd))
    assert formats.read(tmp_path / "a.psd").groups[1].tree.layered.names == ("badge",)
    assert [layer.name for layer in read_psd(psd_files.saved(psd), PSDLimits()).layers] == ["ground", "badge"]
