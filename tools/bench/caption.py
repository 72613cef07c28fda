"""Descriptions of pictures compared with transformers on the same random weights, prompts and precision (fp32).

Both sides run in one process and alternate; they must write the same ids. Reading (vision tower and prompt) is timed up
to the first id, writing is what further ids take. Peak memory is that of a process of its own which loads the weights
of one side and writes once: the median of several.
"""

import argparse
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qil_jax.errors import QilError
from tools.bench import harness

Write = Callable[[int], list[list[int]]]
"""Writes so many ids for each row."""
GRID, TEXT, IMAGE = (34, 46), 30, 7
"""Patches of a picture of 644 x 476 pixels, number of the prompt's words, and the id of a picture."""
OTHER_GRID = (36, 44)
"""Patches of another picture, whose lengths round up to the same ones."""
MEMORY_RUNS = 5
"""Processes of each side of which the peak memory is measured."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes that differ from the release, and the rows of a batch.

    Attributes:
      text: values of the language model's config.
      vision: values of the vision tower's config.
      rows: number of prompts.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    rows: int

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        from qil_jax.weights.released import CONFIGS
        from qil_jax.weights.tables.entries import Component

        config = {**CONFIGS[Component.TEXT_ENCODER], **self.text, "image_token_id": IMAGE, "vocab_size": 8192}
        vision = {**config["vision_config"], **self.vision, "out_hidden_size": config["hidden_size"]}
        return {**config, "torch_dtype": "float32", "vision_config": vision}


SMALL = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 8,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
}
TOWER = {"depth": 4, "fullatt_block_indexes": [3]}
CASES = {
    "8 layers of width 1024, 1 row": Case(SMALL, TOWER, rows=1),
    "8 layers of width 1024, 4 rows": Case(SMALL, TOWER, rows=4),
    "2 layers of the released width, 1 row": Case({"num_hidden_layers": 2}, TOWER, rows=1),
}


def inputs(rows: int, grid: tuple[int, int] = GRID) -> tuple[list[list[int]], list[np.ndarray], list[tuple[int, int]]]:
    """Prompts with a picture each, the patches, and their grids."""
    random = np.random.default_rng(grid[0])
    words = random.integers(IMAGE + 1, 8192, (rows, TEXT)).tolist()
    prompts = [[*row[: TEXT // 2], IMAGE, *row[TEXT // 2 :]] for row in words]
    patches = random.standard_normal((rows, grid[0] * grid[1], 1176)).astype(np.float32)
    return prompts, list(patches), [grid] * rows


def ours(folder: Path, case: Case, grid: tuple[int, int] = GRID) -> Write:
    """Writing by this package, with its weights loaded."""
    from qil_jax.encoders.captioner import Captioner
    from qil_jax.encoders.generation import Generation
    from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
    from qil_jax.weights import Checkpoint, TextEncoderPart

    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
    model = Checkpoint(folder).load(TextEncoderPart.VISION_LANGUAGE, sharding)
    captioner = Captioner(model, sharding=sharding)

    def write(count: int, grid: tuple[int, int] = GRID) -> list[list[int]]:
        generation = Generation(max_new_tokens=count, repetition_penalty=1.05)
        return captioner.generate(*inputs(case.rows, grid), generation)

    return write


def reference(folder: Path, case: Case) -> Write:
    """Writing by transformers, with its own loader."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.set_grad_enabled(False)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder")
    prompts, patches, grids = inputs(case.rows)
    count = GRID[0] * GRID[1] // 4
    at = TEXT // 2
    ids = torch.tensor([[*prompt[:at], *[IMAGE] * count, *prompt[at + 1 :]] for prompt in prompts])
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(np.concatenate(patches)),
        "image_grid_thw": torch.tensor([[1, *grid] for grid in grids]),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "repetition_penalty": 1.05,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return lambda n: model.generate(**given, max_new_tokens=n)[:, ids.shape[1] :].tolist()


SIDES: dict[str, Callable[[Path, Case], Write]] = {"ours": ours, "reference": reference}


def write_weights(folder: Path, case: Case) -> None:
    """A text encoder of random weights."""
    from qil_jax.weights.tables.entries import Component
    from tools import make_demo_checkpoint as demo

    demo.write_component(folder, Component.TEXT_ENCODER, case.config, demo.Preset.TRY)


def compilations(work: Callable[[], Any]) -> int:
    """The number of programs that are compiled, or fetched from a cache, while `work` runs."""
    import jax

    found = 0

    def count(event: str, duration_secs: float, **kwargs: str | int) -> None:
        nonlocal found
        found += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    work()
    jax.monitoring.unregister_event_duration_listener(count)
    return found


def row(name: str, folder: Path, tokens: int, repeats: int) -> tuple[str, ...]:
    """The table row of a case.

    Raises:
      QilError: if the sides do not write the same.
    """
    case = CASES[name]
    write_weights(folder, case)
    runs = {side: functools.partial(peak_memory, name, side, folder, tokens) for side in SIDES}
    memory = harness.alternate(runs, MEMORY_RUNS, warmup=0, measure=lambda run: run())
    sides: dict[str, Any] = {side: make(folder, case) for side, make in SIDES.items()}
    written = {side: write(1 + tokens) for side, write in sides.items()}
    if written["ours"] != written["reference"]:
        raise QilError(f"{name}: the sides do not write the same ids")
    work = {f"{side} {n}": functools.partial(sides[side], n) for n in (1, 1 + tokens) for side in SIDES}
    seconds = harness.alternate(work, repeats)
    reading = {side: seconds[f"{side} 1"] for side in SIDES}
    writing = {side: np.subtract(seconds[f"{side} {1 + tokens}"], reading[side]).tolist() for side in SIDES}
    prompt = TEXT + GRID[0] * GRID[1] // 4
    cells = [name]
    for found, count in ((reading, prompt), (writing, tokens)):
        cells += [f"{case.rows * count / harness.median(found[side]):.1f}" for side in SIDES]
        cells.append(harness.times_faster(found["ours"], found["reference"]))
    again = compilations(lambda: sides["ours"](1 + tokens, OTHER_GRID))
    peaks = (f"{harness.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) GB" for found in memory.values())
    return (*cells, *peaks, str(again))


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `caption`; returns 0."""
    if arguments.only:
        SIDES[arguments.only](arguments.folder, CASES[arguments.case[0]])(1 + arguments.tokens)
        print(harness.peak_memory())
        return 0
    import jax
    import torch
    import transformers

    rows = []
    for case in arguments.case or CASES:
        with tempfile.TemporaryDirectory() as name:
            rows.append(row(case, Path(name), arguments.tokens, arguments.repeats))
        print(*rows[-1], sep="   ", flush=True)
    speeds = [f"{what}, {side}" for what in ("read", "written") for side in ("ours", "reference", "times faster")]
    head = ("tokens/s", *speeds, "peak memory, ours", "reference", "programs of another picture")
    note = harness.machine(jax, torch, transformers)
    harness.report(head, rows, write=arguments.write, mark="bench caption", note=note)
    return 0


def peak_memory(case: str, side: str, folder: Path, tokens: int) -> float:
    """Largest resident memory, in GB, of a process that loads one side and writes once."""
    words = ["--only", side, "--case", case, "--folder", str(folder), "--tokens", str(tokens)]
    return harness.printed_by("caption", *words)
