"""The report of `qil train --check`: a run prepared and its step compiled, but no step taken and no file written."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from qil_jax.files import AnyPath
from qil_jax.loader.batch import Batch
from qil_jax.mesh import gathered
from qil_jax.training.batches import FlowBatch, PictureBatch
from qil_jax.training.checkpoints import MARGIN
from qil_jax.training.disk import CHECKPOINTS, free_bytes, newest_step
from qil_jax.training.experiment import Experiment, ExperimentError
from qil_jax.training.initial import new_text
from qil_jax.training.run_folder import check_folder
from qil_jax.training.setup import TrainingRun, prepare
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.stages.vae import missing_perceptual
from qil_jax.training.state_tree import state_tree
from qil_jax.training.step import TrainState

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""Prefix of XLA's messages when a program or an array does not fit on the devices."""


def check_run(experiment: Experiment, folder: AnyPath, mesh: Mesh) -> list[str]:
    """Prepare a run, compile its step for the first batch, and describe both in lines. All processes must call this.

    The run's folder is read, and neither claimed nor written.

    Raises:
      QilError: if `train` would refuse the run, or the run does not fit into the devices' memory.
    """
    check_folder(folder, experiment)
    with fitting():
        run = prepare(experiment, mesh)
        with run.loader as loader:
            batch = next(loader)
        inputs = run.stage.inputs(batch)
        state = run.fresh_state()
        step = run.step(state)
        since = time.perf_counter()
        compiled = step.lower(state, run.frozen, inputs).compile()
        seconds = time.perf_counter() - since
    return [
        *_devices(mesh),
        *_parameters(run, state),
        *_data(run),
        *_batch(run, batch, inputs),
        f"compiled: the step of the first batch's shape, in {seconds:.1f} s",
        *_memory(compiled.memory_analysis(), jax.tree.leaves((state, run.frozen, inputs)), mesh),
        *folder_lines(experiment, folder, needed=sum(x.nbytes for x in jax.tree.leaves(state_tree(state)))),
        *_notes(run),
    ]


@contextmanager
def fitting() -> Iterator[None]:
    """Convert XLA's complaints about the devices' memory.

    Raises:
      ExperimentError: if the block needs more memory than the devices have.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith(OUT_OF_MEMORY):
            raise
        raise ExperimentError(
            f"the run does not fit into the memory of the devices ({str(error).splitlines()[0][:300]}): use more of "
            f"them (mesh.fsdp, mesh.tensor), remat, fewer data.loader.rows, or a larger optimiser.accumulate"
        ) from error


def _devices(mesh: Mesh) -> list[str]:
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    kind = mesh.devices.flat[0].device_kind
    return [f"devices: {mesh.size} of kind {kind} in {jax.process_count()} processes; mesh: {sizes}"]


def _parameters(run: TrainingRun, state: TrainState) -> list[str]:
    def described(values: Any) -> str:
        leaves = jax.tree.leaves(values)
        return f"{sum(x.size for x in leaves):,} parameters, {size_text(device_bytes(leaves))} a device"

    parts = {"parameters": state.params, "EMA": state.ema_params, "optimiser": state.opt_state}
    shares = ", ".join(f"{name} {size_text(device_bytes(jax.tree.leaves(part)))}" for name, part in parts.items())
    return [
        f"trained: {described(state.params)}",
        f"frozen in the same network: {described(run.frozen)}" if run.frozen else "frozen in the same network: nothing",
        f"state: {size_text(device_bytes(jax.tree.leaves(state)))} a device: {shares}",
    ]


def _data(run: TrainingRun) -> list[str]:
    plan, experiment = run.loader.plan, run.experiment
    lines = [
        f"training data: {plan.records:,} records, {plan.steps_per_epoch:,} steps an epoch; {experiment.steps:,} steps "
        f"are {experiment.steps / plan.steps_per_epoch:.1f} epochs; {len(plan.shapes)} shapes of batches, each of "
        f"which is compiled once"
    ]
    if run.validation_loader is None:
        return [*lines, "validation data: none, validation.every is 0"]
    records = run.validation_loader.plan.records
    return [*lines, f"validation data: {records:,} records of the split {experiment.validation.split}"]


def _batch(run: TrainingRun, batch: Batch, inputs: Any) -> list[str]:
    """Contents of the first batch, over all processes, and its padded size."""
    shared = jax.process_count() // run.placement.processes.count  # number of processes that read the same rows
    samples = int(gathered((batch.records >= 0).sum()).sum()) // shared
    return [
        f"first batch: {run.placement.rows} rows, {samples} samples, {_contents(inputs)}",
        f"a step: {run.stage.flops(inputs) / 1e12:.4g} TFLOP in all",
    ]


def _contents(inputs: FlowBatch | PictureBatch) -> str:
    if isinstance(inputs, PictureBatch):
        count, height, width = inputs.pixels.shape[:3]
        return f"{int(jnp.sum(inputs.weights > 0))} pictures; padded: {count} pictures of {width} x {height}"
    layout = inputs.layout
    image, text = (int(jnp.sum(segments > 0)) for segments in (layout.image_segments, layout.text_segments))
    rows, longest = inputs.clean.shape[:2]
    return (
        f"{image:,} image and {text:,} text tokens; padded: {rows} rows of {longest:,} image and "
        f"{inputs.text.shape[1]:,} text tokens"
    )


def _memory(analysis: Any, arguments: list[Array], mesh: Mesh) -> list[str]:
    """The compiled step's memory on a device, and beside it what the process keeps there, such as encoders."""
    if analysis is None:
        return ["memory of the step: unknown, the backend does not tell"]
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "output": analysis.output_size_in_bytes,
        "of which aliased": analysis.alias_size_in_bytes,
        "peak": getattr(analysis, "peak_memory_in_bytes", 0),
    }
    described = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items() if size or name != "peak")
    held = sum(parts[name] for name in ("arguments", "temporaries", "output")) - parts["of which aliased"]
    inside = {id(x) for x in arguments}
    beside = device_bytes([x for x in jax.live_arrays() if id(x) not in inside])
    limit = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    total = f"{size_text(held + beside)} a device" + (f" of {size_text(limit)}" if limit else "")
    return [
        f"memory of the step, a device: {described}",
        f"memory while training: {total}, with {size_text(beside)} of encoders and the like; validation needs its own",
    ]


def folder_lines(experiment: Experiment, folder: AnyPath, *, needed: int) -> list[str]:
    """Where the run's checkpoints of `needed` bytes lie or would lie, and whether there is room for one."""
    newest, kept = newest_step(folder), experiment.checkpoints
    where = folder / CHECKPOINTS / str(min(kept.every, experiment.steps))
    if newest is None:
        began = f"the run: {folder} holds no checkpoint: it would begin with step 1 of {experiment.steps}"
    else:
        began = f"the run: {folder} holds this run: it would go on from step {newest} of {experiment.steps}"
    free = free_bytes(folder)
    lines = [
        began,
        f"checkpoints: every {kept.every} steps, the newest {kept.keep_last} are kept; the first of a run is {where}, "
        f"{size_text(needed)}{'' if free is None else f'; {size_text(free)} are free'}",
    ]
    if free is not None and MARGIN * needed > free:
        lines.append(f"a checkpoint does not fit on the disk of {folder}: make room, or give another --out")
    return lines


def _notes(run: TrainingRun) -> list[str]:
    """What is missing, and what the checkpoint that the run starts from has not."""
    experiment = run.experiment
    missing = missing_perceptual(experiment.vae_loss) if experiment.stage is Stage.RGBA_VAE else None
    new = new_text(run.new)
    return [*([f"missing: {missing}"] if missing else []), *([new] if new else [])]


def device_bytes(arrays: Iterable[Array]) -> int:
    """Bytes of arrays on the first device of this process."""
    device = jax.local_devices()[0]
    mine = [x for x in arrays if device in x.sharding.device_set]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in mine)


def size_text(size: int) -> str:
    """A number of bytes in words, such as 12.3 MB; a GB is 10^9 bytes."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"
