"""Loading of a shallow transformer of the released widths with and without a LoRA: time, memory, and one result."""

import argparse
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench import harness
from tools.bench.convert import BF16, peak_anonymous, shallow, write_component_noise

if TYPE_CHECKING:
    from qil_jax.weights import LoRA

BELOW_TWO = 0xBFFF
"""The bits of a bf16 number that keep its magnitude below 2, so that all are finite."""
CHECKED = "transformer_blocks.0.attn.to_q"
RELATIVE = 2.0**-8
"""Largest relative error of rounding to bf16."""


def write_noise_lora(file: Path, table: list[Any], rank: int) -> None:
    """A LoRA in bf16 of all linear maps of the blocks except modulation, as Qwen-Image-Lightning has."""
    from qil_jax.weights import LoRA, LowRank, write_lora
    from qil_jax.weights.lora_header import linear_maps

    random, changes = np.random.default_rng(1), {}
    for module, (wide, high) in linear_maps(table).items():
        if module.startswith("transformer_blocks.") and "_mod." not in module:
            a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((wide, rank), (rank, high)))
            changes[module] = LowRank(a=a, b=b, scale=0.125)
    write_lora(file, LoRA(changes=changes, origin={}), "bfloat16")


def load(folder: Path, loras: "list[tuple[LoRA, float]]") -> Any:
    """Load the transformer of a folder onto the first device."""
    import jax
    from flax import nnx

    from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
    from qil_jax.weights import Checkpoint, Component

    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
    model = Checkpoint(folder).load(Component.TRANSFORMER, sharding, loras=loras)
    jax.block_until_ready(nnx.state(model))
    return model


def largest_error(plain: np.ndarray, changed: np.ndarray, lora: "LoRA") -> float:
    """Largest relative difference of a merged kernel from the sum in fp64."""
    change = lora.changes[CHECKED]
    expected = plain.astype(np.float64) + change.scale * (change.a.astype(np.float64) @ change.b)
    return float(np.max(np.abs(changed.astype(np.float64) - expected) / np.maximum(np.abs(expected), 1e-2)))


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `lora`; returns 1 if a kernel is not the sum rounded once."""
    from qil_jax.weights import Component, read_lora
    from qil_jax.weights.tables import table_of

    config = shallow(arguments.blocks)[Component.TRANSFORMER]
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="lora-") as name:
        folder, file = Path(name), Path(name) / "lora.safetensors"
        write_component_noise(folder, Component.TRANSFORMER, config, mask=BELOW_TWO)
        table = table_of(Component.TRANSFORMER, config)
        write_noise_lora(file, table, arguments.rank)
        lora = read_lora(file, table)
        reading = harness.duration(lambda: read_lora(file, table))

        def measured(work: Callable[[], object]) -> tuple[float, float]:
            gc.collect()
            return peak_anonymous(work)

        sides: dict[str, Callable[[], object]] = {
            "without": lambda: load(folder, []),
            f"with a LoRA of rank {arguments.rank}": lambda: load(folder, [(lora, 1.0)]),
        }
        found = harness.alternate(sides, arguments.repeats, measure=measured)
        plain, changed = (
            np.asarray(load(folder, loras).backbone.blocks.image.q.kernel[...][0]) for loras in ([], [(lora, 1.0)])
        )
        size = sum(part.stat().st_size for part in (folder / Component.TRANSFORMER).glob("*.safetensors")) / 1e9
        rows = [
            (
                f"{side}, {size:.2f} GB",
                f"{harness.median([s for s, _ in runs]):.2f} s",
                f"{max(peak for _, peak in runs):.2f} GB",
            )
            for side, runs in found.items()
        ]
        rows.append((f"check of the LoRA, {file.stat().st_size / 1e9:.3f} GB", f"{reading:.2f} s", ""))
        error = largest_error(plain, changed, lora)
    harness.report(("", "until loaded", "peak of anonymous memory"), rows, write=None, mark="", note="")
    assert plain.dtype == BF16
    print(f"{CHECKED}: largest relative error {error:.1e}, {RELATIVE:.1e} by rounding to bf16")
    return int(error > RELATIVE)
