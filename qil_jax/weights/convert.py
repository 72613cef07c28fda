"""Conversion of checkpoints between the released layout and orbax, one piece of a tensor at a time.

Bytes are only copied and transposed, so a conversion to orbax and back reproduces the checkpoint exactly.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jaxtyping import Shaped

from qil_jax.errors import QilError
from qil_jax.files import recover, whole_folder
from qil_jax.weights.checkpoint import Checkpoint
from qil_jax.weights.pieces import Index, chunk_of, pieces_of, released_rows
from qil_jax.weights.safetensors_io import PICKLES, ShardedWriter, TensorPlan, TensorReader
from qil_jax.weights.source import PARAMS, SIDECAR, Layout, ParameterSource, zarr_spec
from qil_jax.weights.stored import StoredComponent
from qil_jax.weights.tables.entries import Component, Entry, Target, Transform

THREADS = 2

OnBytes = Callable[[int], None]
"""A callback with the number of bytes that were written since the last call."""
OnTotal = Callable[[int, int], None]
"""The same, with the number of all bytes beside it."""


def _ignore(*_: int) -> None:
    pass


class ConversionError(QilError):
    """The conversion was refused; nothing was written."""


def checkpoint_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all parameters of a sound checkpoint."""
    total = 0
    for component in Component:
        source = checkpoint[component].source()
        for target in checkpoint[component].targets.values():
            total += math.prod(target.shape) * source.dtype(target).itemsize
    return total


def to_orbax(source: Path, destination: Path, *, overwrite: bool = False, on_bytes: OnTotal = _ignore) -> int:
    """Convert a checkpoint of the released layout to orbax, copying all files that hold no weights.

    Each component becomes COMPONENT/params, which `ocp.StandardCheckpointer().restore` reads as a tree of plain
    dictionaries; parameters are uncompressed zarr arrays whose chunks never span two blocks, and keep their dtypes. VAE
    tensors that the network does not use go to vae/temporal.safetensors. Each thread holds a few pieces of 8 MiB.

    Args:
      source: checkpoint folder of the released layout.
      destination: folder to write, which appears whole.
      overwrite: whether a checkpoint at the destination is replaced.
      on_bytes: callback with the number of bytes that were written since the last call, and that of all parameters.

    Returns:
      The number of bytes of all parameters.

    Raises:
      ConversionError: if the destination exists (without `overwrite`), or the source already has this layout.
      StructureError: if the source is not sound; the message lists every problem.
    """
    checkpoint = Checkpoint(source)
    with prepared(checkpoint, destination, layout=Layout.DIFFUSERS, overwrite=overwrite) as folder:
        total = checkpoint_bytes(checkpoint)
        for component in Component:
            _write_orbax(checkpoint[component], folder / component, lambda done: on_bytes(done, total))
    return total


def to_diffusers(source: Path, destination: Path, *, overwrite: bool = False, on_bytes: OnTotal = _ignore) -> int:
    """Convert an orbax checkpoint to safetensors shards with released names, which diffusers and transformers load.

    Arguments, result and errors are those of `to_orbax`.
    """
    checkpoint = Checkpoint(source)
    with prepared(checkpoint, destination, layout=Layout.ORBAX, overwrite=overwrite) as folder:
        total = checkpoint_bytes(checkpoint)
        for component in Component:
            write_released(checkpoint[component], folder, lambda done: on_bytes(done, total))
    return total


@contextmanager
def prepared(
    source: Checkpoint,
    destination: Path,
    *,
    layout: Layout | None = None,
    overwrite: bool = False,
    growth: Callable[[], int] = lambda: 0,
) -> Iterator[Path]:
    """A draft folder with all files except the weights, which becomes the destination once the block ends.

    Args:
      source: checkpoint, whose structure is checked here.
      destination: folder to write.
      layout: layout that all components of the source must have; None: any.
      overwrite: whether a checkpoint at the destination is replaced.
      growth: function, called once the source is known to be sound, that returns by how many bytes the weights will
        exceed the source's.

    Raises:
      ConversionError: if the destination may not be written, the layout is another one, or the disk is too full.
      StructureError: if the source is not sound; the message lists every problem.
    """
    if destination.parent.is_dir():
        recover(destination.parent)
    _require_free(source.folder, destination, overwrite=overwrite)
    source.require_sound()
    other = [c for c in Component if layout not in (None, source[c].layout)]
    if other:
        what = f"{', '.join(other)} not stored as {layout}"
        raise ConversionError(f"{source.folder}: {what}; the other direction is needed")
    with whole_folder(destination, overwrite=overwrite) as folder:
        _require_space(source.folder, folder, destination, growth())
        _carry(source.folder, folder)
        yield folder


def _require_free(source: Path, destination: Path, *, overwrite: bool) -> None:
    """Refuse a destination that exists and may not be replaced, or that overlaps the source."""
    if os.path.lexists(destination):
        if not overwrite:
            raise ConversionError(f"{destination} exists; give another folder, or --overwrite to replace it")
        if not (destination / "model_index.json").is_file():
            raise ConversionError(f"{destination} holds no checkpoint and is left alone; give another folder")
        if source.resolve().is_relative_to(destination.resolve()):
            raise ConversionError(f"{destination} contains the source; give another folder")
    if destination.resolve().is_relative_to(source.resolve()):
        raise ConversionError(f"{destination} lies inside the source {source}; give a folder outside it")


def _require_space(source: Path, folder: Path, destination: Path, growth: int) -> None:
    needed = sum(file.stat().st_size for file in source.rglob("*") if file.is_file()) + growth
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConversionError(
            f"{destination.parent}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; make room"
        )


def _carry(source: Path, folder: Path, within: str = "") -> None:
    """Copy configs, tokenizer and all other files `within` a subfolder that hold no weights."""
    for file in sorted((source / within).rglob("*")):
        inside = file.relative_to(source)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file.is_file() and not (hidden or file.suffix in PICKLES or _is_weights(inside)):
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / inside)


def _is_weights(inside: Path) -> bool:
    """Whether a path inside a checkpoint belongs to the weights of a component, in either layout."""
    component, *rest = inside.parts
    if component not in tuple(Component) or not rest:
        return False
    return rest[0] == PARAMS or inside.name.endswith((".safetensors", ".safetensors.index.json"))


def _write_orbax(stored: StoredComponent, folder: Path, on_bytes: OnBytes) -> None:
    reader, wanted = stored.source(), list(stored.targets.values())
    _write_skeleton(folder / PARAMS, {t.path: reader.dtype(t) for t in wanted})
    jobs = []
    for target in wanted:
        array = _create_array(folder / PARAMS, target, reader.dtype(target))
        indices = pieces_of(target, reader.dtype(target))
        jobs += [partial(_copy_to_array, reader, target, array, index) for index in indices]
    _run(jobs, on_bytes)
    _write_sidecar(stored, folder)


def _write_skeleton(folder: Path, dtypes: dict[str, np.dtype]) -> None:
    """Let orbax write a checkpoint of our tree with one element per parameter; its arrays are then replaced.

    Orbax itself can only save arrays that are all in memory. Shapes are stored in the arrays' metadata only.
    """
    tree: dict = {}
    for path, dtype in dtypes.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.zeros(1, dtype)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.resolve(), args=ocp.args.PyTreeSave(tree))


def _create_array(folder: Path, target: Target, dtype: np.dtype) -> ts.TensorStore:
    spec = zarr_spec(folder, target.path)
    shutil.rmtree(spec["kvstore"]["path"])
    spec["metadata"] = {"shape": list(target.shape), "chunks": list(chunk_of(target, dtype)), "compressor": None}
    return ts.open(spec, create=True, open=False, dtype=ts.dtype(dtype)).result()


def _copy_to_array(reader: ParameterSource, target: Target, array: ts.TensorStore, index: Index) -> int:
    part = reader.read(target, index)
    array[index].write(part, can_reference_source_data_indefinitely=True).result()
    return part.nbytes


def _write_sidecar(stored: StoredComponent, folder: Path) -> None:
    """Write the VAE's unused tensors, and the first two taps [out, in, 2, 3, 3] of each causal convolution."""
    kept = [e for e in stored.table if e.transform in (Transform.SIDECAR, Transform.TAP)]
    if not kept:
        return
    reader = stored.reader()
    tensors = {e.name: unused(e, reader[stored.names[e.name]]) for e in kept}
    plans = [TensorPlan(name=n, dtype=x.dtype, shape=x.shape) for n, x in tensors.items()]
    with closing(ShardedWriter(folder, SIDECAR.removesuffix(".safetensors"), plans)) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def unused(entry: Entry, stored: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """A view of those elements of a stored tensor that the parameters do not hold."""
    return stored[:, :, :-1] if entry.transform is Transform.TAP else stored


def copy_released(stored: StoredComponent, folder: Path) -> None:
    """Copy a component of a sound checkpoint of either layout to a checkpoint folder of the released layout."""
    _carry(stored.folder.parent, folder, stored.component)
    copy_weights(stored, folder, _ignore)


def copy_weights(stored: StoredComponent, folder: Path, on_bytes: OnBytes) -> None:
    """Copy a component's weights to a checkpoint folder of the released layout that has its other files."""
    if stored.layout is Layout.ORBAX:
        write_released(stored, folder, on_bytes)
        return
    for file in sorted(stored.folder.iterdir()):
        if file.is_file() and _is_weights(file.relative_to(stored.folder.parent)):
            shutil.copyfile(file, folder / stored.component / file.name)
            on_bytes(file.stat().st_size)


def write_released(stored: StoredComponent, folder: Path, on_bytes: OnBytes) -> None:
    """Write the tensors of an orbax checkpoint's component to a checkpoint folder of the released layout."""
    reader, sidecar, table = stored.source(), stored.reader(), stored.table
    dtypes = stored.dtypes()
    dtypes |= {e.name: sidecar.tensors[e.name].dtype for e in table if e.transform is Transform.SIDECAR}
    plans = [TensorPlan(name=e.name, dtype=dtypes[e.name], shape=e.shape) for e in table]
    wanted = stored.targets.values()
    pieces = [(target, index) for target in wanted for index in pieces_of(target, reader.dtype(target))]
    with closing(ShardedWriter(folder / stored.component, stored.component.stem, plans)) as writer:
        for entry in table:
            if entry.transform is Transform.SIDECAR:
                writer.write(entry.name, sidecar[entry.name])
        _run([partial(_copy_to_file, reader, target, index, sidecar, writer) for target, index in pieces], on_bytes)


def _copy_to_file(
    reader: ParameterSource, target: Target, index: Index, sidecar: TensorReader, writer: ShardedWriter
) -> int:
    rows = released_rows(reader, target, index, sidecar)
    writer.write(rows.entry.name, rows.values, first=rows.first)
    return math.prod(part.stop - part.start for part in index) * rows.values.itemsize


def _run(jobs: Sequence[Callable[[], int]], on_bytes: OnBytes) -> None:
    """Run jobs on a few threads; the first error cancels the rest."""
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        try:
            for done in pool.map(lambda job: job(), jobs):
                on_bytes(done)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
