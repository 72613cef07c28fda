"""Loading of a sharded transformer of the released widths onto simulated devices, against orbax: time and memory."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench import harness
from tools.bench.convert import peak_anonymous, shallow, write_component_noise

DEVICES = 8
BELOW_TWO = 0xBFFF
"""Bits of bf16 that are kept, so that no value is NaN or infinite."""


def ours(folder: Path, mesh: str) -> Any:
    """The state of a transformer that this package loads."""
    import jax
    from flax import nnx

    from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh
    from qil_jax.weights import Checkpoint, Component

    sharding = Sharding(make_mesh(MeshShape.parse(mesh)), INFERENCE_RULES)
    state = nnx.state(Checkpoint(folder).load(Component.TRANSFORMER, sharding))
    return jax.block_until_ready(state)


def by_orbax(folder: Path, mesh: str, *, assembled: bool) -> Any:
    """The stored tensors by orbax, each sharded as its parameter; `assembled`: then transposed and stacked as ours."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec
    from orbax.checkpoint.experimental import v1 as ocp

    from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh, shardings
    from qil_jax.weights import Checkpoint, Component
    from qil_jax.weights.tables.entries import Transform

    checkpoint, grid = Checkpoint(folder), make_mesh(MeshShape.parse(mesh))
    placements = shardings(checkpoint.abstract(Component.TRANSFORMER), Sharding(grid, INFERENCE_RULES))
    wanted = checkpoint[Component.TRANSFORMER].targets
    tensors = {}
    for path, target in wanted.items():
        for entry in target.entries:
            spec = tuple(placements[path].spec)[0 if entry.block is None else 1 :]
            spec += (None,) * (len(entry.shape) - len(spec))
            spec = spec[::-1] if entry.transform is Transform.LINEAR else spec
            where = NamedSharding(grid, PartitionSpec(*spec))
            tensors[entry.name] = jax.ShapeDtypeStruct(entry.shape, jnp.bfloat16, sharding=where)
    with ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS):
        loaded = ocp.load(str(folder / Component.TRANSFORMER), tensors)
    if not assembled:
        return jax.block_until_ready(loaded)
    state = {}
    for path, target in wanted.items():
        parts = [loaded.pop(entry.name) for entry in target.entries]
        turn = target.entries[0].transform is Transform.LINEAR
        stack = target.entries[0].block is not None

        def put(parts: list[Any], turn: bool = turn, stack: bool = stack) -> Any:
            parts = [part.T for part in parts] if turn else parts
            return jnp.stack(parts) if stack else parts[0]

        state[path] = jax.block_until_ready(jax.jit(put, donate_argnums=0, out_shardings=placements[path])(parts))
    return state


SIDES: dict[str, Callable[[Path, str], Any]] = {
    "ours": ours,
    "orbax, tensors as stored": lambda folder, mesh: by_orbax(folder, mesh, assembled=False),
    "orbax, transposed and stacked": lambda folder, mesh: by_orbax(folder, mesh, assembled=True),
}


def once(arguments: argparse.Namespace) -> int:
    """One side in a process of its own: prints seconds, peak anonymous memory and bytes of the parameters as JSON."""
    import jax

    jax.devices()
    held: list[Any] = []
    seconds, peak = peak_anonymous(lambda: held.append(SIDES[arguments.only](arguments.folder, arguments.mesh)))
    shards = [shard.data.nbytes for x in jax.tree.leaves(held) for shard in x.addressable_shards]
    print(json.dumps({"seconds": seconds, "peak": peak, "parameters": sum(shards) / 1e9}))
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `load`."""
    from qil_jax.weights import Component

    if arguments.only:
        return once(arguments)
    config = shallow(arguments.blocks)[Component.TRANSFORMER]
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="load-") as name:
        folder = Path(name)
        write_component_noise(folder, Component.TRANSFORMER, config, mask=BELOW_TWO)
        size = sum(part.stat().st_size for part in (folder / Component.TRANSFORMER).glob("*.safetensors")) / 1e9
        for mesh in arguments.mesh.split(";"):
            found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
            for _ in range(arguments.repeats):
                for side in SIDES:
                    found[side].append(_in_own_process(side, folder, mesh))
            for side, runs in found.items():
                held = runs[0]["parameters"]
                beyond = max(run["peak"] for run in runs) - held
                seconds = harness.median([run["seconds"] for run in runs])
                rows.append((mesh, side, f"{seconds:.1f} s", f"{held:.2f} GB", f"{beyond:.2f} GB"))
    head = ("mesh", f"{size:.2f} GB", "until loaded", "parameters", "peak memory beyond them")
    harness.report(head, rows, write=None, mark="", note="")
    return 0


def _in_own_process(side: str, folder: Path, mesh: str) -> dict[str, float]:
    words = ["load", "--only", side, "--folder", str(folder), "--mesh", mesh]
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent), *words],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])
