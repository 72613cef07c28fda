"""`qil edit`: results and folders of PNGs in, the same form out, and docs/layers.md as it is printed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from edits import content, layered

from qil_jax.cli.edit import main
from qil_jax.editing import script
from qil_jax.editing.stack import Stack
from qil_jax.errors import QilError
from qil_jax.export.result import read_result, write_result
from qil_jax.export.stored import read_tree
from qil_jax.layers.layered_image import LayeredImage

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
SCENE = ROOT / "examples" / "scene"
OPERATIONS = [
    {"op": "move", "layer": 2, "dx": 3},
    {"op": "opacity", "layer": "layer 0", "opacity": 0.5},
    {"op": "delete", "layer": 3},
]


@pytest.fixture
def ops(tmp_path) -> Path:
    file = tmp_path / "ops.json"
    file.write_text(json.dumps(OPERATIONS))
    return file


@pytest.fixture
def result(tmp_path) -> Path:
    image = layered(np.random.default_rng(0).integers(0, 256, (3, 20, 24, 4), np.uint8))
    write_result(tmp_path / "result", image, image.composite_8bit(), {"input": "a.png", "input_sha256": "abc"})
    return tmp_path / "result"


def replayed(image: LayeredImage, operations: list) -> LayeredImage:
    stack = Stack.of(image)
    return script.replay(stack, script.parse(json.dumps(operations), stack)).to_layered_image(image)


def edit(folder: Path, ops: Path, out: Path, *more: str) -> int:
    return main([str(folder), "--script", str(ops), "--out", str(out), *more])


def test_names_are_neither_markup_nor_control_codes(tmp_path, capsys):
    """It once ended in a traceback after the folder was written, or lost what stood in brackets."""
    names = ("[red]apple", "[/b]", "a\x1b[31mb")
    layers = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 4), np.uint8)
    LayeredImage(layers=layers, names=names).save(tmp_path / "layers")
    (tmp_path / "ops.json").write_text('[{"op": "move", "layer": 1, "dx": 1}]')
    assert edit(tmp_path / "layers", tmp_path / "ops.json", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "[red]apple" in said and "[/b]" in said and r"a\x1b[31mb" in said and "\x1b" not in said
    assert read_tree(tmp_path / "out").layered.names == names


def test_a_result_stays_a_result(result, ops, tmp_path, capsys):
    before = {file.name: file.read_bytes() for file in result.iterdir()}
    assert edit(result, ops, tmp_path / "out") == 0
    assert "3 operations" in capsys.readouterr().out
    expected = replayed(read_tree(result).layered, OPERATIONS)
    got, record = read_tree(tmp_path / "out").layered, read_result(tmp_path / "out")
    assert record is not None and got.names == expected.names == ("layer 0", "layer 1")
    np.testing.assert_array_equal(got.layers, expected.layers)
    assert (tmp_path / "out" / "layers.psd").is_file() and (tmp_path / "out" / "sheet.png").is_file()
    assert record["edited"]["operations"] == OPERATIONS and record["edited"]["before"]["input"] == "a.png"
    assert "input_sha256" not in record and record["edited"]["result"] == "result"
    assert {file.name: file.read_bytes() for file in result.iterdir()} == before
    assert edit(result, ops, tmp_path / "again", "--until", "1") == 0
    np.testing.assert_array_equal(
        read_tree(tmp_path / "again").layered.layers, replayed(read_tree(result).layered, OPERATIONS[:1]).layers
    )


def test_a_folder_of_pngs_stays_one(tmp_path, ops, capsys):
    image = LayeredImage.load(SCENE)
    ops.write_text(
        json.dumps(
            [
                {"op": "flip", "layer": 2, "axis": "vertical"},
                {"op": "crop_canvas", "left": 3, "top": 4, "width": 30, "height": 20},
            ]
        )
    )
    assert edit(SCENE, ops, tmp_path / "out") == 0
    got = LayeredImage.load(tmp_path / "out")
    expected = replayed(image, json.loads(ops.read_text()))
    np.testing.assert_array_equal(got.layers, expected.layers)
    assert (got.names, got.caption, got.licence, got.size) == (image.names, image.caption, image.licence, (30, 20))
    assert [d.partition(": ")[0] for d in got.decisions] == ["edited", "edited"]
    assert main([str(SCENE)]) == 0
    assert re.search(r"3 .*a green ring .*43, 11 .*21x25", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a folder of layers"),
        (["FOLDER", "--out", "new"], "--script and --out go together"),
        (["FOLDER", "--script", "OPS"], "--script and --out go together"),
        (["FOLDER", "--script", "OPS", "--out", "FOLDER"], "exists: give --out a new folder"),
        (["FOLDER", "--until", "1"], "--until needs --script"),
        (["FOLDER", "--script", "OPS", "--out", "new", "--until", "4"], "--until 4: the script has 3 operations"),
        (["nowhere", "--script", "OPS", "--out", "new"], "nowhere: no such folder"),
    ],
)
def test_bad_command_lines_write_nothing(result, ops, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QilError, match=words):
        main([str({"FOLDER": result, "OPS": ops}.get(word, word)) for word in arguments])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("ops.json", '[{"op": "move", "layer": 9}]', r"ops.json:\n  operation 1 \(move\), layer: layer 9 is none"),
        ("result/result.json", "{}", "does not list layers"),
        ("result/result.json", '{"files": {}}', "does not list layers"),
        ("result/result.json", '{"files": {}, "layers": []}', "layers: List should have at least 1 item"),
        ("result/01_layer_0.png", "no picture", "01_layer_0.png: cannot be read as a picture"),
    ],
)
def test_bad_inputs_write_nothing(result, ops, tmp_path, file, text, words):
    (tmp_path / file).write_text(text)
    with pytest.raises(QilError, match=words):
        edit(result, ops, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("layered.json", "[", "layered.json: is not JSON"),
        ("layered.json", "[]", "layered.json:\n  it: Input should be a dictionary"),
        ("0.png", "no picture", "0.png: cannot be read as a picture"),
    ],
)
def test_bad_folders_of_pngs_are_refused(tmp_path, file, text, words):
    LayeredImage.load(SCENE).save(tmp_path / "scene")
    (tmp_path / "scene" / file).write_text(text)
    with pytest.raises(QilError, match=words):
        main([str(tmp_path / "scene")])


def test_the_schema_is_printed(capsys):
    assert main(["--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == script.schema()


def test_the_page_has_every_operation_with_its_fields():
    section = PAGE.partition("\n## Editing\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE)
    assert len(rows) == len(script.KINDS)
    for kind in script.KINDS:
        fields = script.schema()["$defs"][kind.__name__]
        (row,) = [row for op, row in rows if op == kind.op]
        needed = set(re.findall(r"(?<!\[)`(\w+)`", row))
        assert needed == {*fields["required"]} - {"op"}, kind
        assert {*re.findall(r"`(\w+)`", row)} == {*fields["properties"]} - {"op"}, kind


def test_the_pages_example_runs(tmp_path):
    (example,) = re.findall(r"<!-- example: begin -->\n```json\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "ops.json").write_text(example)
    assert edit(SCENE, tmp_path / "ops.json", tmp_path / "out") == 0
    got = LayeredImage.load(tmp_path / "out")
    assert got.size == (80, 64) and got.names[1:] == ("second ring", "a partying face", "a green ring")


def test_the_pages_python_runs():
    code = PAGE.partition("**From Python.**")[2].partition("\n\nA result")[0].partition("\n\n")[2]
    layers = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 4), np.uint8)
    given = LayeredImage(layers=layers, names=("Layer 1", "Layer 2", "Layer 3"))
    found = {"layered": given}
    exec("\n".join(line.removeprefix("    ") for line in code.splitlines()), found)
    moved = script.parse('[{"op": "move", "layer": 2, "dx": 40}]', Stack.of(given))
    assert content(found["history"].stack) == content(script.replay(Stack.of(given), moved))
