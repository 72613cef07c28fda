"""Two-way conversion of a synthetic checkpoint of the released widths: speed against `cp`, memory, equality."""

import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from tools.bench import harness
from tools.make_demo_checkpoint import small_tokenizer

if TYPE_CHECKING:
    from qil_jax.weights import Component

BF16 = np.dtype(ml_dtypes.bfloat16)


def shallow(blocks: int) -> "dict[Component, dict[str, Any]]":
    """The released configs with fewer blocks in both transformers."""
    from qil_jax.weights import Component
    from qil_jax.weights.released import CONFIGS

    configs = {component: dict(config) for component, config in CONFIGS.items()}
    configs[Component.TRANSFORMER]["num_layers"] = blocks
    configs[Component.TEXT_ENCODER]["num_hidden_layers"] = 1
    vision = dict(configs[Component.TEXT_ENCODER]["vision_config"], depth=1)
    configs[Component.TEXT_ENCODER]["vision_config"] = vision
    return configs


def write_noise(folder: Path, configs: "Mapping[Component, Mapping[str, Any]]", *, shard_bytes: int) -> None:
    """A checkpoint in the released layout whose tensors are random bits (bf16), NaN patterns among them."""
    for component, config in configs.items():
        write_component_noise(folder, component, config, shard_bytes=shard_bytes)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"use_dynamic_shifting": true}\n')
    (folder / "tokenizer").mkdir()
    small_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "model_index.json").write_text('{"_class_name": "QwenImageLayeredPipeline"}\n')


def write_component_noise(
    folder: Path, component: "Component", config: "Mapping[str, Any]", *, shard_bytes: int = 1 << 30, mask: int = 0xFFFF
) -> None:
    """One component of random bits (bf16), of which those of the mask are kept."""
    from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan
    from qil_jax.weights.tables import table_of

    generator, part = np.random.default_rng(0), folder / component
    part.mkdir(parents=True)
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    plans = [TensorPlan(name=e.name, dtype=BF16, shape=e.shape) for e in table_of(component, config)]
    with closing(ShardedWriter(part, component.stem, plans, shard_bytes=shard_bytes)) as writer:
        for plan in plans:
            bits = generator.integers(0, 1 << 16, math.prod(plan.shape), np.uint16) & np.uint16(mask)
            writer.write(plan.name, bits.view(BF16).reshape(plan.shape))


def unlike(one: Path, other: Path) -> list[str]:
    """Names of tensors that differ between two checkpoints of the released layout, or that only one holds."""
    from qil_jax.weights import Component
    from qil_jax.weights.safetensors_io import TensorReader, stored_tensors

    differing = []
    for component in Component:
        left, right = (TensorReader(stored_tensors(folder / component)) for folder in (one, other))
        differing += sorted(set(left.tensors) ^ set(right.tensors))
        for name in set(left.tensors) & set(right.tensors):
            a, b = left[name], right[name]
            same = a.dtype == b.dtype and a.shape == b.shape
            if not same or not np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)):
                differing.append(name)
    return differing


def peak_anonymous(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds until the disk has all that `work` wrote, and peak anonymous memory of this process, in GB (Linux)."""
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            status = Path("/proc/self/status").read_text()
            peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        seconds = harness.duration(lambda: (work(), os.sync()))
        over.set()
        watcher.result()
    return seconds, peak / 1e9


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `convert`; returns 1 if a tensor came back changed."""
    from qil_jax.weights.convert import to_diffusers, to_orbax

    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="convert-") as name:
        source, orbax, output = (Path(name) / part for part in ("source", "orbax", "output"))
        write_noise(source, shallow(arguments.blocks), shard_bytes=1 << 30)
        size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file()) / 1e9
        to_orbax(source, orbax)
        to_diffusers(orbax, output)
        changed = unlike(source, output)

        def measured(work: Callable[[], object]) -> tuple[float, float]:
            shutil.rmtree(output)  # right before, so that every run finds the same warm free memory
            os.sync()
            return peak_anonymous(work)

        sides: dict[str, Callable[[], object]] = {
            "cp": lambda: subprocess.run(["cp", "-r", source, output], check=True),
            "to-orbax": lambda: to_orbax(source, output),
            "to-diffusers": lambda: to_diffusers(orbax, output),
        }
        found = harness.alternate(sides, arguments.repeats, warmup=0, measure=measured)
    seconds = {side: harness.median([s for s, _ in runs]) for side, runs in found.items()}
    rows = [
        (
            f"{side}, {size:.2f} GB",
            f"{seconds[side]:.1f} s",
            f"{size / seconds[side]:.2f} GB/s",
            f"{seconds['cp'] / seconds[side]:.2f}",
            f"{max(peak for _, peak in runs):.2f} GB",
        )
        for side, runs in found.items()
    ]
    head = ("", "until the disk has all data", "speed", "of the speed of cp", "anonymous memory")
    harness.report(head, rows, write=None, mark="", note="")
    print(f"{len(changed)} tensors changed {changed[:5] if changed else ''}")
    return bool(changed)
