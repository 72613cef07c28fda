"""The app's page in a real browser: from a picture to layers, downloads and back, and nothing fetched elsewhere."""

import json
from pathlib import Path

import numpy as np
import pytest
from app_server import encoded, layers_in, noise
from waiting import HANGS

from qil_jax.export.formats import read

pytestmark = pytest.mark.full

SERIOUS = ("serious", "critical")
LACKING = ".empty[aria-label], .gallery-item:not([aria-label])"
"""What the app mends in gradio's components once they are there."""


@pytest.fixture
def by_gradio() -> set[str]:
    """What gradio 6.31 itself prints; this one whenever its page is mounted."""
    return {"Method not implemented."}


@pytest.fixture
def page(browser, server, by_gradio):
    """A window on the app; at the end, all that was fetched came from the app, and nothing else was printed."""
    with browser.new_context(viewport={"width": 1360, "height": 1000}, accept_downloads=True) as context:
        window = context.new_page()
        window.set_default_timeout(1000 * HANGS)
        fetched, printed = [], []
        window.on("request", lambda request: fetched.append(request.url))
        window.on("console", lambda message: printed.append(message.text))
        window.on("pageerror", lambda error: printed.append(str(error)))
        window.goto(server.url)
        window.get_by_role("button", name="Decompose").wait_for()
        window.wait_for_function(f"document.querySelector('.empty') && !document.querySelector({LACKING!r})")
        yield window
        assert [url for url in fetched if not url.startswith((server.url, "data:", "blob:"))] == []
        assert [text for text in printed if text not in by_gradio] == []


def send(page, data: bytes, name: str) -> None:
    page.locator("input[type=file]").first.set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def upload(page, data: bytes, name: str) -> None:
    send(page, data, name)
    page.get_by_role("button", name="Remove Image").wait_for()


def set_steps(page, steps: int) -> None:
    page.get_by_text("More settings").click()
    page.get_by_role("spinbutton", name="Steps").fill(str(steps))


def decompose(page) -> None:
    page.get_by_role("button", name="Decompose").click()


def viewer(page):
    """The viewer's frame, once its layers are there."""
    frame = page.frame_locator("iframe.viewer")
    frame.get_by_text("Layer 2").first.wait_for()
    assert page.locator("iframe.viewer").bounding_box()["width"] > 700  # of 1360, beside the settings
    return frame


def serious_faults(page, npm: Path) -> list[str]:
    page.evaluate((npm / "axe-core" / "axe.min.js").read_text() + "; 0")
    found = page.evaluate("axe.run(document, {iframes: false})")
    assert len(found["passes"]) > 20
    return [
        f"{fault['id']}: {[node['target'] for node in fault['nodes']]}"
        for fault in found["violations"]
        if fault["impact"] in SERIOUS
    ]


def test_a_picture_becomes_layers_in_the_viewer_and_in_files(page, tmp_path):
    upload(page, encoded(noise((64, 64), 1)), "a kite.png")
    set_steps(page, 2)
    for kind in ("ora", "pptx"):
        page.get_by_label(kind).check()
    decompose(page)
    frame = viewer(page)
    assert frame.get_by_text("a_kite", exact=True).count() == 1
    assert page.locator("iframe.viewer").get_attribute("sandbox") == "allow-scripts allow-downloads"
    assert "3 layers of 64 x 64 pixels" in page.locator("#said").inner_text()
    got = {}
    for link in page.locator("#files a[download]").all():
        with page.expect_download() as download:
            link.click()
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        got[file.suffix] = file
    assert sorted(got) == [".json", ".ora", ".pptx", ".psd", ".zip"]
    layers = layers_in(got[".zip"].read_bytes())
    for kind in (".psd", ".ora", ".zip"):
        seen = read(got[kind]).leaves().layers
        np.testing.assert_array_equal(seen[..., 3], layers[..., 3])
    assert len(json.loads(got[".json"].read_text())["layers"]) == 3
    with page.expect_download() as download:
        frame.get_by_role("button", name="PNG").click()
    assert Path(download.value.suggested_filename).suffix == ".png"


def test_examples_settings_and_cancelling(page, server):
    page.get_by_role("button", name="Example 3").click()
    page.get_by_role("button", name="Remove Image").wait_for()
    set_steps(page, 100)
    with server.holding():
        decompose(page)
        page.get_by_text("Step ").first.wait_for()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Stopped.").wait_for()
    assert page.locator("iframe.viewer").count() == 0
    page.get_by_role("spinbutton", name="Steps").fill("2")
    decompose(page)
    viewer(page)


def test_what_is_no_picture_is_named_and_does_no_harm(page):
    upload(page, b"<html>", "<img src=x onerror=alert(1)>.png")
    decompose(page)
    page.get_by_text("cannot be read as a picture").wait_for()


def test_what_is_too_large_is_named_before_it_is_sent(page, by_gradio):
    by_gradio |= {"Failed to load resource: the server responded with a status of 404 (Not Found)", "Response"}
    send(page, bytes(2**20 + 1), "large.png")
    page.get_by_text('File(s) exceed the maximum allowed size of 1.0 Mb: "large.png"').wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault(page, server, npm, theme):
    page.goto(f"{server.url}/?__theme={theme}")
    page.get_by_role("button", name="Decompose").wait_for()
    page.wait_for_function(f"document.querySelector('.empty') && !document.querySelector({LACKING!r})")
    page.set_viewport_size({"width": 1360, "height": 2600})  # axe passes over what has to be scrolled to
    assert serious_faults(page, npm) == []
    upload(page, encoded(noise((64, 64), 1)), "kite.png")
    set_steps(page, 2)
    decompose(page)
    viewer(page)
    page.get_by_text("recomposition_psnr_db").wait_for()
    assert serious_faults(page, npm) == []
