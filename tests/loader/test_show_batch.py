"""The tool that shows a first batch, and what it refuses."""

import pytest
from PIL import Image

from qil_jax.cli import make_scenes, show_batch
from qil_jax.layers.sheets import GAP
from qil_jax.loader import batch_sheet
from qil_jax.programs import ended


@pytest.mark.full
def test_a_first_batch_is_shown(tmp_path, capsys):
    scenes, out = tmp_path / "scenes", tmp_path / "batch.png"
    assert make_scenes.main(["--count", "6", "--side", "64", "--format", "folders", "--out", str(scenes)]) == 0
    command = [str(scenes), "--out", str(out), "--resolution", "96", "--rows", "2"]
    assert show_batch.main(command) == 0
    said = capsys.readouterr().out
    assert "6 records" in said and "of 96 x 96" in said and "layer indices [0, 1, 2" in said and ", -1]" in said
    with Image.open(out) as sheet:
        pitch = batch_sheet.CELL + 2 * batch_sheet.EDGE + GAP
        assert sheet.height == 2 * pitch + GAP and (sheet.width - GAP) % pitch == 0
        assert len(sheet.getcolors(1 << 20)) > 50
    assert ended(show_batch.main, command) == 2 and "exists" in capsys.readouterr().err
    assert ended(show_batch.main, [str(tmp_path / "none"), "--out", str(tmp_path / "x.png")]) == 2
    assert "no records" in capsys.readouterr().err and not (tmp_path / "x.png").exists()
