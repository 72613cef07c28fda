"""Scripts: everything that is wrong with one is said at once, by operation and field, before anything is computed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from edits import PICTURE, content, layered
from PIL import Image

from qil_jax import host_memory
from qil_jax.choices import Edges
from qil_jax.editing import geometry, script
from qil_jax.editing.history import History
from qil_jax.editing.layer_operations import Move, Opacity, Replace, Resize
from qil_jax.editing.script import KINDS, ScriptError
from qil_jax.editing.stack import Stack
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.refinement import at_size

THREE = layered(np.full((3, 6, 8, 4), 200, np.uint8))
GRAY = {"at": 0.5, "colour": "#808080"}


def parsed(*items, **options):
    return script.parse(json.dumps(items), Stack.of(THREE), **options)


def parsed_on(image: LayeredImage, *items, **options):
    return script.parse(json.dumps(items), Stack.of(image), **options)


def named(op: str, layer: int | str, **fields) -> dict:
    return {"op": op, "layer": layer, **fields}


def canvas(left: int, top: int, width: int, height: int) -> dict:
    return {"op": "crop_canvas", "left": left, "top": top, "width": width, "height": height}


def problems_of(*items) -> tuple[str, ...]:
    with pytest.raises(ScriptError) as caught:
        parsed(*items)
    return caught.value.problems


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (3, "operation 1: must be an object"),
        ({"layer": 1}, "operation 1: must be an object with the field op, one of move, resize, "),
        (named("mvoe", 1), "operation 1, op: 'mvoe' is none of move, resize, .* .did you mean move?"),
        ({"op": "delete"}, "operation 1 .delete., layer: is missing"),
        (named("delete", True), "layer: must be the number of a layer, from 1, or its name, got True"),
        (named("delete", 0), "layer: must be the number of a layer, from 1, or its name, got 0"),
        (named("delete", 4), "layer: layer 4 is none; there are 1 'layer 0', 2 'layer 1', 3 'layer 2'"),
        (named("delete", "layer 9"), "layer: layer 'layer 9' is none"),
        (named("move", 1, dx=0.5), "dx: input should be a valid integer, got 0.5"),
        (named("move", 1, dx="1"), "dx: input should be a valid integer, got '1'"),
        (named("move", 1, dy=1e9), "dy: input should be"),
        (named("move", 1, x=1), "x: is no field, it has op, layer, dx, dy"),
        (named("rotate", 1, degrees=float("nan")), "'NaN' is no finite number"),
        (named("resize", 1), r"operation 1 \(resize\): give either scale, or width, height or both"),
        (named("resize", 1, scale=2, width=3), "give either scale"),
        (named("resize", 1, scale=0), "scale: input should be greater than 0"),
        (named("resize", 1, width=3, anchor="middle"), "anchor: input should be 'centre', 'left'"),
        (named("flip", 1, axis="x"), "axis: input should be 'horizontal' or 'vertical', got 'x'"),
        (named("tint", 1, colour="#12345", amount=1), "colour: string should match"),
        (named("opacity", 1, opacity=1.5), "opacity: input should be less than or equal to 1"),
        (
            named("gradient_map", 1, stops=[GRAY, {"at": 1, "colour": "red"}]),
            r"stops.1.colour: string should match .* got 'red'",
        ),
        (named("gradient_map", 1, stops=[]), "stops: two or more are needed"),
        (
            named("gradient_map", 1, stops=[GRAY, GRAY]),
            r"stops: two or more are needed, and their places \(at\) must ascend",
        ),
        (named("replace", 1, picture="nowhere.png"), "picture: nowhere.png: no such file"),
        (named("replace", 1, picture=__file__), "picture: .*cannot be read as a picture"),
        (named("reorder", 1), "give one of to, above and below"),
        (named("reorder", 1, to=4), "to: must be from 1 to 3, got 4"),
        (named("reorder", 1, above=1), "a layer cannot be above or below itself"),
        (named("reorder", 1, below="layer 0"), "below: layer 'layer 0' is none"),
        (
            {"op": "crop_canvas", "left": 1, "top": 0, "width": 8, "height": 1},
            "width: the rectangle ends at 9, outside",
        ),
        (
            {"op": "crop_canvas", "left": 0, "top": 6, "width": 8, "height": 1},
            "height: the rectangle ends at 7, outside",
        ),
        ({"op": "extend_canvas", "left": 16380}, "the canvas would have 16388x6 pixels"),
    ],
)
def test_a_problem_is_said_by_operation_and_field(item, words):
    (problem,) = problems_of(item)
    assert re.search(words, problem), problem


@pytest.mark.parametrize(
    ("text", "words"),
    [("[1", "is not JSON"), ("{}", "is no JSON list"), (b"\xff", "is not JSON"), ("[" * 10**5, "levels deep")],
)
def test_a_file_that_is_no_script_is_refused(text, words):
    with pytest.raises(ScriptError, match=words):
        script.parse(text, Stack.of(THREE))


@pytest.mark.parametrize("picture", ["a\0b.png", "\0", "/\0/x"])
def test_a_picture_whose_path_is_none_is_refused(picture):
    (problem,) = problems_of(named("replace", 1, picture=picture))
    assert "operation 1 (replace), picture: " in problem and "is no path of a file" in problem and "\0" not in problem


def test_a_result_beyond_memory_is_refused_before_anything_is_computed(monkeypatch):
    """By the operations that make it larger, whatever follows."""
    monkeypatch.setattr(host_memory, "host_bytes", lambda: 10**6)
    extend = {"op": "extend_canvas", "right": 92, "bottom": 94}
    (problem,) = problems_of(named("move", 1, dx=1), extend, named("hue", 1, degrees=5))
    assert "operation 2 (extend_canvas): a result of 3 layers of 100x100 pixels needs at least" in problem
    monkeypatch.setattr(host_memory, "host_bytes", lambda: 8 * 6 * (144 + 4 * 4))
    found = problems_of(named("duplicate", 1), named("duplicate", 1), named("delete", 2))
    assert len(found) == 1 and "operation 2 (duplicate): a result of 5 layers of 8x6 pixels" in found[0]


def test_copies_have_an_end():
    found = problems_of(*[named("duplicate", 1)] * 255)
    assert len(found) == 2 and "operation 254 (duplicate): the stack has 256 layers, 256 at most" in found[0]


def test_all_problems_are_said_at_once_in_order_and_nothing_is_computed(monkeypatch):
    monkeypatch.setattr(geometry, "resampled", lambda *_: pytest.fail("computed"))
    found = problems_of(
        named("resize", 1, scale=3),
        named("delete", 1),
        named("resize", 1, scale=3),
        named("move", 2, dx="far", dy="away"),
        named("reorder", 7, above=9),
        named("replace", 8, picture="nowhere.png"),
        named("delete", 2),
        named("delete", 3),
    )
    assert [line.split(":")[0] for line in found] == [
        "operation 3 (resize), layer",
        "operation 4 (move), dx",
        "operation 4 (move), dy",
        "operation 5 (reorder), layer",
        "operation 5 (reorder), above",
        "operation 6 (replace), layer",
        "operation 6 (replace), picture",
        "operation 8 (delete), layer",
    ]
    assert "layer 1 was deleted; there are 2 'layer 1', 3 'layer 2'" in found[0]
    assert "is the only layer" in found[-1]


def test_layers_keep_their_numbers():
    """Whatever is deleted, reordered or copied before."""
    stack = script.replay(
        Stack.of(THREE),
        parsed(
            named("reorder", 1, above=3),
            named("delete", 2),
            named("duplicate", 3),
            named("duplicate", 3),
            named("delete", "layer 2 copy"),
            named("duplicate", "layer 2 copy 2", name="mine"),
            named("reorder", "mine", to=1),
            named("reorder", 1, below=5),
            named("move", 6, dx=5),
            named("opacity", "layer 0", opacity=0.5),
        ),
    )
    found = [(x.number, x.name, x.left, x.opacity) for x in stack.layers]
    assert found == [
        (6, "mine", 5, 1),
        (3, "layer 2", 0, 1),
        (1, "layer 0", 0, 0.5),
        (5, "layer 2 copy 2", 0, 1),
    ]


def test_a_name_that_several_layers_have_is_refused():
    found = problems_of(named("duplicate", 1, name="layer 1"), named("delete", "layer 1"), named("delete", 4))
    assert found == ("operation 2 (delete), layer: 'layer 1' is the name of layers 4 and 2: give a number",)


def test_pictures_are_sought_from_the_scripts_folder(tmp_path):
    (tmp_path / "new.png").write_bytes(Path(PICTURE).read_bytes())
    operations = parsed(named("replace", 2, picture="new.png", fit="stretch"), folder=tmp_path)
    stack = script.replay(Stack.of(THREE), operations)
    direct = script.replay(Stack.of(THREE), [Replace(layer=2, picture=PICTURE, fit=geometry.Fit.STRETCH)])
    assert content(stack) == content(direct)
    assert stack.layers[1].name == "layer 1" and stack.layers[1].number == 2


def drawn(folder: Path) -> LayeredImage:
    """Layers of 32 x 32 pixels, whose picture of 128 x 96 pixels lies in the folder as photo.png; a bucket's shape."""
    y, x = np.mgrid[:96, :128]
    layers = np.zeros((3, 96, 128, 4), np.uint8)
    layers[0], layers[1][np.hypot(x - 50, y - 40) < 30] = (20, 60, 130, 255), (230, 140, 20, 255)
    layers[2][np.abs(x + y - 120) < 8] = (60, 200, 90, 160)
    Image.fromarray(layered(layers).composite_8bit(), "RGBA").save(folder / "photo.png")
    return layered(np.stack([np.asarray(Image.fromarray(x, "RGBA").resize((32, 32))) for x in layers]))


def test_layers_are_refined_as_infer_refines_them(tmp_path):
    """By the picture beside the script, with opacity beside the pixels, and what comes after is on the new canvas."""
    low = drawn(tmp_path)
    refine = {"op": "refine", "picture": "photo.png"}
    operations = parsed_on(low, named("opacity", 2, opacity=0.5), refine, canvas(20, 0, 108, 96), folder=tmp_path)
    states = list(script.states(Stack.of(low), operations))
    picture = np.asarray(Image.open(tmp_path / "photo.png"))
    wanted = at_size(low, picture, Edges.REFINED)[0]
    assert states[1].size == (128, 96) and [layer.opacity for layer in states[1].layers] == [1, 0.5, 1]
    assert [(layer.number, layer.name) for layer in states[1].layers] == [
        (1, "layer 0"),
        (2, "layer 1"),
        (3, "layer 2"),
    ]
    back = script.replay(states[1], [Opacity(layer=2, opacity=1.0)])
    np.testing.assert_array_equal(back.to_layered_image(low).layers, wanted.layers)
    blend = back.composite_8bit().astype(int)
    assert np.abs(blend - picture).max() <= 1 and states[2].size == (108, 96)
    moved = script.replay(Stack.of(low), parsed_on(low, named("move", 2, dx=-99), refine, folder=tmp_path))
    assert moved.layers[1].visible is None and moved.size == (128, 96), "what lay outside is gone"


def test_other_pictures_refine_nothing(tmp_path, monkeypatch):
    low = drawn(tmp_path)
    Image.new("RGB", (300, 60)).save(tmp_path / "wide.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "small.png")
    Image.new("1", (9000, 8000)).save(tmp_path / "large.png")
    names = ("wide.png", "small.png", "large.png", "nowhere.png", "photo.png")
    items = [{"op": "refine", "picture": name} for name in names]
    monkeypatch.setattr(host_memory, "host_bytes", lambda: 10**6)
    with pytest.raises(ScriptError) as caught:
        parsed_on(low, *items, folder=tmp_path)
    said = (
        r"\(refine\), picture: .*wide\.png: 300x60 pixels, and the layers have 32x32, of another shape",
        r"\(refine\), picture: .*small\.png: 32x32 pixels.*: give the larger picture",
        r"\(refine\), picture: the canvas would have 9000x8000 pixels",
        r"\(refine\), picture: .*nowhere\.png: no such file",
        r"\(refine\): a result of 3 layers of 128x96 pixels needs at least",
    )
    assert len(caught.value.problems) == len(said)
    for number, (line, words) in enumerate(zip(caught.value.problems, said, strict=True), start=1):
        assert re.search(f"operation {number} {words}", line), line


def test_operations_made_in_python_are_checked_too():
    bad = Move(layer=1)
    object.__setattr__(bad, "dx", 0.5)  # past the types that the tests check at every call
    history = History(Stack.of(THREE))
    with pytest.raises(ScriptError, match=r"operation 1 \(move\), dx: input should be a valid integer, got 0.5"):
        history.do(bad)
    assert history.operations == ()


def test_a_layer_that_would_be_too_large_is_refused():
    """Which only its pixels tell: the one thing that is found on the way."""
    operations = parsed(named("move", 1, dx=1), *[named("resize", 1, scale=64)] * 2)
    with pytest.raises(ScriptError, match=r"operation 3 \(resize\), scale: the layer would have \d+x\d+ pixels"):
        script.replay(Stack.of(THREE), operations)
    with pytest.raises(ScriptError, match=r"operation 1 \(resize\), width, height: the layer would have 9000x9000"):
        script.replay(Stack.of(THREE), [Resize(layer=1, width=9000, height=9000)])


def test_layers_that_together_would_not_fit_into_memory_are_refused(monkeypatch):
    """Copies share their pixels until one is enlarged."""
    monkeypatch.setattr(host_memory, "host_bytes", lambda: 3 * 4 * 80 * 60)
    operations = parsed(*[named("duplicate", 1)] * 9, *[named("resize", number, scale=10) for number in range(1, 10)])
    with pytest.raises(ScriptError, match=r"operation 12 \(resize\): this stack of 12 layers needs at least 0.0 GB of"):
        script.replay(Stack.of(THREE), operations)


def test_the_schema_is_that_of_what_is_accepted():
    """Every operation and field is in it with a description, and what it requires is required."""
    schema = script.schema()
    assert schema["type"] == "array" and {*schema["items"]["discriminator"]["mapping"]} == {kind.op for kind in KINDS}
    for kind in KINDS:
        found = schema["$defs"][kind.__name__]
        assert found["description"] == kind.__doc__ and not found["additionalProperties"]
        fields = found["properties"]
        assert all("description" in field for name, field in fields.items() if name != "op"), kind
        for name in found["required"]:
            least = {field: _example(kind.op, field) for field in found["required"] if field != name}
            assert any(f"{name}" in line for line in problems_of(least)), (kind, name)


def _example(op: str, field: str):
    examples = {"op": op, "layer": 1, "stops": [{"at": 0, "colour": "#000000"}, {"at": 1, "colour": "#ffffff"}]}
    return {**examples, "colour": "#000000", "axis": "vertical", "picture": PICTURE, "left": 0, "top": 0}.get(field, 1)
