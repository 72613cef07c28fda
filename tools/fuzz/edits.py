"""The campaign of edit scripts, whole and broken, each carried out by `qil edit` on a folder of layers.

What is carried out is compared with a reading of docs/layers.md in a few lines of NumPy (`Canvas`): the names, the
order, the size, and the pixels of layers that exact operations alone changed.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import random
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qil_jax.programs import ended
from tools.fuzz.cases import Case, hashes, lost, mutate, write_bystanders

SIZE, LAYERS = (24, 18), 3
LARGE = (60, 45)
"""The size of a picture of the layers' shape."""
WIDE = 160
"""Pixels around the canvas in which `Plain` follows a layer."""
MEMORY = 2**28
"""Bytes of memory that the machine is said to have, so that large canvases are refused at once."""
NAMES = ("ground", "figure", "a [b]", "\u0663", "ground copy", "", "1", "a\x00b", "\ud800", "x" * 300)
COLOURS = ("#000000", "#12aBf3", "#FFFFFF", "red", "#12345", "")
ODD = (None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e999, float("nan"), 2**31, 10**30, "", "1", "\ud83d", [], {}, [[]])
DEEP = "DEEP"
"""What stands for lists within lists."""
ODD += (DEEP, "a\x00b", "x" * 10**4, {"a": 1}, 1e-320, "\u202e")
PICTURES = ("picture.png", "script.json", "nowhere.png", ".", "/dev/null", "a\x00b", "../picture.png", "x" * 5000)
EXACT = ("move", "flip", "opacity", "crop", "reorder", "duplicate", "delete", "crop_canvas", "extend_canvas")


def edits(seeds: range, folder: Path) -> Iterator[Case]:
    """One case per seed, a script of up to nine operations, broken in every other case."""
    from qil_jax import host_memory

    templates = _furnish(folder)
    known, host_memory.host_bytes = host_memory.host_bytes, lambda: MEMORY
    try:
        for seed in seeds:
            place = folder / f"case {seed}"
            place.mkdir()
            write_bystanders(place)
            yield _case(seed, templates, place)
            shutil.rmtree(place)
    finally:
        host_memory.host_bytes = known


def _furnish(folder: Path) -> tuple[Path, ...]:
    """A folder of PNGs and a result of the same layers, with a picture beside them."""
    from qil_jax.export.result import write_result
    from qil_jax.layers.layered_image import LayeredImage

    rng = np.random.default_rng(0)
    layers = np.zeros((LAYERS, SIZE[1], SIZE[0], 4), np.uint8)
    layers[0] = rng.integers(0, 256, (SIZE[1], SIZE[0], 4))
    layers[0, ..., 3] = 255
    layers[1, 3:12, 5:20] = rng.integers(0, 256, (9, 15, 4))
    layers[2, 8:10, 2:4] = 200
    image = LayeredImage(layers=layers, names=("ground", "figure", "figure"))
    image.save(folder / "pngs")
    write_result(folder / "result", image, layers[0], {"settings": {}})
    return folder / "pngs", folder / "result"


def _case(seed: int, templates: tuple[Path, ...], place: Path) -> Case:
    from qil_jax.cli import edit

    rng = random.Random(seed)
    template = rng.choice(templates)
    Image.new("RGB", (7, 5), (90, 10, 200)).save(place / "picture.png")
    Image.effect_noise(LARGE, 90).save(place / "large.png")
    items: Any = [_operation(rng) for _ in range(rng.choice([0, 1, 2, 3, 5, 9]))]
    if rng.random() < 0.1:
        items.insert(0, {"op": "refine", "picture": "large.png"})  # later the layers seldom have its shape
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        items = _broken(items, rng)
    depth = rng.choice([3, 300, 990, 10**5])
    text = json.dumps(items).replace(json.dumps(DEEP), "[" * depth + "]" * depth).encode()
    (place / "script.json").write_bytes(mutate(text, rng) if rng.random() < 0.1 else text)
    before, source, out = hashes(place), hashes(template), place / "out"
    words = [str(template), "--script", str(place / "script.json"), "--out", str(out)]
    words += rng.choice([[], [], [], ["--until", str(rng.choice([0, 1, 99, -1]))]])
    status, printed = _called(edit.main, words)
    failures = [lost(before, hashes(place)), lost(source, hashes(template))]
    if status not in (0, 2):
        failures.append(f"ended with {status}: {printed.strip()[-600:]}")
    elif status == 2 and (out.exists() or not printed.startswith("error: ")):
        failures.append(f"refused, but {'something was written' if out.exists() else printed[-300:]!r}")
    elif status == 0:
        until = int(words[-1]) if "--until" in words else None
        failures.append(_unlike(template, out, json.loads((place / "script.json").read_bytes())[:until]))
    outcome = "edited" if status == 0 else "refused: no JSON" if "is no JSON" in printed else "refused"
    return Case(seed=seed, outcome=outcome, failure="; ".join(filter(None, failures)))


def _called(main: Any, words: list[str]) -> tuple[object, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            return ended(main, words), printed.getvalue()
        except BaseException as error:
            traceback.print_exc()
            return type(error).__name__, printed.getvalue()


def _operation(rng: random.Random) -> dict[str, Any]:
    """An operation that mostly can be carried out."""
    layer = rng.choice([1, 1, 1, 2, 2, 2, 3, 3, 3, "ground", "ground", 4, "figure"])
    distance, side = (lambda: rng.randint(-30, 30)), (lambda: rng.randint(1, 40))
    of = {
        "move": lambda: {"dx": distance(), "dy": distance()},
        "resize": lambda: (
            rng.choice(
                [{"scale": rng.choice([0.1, 0.5, 1, 2, 3.3])}, {"width": side()}, {"width": side(), "height": side()}]
            )
            | rng.choice([{}, {"anchor": rng.choice(["centre", "left", "top-left", "bottom-right"])}])
        ),
        "rotate": lambda: {"degrees": rng.choice([0, 90, 180, -90, 360, 12.5, rng.uniform(-360, 360)])},
        "flip": lambda: {"axis": rng.choice(["horizontal", "vertical"])},
        "hue": lambda: {"degrees": rng.uniform(-360, 360)},
        "tint": lambda: {"colour": rng.choice(COLOURS[:3]), "amount": rng.random()},
        "gradient_map": lambda: {"stops": [{"at": 0, "colour": "#001020"}, {"at": rng.random(), "colour": "#ffffff"}]},
        "opacity": lambda: {"opacity": rng.choice([0, 1, 0.5, rng.random()])},
        "crop": lambda: {"left": distance(), "top": distance(), "width": side(), "height": side()},
        "replace": lambda: {"picture": "picture.png", "fit": rng.choice(["contain", "cover", "stretch"])},
        "reorder": lambda: (
            {rng.choice(["above", "below"]): rng.randint(1, 4)} if rng.random() < 0.5 else {"to": rng.randint(1, 3)}
        ),
        "duplicate": lambda: rng.choice([{}, {"name": "twin"}, {"dx": distance()}]),
        "delete": dict,
        "crop_canvas": lambda: {
            "left": rng.randint(0, 9),
            "top": rng.randint(0, 9),
            "width": rng.randint(1, 15),
            "height": rng.randint(1, 9),
        },
        "refine": lambda: {"picture": rng.choice(["large.png", "large.png", "picture.png"])},
        "extend_canvas": lambda: {rng.choice(["left", "top", "right", "bottom"]): rng.choice([0, 1, 7, 40])},
    }
    op = rng.choice(list(of) + [*EXACT] * 2)
    return {"op": op, **({} if op == "refine" or op.endswith("canvas") else {"layer": layer}), **of[op]()}


def _broken(items: Any, rng: random.Random) -> Any:
    """A script with one thing changed: a value, a field, an operation, or the whole."""
    if not isinstance(items, list) or not items or rng.random() < 0.03:
        return rng.choice([*ODD, {"op": "move"}, [ODD[0]]])
    at, items = rng.randrange(len(items)), list(items)
    if not isinstance(items[at], dict) or rng.random() < 0.08:
        return [*items[:at], rng.choice(ODD), *items[at + 1 :]]
    if rng.random() < 0.1:
        return items * rng.choice([2, 40]) + [{"op": "duplicate", "layer": 1, "name": rng.choice(NAMES)}]
    return [*items[:at], _broken_item(items[at], rng), *items[at + 1 :]]


def _broken_item(item: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """An operation with a field changed, left out or added, or one that asks for what cannot be."""
    item, name = dict(item), rng.choice(list(item) or ["op"])
    match rng.randrange(6):
        case 0:
            item.pop(name, None)
        case 1:
            item[rng.choice(["op", "layer", "dx", "scale", "to", "above", "stops", "nope", "name"])] = rng.choice(ODD)
        case 2:
            item["layer"] = rng.choice(NAMES)
        case 3:
            of = rng.choice([{"op": "replace", "layer": 1}, {"op": "refine"}])
            item = {**of, "picture": rng.choice(PICTURES), **rng.choice([{}, {"fit": "x"}])}
        case 4:
            item = {"op": "extend_canvas", rng.choice(["left", "top"]): rng.choice([8000, 16384, 10**9, -1])}
        case _:
            item[name] = rng.choice(ODD)
    return item


@dataclasses.dataclass
class Plain:
    """A layer as docs/layers.md describes it.

    Attributes:
      number: its number.
      name: its name.
      pixels: straight RGBA, `WIDE` pixels beyond the first canvas; None if an operation that is not exact changed them.
      opacity: factor of alpha.
    """

    number: int
    name: str
    pixels: np.ndarray | None
    opacity: float = 1.0


class Canvas:
    """Layers, and the rectangle of the first canvas that is the canvas now."""

    def __init__(self, layers: np.ndarray, names: tuple[str, ...]):
        pad = ((WIDE, WIDE), (WIDE, WIDE), (0, 0))
        found = enumerate(zip(names, layers, strict=True), start=1)
        self.layers = [Plain(number, name, np.pad(pixels, pad)) for number, (name, pixels) in found]
        self.left, self.top, self.size, self.number = 0, 0, SIZE, len(layers)

    def carry_out(self, item: dict[str, Any]) -> None:
        """Carry out an operation that can be."""
        op, of = item["op"], self._index(item.get("layer"))
        change = getattr(self, f"_{op}", None)
        if change is not None:
            change(item, of)
        else:
            self.layers[of].pixels = _changed(self.layers[of].pixels, item, (self.left, self.top))

    def unlike(self, pixels: np.ndarray, layer: Plain) -> bool:
        """Whether written pixels differ from a layer where they show; not where it is unknown what they are."""
        (width, height), (x, y) = self.size, (self.left + WIDE, self.top + WIDE)
        if layer.pixels is None or min(x, y) < 0 or max(x + width, y + height) > min(layer.pixels.shape[:2]):
            return False
        wanted = layer.pixels[y : y + height, x : x + width].copy()
        wanted[..., 3] = np.rint(wanted[..., 3] * layer.opacity)
        shows = wanted[..., 3:] > 0
        return not np.array_equal(wanted[..., 3], pixels[..., 3]) or bool((shows * (wanted != pixels)).any())

    def _index(self, address: Any) -> int:
        return next((i for i, layer in enumerate(self.layers) if address in (layer.number, layer.name)), 0)

    def _reorder(self, item: dict[str, Any], of: int) -> None:
        layer, beside = self.layers.pop(of), item.get("above") or item.get("below")
        place = self._index(beside) + (item.get("above") is not None) if beside else item["to"] - 1
        self.layers.insert(place, layer)

    def _delete(self, _: dict[str, Any], of: int) -> None:
        del self.layers[of]

    def _duplicate(self, item: dict[str, Any], of: int) -> None:
        self.number += 1
        layer, taken = self.layers[of], {other.name for other in self.layers}
        names = (f"{layer.name} copy{f' {count}' if count > 1 else ''}" for count in itertools.count(1))
        name = item.get("name") or next(name for name in names if name not in taken)
        pixels = _changed(layer.pixels, {**item, "op": "move"}, (0, 0))
        self.layers.insert(of + 1, Plain(self.number, name, pixels, layer.opacity))

    def _opacity(self, item: dict[str, Any], of: int) -> None:
        self.layers[of].opacity = item["opacity"]

    def _crop_canvas(self, item: dict[str, Any], _: int) -> None:
        self.left, self.top = self.left + item["left"], self.top + item["top"]
        self.size = item["width"], item["height"]

    def _refine(self, *_: Any) -> None:
        self.size = LARGE
        for layer in self.layers:
            layer.pixels = None

    def _extend_canvas(self, item: dict[str, Any], _: int) -> None:
        left, top, right, bottom = (item.get(side, 0) for side in ("left", "top", "right", "bottom"))
        self.left, self.top = self.left - left, self.top - top
        self.size = self.size[0] + left + right, self.size[1] + top + bottom


def _unlike(template: Path, out: Path, items: list[dict[str, Any]]) -> str:
    """How the written layers differ from what the documentation says of the operations; empty if they do not."""
    from qil_jax.export.stored import read_tree

    made, began = (read_tree(folder).layered for folder in (out, template))
    canvas = Canvas(began.layers, began.names)
    for item in items:
        canvas.carry_out(item)
    names = [layer.name for layer in canvas.layers]
    if made.size != canvas.size or list(made.names) != names:
        return f"{made.size} {made.names} were made of {canvas.size} {names}"
    unlike = [x.number for x, pixels in zip(canvas.layers, made.layers, strict=True) if canvas.unlike(pixels, x)]
    return f"layers {unlike} differ from what the operations say" if unlike else ""


def _changed(pixels: np.ndarray | None, item: dict[str, Any], origin: tuple[int, int]) -> np.ndarray | None:
    """The pixels after an operation on them; None if it is not exact, or they leave what is followed."""
    match item["op"]:
        case _ if pixels is None:
            return None
        case "move":
            return _moved(pixels, item.get("dx", 0), item.get("dy", 0))
        case "crop":
            left, top = (item[side] + at + WIDE for side, at in zip(("left", "top"), origin, strict=True))
            out = np.zeros_like(pixels)
            part = slice(max(0, top), max(0, top + item["height"])), slice(max(0, left), max(0, left + item["width"]))
            out[part] = pixels[part]
            return out
        case "flip":
            return _flipped(pixels, item["axis"])
        case _:
            return None


def _moved(pixels: np.ndarray, dx: int, dy: int) -> np.ndarray | None:
    if max(abs(dx), abs(dy)) >= WIDE:
        return None
    out = np.roll(pixels, (dy, dx), (0, 1))
    left = (out[:dy] if dy > 0 else out[len(out) + dy :]), (out[:, :dx] if dx > 0 else out[:, out.shape[1] + dx :])
    return None if any(edge.any() for edge in left) else out


def _flipped(pixels: np.ndarray, axis: str) -> np.ndarray:
    """The visible pixels mirrored in their box."""
    if not pixels[..., 3].any():
        return pixels
    (y, x), out = np.nonzero(pixels[..., 3]), np.zeros_like(pixels)
    box = slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)
    out[box] = pixels[box][:, ::-1] if axis == "horizontal" else pixels[box][::-1]
    return out
