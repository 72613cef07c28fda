"""tools/export.py: results and files in, other files out, and every mistake named before anything is written."""

import numpy as np
import pytest

from qil_jax.errors import QilError
from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.export.result import write_result
from qil_jax.layers.layered_image import LayeredImage
from tools.export import main


@pytest.fixture
def results(tmp_path):
    """A folder of two results."""
    rng = np.random.default_rng(1)
    for name in ("fox", "owl.v2"):
        layers = rng.integers(1, 256, (3, 10, 12, 4), np.uint8)
        image = LayeredImage(layers=layers, names=("sky", "tree", name))
        write_result(tmp_path / "results" / name, image, image.composite_8bit(), {"settings": {"prompt": "a caption"}})
    return tmp_path / "results"


def test_results_go_to_every_format_and_back(results, capsys):
    out = results.parent / "out"
    out.mkdir()
    given = formats.read(results / "fox").layered
    assert given.caption == "a caption"
    for format in Format:
        assert main([str(results / "fox"), str(results / "owl.v2"), "--to", format, "--out", str(out)]) == 0
        assert "fox" in capsys.readouterr().out
        end = "-png" if format is Format.PNG else f".{format}"
        assert (out / f"owl.v2{end}").exists()
        back = out / f"back-{format}"
        assert main([str(out / f"fox{end}"), "--to", "png", "--out", str(back)]) == 0
        np.testing.assert_array_equal(formats.read(back).layered.layers, given.layers)
        assert formats.read(back).layered.names == given.names
    assert main([str(results / "fox"), "--to", "ora"]) == 0
    assert (results / "fox.ora").is_file(), "beside the result, which stays as it is"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fox", "nothing", "--to", "ora"], "nothing: no such file or folder"),
        (["fox", "--to", "ora", "--out", "out/fox.psd"], "its name must end with .ora"),
        (["fox", "--to", "ora", "--native-text"], "--native-text goes with --to pptx"),
        (["fox", "--to", "zip", "--out", "taken.zip"], "taken.zip exists"),
        (["fox", "fox/../fox", "--to", "zip"], "would be written twice"),
        (["fox/sheet.png", "--to", "zip"], "layers are read from folders"),
    ],
)
def test_mistakes_are_named(results, monkeypatch, arguments, message):
    monkeypatch.chdir(results)
    (results / "taken.zip").write_bytes(b"x")
    before = sorted(results.rglob("*"))
    with pytest.raises(QilError, match=message):
        main(arguments)
    assert sorted(results.rglob("*")) == before and (results / "taken.zip").read_bytes() == b"x"
