"""A headless Chromium for the tests of pages, in which nothing may be fetched and nothing printed; and an app."""

import shutil
from pathlib import Path

import pytest
from app_server import served
from viewing import View
from waiting import HANGS

HERE = Path(__file__).resolve().parent
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    """A browser for the tests of a module: while playwright runs, nothing else can run an asyncio loop."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[test]'")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=1000 * HANGS)
        yield running
        running.close()


@pytest.fixture
def view(browser, tmp_path):
    """A window of the browser; at the end, nothing was fetched and nothing is on the console."""
    with browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True) as context:
        page = context.new_page()
        page.set_default_timeout(1000 * HANGS)
        seen = View(page, tmp_path)
        yield seen
        assert seen.fetched == []
        assert seen.printed == []


@pytest.fixture(scope="session")
def npm():
    """The folder of the packages of package.json."""
    if not (HERE / "node_modules" / "ag-psd").is_dir() or not (HERE / "node_modules" / "axe-core").is_dir():
        pytest.skip("needs packages of npm: npm ci --prefix tests/web")
    if shutil.which("node") is None:
        pytest.skip("needs Node.js: apt-get install nodejs")
    return HERE / "node_modules"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """An app of the shipped model that takes pictures of 1 MB, and makes layers of two million pixels."""
    with served(tmp_path_factory.mktemp("app"), "--max-megabytes", "1", "--max-layer-pixels", "2000000") as running:
        yield running
