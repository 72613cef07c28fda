"""The campaign of broken JSON: files that programs of the package write and read again, or that users write for them.

What is read nevertheless must say what the file says.
"""

import dataclasses
import json as text_of
import math
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qil_jax.documents.reasons import Dropped
from qil_jax.documents.sidecars import sidecar_fields
from qil_jax.editing import script
from qil_jax.editing.stack import Stack
from qil_jax.errors import QilError
from qil_jax.evaluation.job import claim
from qil_jax.export import bounds, formats
from qil_jax.export.format import Format
from qil_jax.export.result import read_record, write_result
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.describe import read_descriptions
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.loader.latent_files import LatentIndex, read_index, write_index
from qil_jax.scenes.assets import Kind, Stored, read_list, write_list
from qil_jax.training.sinks import FILE, LinesSink
from qil_jax.viewer.entry import contents
from qil_jax.viewer.page import embedded
from qil_jax.viewer.stored import stored_entry
from tools.fuzz.cases import Case
from tools.fuzz.damage import damaged_json
from tools.fuzz.isolated import judged, outcome
from tools.fuzz.readers import MOST_PIXELS, tree

SETTINGS = {"records": "ab", "count": 3, "size": None, "scores": [1.5, 2]}
SCRIPT = [
    {"op": "move", "layer": 1, "dx": 2},
    {"op": "opacity", "layer": "layer 0 \u00e4", "opacity": 0.5},
    {"op": "duplicate", "layer": 1, "name": "more"},
    {"op": "gradient_map", "layer": 1, "stops": [{"at": 0, "colour": "#000000"}, {"at": 1, "colour": "#ff0000"}]},
]
DESCRIPTIONS = [{"text": "the ground"}, {"text": "a kite", "box": [1, 2, 8, 9]}, {}]
METRICS = [{"step": step, "loss": 1 / (step + 1), "none": None} for step in range(4)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A file of JSON, and its reader.

    Attributes:
      file: path of the file.
      read: reads it, and says what is wrong with what was read; empty if nothing is.
      is_text: whether the file is a plain text, of which bytes are damaged.
      is_lines: whether each of its lines is JSON.
    """

    file: Path
    read: Callable[[], str]
    is_text: bool = False
    is_lines: bool = False


def json(seeds: range, folder: Path) -> Iterator[Case]:
    """One case per seed, one file of which values were exchanged."""
    bounds.MOST_PIXELS = MOST_PIXELS
    targets = _targets(folder)
    whole = {target.file: target.file.read_bytes() for target in targets}

    def judge(seed: int) -> Case:
        rng = random.Random(seed)
        target = rng.choice(targets)
        data = whole[target.file]
        if target.is_text:
            damaged = rng.randbytes(rng.randrange(40))
        elif target.is_lines:
            lines = data.splitlines()
            at = rng.randrange(len(lines))
            lines[at] = damaged_json(text_of.loads(lines[at]), rng)
            damaged = b"\n".join(lines)
        else:
            damaged = damaged_json(text_of.loads(data), rng)
        target.file.write_bytes(damaged)
        try:
            return outcome(seed, target.file.name, target.read)
        finally:
            target.file.write_bytes(data)

    yield from judged(seeds, judge)


def _targets(folder: Path) -> list[Target]:
    """Sound files of every kind."""
    layered = tree(1).layered
    layered.save(folder / "layers")
    formats.write(tree(0), folder / "exported", Format.PNG)
    result, made = folder / "result", tree(0)
    record = {"input": "a.png", "settings": {"prompt": "x"}, "health": {"empty": 1}, "decisions": ["none"]}
    write_result(result, made, made.layered.layers[0], record, exports=())
    (folder / "checkpoint").mkdir()
    _put(folder / "checkpoint" / "qil.json", dataclasses.asdict(Defaults(about="a checkpoint")))
    _put(folder / "describe.json", DESCRIPTIONS)
    _put(folder / "script.json", SCRIPT)
    (folder / "job").mkdir()
    claim(folder / "job", SETTINGS)
    index = LatentIndex(shards=(1,), vae="a", text_encoder="b", no_prompt="", rows=((8, 8, 2, 0),), text=4)
    write_index(folder, "train", index)
    (folder / "package").mkdir()
    write_list(folder / "package" / "assets.json", [Stored(file="a.png", name="a", kind=Kind.OBJECT, licence="MIT")])
    _put(folder / "poster.json", {"source": "us", "licence": "MIT", "category": "poster"})
    (folder / "run").mkdir()
    (folder / "run" / FILE).write_text("\n".join(text_of.dumps(line) for line in METRICS), encoding="utf-8")
    return [
        Target(file=folder / "layers" / "layered.json", read=lambda: _layers(folder / "layers")),
        Target(file=folder / "layers" / "caption.txt", read=lambda: _layers(folder / "layers"), is_text=True),
        Target(file=folder / "exported" / "manifest.json", read=lambda: _exported(folder / "exported")),
        Target(file=result / "result.json", read=lambda: _result(result)),
        Target(file=folder / "checkpoint" / "qil.json", read=lambda: _defaults(folder / "checkpoint")),
        Target(file=folder / "describe.json", read=lambda: _descriptions(folder / "describe.json")),
        Target(file=folder / "script.json", read=lambda: _script(folder / "script.json", layered)),
        Target(file=folder / "job" / "job.json", read=lambda: _job(folder / "job")),
        Target(file=folder / "train.json", read=lambda: _index(folder)),
        Target(file=folder / "package" / "assets.json", read=lambda: _assets(folder / "package" / "assets.json")),
        Target(file=folder / "poster.json", read=lambda: _sidecar(folder / "poster.psd")),
        Target(file=folder / "run" / FILE, read=lambda: _metrics(folder / "run"), is_lines=True),
    ]


def _put(file: Path, value: Any) -> None:
    file.write_text(text_of.dumps(value), encoding="utf-8")


def _said(file: Path) -> Any:
    return text_of.loads(file.read_bytes())


def _unlike(file: Path, found: Mapping[str, Any]) -> str:
    """Which values that were read are not those of the file, where it has them."""
    said = _said(file)
    same = {name: _numbers(said[name]) == _numbers(value) for name, value in found.items() if name in said}
    wrong = [f"{name} is {found[name]!r:.60}" for name, is_same in same.items() if not is_same]
    return f"{', '.join(wrong)}, and the file says otherwise" if wrong else ""


def _numbers(value: Any) -> Any:
    """A value of which numbers, and texts that say numbers, are as floats."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    try:
        return float(value) if math.isfinite(float(value)) else value
    except (TypeError, ValueError):
        return value


def _layers(folder: Path) -> str:
    read = LayeredImage.load(folder)
    said = _said(folder / "layered.json")
    names = list(read.names) if said.get("names") else said.get("names")
    found = {"names": names, "source": read.source, "licence": read.licence, "decisions": list(read.decisions)}
    again = folder.parent / "again"
    shutil.rmtree(again, ignore_errors=True)
    read.save(again)
    is_same = dataclasses.asdict(LayeredImage.load(again)) | {"layers": 0} == dataclasses.asdict(read) | {"layers": 0}
    return _unlike(folder / "layered.json", found) or ("" if is_same else "it is another once it was written")


def _exported(folder: Path) -> str:
    read = formats.read(folder)
    listed = _said(folder / "manifest.json")["layers"]
    names = [entry["name"] for entry in listed]
    groups = {
        i: (entry["group"]["left"], entry["group"]["top"]) for i, entry in enumerate(listed) if entry.get("group")
    }
    is_same = names == list(read.layered.names) and groups == {i: (g.left, g.top) for i, g in read.groups.items()}
    return "" if is_same else "names or groups are not those of the file"


def _result(folder: Path) -> str:
    record = read_record(folder)
    entry = stored_entry(folder)
    embedded(contents(entry)).encode()
    return "" if record is None else _unlike(folder / "result.json", record)


def _defaults(folder: Path) -> str:
    return _unlike(folder / "qil.json", dataclasses.asdict(Defaults.of(folder)))


def _descriptions(file: Path) -> str:
    found = read_descriptions(file)
    boxes = [entry.get("box") for entry in _said(file)]
    is_same = boxes == [None if x.box is None else list(x.box) for x in found]
    return "" if is_same else f"boxes {boxes} are read as {[x.box for x in found]}"


def _script(file: Path, layered: LayeredImage) -> str:
    stack = Stack.of(layered)
    operations = script.parse(file.read_bytes(), stack)
    script.replay(stack, operations).to_layered_image(layered)
    said = [entry["op"] for entry in _said(file)]
    return "" if said == [operation.op for operation in operations] else "its operations are others"


def _job(folder: Path) -> str:
    claim(folder, SETTINGS)
    said, wanted = (_without_none(values) for values in (_said(folder / "job.json"), SETTINGS))
    return "" if said == wanted else "settings that differ are taken for the same"


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that are not set, which is what an absent one means."""
    return {name: value for name, value in values.items() if value is not None}


def _index(folder: Path) -> str:
    read = read_index(folder, "train")
    found = dataclasses.asdict(read) | {"shards": list(read.shards), "rows": [list(row) for row in read.rows]}
    return _unlike(folder / "train.json", found)


def _assets(file: Path) -> str:
    read = [dataclasses.asdict(stored) for stored in read_list(file)]
    return "" if read == _said(file) else "its assets are others"


def _sidecar(document: Path) -> str:
    try:
        return _unlike(document.with_suffix(".json"), sidecar_fields(str(document)))
    except Dropped as dropped:
        raise QilError(dropped.detail) from dropped


def _metrics(folder: Path) -> str:
    file = folder / FILE
    before = file.read_bytes().splitlines()
    LinesSink(folder, since=2)
    kept = file.read_bytes().splitlines()
    return "" if [line for line in before if line in kept] == kept else "lines are kept that were not there"
