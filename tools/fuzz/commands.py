"""The campaign of broken command lines: words dropped, doubled, misspelt and replaced by odd values.

Programs run in this process, so that a case takes milliseconds. The layers that infer.py would compute are
painted instead, so that valid command lines end in seconds; all other code is the program's own.
"""

import contextlib
import importlib
import io
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from qil_jax.cli.__main__ import main_of
from qil_jax.cli.commands import COMMANDS as VERBS
from qil_jax.programs import ended
from tools.fuzz.cases import ROOT, Case, hashes, lost, write_bystanders

if TYPE_CHECKING:
    from qil_jax.inference.request import Decomposition, Request

ODD = (
    "",
    " ",
    "-1",
    "0",
    "00",
    "1.5",
    "nan",
    "1e309",
    "-0",
    "9" * 30,
    "\u0663",
    "\udcff",
    "a" * 300,
    "../..",
    "[",
    "{}",
)
ODD += ("=", "None", "true", "--", "-", "*", "~", "$HOME", "a\nb", "data=2", "data=", "x=1,x=2", "missing", "a.png")
NUMBERS = ("2", "3", "4", "5", "16", "32", "96", "100", "4294967295")
STATUSES = (0, 1, 2, 3)
"""Permitted exit statuses; any other status or an exception is a failure."""
CHECKPOINT = "checkpoint"
COMMANDS = {
    "decompose": (
        *("a.png", "--out", "out", "--checkpoint", CHECKPOINT, "--layers", "2", "--steps", "1", "--guidance", "1"),
        *("--resolution", "64", "--seed", "3", "--samples", "2", "--batch", "2", "--prompt", "x", "--dtype", "float32"),
        *("--output-size", "input", "--skip-bad", "--overwrite", "--max-layers", "4", "--rescale", "none"),
        *("--caption-language", "en"),
    ),
    "train": ("configs/demo/stage3_image_to_layers.py", "--out", "run", "--set", "steps=2", "--set", "mesh.data=1"),
    "convert": ("to-orbax", CHECKPOINT, "converted", "--overwrite"),
    "validate": (CHECKPOINT, "--tolerance", "1e-4"),
    "make-scenes": ("--count", "2", "--side", "64", "--out", "scenes", "--seed", "1", "--preset", "simple"),
    "evaluate": ("layers", "pictures", "--out", "report", "--checkpoint", CHECKPOINT, "--count", "2"),
    "tools/make_demo_checkpoint.py": ("another", "--preset", "try", "--overwrite"),
}


def commands(seeds: range, folder: Path) -> Iterator[Case]:
    """One case per seed, a program called with a mutated command line."""
    template = folder / "template"
    _furnish(template)
    before, here = Path.cwd(), hashes(template)
    with _painted():
        for seed in seeds:
            place = folder / f"case {seed}"
            shutil.copytree(template, place)
            os.chdir(place)
            try:
                yield _case(seed, place, here)
            finally:
                os.chdir(before)
                shutil.rmtree(place)


def _furnish(folder: Path) -> None:
    """Create a user's files: pictures, a checkpoint, and unrelated files where programs write."""
    from tools.make_demo_checkpoint import write_checkpoint

    (folder / "pictures").mkdir(parents=True)
    for name in ("a.png", "pictures/b.png"):
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / name)
    write_checkpoint(folder / CHECKPOINT)
    for name in ("out", "out/pictures", "run", "another"):
        write_bystanders(folder / name)


def _case(seed: int, place: Path, before: dict[str, str]) -> Case:
    rng = random.Random(seed)
    program = rng.choice(list(COMMANDS))
    words = list(COMMANDS[program])
    for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 2, 2, 4])):
        words = _broken(words, rng)
    if program == "train":
        words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    status, printed = _called(program, words)
    wrong = lost(before, hashes(place))
    if status not in STATUSES:
        wrong = f"{program} {words} ended with {status}: {printed.strip()[-400:]}" + (f"; {wrong}" if wrong else "")
    elif wrong:
        wrong = f"{program} {words}: {wrong}"
    return Case(seed=seed, outcome=f"{program}: {'done' if status in (0, 3) else 'refused'}", failure=wrong)


def _broken(words: list[str], rng: random.Random) -> list[str]:
    if not words:
        return [rng.choice(ODD)]
    at = rng.randrange(len(words))
    match rng.randrange(8):
        case 0:
            return words[:at] + words[at + 1 :]
        case 1:
            return [*words[:at], words[at], *words[at:]]
        case 2:
            letter = rng.randrange(max(1, len(words[at])))
            return [
                *words[:at],
                words[at][:letter] + rng.choice("aZ0-_. ") + words[at][letter + 1 :],
                *words[at + 1 :],
            ]
        case 3:
            return [*words[:at], rng.choice(words), *words[at + 1 :]]
        case 4:
            return [*words[:at], rng.choice(ODD), *words[at + 1 :]]
        case _:  # a value rather than an option
            at = rng.choice([i for i, word in enumerate(words) if not word.startswith("--")] or [at])
            return [*words[:at], rng.choice((*ODD, *NUMBERS)), *words[at + 1 :]]


def _main_of(program: str) -> Callable[[list[str]], int]:
    """The function `main` of a verb of `qil`, or of a program of the repository by its path."""
    if program in VERBS:
        return main_of(program)
    return importlib.import_module(program.removesuffix(".py").replace("/", ".")).main


def _called(program: str, words: list[str]) -> tuple[object, str]:
    """Exit status of a program, or the exception that it raised, and its output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            return ended(_main_of(program), words), printed.getvalue()
        except SystemExit as end:
            return end.code, printed.getvalue()
        except BaseException as error:
            traceback.print_exc()
            return type(error).__name__, printed.getvalue()


@contextlib.contextmanager
def _painted() -> Iterator[None]:
    """Replace decompositions by painted layers within the context."""
    from qil_jax.inference.pipeline import Pipeline

    prepare, decompose = Pipeline.prepare, Pipeline.decompose
    try:
        Pipeline.prepare = lambda *_, **__: None  # type: ignore[method-assign]
        Pipeline.decompose = _paint  # type: ignore[method-assign]
        yield
    finally:
        Pipeline.prepare, Pipeline.decompose = prepare, decompose  # type: ignore[method-assign]


def _paint(_self: Any, requests: Sequence["Request"], *_: Any, **__: Any) -> "list[Decomposition]":
    from qil_jax.inference.defaults import Defaults
    from qil_jax.inference.images import bucket_size
    from qil_jax.inference.request import Decomposition
    from qil_jax.layers.layered_image import LayeredImage

    made = []
    for request in [request.filled(Defaults()) for request in requests]:
        problems = request.problems()
        assert not problems, problems
        wide, high = bucket_size(*request.image.size, request.resolution)
        layers = np.full((request.layers, high, wide, 4), 100, np.uint8)
        layered = LayeredImage(layers=layers, names=tuple(f"Layer {i}" for i in range(len(layers))))
        made.append(
            Decomposition(
                layered=layered,
                composite=layers[0],
                input=layers[0],
                latents=np.zeros((1, 1, 1, 1), np.float32),
                timings={"denoise": 0.0},
                request=request,
                sample=request.first_sample,
            )
        )
    return made
