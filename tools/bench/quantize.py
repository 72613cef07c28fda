"""Quantisation of a shallow checkpoint of the released widths: sizes, time, memory, and errors of weights and velocity.

Weights are normal with a standard deviation of one over the root of their inputs, the embedding of target kinds 0.02.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench import harness
from tools.bench.convert import BF16, peak_anonymous, shallow, write_noise

if TYPE_CHECKING:
    from qil_jax.weights.tables.entries import Entry

GRID, LAYERS, WORDS = (8, 8), (0, 1, 2, -1), 16
MOST = 0.02
"""Largest relative error of the velocity."""


def tensor(entry: "Entry", random: np.random.Generator) -> np.ndarray:
    """A tensor of realistic scale."""
    values = random.standard_normal(entry.shape, np.float32)
    if entry.name.endswith("addition_t_embedding.weight"):
        values *= 0.02
    elif len(entry.shape) > 1:
        values /= np.sqrt(entry.shape[1])
    else:
        values = 1 + 0.2 * values if entry.path.endswith("/scale") else 0.1 * values
    return values.astype(BF16)


def write_checkpoint(folder: Path, blocks: int) -> None:
    """A checkpoint whose transformer has weights of realistic scale, and whose other components are small or noise."""
    from qil_jax.weights import Component
    from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan
    from qil_jax.weights.tables import table_of

    configs = shallow(blocks)
    configs[Component.TEXT_ENCODER]["vocab_size"] = 1000
    write_noise(folder, configs, shard_bytes=1 << 30)
    part, random = folder / Component.TRANSFORMER, np.random.default_rng(0)
    for file in part.glob("*.safetensors*"):
        file.unlink()
    table = table_of(Component.TRANSFORMER, configs[Component.TRANSFORMER])
    plans = [TensorPlan(name=entry.name, dtype=BF16, shape=entry.shape) for entry in table]
    with closing(ShardedWriter(part, Component.TRANSFORMER.stem, plans)) as writer:
        for entry in table:
            writer.write(entry.name, tensor(entry, random))


def velocity(folder: Path) -> np.ndarray:
    """The velocity of one row of random tokens, in fp32."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
    from qil_jax.models.vld_mmdit import TokenLayout
    from qil_jax.weights import Checkpoint, Component

    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
    graph, state = nnx.split(Checkpoint(folder).load(Component.TRANSFORMER, sharding, dtype=jnp.float32))
    random, where = np.random.default_rng(1), TokenLayout.of(GRID, LAYERS, np.ones((1, WORDS), np.int32))
    image = random.standard_normal((1, len(LAYERS) * GRID[0] * GRID[1], 64)).astype(np.float32)
    text = random.standard_normal((1, WORDS, 3584)).astype(np.float32)
    sigma, kind = jnp.full(1, 0.7), jnp.zeros(1, jnp.int32)
    run = jax.jit(lambda state, *a: nnx.merge(graph, state)(a[0], a[1], where, sigma=sigma, target_kind=kind))
    return np.asarray(run(state, image, text))


def weight_bytes(folder: Path) -> int:
    """Bytes of the transformer's weights on disk."""
    return sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `quantize`; returns 1 if a velocity is further off than it may be."""
    from qil_jax.models.quantised import Quantisation
    from qil_jax.weights import Component
    from qil_jax.weights.dequantise import dequantise_checkpoint
    from qil_jax.weights.quantise import QuantisationReport, quantise_checkpoint

    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="quantize-") as name:
        source, copy, back = (Path(name) / part for part in ("source", "copy", "back"))
        write_checkpoint(source, arguments.blocks)
        seconds, peak = peak_anonymous(lambda: subprocess.run(["cp", "-r", source, copy], check=True))
        rows.append(("cp of all, bf16", _size(source), f"{seconds:.1f} s", f"{peak:.2f} GB", "", ""))
        shutil.rmtree(copy)
        exact = velocity(source)
        for how in Quantisation:
            made, reports = Path(name) / how, {}

            def work(how: Quantisation = how, made: Path = made, reports: dict[Any, Any] = reports) -> None:
                reports.update(quantise_checkpoint(source, made, how, components=[Component.TRANSFORMER]))

            seconds, peak = peak_anonymous(work)
            report: QuantisationReport = reports[Component.TRANSFORMER]
            error = float(np.linalg.norm(velocity(made) - exact) / np.linalg.norm(exact))
            worst, weights = max(worst, error), [each.rms for each in report.errors]
            found = f"{min(weights):.2%} to {max(weights):.2%}"
            rows.append((f"quantize {how}", _size(made), f"{seconds:.1f} s", f"{peak:.2f} GB", found, f"{error:.2%}"))
            full: Callable[[], object] = lambda made=made: dequantise_checkpoint(made, back, "bfloat16")
            seconds, peak = peak_anonymous(full)
            rows.append((f"dequantize {how}", _size(back), f"{seconds:.1f} s", f"{peak:.2f} GB", "", ""))
            shutil.rmtree(back)
    head = ("", "transformer", "until on disk", "peak memory", "rms error of weights", "of the velocity")
    harness.report(head, rows, write=None, mark="", note="")
    return int(not worst <= MOST)


def _size(folder: Path) -> str:
    return f"{weight_bytes(folder) / 1e6:,.1f} MB"
