"""Names and texts that an encoding does not have: shown escaped, written without loss, refused where they are texts."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psd_files
import pytest
from PIL import Image

from qil_jax.cli import build_dataset, edit, export, view
from qil_jax.cli.decompose_arguments import parse_arguments
from qil_jax.errors import QilError, complain, say
from qil_jax.export.result import write_result
from qil_jax.inference.captions import KeptCaptions
from qil_jax.inference.pictures import find_pictures
from qil_jax.inference.request import Request
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.programs import ended, escape_streams
from qil_jax.training.experiment import ExperimentError
from qil_jax.training.settings import changed

ROOT = Path(__file__).resolve().parents[2]
STRANGE = os.fsdecode(b"caf\xe9")
"""A name that is no UTF-8, as Python has it."""
PIXELS = np.full((2, 4, 4, 4), 90, np.uint8)


def test_lines_are_escaped(capsys):
    say(f"wrote {STRANGE}\x1b[2J\n  more")
    complain("\x07")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("wrote caf\\udce9\\x1b[2J\n  more\n", "\\x07\n")


def test_no_line_is_printed_past_the_escapes():
    """All lines go through `say` and `complain`, all tables through `terminal.Table`."""
    files = [ROOT / "train.py", *(ROOT / "qil_jax").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    apart = [ROOT / "tools" / "bench", ROOT / "tools" / "test_times.py"]
    printing = [
        str(file.relative_to(ROOT))
        for file in files
        if not any(file.is_relative_to(place) for place in apart)
        and any(line.lstrip().startswith("print(") for line in file.read_text(encoding="utf-8").splitlines())
    ]
    assert printing == ["qil_jax/errors.py"]


def test_a_stream_escapes_what_its_encoding_lacks(monkeypatch):
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="cp1252"))
    escape_streams()
    say("caf\u00e9 \u72d0")
    assert data.getvalue() == b"caf\xe9 \\u72d0\n"


def test_programs_of_layers_say_and_keep_strange_names(tmp_path, capsys):
    folder, out = tmp_path / STRANGE, tmp_path / f"{STRANGE}\x1b[2J"
    LayeredImage(layers=PIXELS, names=("a", "b"), source=STRANGE).save(folder)
    assert ended(export.main, [str(folder), "--to", "png", "--out", str(out)]) == 0
    assert ended(view.main, [str(out), "--out", f"{out}.html"]) == 0
    assert ended(edit.main, [str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {tmp_path}/caf\\udce9\\x1b[2J: 2 layers" in printed and "\x1b" not in printed
    assert out.is_dir() and Path(f"{out}.html").is_file()
    assert LayeredImage.load(folder).source == STRANGE


def test_results_and_captions_keep_the_name_of_their_picture(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / f"{STRANGE}.png")
    (picture,) = find_pictures([tmp_path]).pictures.values()
    kept = KeptCaptions(folder=tmp_path / "captions", asked={})
    assert kept.keep("a", picture, "a caf\u00e9") == kept.read("a", picture) == "a caf\u00e9"
    layered = LayeredImage(layers=PIXELS, names=("a", "b"))
    write_result(tmp_path / "a", layered, PIXELS[0], {"input": picture.path.name}, exports=())
    assert ended(view.main, [str(tmp_path / "a"), "--out", str(tmp_path / "a.html")]) == 0


def test_documents_with_strange_names_are_built(tmp_path):
    source, out = tmp_path / "documents", tmp_path / "out"
    source.mkdir()
    (source / f"{STRANGE}.psd").write_bytes(psd_files.design(0))
    (source / f"{STRANGE}.txt").write_text("a poster")
    (source / "good.psd").write_bytes(psd_files.design(100))
    assert build_dataset.main([str(source), "--out", str(out)]) == 0
    rows = {row["document"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert sorted(rows) == ["caf\\xe9.psd", "good.psd"]
    assert all(row["reason"] is None for row in rows.values())
    assert "caf\\xe9.psd" in (out / "report.html").read_text()
    (source / "caf\\xe9.psd").write_bytes(psd_files.design(200))
    assert ended(build_dataset.main, [str(source), "--out", str(tmp_path / "again")]) == 2


HALF = r"has half of a surrogate pair, \\udce9"


def test_texts_of_command_lines_are_checked_before_anything_else(tmp_path, capsys):
    for words in (["--prompt", STRANGE], ["--negative-prompt", STRANGE]):
        with pytest.raises(SystemExit):
            parse_arguments(["a.png", "--out", "out", *words])
        assert f"{words[0]} has half of a surrogate pair, \\udce9: give text" in capsys.readouterr().err
    for option in ("--licence", "--source-name", "--caption-url", "--caption-model"):
        with pytest.raises(QilError, match=f"{option} {HALF}"):
            build_dataset.main([str(tmp_path), "--out", str(tmp_path / "out"), option, STRANGE])


def test_texts_of_python_are_checked_at_the_door():
    request = Request(image=Image.new("RGB", (8, 8)), prompt=STRANGE)
    assert [problem for problem in request.problems() if "half of a surrogate pair" in problem]
    with pytest.raises(QilError, match=HALF):
        LayeredImage(layers=PIXELS, names=("a", "b"), caption=STRANGE)


def test_texts_of_experiments_are_checked():
    from configs.demo.rgba_vae import config

    with pytest.raises(ExperimentError, match=HALF):
        changed(config(), [f"start.checkpoint={STRANGE}"])


@pytest.mark.full
@pytest.mark.parametrize("encoding", ["cp1252", "utf-8:strict"])
def test_pictures_of_any_name_are_decomposed_whatever_the_output_can_say(tmp_path, encoding):
    source, out = tmp_path / "pictures", tmp_path / "out"
    source.mkdir()
    names = ("\u72d0", STRANGE)
    for name in names:
        Image.new("RGB", (64, 64), "red").save(source / f"{name}.png")
    words = [str(source), "--out", str(out), "--resolution", "64", "--steps", "1", "--layers", "1"]
    how = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    call = [sys.executable, str(ROOT / "infer.py"), *words]
    done = subprocess.run(call, env=how, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"caf\\udce9.png" in done.stdout
    records = [json.loads(file.read_text())["input"] for file in out.glob("*/result.json")]
    assert sorted(records) == sorted(f"{name}.png" for name in names)
