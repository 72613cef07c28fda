"""The app's page in a real browser: from a picture to layers, downloads and back, and nothing fetched elsewhere."""

import shutil
from pathlib import Path

import pytest
from app_server import encoded, noise, served

HERE = Path(__file__).resolve().parent
NAMES = ("chromium", "chromium-browser", "google-chrome")
AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("page"), "--max-megabytes", "1") as running:
        yield running


@pytest.fixture
def page(server):
    """A window of a headless Chromium on the app; at the end, all requests went to the app and nothing was printed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        window = chromium.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        window.set_default_timeout(30_000)
        fetched, printed = [], []
        window.on("request", lambda request: fetched.append(request.url))
        window.on("console", lambda message: printed.append(f"{message.type}: {message.text}"))
        window.on("pageerror", lambda error: printed.append(str(error)))
        window.goto(server.url)
        window.get_by_role("button", name="Decompose").wait_for()
        yield window
        chromium.close()
    assert [url for url in fetched if not url.startswith((server.url, "data:", "blob:"))] == []
    assert printed == []


def test_a_picture_becomes_layers_in_the_viewer_and_in_files(page, server, tmp_path):
    page.locator("input[type=file]").first.set_input_files(
        {"name": "kite.png", "mimeType": "image/png", "buffer": encoded(noise((64, 64), 1))}
    )
    page.get_by_role("button", name="Decompose").click()
    frame = page.frame_locator("iframe.viewer")
    frame.locator("body").wait_for()
