"""The viewer and the gallery have no serious fault of accessibility, and can be used without a pointer."""

import pytest
from viewing import entry, scene, tree

pytestmark = pytest.mark.full

FAULTS = """async () => (await axe.run()).violations
  .filter((fault) => ["serious", "critical"].includes(fault.impact))
  .map((fault) => `${fault.id}: ${fault.nodes.map((node) => node.html)}`)"""


@pytest.fixture
def faults(view, npm):
    source = (npm / "axe-core" / "axe.min.js").read_text(encoding="utf-8")

    def check() -> list[str]:
        view.page.evaluate(f"() => {{ {source} }}")
        return view.page.evaluate(FAULTS)

    return check


def test_the_viewer(view, faults):
    view.show(entry(scene(), original=scene().layers[0], facts={"PSNR": "31 dB"}))
    assert faults() == []
    view.press("Show box")
    view.press("Only disc")
    for summary in view.page.locator("summary").all():
        summary.click()
    view.press("Compare")
    assert faults() == []


def test_groups_and_the_exploded_view(view, faults):
    view.show(entry(tree()))
    assert faults() == []
    view.press("Explode")
    assert faults() == []


def test_the_gallery_and_a_phone(view, faults):
    view.page.set_viewport_size({"width": 390, "height": 800})
    view.show(entry(scene(), original=scene().layers[0]), entry(tree(), title="x" * 300))
    assert faults() == []
    assert view.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    view.page.locator(".card").nth(1).click()
    view.ready()
    assert faults() == []
    assert view.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_a_fault_is_found(view, faults):
    view.show(entry(scene()))
    view.page.evaluate("() => document.querySelector('.png').replaceChildren()")
    assert any("button-name" in fault for fault in faults())


FOCUSED = """() => {
  const focused = document.activeElement;
  const marks = [focused, focused.nextElementSibling ?? focused].map((element) => getComputedStyle(element));
  return [focused.className || focused.name || focused.tagName, marks.some((mark) => mark.outlineStyle !== "none")];
}"""


def test_every_control_is_reached_by_tab_and_shows_it(view):
    view.show(entry(scene(), original=scene().layers[0]))
    reached = set()
    for _ in range(60):
        view.page.keyboard.press("Tab")
        name, outlined = view.page.evaluate(FOCUSED)
        reached.add(name)
        assert outlined or name == "BODY"
    wanted = {
        "word png",
        "word script",
        "picture",
        "ground",
        "word explode",
        "icon fit",
        "pick",
        "icon eye",
        "icon solo",
    }
    assert wanted <= reached
