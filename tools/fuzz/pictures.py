"""The campaign of broken pictures: folders of them, each decomposed by infer.py with --skip-bad."""

import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tools.fuzz.cases import Case, hashes, lost, mutate, watched, write_bystanders

TOGETHER = 100
"""Number of pictures of one run, in which a broken picture must not affect the results of the others."""
SIZES = ((64, 64), (80, 48), (48, 80))
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "avif": "AVIF"}
MODES = {"PNG": ("RGBA", "RGB", "L", "P", "1", "I;16"), "TIFF": ("RGBA", "CMYK", "L"), "GIF": ("P",)}
SETTINGS = ("--skip-bad", "--resolution", "64", "--steps", "1", "--layers", "1")
SKIPPED = "skipped: "


def pictures(seeds: range, folder: Path) -> Iterator[Case]:
    """One case per seed, a picture, mutated in nine of ten cases, and sometimes a mutated prompt beside it."""
    checkpoint = folder / "checkpoint"
    code, printed, _ = watched(["tools/make_demo_checkpoint.py", str(checkpoint)])
    if code:
        raise RuntimeError(f"no checkpoint to decompose with: {printed}")
    for start in range(seeds.start, seeds.stop, TOGETHER):
        place = folder / f"from {start}"
        yield from _decomposed(range(start, min(start + TOGETHER, seeds.stop)), checkpoint, place)
        shutil.rmtree(place)


def _decomposed(seeds: range, checkpoint: Path, place: Path) -> Iterator[Case]:
    source, out = place / "pictures", place / "out"
    source.mkdir(parents=True)
    names = {seed: _write(seed, source) for seed in seeds}
    write_bystanders(out)
    inputs, others = hashes(source), hashes(out)
    words = ["decompose", str(source), "--checkpoint", str(checkpoint), "--out", str(out), *SETTINGS]
    code, printed, failure = watched(words)
    skipped = [line for line in printed.splitlines() if line.startswith(SKIPPED)]
    failures = [failure, lost(inputs, hashes(source)), lost(others, hashes(out))]
    if code != (3 if skipped else 0):
        failures.append(f"exit status {code} with {len(skipped)} pictures skipped: {printed.strip()[-300:]}")
    whole = "; ".join(filter(None, failures))
    for seed, name in names.items():
        reason = next((line for line in skipped if name in line), "")
        made = (out / name.split(".")[0] / "result.json").is_file()
        wrong = "" if made != bool(reason) else "neither a result nor a reason" if not made else "both"
        first = whole if seed == seeds.start else ""
        yield Case(seed=seed, outcome="decomposed" if made else _kind(reason), failure=first or wrong)


def _write(seed: int, folder: Path) -> str:
    """Write the picture of a seed and return the name of its file."""
    rng = random.Random(seed)
    ending = rng.choice(list(FORMATS))
    name = f"{seed:06d}.{ending}"
    whole = _encoded(rng, FORMATS[ending])
    (folder / name).write_bytes(whole if rng.random() < 0.1 else mutate(whole, rng))
    if rng.random() < 0.1:
        (folder / name).with_suffix(".txt").write_bytes(rng.randbytes(rng.randrange(40)))
    return name


def _encoded(rng: random.Random, kind: str) -> bytes:
    mode = rng.choice(MODES.get(kind, ("RGB",)))
    wide, high = rng.choice(SIZES)
    noise = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (high, wide, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0])
    else:
        image = Image.fromarray(noise, "RGBA").convert("RGB" if mode in ("P", "1", "CMYK") else mode).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def _kind(reason: str) -> str:
    """The class of a reason, without names and details."""
    for words in (
        "cannot be read as a picture",
        "animated",
        "too many pixels",
        "scale it down",
        "no UTF-8",
        "crop or pad",
    ):
        if words in reason:
            return f"refused: {words}"
    return f"refused: {json.dumps(reason[-60:])}" if reason else "nothing"
