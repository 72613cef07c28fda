"""Convert a synthetic checkpoint of the released widths both ways; print speed against `cp`, memory, and equality.

python tools/bench_convert.py [--blocks N] [--folder DIR]
"""

import json
import math
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from make_demo_checkpoint import small_tokenizer

from qil_jax.command_line import Parser
from qil_jax.programs import run_main

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
    from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan
    from qil_jax.weights.tables import table_of

    generator = np.random.default_rng(0)
    for component, config in configs.items():
        part = folder / component
        part.mkdir(parents=True)
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        plans = [TensorPlan(name=e.name, dtype=BF16, shape=e.shape) for e in table_of(component, config)]
        writer = ShardedWriter(part, component.stem, plans, shard_bytes=shard_bytes)
        for plan in plans:
            bits = generator.integers(0, 1 << 16, math.prod(plan.shape), np.uint16)
            writer.write(plan.name, bits.view(BF16).reshape(plan.shape))
        writer.close()
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"use_dynamic_shifting": true}\n')
    (folder / "tokenizer").mkdir()
    small_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "model_index.json").write_text('{"_class_name": "QwenImageLayeredPipeline"}\n')


def unlike(one: Path, other: Path) -> list[str]:
    """Names of tensors whose bytes differ between two checkpoints of the released layout, or that only one holds."""
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


def peak_anonymous(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds that `work` takes, and the most anonymous memory of this process meanwhile, in bytes (Linux)."""
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            status = Path("/proc/self/status").read_text()
            peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        began = time.perf_counter()
        work()
        os.sync()
        seconds = time.perf_counter() - began
        over.set()
        watcher.result()
    return seconds, peak


def main(argv: list[str]) -> int:
    """Print the table; returns 1 if a tensor came back changed."""
    parser = Parser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=3, help="of the transformer, 0.68 GB each (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder otherwise")
    parser.add_argument("--repeats", type=int, default=3, help="of each direction (default %(default)s)")
    arguments = parser.parse_args(argv)
    from qil_jax.weights.convert import to_diffusers, to_orbax

    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="convert-") as name:
        source, orbax, output = (Path(name) / part for part in ("source", "orbax", "output"))
        write_noise(source, shallow(arguments.blocks), shard_bytes=1 << 30)
        size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        to_orbax(source, orbax)
        to_diffusers(orbax, output)
        changed = unlike(source, output)
        works: dict[str, Callable[[], object]] = {
            "cp": lambda: subprocess.run(["cp", "-r", source, output], check=True),
            "to-orbax": lambda: to_orbax(source, output),
            "to-diffusers": lambda: to_diffusers(orbax, output),
        }
        rows: dict[str, list[tuple[float, int]]] = {work: [] for work in works}
        for _ in range(arguments.repeats):
            for work, run in works.items():
                shutil.rmtree(output)  # right before, so that every run finds the same warm free memory
                os.sync()
                rows[work].append(peak_anonymous(run))
    print(f"{size / 1e9:.2f} GB, medians of {arguments.repeats} runs; seconds include handing all data to the disk")
    print("              seconds   GB/s   x cp  anonymous GB")
    for name, runs in rows.items():
        seconds = float(np.median([s for s, _ in runs]))
        ratio = float(np.median([s for s, _ in rows["cp"]])) / seconds
        peak = max(p for _, p in runs)
        print(f"{name:13}{seconds:8.1f}{size / 1e9 / seconds:7.2f}{ratio:7.2f}{peak / 1e9:14.2f}")
    print(f"{len(changed)} tensors changed {changed[:5] if changed else ''}")
    return bool(changed)


if __name__ == "__main__":
    run_main(main)
