"""Export of a run's checkpoint of the released widths in bf16: speed against `cp` of the result, memory, values."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tools.bench import harness
from tools.bench.convert import BF16, shallow, write_noise

if TYPE_CHECKING:
    from qil_jax.weights.tables.entries import Target

STEP = 1
MARGIN = 2e9
"""Bytes by which peak memory may exceed the trained parameters' bytes."""


def ema_of(wanted: "Mapping[str, Target]") -> dict[str, np.ndarray]:
    """Random parameters by path, in fp32."""
    generator = np.random.default_rng(1)
    return {path: generator.standard_normal(target.shape, np.float32) for path, target in wanted.items()}


def write_run(run: Path, start: Path, ema: dict[str, np.ndarray]) -> None:
    """A run of stage 1 with a checkpoint that holds only the EMA, all of it that the export reads."""
    import orbax.checkpoint as ocp

    from qil_jax.models.paths import dotted
    from qil_jax.training.checkpoints import POSITION, STATE
    from qil_jax.training.config_file import load_experiment
    from qil_jax.training.disk import CHECKPOINTS
    from qil_jax.training.run_folder import claim
    from qil_jax.training.state_tree import Weights, checksum

    config = harness.ROOT / "configs" / "demo" / "stage1_text_to_rgba.py"
    claim(run, load_experiment(config, [f"start.checkpoint={start}", "start.vae=none"]))
    tree = {dotted(path): values for path, values in ema.items()}
    sums = {f"['{Weights.EMA}']['{name}']": checksum(values) for name, values in tree.items()}
    with ocp.CheckpointManager(run / CHECKPOINTS, item_names=(STATE, POSITION)) as manager:
        items = {
            STATE: ocp.args.StandardSave({Weights.EMA.value: tree}),
            POSITION: ocp.args.JsonSave({"loader": {}, "checksums": sums}),
        }
        manager.save(STEP, args=ocp.args.Composite(**items))
        manager.wait_until_finished()


def measured(call: list[str]) -> tuple[float, float]:
    """Seconds until the disk has all that a program wrote, and its peak resident memory in bytes (Linux)."""
    peak = 0

    def run() -> None:
        nonlocal peak
        with subprocess.Popen(call, stdout=subprocess.DEVNULL) as child:
            while child.poll() is None:
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text())
                peak = max(peak, int(found[1]) * 1024 if found else 0)  # the peak since the program began
                time.sleep(0.01)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, call)
        os.sync()

    return harness.duration(run), peak


def unlike(folder: Path, ema: dict[str, np.ndarray], wanted: "Mapping[str, Target]") -> list[str]:
    """Names of exported tensors that are not the parameters, rounded once."""
    from qil_jax.weights.safetensors_io import TensorReader, stored_tensors

    found, differing = TensorReader(stored_tensors(folder)), []
    for path, target in wanted.items():
        parts = ema[path] if target.entries[0].block is not None else (ema[path],)
        for entry, part in zip(target.entries, parts, strict=True):
            tensor = entry.transform.backward(part.astype(BF16), entry.shape)
            if not np.array_equal(found[entry.name].view(np.uint16), tensor.view(np.uint16)):
                differing.append(entry.name)
        found.release()
    return differing


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `export`; returns 1 if a tensor is wrong or memory is above its bound."""
    from qil_jax.weights import Component
    from qil_jax.weights.tables import table_of
    from qil_jax.weights.tables.entries import targets

    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="export-") as name:
        start, run, output, copied = (Path(name).absolute() / part for part in ("start", "run", "output", "copied"))
        configs = shallow(arguments.blocks)
        write_noise(start, configs, shard_bytes=1 << 30)
        wanted = targets(table_of(Component.TRANSFORMER, configs[Component.TRANSFORMER]))
        ema = ema_of(wanted)
        write_run(run, start, ema)
        trained = sum(values.nbytes for values in ema.values())
        largest = max(values.nbytes for values in ema.values())
        program = [sys.executable, str(harness.ROOT / "tools" / "convert.py"), "export"]
        calls = {
            "export": [*program, str(run), str(output), "--dtype", "bfloat16"],
            "cp": ["cp", "-r", str(output), str(copied)],
        }
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in calls}
        for _ in range(arguments.repeats):
            shutil.rmtree(output, ignore_errors=True)
            shutil.rmtree(copied, ignore_errors=True)
            os.sync()
            for side, call in calls.items():
                found[side].append(measured(call))
        size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
        wrong = unlike(output / Component.TRANSFORMER, ema, wanted)
        assert json.loads((output / "training.json").read_text())["step"] == STEP
    seconds = {side: harness.median([s for s, _ in runs]) for side, runs in found.items()}
    peaks = {side: max(peak for _, peak in runs) for side, runs in found.items()}
    rows = [
        (
            side,
            f"{seconds[side]:.1f} s",
            f"{size / seconds[side] / 1e9:.2f} GB/s",
            f"{seconds['cp'] / seconds[side]:.2f}",
            f"{peaks[side] / 1e9:.2f} GB",
        )
        for side in calls
    ]
    head = (f"{size / 1e9:.2f} GB written", "until the disk has all", "speed", "of the speed of cp", "peak memory")
    harness.report(head, rows, write=None, mark="", note="")
    print(f"trained parameters: {trained / 1e9:.2f} GB in fp32, the largest of them {largest / 1e9:.2f} GB")
    print(f"{len(wrong)} tensors are wrong {wrong[:5] if wrong else ''}")
    return bool(wrong) or peaks["export"] > trained + MARGIN
