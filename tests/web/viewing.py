"""A window that shows a viewer, and results to be shown."""

import base64
import json
from pathlib import Path

import numpy as np

from qil_jax.editing.script import parse, replay
from qil_jax.editing.stack import Stack
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.viewer.entry import Entry
from qil_jax.viewer.page import viewer_html

PIXELS = """() => {
  const pixels = viewer.pixels();
  const parts = [];
  for (let i = 0; i < pixels.length; i += 8192) parts.push(String.fromCharCode(...pixels.subarray(i, i + 8192)));
  return btoa(parts.join(""));
}"""


class View:
    """A page of the browser: what it shows, what it fetched and what it printed."""

    def __init__(self, page, folder: Path):
        self.page, self.folder = page, folder
        self.fetched: list[str] = []
        self.printed: list[str] = []
        page.on("request", lambda request: self._request(request.url))
        page.on("console", lambda message: self.printed.append(message.text))
        page.on("pageerror", lambda error: self.printed.append(str(error)))
        page.on("dialog", lambda dialog: self.printed.append(dialog.message))

    def _request(self, address: str) -> None:
        if not address.startswith(("data:", "blob:", self.folder.as_uri())):
            self.fetched.append(address)

    def show(self, *entries: Entry) -> None:
        """Show the page of results, and wait for the viewer if there is one result."""
        self.go(viewer_html(entries))
        if len(entries) == 1:
            self.ready()

    def go(self, html: str) -> None:
        file = self.folder / "page.html"
        file.write_text(html, encoding="utf-8")
        self.page.goto(file.as_uri())

    def ready(self) -> None:
        self.page.wait_for_function("() => window.viewer !== undefined")

    def pixels(self) -> np.ndarray:
        """The exact pixels of the canvas."""
        width, height = self.page.evaluate("() => viewer.editor.result.size")
        data = base64.b64decode(self.page.evaluate(PIXELS))
        return np.frombuffer(data, np.uint8).reshape(height, width, 4)

    def row(self, name: str):
        """The row of a layer in the list."""
        return self.page.locator(".layer", has=self.page.get_by_text(name, exact=True))

    def press(self, label: str) -> None:
        self.page.get_by_role("button", name=label, exact=True).click()

    def select(self, name: str) -> None:
        self.row(name).locator(".pick").click()

    def names(self) -> list[str]:
        """The names of the list, topmost first, groups included."""
        return self.page.locator(".list .name").all_text_contents()

    def download(self, label: str) -> Path:
        """The file that a button saves."""
        with self.page.expect_download() as saving:
            self.press(label)
        file = self.folder / saving.value.suggested_filename
        saving.value.save_as(file)
        return file

    def drag(self, begin: tuple[float, float], end: tuple[float, float], steps: int = 5) -> None:
        """Drag from one point of the canvas to another, in pixels of the canvas."""
        box = self.page.locator(".picture").bounding_box()
        zoom = self.page.evaluate("() => viewer.stage.zoom")
        mouse = self.page.mouse
        mouse.move(*(box[side] + at * zoom for side, at in zip("xy", begin, strict=True)))
        mouse.down()
        mouse.move(*(box[side] + at * zoom for side, at in zip("xy", end, strict=True)), steps=steps)
        mouse.up()


def scene(width: int = 64, height: int = 48, seed: int = 0) -> LayeredImage:
    """A ground, a soft disc, a box with hidden colour around it, noise, and a layer of which nothing shows."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((5, height, width, 4), np.uint8)
    layers[0] = rng.integers(0, 256, 4)
    layers[0, ..., :3] += rng.integers(0, 20, (height, width, 3), np.uint8)
    layers[0, ..., 3] = 255
    y, x = np.mgrid[:height, :width]
    layers[1, ..., :3] = 200, 40, 90
    layers[1, ..., 3] = np.clip(40 * (height / 4 - np.hypot(x - width / 3, y - height / 2)), 0, 255)
    layers[1, layers[1, ..., 3] == 0] = 0
    layers[2, 4:20, 30:60] = 10, 120, 250, 0
    layers[2, 8:16, 34:54, 3] = 200
    layers[3, 20:40, 40:62] = rng.integers(0, 256, (20, 22, 4))
    return LayeredImage(layers=layers, names=("ground", "disc", "box", "noise", "nothing"))


def tree() -> LayerTree:
    """A ground, and a group of a disc and of a group of two more, on a canvas that sticks out on the right."""
    ground, disc, *parts, _ = scene().layers
    inner = LayerTree(layered=LayeredImage(layers=np.stack(parts)[:, 4:40, 30:62], names=("box", "noise")))
    middle = np.stack([disc[:, 4:], np.zeros_like(disc[:, 4:])])
    outer = LayerTree(
        layered=LayeredImage(layers=np.pad(middle, ((0, 0), (0, 0), (0, 6), (0, 0))), names=("disc", "things")),
        groups={1: Group(tree=inner, left=26, top=4)},
    )
    stack = LayeredImage(layers=np.stack([ground, np.zeros_like(ground)]), names=("ground", "group"))
    whole = LayerTree(layered=stack, groups={1: Group(tree=outer, left=4, top=0)})
    return whole.with_leaves(whole.leaves().layers)


def edited(layered: LayeredImage, *operations: dict) -> LayeredImage:
    """What editing makes of layers."""
    stack = Stack.of(layered)
    return replay(stack, parse(json.dumps(operations), stack)).to_layered_image(layered)


def entry(stack: LayeredImage | LayerTree, **fields) -> Entry:
    return Entry(**{"tree": LayerTree.of(stack), "title": "scene", **fields})
