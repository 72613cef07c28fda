"""The viewer in a real browser: every change shows the pixels that qil_jax computes for it."""

import html

import numpy as np
import pytest
from test_viewer_page import HOSTILE, hostile_names, named
from viewing import edited, entry, scene, tree

from qil_jax.layers.layered_image import LayeredImage
from qil_jax.viewer.page import viewer_html


def same(view, *operations: dict, layered: LayeredImage | None = None) -> None:
    """The canvas shows what editing makes of the scene."""
    expected = edited(layered or scene(), *operations).composite_8bit()
    np.testing.assert_array_equal(view.pixels(), expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_canvas_is_the_composite(view, seed):
    rng = np.random.default_rng(seed)
    layers = rng.integers(0, 256, (7, 37, 53, 4), np.uint8)
    layers[..., 3] = rng.choice([0, 1, 2, 127, 128, 254, 255] if seed else range(256), layers.shape[:3])
    layered = LayeredImage(layers=layers, names=tuple("abcdefg"))
    view.show(entry(layered))
    np.testing.assert_array_equal(view.pixels(), layered.composite_8bit())


def test_layers_are_hidden_and_shown(view):
    view.show(entry(scene()))
    eye = view.page.get_by_role("button", name="Show disc")
    assert eye.get_attribute("aria-pressed") == "true"
    eye.click()
    assert eye.get_attribute("aria-pressed") == "false"
    same(view, {"op": "opacity", "layer": "disc", "opacity": 0})
    eye.click()
    same(view)


@pytest.mark.full
def test_solo_shows_one_layer(view):
    view.show(entry(scene()))
    view.press("Only noise")
    same(view, *({"op": "opacity", "layer": i, "opacity": 0} for i in (1, 2, 3, 5)))
    view.press("Only disc")
    same(view, *({"op": "opacity", "layer": i, "opacity": 0} for i in (1, 3, 4, 5)))
    view.press("Only disc")
    same(view)


@pytest.mark.full
def test_dragging_moves_the_layer_under_the_pointer(view):
    view.show(entry(scene()))
    view.drag((40.5, 12.5), (49.5, 35.5))
    assert view.page.locator(".layer.chosen .name").text_content() == "box"
    same(view, {"op": "move", "layer": "box", "dx": 9, "dy": 23})
    view.page.keyboard.down("Control")  # drags the selected layer from anywhere
    view.drag((60.5, 2.5), (10.5, 40.5))
    view.page.keyboard.up("Control")
    same(view, {"op": "move", "layer": "box", "dx": 9 - 50, "dy": 23 + 38})
    view.press("Undo")
    same(view, {"op": "move", "layer": "box", "dx": 9, "dy": 23})


@pytest.mark.full
def test_a_click_selects_and_moves_nothing(view):
    view.show(entry(scene()))
    view.drag((21.5, 24.5), (21.6, 24.6))
    assert view.page.locator(".layer.chosen .name").text_content() == "disc"
    assert view.page.get_by_role("button", name="Undo").is_disabled()


@pytest.mark.full
def test_arrow_keys_move_the_selected_layer(view):
    view.show(entry(scene()))
    view.select("noise")
    view.page.locator(".picture").focus()
    for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowDown", "ArrowUp"):
        view.page.keyboard.press(key)
    same(view, {"op": "move", "layer": "noise", "dx": -2, "dy": 9})
    assert view.page.get_by_role("status").first.text_content() == "noise moved to 38, 29"
    view.page.keyboard.press("Control+z")
    same(view)


@pytest.mark.full
def test_layers_are_reordered_by_buttons_keys_and_dragging(view):
    view.show(entry(scene()))
    view.select("disc")
    view.press("Bring forward")
    same(view, {"op": "reorder", "layer": "disc", "above": "box"})
    view.page.keyboard.press("Alt+ArrowUp")
    assert view.names() == ["nothing", "disc", "noise", "box", "ground"]
    same(view, {"op": "reorder", "layer": "disc", "above": "noise"})
    view.page.keyboard.press("Alt+ArrowDown")
    view.press("Send backward")
    same(view)
    grip, ground = view.row("noise").locator(".grip").bounding_box(), view.row("disc").bounding_box()
    mouse = view.page.mouse
    mouse.move(grip["x"] + 9, grip["y"] + 20)
    mouse.down()
    mouse.move(grip["x"] + 9, ground["y"] + ground["height"] - 6, steps=4)
    mouse.up()
    assert view.names() == ["nothing", "box", "disc", "noise", "ground"]
    same(view, {"op": "reorder", "layer": "noise", "below": "disc"})


@pytest.mark.full
def test_opacity_is_rounded_as_editing_rounds_it(view):
    view.show(entry(scene()))
    view.select("noise")
    slider = view.page.get_by_role("slider", name="Opacity")
    for percent in (57, 1, 99, 0):
        slider.fill(str(percent))
        same(view, {"op": "opacity", "layer": "noise", "opacity": percent / 100})
    slider.press("ArrowRight")
    same(view, {"op": "opacity", "layer": "noise", "opacity": 0.01})


@pytest.mark.full
def test_undo_redo_and_reset(view):
    view.show(entry(scene()))
    view.select("box")
    view.press("Delete layer")
    view.select("disc")
    view.press("Bring forward")
    changed = [{"op": "delete", "layer": "box"}, {"op": "reorder", "layer": "disc", "above": "noise"}]
    same(view, *changed)
    view.press("Undo")
    same(view, changed[0])
    view.press("Redo")
    same(view, *changed)
    view.press("Reset to the result")
    same(view)
    assert view.names() == ["nothing", "noise", "box", "disc", "ground"]
    view.press("Undo")
    same(view, *changed)


ACTIONS = ["Bring forward", "Send backward", "Show", "Opacity", "Arrow", "Delete", "Undo", "Redo"]


@pytest.mark.full
def test_any_sequence_of_changes_shows_what_its_script_makes(view):
    """Random clicks and keys; the script of the viewer, replayed by qil_jax, gives the pixels on the canvas."""
    view.show(entry(scene()))
    rng = np.random.default_rng(5)
    kinds = set()
    for step in range(24):
        names = view.names()
        view.select(str(rng.choice(names)))
        action = str(rng.choice(ACTIONS))
        if action == "Opacity":
            view.page.get_by_role("slider", name="Opacity").fill(str(rng.integers(0, 101)))
        elif action == "Arrow":
            view.page.locator(".picture").press(str(rng.choice(["Shift+ArrowLeft", "ArrowRight", "Shift+ArrowDown"])))
        elif action == "Show":
            view.page.locator(".layer.chosen .eye").click()
        elif action == "Delete" and step % 3 == 0 and len(names) > 3:
            view.press("Delete layer")
        elif action != "Delete" and view.page.get_by_role("button", name=action, exact=True).is_enabled():
            view.press(action)
        script = view.page.evaluate("() => viewer.script()")
        kinds |= {operation["op"] for operation in script}
        same(view, *script)
    assert kinds == {"move", "opacity", "reorder", "delete"}


COUNT_QUICK = """() => {
  const quick = blendQuickly;
  window.quicks = 0;
  blendQuickly = (...given) => { window.quicks++; quick(...given); };
}"""


@pytest.mark.full
def test_large_layers_are_quick_first_and_exact_in_the_end(view):
    rng = np.random.default_rng(2)
    layers = np.repeat(np.repeat(rng.integers(0, 256, (6, 60, 80, 4), np.uint8), 12, 1), 12, 2)
    layers[0, ..., 3] = 255
    layered = LayeredImage(layers=layers, names=tuple("abcdef"))
    view.show(entry(layered))
    view.page.evaluate(COUNT_QUICK)
    view.select("c")
    box = view.page.locator(".picture").bounding_box()
    view.page.keyboard.down("Control")
    view.page.mouse.move(box["x"] + 50, box["y"] + 50)
    view.page.mouse.down()
    view.page.mouse.move(box["x"] + 90, box["y"] + 70, steps=4)
    view.page.wait_for_function("() => window.quicks > 0")
    script = view.page.evaluate("() => { viewer.stage.draw(); return viewer.script(); }")
    shown = view.page.evaluate("() => Array.from(viewer.stage.compositor.pixels.subarray(960 * 4 * 60, 960 * 4 * 90))")
    expected = edited(layered, *script).composite_8bit()[60:90].astype(int)
    assert np.abs(np.reshape(shown, (30, 960, 4)) - expected).max() <= 1
    view.page.mouse.up()
    view.page.keyboard.up("Control")
    same(view, *view.page.evaluate("() => viewer.script()"), layered=layered)


@pytest.mark.full
def test_groups_are_headings_that_act_on_their_layers(view):
    stack = tree()
    view.show(entry(stack))
    leaves = stack.leaves()
    np.testing.assert_array_equal(view.pixels(), leaves.composite_8bit())
    assert view.names() == ["group", "things", "noise", "box", "disc", "ground"]
    eye = view.page.get_by_role("button", name="Show group things")
    eye.click()
    hidden = edited(leaves, *({"op": "opacity", "layer": i, "opacity": 0} for i in (3, 4)))
    np.testing.assert_array_equal(view.pixels(), hidden.composite_8bit())
    assert view.page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Show group things"
    view.press("Show group group")
    hidden = edited(leaves, *({"op": "opacity", "layer": i, "opacity": 0} for i in (2, 3, 4)))
    np.testing.assert_array_equal(view.pixels(), hidden.composite_8bit())
    assert view.page.get_by_role("button", name="Script").is_disabled()
    assert "groups" in view.page.locator("#no-script").text_content()


@pytest.mark.full
def test_comparison_with_the_input(view):
    view.show(entry(scene(), original=scene(seed=1).layers[0]))
    compare = view.page.get_by_role("button", name="Compare")
    compare.click()
    slider = view.page.get_by_role("slider", name="Where the input ends")
    assert slider.evaluate("e => e === document.activeElement")
    slider.fill("250")
    assert view.page.locator(".input").evaluate("e => e.style.clipPath") == "inset(0px 75% 0px 0px)"
    shown = view.page.locator(".input").evaluate("e => Array.from(e.getContext('2d').getImageData(0, 0, 64, 48).data)")
    np.testing.assert_array_equal(np.reshape(shown, (48, 64, 4)), scene(seed=1).layers[0])
    compare.click()
    assert view.page.locator(".comparison").is_hidden()


@pytest.mark.full
def test_without_an_input_there_is_no_comparison(view):
    view.show(entry(scene()))
    assert view.page.locator(".compare").is_hidden()


@pytest.mark.full
def test_exploded_view_has_a_plane_for_each_layer_that_shows(view):
    view.show(entry(scene()))
    view.press("Show box")
    view.press("Explode")
    assert view.page.locator(".plane .tag").all_text_contents() == ["ground", "disc", "noise", "nothing"]
    before = view.page.locator(".scene").evaluate("e => e.style.transform")
    view.page.get_by_role("slider", name="Angle").fill("-20")
    assert view.page.locator(".scene").evaluate("e => e.style.transform") != before
    view.press("Explode")
    assert view.page.locator(".picture").is_visible()
    same(view, {"op": "opacity", "layer": "box", "opacity": 0})


@pytest.mark.full
def test_background_and_zoom(view):
    view.show(entry(scene()))
    view.page.get_by_role("radio", name="Black").check()
    assert view.page.locator(".sheet").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(0, 0, 0)"
    fitted = view.page.locator(".picture").bounding_box()
    assert fitted["width"] % 64 == 0, "small pictures are enlarged by whole factors"
    view.press("Zoom out")
    assert view.page.locator(".picture").bounding_box()["width"] < fitted["width"]
    view.drag((40.5, 12.5), (44.5, 12.5))
    same(view, {"op": "move", "layer": "box", "dx": 4})
    view.press("Zoom to fit")
    assert view.page.locator(".picture").bounding_box() == fitted


ELEMENTS = """() => [...document.querySelectorAll("*")]
  .map((element) => element.tagName + [...element.attributes].map((attribute) => attribute.name).sort())"""


@pytest.mark.full
def test_a_thousand_hostile_names_create_no_elements(view):
    """In the list, in facts and in messages there are the same elements as for two tame layers, row by row."""
    kinds, counts = [], []
    for names, title in ((["x", "x"], "x"), (hostile_names(1000), HOSTILE[0])):
        view.show(entry(named(names), title=title, facts=dict.fromkeys(names, names[0])))
        view.page.locator(".delete").click()
        elements = view.page.evaluate(ELEMENTS)
        kinds.append({*elements})
        counts.append(len(elements) - view.page.locator(".layer, .layer *, .about div, .about div *").count())
    assert kinds[0] == kinds[1] and counts[0] == counts[1]
    assert view.names()[-1] == HOSTILE[0] == view.page.locator("h1").text_content()


@pytest.mark.full
def test_hostile_names_in_the_exploded_view_and_on_cards(view):
    tame, wild = entry(named(["x"] * len(HOSTILE))), entry(named(HOSTILE))
    found = []
    for shown in (tame, wild):
        view.show(shown)
        view.press("Explode")
        found.append(view.page.evaluate(ELEMENTS))
    assert found[0] == found[1] and view.page.locator(".plane .tag").first.text_content() == HOSTILE[0]
    view.show(*[entry(named(["x"]), title=title, facts={title: title}) for title in HOSTILE])
    assert view.page.locator(".card").count() == len(HOSTILE)
    assert view.page.locator(".card .name").first.text_content() == HOSTILE[0]


@pytest.mark.full
def test_a_gallery_opens_its_viewers_and_comes_back(view):
    second = scene(seed=1)
    one = entry(scene(), title="one", original=scene().layers[0])
    view.show(one, entry(second, title="two", facts={"PSNR": "31 dB"}))
    assert view.page.locator("h1").text_content() == "Layers"
    assert view.page.locator(".card .facts").nth(1).text_content() == "5 layers · 64 × 48 · PSNR 31 dB"
    assert view.page.locator(".card img").count() == 3
    view.page.wait_for_function("() => [...document.querySelectorAll('.card img')].every((e) => e.naturalWidth > 0)")
    view.page.get_by_role("button", name="two").focus()
    view.page.keyboard.press("Enter")
    view.ready()
    np.testing.assert_array_equal(view.pixels(), second.composite_8bit())
    view.press("All results")
    assert view.page.evaluate("() => document.activeElement.querySelector('.name').textContent") == "two"
    assert view.page.evaluate("() => window.viewer === undefined")


@pytest.mark.full
def test_it_works_in_a_sandboxed_frame(view):
    inner = html.escape(viewer_html([entry(scene())]))
    view.go(f'<iframe sandbox="allow-scripts allow-downloads" width="1100" height="700" srcdoc="{inner}"></iframe>')
    frame = view.page.frame_locator("iframe")
    with view.page.expect_download() as saving:
        frame.get_by_role("button", name="PNG").click()
    assert saving.value.suggested_filename == "scene.png"
