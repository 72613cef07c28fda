"""What holds for all stacks and all operations (hypothesis)."""

import json

import numpy as np
import pytest
from edits import canvases, content, draw_operation, draw_script, layered, same_written
from hypothesis import given
from hypothesis import strategies as st

from qil_jax.editing import script
from qil_jax.editing.geometry import Anchor, Axis
from qil_jax.editing.history import History
from qil_jax.editing.layer_operations import Flip, Move, Opacity, Resize, Rotate
from qil_jax.editing.stack import EditError, Layer, Stack
from qil_jax.editing.stack_operations import CropCanvas, ExtendCanvas
from qil_jax.layers.layered_image import LayeredImage


def covered(layers: list[Layer], size: tuple[int, int]) -> np.ndarray:
    """Where any of the layers has alpha on the canvas."""
    mask = np.zeros((size[1], size[0]), bool)
    for layer in layers:
        inside = layer.within(size)
        if inside is not None:
            mask[inside.window] |= inside.pixels[..., 3] > 0
    return mask


def all_of(stack: Stack, steps: list) -> Stack:
    return script.replay(stack, steps)


@given(st.data())
def test_pixels_that_the_layer_covers_neither_before_nor_after_stay(data):
    image = layered(data.draw(canvases()))
    before = Stack.of(image)
    operation = draw_operation(data.draw, before, canvas=False)
    after = operation.apply(before)
    index = before.index(operation.layer)
    edited = {before.layers[index].number, *({after.next_number - 1} if after.next_number > before.next_number else ())}
    touched = [x for stack in (before, after) for x in stack.layers if x.number in edited]
    outside = ~covered(touched, before.size)
    np.testing.assert_array_equal(after.composite_8bit()[outside], before.composite_8bit()[outside])
    kept = [x for x in before.layers if x.number not in edited]
    assert all(any(x is y for y in after.layers) for x in kept)


@given(canvases())
def test_a_stack_that_nobody_edits_is_written_as_it_came(layers):
    image = layered(layers)
    assert same_written(Stack.of(image).to_layered_image(image), image)
    moved = script.replay(Stack.of(image), [Move(layer=1, dx=3)])
    np.testing.assert_array_equal(moved.to_layered_image(image).layers[1:], image.layers[1:])


@given(canvases(), st.integers(-20, 20), st.integers(-20, 20))
def test_moves_there_and_back_lose_nothing(layers, dx, dy):
    image = layered(layers)
    back = all_of(Stack.of(image), [Move(layer=1, dx=dx, dy=dy), Move(layer=1, dx=-dx, dy=-dy)])
    assert same_written(back.to_layered_image(image), image)


@given(canvases(), st.sampled_from(Axis))
def test_flipping_twice_changes_nothing_and_once_mirrors_the_box(layers, axis):
    image = layered(layers)
    stack = Stack.of(image)
    once = all_of(stack, [Flip(layer=1, axis=axis)])
    assert content(all_of(once, [Flip(layer=1, axis=axis)])) == content(stack)
    layer, mirrored = stack.layers[0], once.layers[0]
    assert mirrored.visible == layer.visible
    if layer.visible is not None:
        side = 1 if axis is Axis.HORIZONTAL else 0
        parts = [
            x.pixels[y0 - x.top : y1 - x.top, x0 - x.left : x1 - x.left]
            for x in (layer, mirrored)
            for x0, y0, x1, y1 in [x.visible]
        ]
        np.testing.assert_array_equal(np.flip(parts[0], side), parts[1])


@given(canvases(), st.sampled_from([90.0, -90.0, 270.0]))
def test_four_quarter_turns_change_nothing(layers, degrees):
    image = layered(layers)
    stack, quarter = Stack.of(image), Rotate(layer=1, degrees=degrees)
    states = list(script.states(stack, [quarter] * 4))
    assert content(states[3]) == content(stack)
    assert content(states[1]) == content(all_of(stack, [Rotate(layer=1, degrees=180.0)]))
    assert content(all_of(states[0], [Rotate(layer=1, degrees=-degrees)])) == content(stack)
    layer, turned = stack.layers[0], states[0].layers[0]
    np.testing.assert_array_equal(np.rot90(layer.pixels, 1 if degrees == -90 or degrees == 270 else -1), turned.pixels)


@given(canvases(), st.floats(0, 1), st.floats(0, 1))
def test_opacity_replaces_opacity(layers, first, second):
    image = layered(layers)
    stack = Stack.of(image)
    twice, once = ([Opacity(layer=1, opacity=x) for x in shares] for shares in ((first, second), (second,)))
    assert content(all_of(stack, twice)) == content(all_of(stack, once))
    assert content(all_of(stack, [*twice, Opacity(layer=1, opacity=1.0)])) == content(stack)
    written = all_of(stack, once).to_layered_image(image)
    np.testing.assert_array_equal(written.layers[0, ..., 3], np.rint(image.layers[0, ..., 3] * second))
    np.testing.assert_array_equal(written.layers[0, ..., :3], image.layers[0, ..., :3])


@given(st.data())
def test_the_canvas_gives_back_what_it_took(data):
    image = layered(data.draw(canvases()))
    width, height = image.size
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    crop = CropCanvas(left=left, top=top, width=width - left, height=height - top)
    small = all_of(Stack.of(image), [crop])
    np.testing.assert_array_equal(small.to_layered_image(image).layers, image.layers[:, top:, left:])
    back = all_of(small, [ExtendCanvas(left=left, top=top)])
    assert same_written(back.to_layered_image(image), image)
    large = all_of(Stack.of(image), [ExtendCanvas(left=left, bottom=top)]).to_layered_image(image)
    np.testing.assert_array_equal(large.layers[:, :height, left:], image.layers)
    assert not large.layers[:, height:].any() and not large.layers[:, :, :left].any()


@given(st.data())
@pytest.mark.full
def test_a_script_replayed_is_the_same_as_step_by_step(data):
    image = layered(data.draw(canvases()))
    stack = Stack.of(image)
    steps = draw_script(data.draw, stack)
    parsed = script.parse(json.dumps(script.to_json(steps)), stack)
    assert parsed == steps
    history = History(stack)
    for operation in steps:
        history.do(operation)
    assert history.operations == steps
    assert content(script.replay(stack, parsed)) == content(history.stack)
    assert same_written(script.replay(stack, parsed).to_layered_image(image), history.stack.to_layered_image(image))


@given(st.data())
@pytest.mark.full
def test_undoing_and_redoing_are_exact(data):
    stack = Stack.of(layered(data.draw(canvases())))
    history, seen = History(stack), [content(stack)]
    for operation in draw_script(data.draw, stack):
        seen.append(content(history.do(operation)))
    for state in seen[-2::-1]:
        assert content(history.undo()) == state
    with pytest.raises(EditError, match="nothing to undo"):
        history.undo()
    for state in seen[1:]:
        assert content(history.redo()) == state
    with pytest.raises(EditError, match="nothing to redo"):
        history.redo()


def test_what_follows_an_undo_replaces_what_was_undone():
    stack = Stack.of(layered(np.random.default_rng(0).integers(0, 256, (1, 3, 4, 4), np.uint8)))
    history = History(stack)
    history.do(Move(layer=1, dx=1))
    history.do(Move(layer=1, dy=1))
    history.undo()
    history.do(Rotate(layer=1, degrees=90.0))
    assert history.operations == (Move(layer=1, dx=1), Rotate(layer=1, degrees=90.0))
    with pytest.raises(EditError, match="nothing to redo"):
        history.redo()
    with pytest.raises(script.ScriptError, match=r"operation 1 \(move\), layer: layer 99 is none"):
        history.do(Move(layer=99))
    assert content(history.stack) == content(all_of(stack, list(history.operations)))


@given(st.data())
def test_the_outline_of_a_script_is_what_it_makes(data):
    """So a script that passes its check can be carried out."""
    stack = Stack.of(layered(data.draw(canvases())))
    outline = stack
    for operation in draw_script(data.draw, stack):
        assert operation.problems(outline) == []
        outline, stack = operation.outlined(outline), operation.apply(stack)
        assert [(x.number, x.name) for x in outline.layers] == [(x.number, x.name) for x in stack.layers]
        assert (outline.size, outline.next_number) == (stack.size, stack.next_number)


@given(canvases(), st.integers(1, 20), st.integers(1, 20), st.sampled_from(Anchor))
def test_the_anchor_stays_and_the_same_size_changes_nothing(layers, width, height, anchor):
    image = layered(layers)
    stack = Stack.of(image)
    box = stack.layers[0].visible
    if box is None:
        return
    same = Resize(layer=1, width=box[2] - box[0], height=box[3] - box[1], anchor=anchor)
    assert content(all_of(stack, [same])) == content(stack)
    opaque = LayeredImage(layers=np.full((1, *image.layers.shape[1:]), 255, np.uint8), names=("x",))
    resized = all_of(Stack.of(opaque), [Resize(layer=1, width=width, height=height, anchor=anchor)]).layers[0]
    left, top, right, bottom = resized.visible or ()
    assert (right - left, bottom - top) == (width, height) and (resized.pixels == 255).all()
    words = anchor.split("-")
    assert left == 0 or "left" not in words
    assert top == 0 or "top" not in words
    assert right == opaque.size[0] or "right" not in words
    assert bottom == opaque.size[1] or "bottom" not in words
    if anchor is Anchor.CENTRE:
        assert abs(left + right - opaque.size[0]) <= 1 and abs(top + bottom - opaque.size[1]) <= 1


def test_states_cannot_be_written_to():
    stack = Stack.of(LayeredImage(layers=np.ones((1, 2, 2, 4), np.uint8), names=("x",)))
    with pytest.raises(ValueError, match="read-only"):
        stack.layers[0].pixels[0, 0] = 0
