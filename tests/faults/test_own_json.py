"""Files that programs of this package wrote, with values that they never write: refused by file, place and fix."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qil_jax.cli import edit, view
from qil_jax.errors import QilError
from qil_jax.evaluation.job import claim
from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.export.result import read_record, write_result
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.describe import read_descriptions
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.loader.latent_files import LatentIndex, read_index, write_index
from qil_jax.programs import ended
from qil_jax.strict_json import MOST_DEPTH, parse
from qil_jax.training.run_folder import EXPERIMENT, experiment_of
from qil_jax.training.sinks import FILE, LinesSink
from qil_jax.training.start import ORIGIN, origin_of
from qil_jax.viewer.stored import stored_entry

PIXELS = np.full((2, 4, 4, 4), 90, np.uint8)
LAYERS = LayeredImage(layers=PIXELS, names=("a", "b"), caption="two")
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "9" * 400
"""An integer that no float holds."""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ("[NaN]", "'NaN' is no finite number"),
        ("[1e400]", "'1e400' is no finite number"),
        (f"[-{HUGE}]", r"'-999\d+\.\.\. is no finite number"),
        (f"[{'9' * 5000}]", r"is no finite number"),
        (DEEP, f"nested more than {MOST_DEPTH} levels deep"),
        ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), f"nested more than {MOST_DEPTH} levels deep"),
        ("[1, 2", "line 1 column 6"),
        (b"\xff", "can't decode byte 0xff"),
    ],
)
def test_the_parser(text, words):
    with pytest.raises(QilError, match=words):
        parse(text)


def test_the_parser_takes_what_is_sound():
    sound = {"a": [1, -0.5, None, True, "😀"], "big": 10**30, "name": "\udcff"}
    assert parse(json.dumps(sound)) == sound
    assert parse("[" * MOST_DEPTH + "]" * MOST_DEPTH)


def refuse(program: Any, words: list[str], capsys: Any) -> str:
    """What a program says that refuses its input."""
    assert ended(program, words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ('{"names": 5}', "names: Input should be a valid tuple, got 5"),
        ('{"names": null}', "names: Input should be a valid tuple, got None"),
        ('{"names": ["a", 5]}', "names.1: Input should be a valid string, got 5"),
        ('{"source": 3}', "source: Input should be a valid string, got 3"),
        ('{"decisions": {"a": 1}}', "decisions: Input should be a valid tuple"),
        (DEEP, "layered.json: nested more than"),
        ("[]", "it: Input should be a dictionary"),
    ],
)
def test_layered_json(tmp_path, fields, words, capsys):
    LAYERS.save(tmp_path / "a")
    (tmp_path / "a" / "layered.json").write_text(fields)
    said = refuse(edit.main, [str(tmp_path / "a")], capsys)
    assert words in said and str(tmp_path / "a") in said


def test_a_caption_that_is_not_utf8(tmp_path, capsys):
    LAYERS.save(tmp_path / "a")
    (tmp_path / "a" / "caption.txt").write_bytes(b"\xff\xfe")
    said = refuse(edit.main, [str(tmp_path / "a")], capsys)
    assert "caption.txt: is no text in UTF-8" in said and "save it as UTF-8" in said


GROUP = {"left": 0, "top": 0, "size": [4, 4], "layers": [{"name": "c", "file": "a.png"}]}


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("layers",), None, "layers: Input should be a valid list, got None"),
        (("layers", 0), 5, "layers.0: Input should be a dictionary"),
        (("layers", 0, "name"), 5, "layers.0.name: Input should be a valid string, got 5"),
        (("layers", 0, "file"), None, "layers.0.file: Input should be a valid string, got None"),
        (("layers", 0, "opacity"), 0.5, "layers.0.opacity: Input should be greater than or equal to 1, got 0.5"),
        (("layers", 0, "z"), 1, "'a', number 0 of its list, has the z 1: order it by z"),
        (("layers", 0, "group"), {**GROUP, "left": 1 << 40}, "layers.0.group.left: Input should be less than"),
        (("layers", 0, "group"), {**GROUP, "left": "3"}, "layers.0.group.left: Input should be a valid integer"),
        (("layers", 0, "group"), {**GROUP, "layers": []}, "one canvas is needed"),
        (("caption",), 5, "caption: Input should be a valid string, got 5"),
    ],
)
def test_manifests(tmp_path, place, value, words):
    formats.write(LAYERS, tmp_path / "a", Format.PNG)
    file = tmp_path / "a" / "manifest.json"
    fields = json.loads(file.read_text())
    node = fields
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    file.write_text(json.dumps(fields))
    with pytest.raises(QilError) as refused:
        formats.read(tmp_path / "a")
    assert words in str(refused.value) and str(tmp_path / "a") in str(refused.value)


@pytest.mark.parametrize("left", ["1e400", HUGE, "NaN"])
def test_numbers_beyond_all_numbers(tmp_path, left):
    inner = LayerTree(layered=LAYERS)
    formats.write(LayerTree(layered=LAYERS, groups={0: Group(tree=inner, left=7, top=0)}), tmp_path / "a", Format.PNG)
    file = tmp_path / "a" / "manifest.json"
    file.write_text(file.read_text().replace('"left": 7', f'"left": {left}'))
    with pytest.raises(QilError, match=r"manifest.json: .*is no finite number"):
        formats.read(tmp_path / "a")


def result(folder: Path) -> Path:
    write_result(folder, LAYERS, PIXELS[0], {"input": "a.png", "settings": {"prompt": "two"}}, exports=())
    return folder


@pytest.mark.parametrize("psnr", [HUGE, "1e400", DEEP, '{"a": 1, "a": 2}'])
def test_results(tmp_path, psnr, capsys):
    folder = result(tmp_path / "a")
    text = (folder / "result.json").read_text()
    value = json.dumps(json.loads(text)["recomposition_psnr_db"])
    (folder / "result.json").write_text(
        text.replace(f'"recomposition_psnr_db": {value}', f'"recomposition_psnr_db": {psnr}')
    )
    said = refuse(view.main, [str(folder), "--out", str(tmp_path / "a.html")], capsys)
    assert "result.json: " in said and "mend it, or make the layers again" in said
    assert read_record(folder) is None


def test_a_result_may_hold_the_name_of_any_file(tmp_path):
    """What is written without loss is read again."""
    record = {"input": "a\udcff.png", "settings": {"prompt": "two"}}
    write_result(tmp_path / "a", LAYERS, PIXELS[0], record, exports=())
    assert (read_record(tmp_path / "a") or {})["input"] == "a\udcff.png"
    assert stored_entry(tmp_path / "a").facts["Input"] == "a\udcff.png"


@pytest.mark.parametrize("text", ['{"steps": 1e400}', DEEP, '{"steps": 1, "steps": 2}', f'{{"steps": {HUGE}}}'])
def test_defaults_of_a_checkpoint(tmp_path, text):
    (tmp_path / "qil.json").write_text(text)
    with pytest.raises(QilError, match=r"qil.json: .*mend it, or take it away"):
        Defaults.of(tmp_path)


@pytest.mark.parametrize(
    "text", ['[{"box": [0, 0, 1e400, 4]}]', DEEP, '[{"text": "a", "text": "b"}]', '[{"text": "\\ud800"}]']
)
def test_descriptions(tmp_path, text):
    (tmp_path / "layers.json").write_text(text)
    with pytest.raises(QilError, match=r"layers.json:\n  (.|\n)*give a list"):
        read_descriptions(tmp_path / "layers.json")


@pytest.mark.parametrize("text", [DEEP, "5", "null", '{"a": 1, "a": 1}'])
def test_the_settings_of_an_evaluation(tmp_path, text):
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(QilError, match=r"job.json: .*; give another --out"):
        claim(tmp_path, {"a": 1})


def test_the_index_of_latents(tmp_path):
    index = LatentIndex(shards=(1,), vae="a", text_encoder="b", no_prompt="", rows=((8, 8, 2, 0),), text=4)
    write_index(tmp_path, "train", index)
    assert read_index(tmp_path, "train") == index
    for text in (DEEP, "[]", '{"shards": 3}', "5"):
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(QilError, match=r"train.json:(.|\n)*run .*cache-latents again"):
            read_index(tmp_path, "train")


@pytest.mark.parametrize("text", [DEEP, "5", '{"stage": ["a"]}', '{"stage": 1, "stage": 2}'])
def test_the_origin_of_a_checkpoint(tmp_path, text):
    (tmp_path / ORIGIN).write_text(text)
    with pytest.raises(QilError, match=f"{ORIGIN}: .*give another checkpoint"):
        origin_of(tmp_path)


@pytest.mark.parametrize("text", [DEEP, "5", "{}"])
def test_the_experiment_of_a_run(tmp_path, text):
    (tmp_path / EXPERIMENT).write_text(text)
    with pytest.raises(QilError, match=f"{EXPERIMENT} cannot be read: "):
        experiment_of(tmp_path)


def test_lines_of_metrics_that_say_nothing_are_left_out(tmp_path):
    good = '{"step": 1, "loss": 0.5}'
    (tmp_path / FILE).write_bytes(
        "\n".join([good, "5", "[]", '{"loss": 1}', DEEP, '{"step": "1"}']).encode() + b"\n\xff\n"
    )
    LinesSink(tmp_path, since=3)
    assert (tmp_path / FILE).read_text() == f"{good}\n"
