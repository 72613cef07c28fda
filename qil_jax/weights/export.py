"""Export of trained parameters, with the frozen components, as a checkpoint folder of the released layout."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Shaped

from qil_jax.errors import QilError
from qil_jax.files import AnyPath, is_remote, recover, result_folder
from qil_jax.mesh import fetch
from qil_jax.weights.architecture import Architecture
from qil_jax.weights.checkpoint import Checkpoint
from qil_jax.weights.convert import copy_released, unused
from qil_jax.weights.extension import ExtendedSource, new_parts
from qil_jax.weights.layered_pipeline import make_layered
from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan
from qil_jax.weights.source import Layout, row_major
from qil_jax.weights.stored import StoredComponent
from qil_jax.weights.tables.entries import Component, Entry, Transform

ORIGIN = "training.json"
"""File in a checkpoint folder that names the stage and the step at which it was written."""

Params = Mapping[str, Any]
"""Arrays, of jax or of numpy, by path. They may be read from disk on access, since each is accessed once."""


class ExportError(QilError):
    """A checkpoint folder cannot be written, and nothing was replaced. The message gives the cause."""


def export_checkpoint(
    destination: AnyPath,
    *,
    component: Component,
    params: Params,
    config: Mapping[str, Any],
    others: Mapping[Component, Checkpoint],
    origin: Mapping[str, Any],
    dtype: str = "float32",
    on_bytes: Callable[[int, int], None] = lambda written, total: None,
) -> None:
    """Write a complete checkpoint folder atomically, with one parameter at a time in host memory.

    On an object store the folder is complete once it has its training.json.

    Only the first process writes; the folder need not be accessible to the others. If the transformer becomes a layered
    one, the folder becomes that of diffusers' QwenImageLayeredPipeline.

    Args:
      component: trained component.
      params: parameters of the component, on the mesh or on the host; all processes must call this function. Those that
        are missing are read from the initial checkpoint, or have the initial values of a layered model.
      config: content of the component's config.json.
      others: initial checkpoint, of either layout, for each component. That of the trained component provides what no
        parameter holds, such as the temporal taps of the VAE.
      origin: content of training.json.
      dtype: dtype in which the trained tensors are stored.
      on_bytes: callback with the size of a tensor that was written, and that of all tensors of the component.

    Raises:
      ExportError: if the destination exists, or the component has no such parameters.
    """
    writing = jax.process_index() == 0
    if writing and not is_remote(destination):
        recover(Path(destination.parent))
    require_free(destination)
    made, start = Architecture(component, config), others[component][component]
    unknown = [path for path in params if path not in made.targets]
    if unknown:
        raise ExportError(f"{component}: it has no parameters {', '.join(unknown[:4])}")
    if not writing:
        for path in made.targets:
            if path in params:
                gathered(params[path])
        return
    with result_folder(destination, last=ORIGIN) as folder:
        (folder / component).mkdir()
        tensors = _tensors(made, params, start, np.dtype(dtype))
        plans = [TensorPlan(name=e.name, dtype=np.dtype(dtype), shape=e.shape) for e in made.table]
        size = sum(plan.bytes for plan in plans)
        with closing(ShardedWriter(folder / component, component.stem, plans)) as writer:
            for entry, tensor in tensors:
                writer.write(entry.name, tensor)
                on_bytes(tensor.nbytes, size)
        (folder / component / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        _carry(folder, component, others)
        (folder / ORIGIN).write_text(json.dumps(dict(origin), indent=2) + "\n")
        if component is Component.TRANSFORMER and new_parts(start.architecture):
            make_layered(folder, others[Component.TEXT_ENCODER].text_encoder.vision)


def require_free(destination: AnyPath) -> None:
    """Refuse a destination that exists, on an object store as a complete folder.

    Raises:
      ExportError: if it exists.
    """
    if (destination / ORIGIN).exists() if is_remote(destination) else os.path.lexists(destination):
        raise ExportError(f"{destination} exists: give another folder, or remove it")


def _tensors(
    made: Architecture, params: Params, start: StoredComponent, dtype: np.dtype
) -> Iterator[tuple[Entry, np.ndarray]]:
    """All tensors of the trained component in their released form."""
    source, rest = ExtendedSource(start.source(), start.targets), _Unparametrised(start)
    for path, target in made.targets.items():
        whole = tuple(map(slice, target.shape))
        values = gathered(params[path]) if path in params else source.read(target, whole)
        parts = (values,) if target.entries[0].block is None else values
        for entry, part in zip(target.entries, parts, strict=True):
            tensor = entry.transform.backward(part.astype(dtype, copy=False), entry.shape)
            if entry.transform is Transform.TAP:
                tensor = np.concatenate([rest.read(entry).astype(dtype), tensor[:, :, None]], axis=2)
            yield entry, row_major(tensor)
    for entry in made.table:
        if entry.transform is Transform.SIDECAR:
            yield entry, rest.read(entry).astype(dtype)


class _Unparametrised:
    """The elements of the initial checkpoint's tensors that no parameter holds."""

    def __init__(self, start: StoredComponent):
        self._start, self._reader = start, start.reader()

    def read(self, entry: Entry) -> np.ndarray:
        """Those of a tensor, with zeros for the channels by which the VAE is extended."""
        stored = self._reader[self._start.names[entry.name]]
        stored = stored if self._start.layout is Layout.ORBAX else unused(entry, stored)
        added = [(0, size - old) for size, old in zip(entry.shape[:2], stored.shape[:2], strict=False)]
        return np.pad(stored, added + [(0, 0)] * (stored.ndim - len(added)))


def _once(*copied: Path) -> Callable[[str, list[str]], Sequence[str]]:
    """For `shutil.copytree`: leaves out folders that are copied already, to which links lead, maybe in a circle."""
    seen = set(map(os.path.realpath, copied))

    def leave_out(folder: str, names: list[str]) -> Sequence[str]:
        places = {name: os.path.realpath(Path(folder) / name) for name in names if (Path(folder) / name).is_dir()}
        again = [name for name, place in places.items() if place in seen]
        seen.update(places.values())
        return again

    return leave_out


def _carry(folder: Path, component: Component, others: Mapping[Component, Checkpoint]) -> None:
    """Copy the frozen components, and all files outside of components."""
    base = others[Component.TRANSFORMER].folder
    for item in sorted(base.iterdir()):
        if item.name in tuple(Component) or item.name == ORIGIN or item.name.startswith("."):
            continue
        if item.is_dir():
            shutil.copytree(item, folder / item.name, ignore=_once(base, item))
        else:
            shutil.copyfile(item, folder / item.name)
    for part, source in others.items():
        if part is not component:
            copy_released(source[part], folder)


def gathered(x: Shaped[Array, "*n"] | Shaped[np.ndarray, "*n"]) -> Shaped[np.ndarray, "*n"]:
    """A whole array on the host; all processes must call this function."""
    if isinstance(x, np.ndarray) or x.is_fully_addressable:
        return np.asarray(x)
    return fetch(x)
