"""Export of trained parameters, with the frozen components, as a checkpoint folder of the released layout."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import Array
from jaxtyping import Shaped

from qil_jax.errors import QilError
from qil_jax.files import AnyPath, is_remote, recover, uploaded_folder, whole_folder
from qil_jax.weights.names import released_names
from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan, TensorReader, stored_tensors
from qil_jax.weights.source import Layout, layout_of
from qil_jax.weights.structure import component_config
from qil_jax.weights.tables import table_of
from qil_jax.weights.tables.entries import Component, Entry, Target, Transform, targets

MARKER = "training.json"
"""The file of an exported checkpoint that names its origin."""


class ExportError(QilError):
    """A checkpoint folder cannot be written, and nothing was replaced. The message gives the cause."""


def export_checkpoint(
    destination: AnyPath,
    *,
    component: Component,
    params: Mapping[str, Shaped[Array, "..."]],
    config: Mapping[str, Any],
    others: Mapping[Component, Path],
    origin: Mapping[str, Any],
    dtype: str = "float32",
) -> None:
    """Write a complete checkpoint folder atomically. On an object store it is complete once it has its training.json.

    Only the first process writes; the folder need not be accessible to the others.

    Args:
      component: trained component.
      params: all parameters of the component by path, on the mesh; all processes must call this function.
      config: content of the component's config.json.
      others: checkpoint folder of the released layout for each component. That of the trained component provides the
        tensors that the parameters do not hold: temporal taps of the VAE, and the vision tower.
      origin: content of training.json.
      dtype: dtype in which the trained tensors are stored.

    Raises:
      ExportError: if the destination exists, or a component is stored by orbax.
    """
    writing = jax.process_index() == 0
    remote = is_remote(destination)
    if writing and not remote and destination.parent.is_dir():
        recover(Path(destination.parent))
    if (destination / MARKER).exists() if remote else os.path.lexists(destination):
        raise ExportError(f"{destination} exists: give another folder, or remove it")
    for part, folder in others.items():
        if layout_of(folder / part) is Layout.ORBAX:
            raise ExportError(f"{folder / part} is stored by orbax: run tools/convert.py to-diffusers on it first")
    trained = _trained(component, config, params)
    if not writing:
        for _, values in trained:
            gathered(values)
        return
    place = uploaded_folder(epath.Path(destination), last=MARKER) if remote else whole_folder(Path(destination))
    with place as folder:
        _carry(folder, component, others)
        (folder / component / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        (folder / MARKER).write_text(json.dumps(dict(origin), indent=2) + "\n")
        kept = _Kept(others[component] / component, component)
        _write_component(folder / component, table_of(component, config), trained, kept, np.dtype(dtype))


def _carry(folder: Path, component: Component, others: Mapping[Component, Path]) -> None:
    """Copy the frozen components, and all files outside of components."""
    base = others[Component.TRANSFORMER]
    for item in sorted(base.iterdir()):
        if item.name in tuple(Component) or item.name == MARKER or item.name.startswith("."):
            continue
        shutil.copytree(item, folder / item.name) if item.is_dir() else shutil.copyfile(item, folder / item.name)
    for part, source in others.items():
        if part is not component:
            shutil.copytree(source / part, folder / part)
    (folder / component).mkdir()


def _trained(
    component: Component, config: Mapping[str, Any], params: Mapping[str, Array]
) -> list[tuple[Target, Array]]:
    """The available parameters, in the order in which all processes gather them."""
    wanted = targets(table_of(component, config))
    missing = [path for path in wanted if path not in params]
    if missing and component is not Component.TEXT_ENCODER:
        raise ExportError(f"{component}: no parameters for {', '.join(missing[:4])}")
    return [(target, params[path]) for path, target in wanted.items() if path in params]


def _write_component(
    folder: Path, table: list[Entry], trained: list[tuple[Target, Array]], kept: "_Kept", dtype: np.dtype
) -> None:
    """The trained tensors under their released names, one parameter in host memory at a time."""
    plans = [TensorPlan(name=e.name, dtype=dtype, shape=e.shape) for e in table]
    written = {entry.name for target, _ in trained for entry in target.entries}
    with closing(ShardedWriter(folder, Component(folder.name).stem, plans)) as writer:
        for target, values in trained:
            for entry, tensor in _stored(target, gathered(values).astype(dtype), kept, dtype):
                writer.write(entry.name, np.ascontiguousarray(tensor))
        for entry in table:
            if entry.name not in written:
                writer.write(entry.name, kept.read(entry, dtype))


def _stored(target: Target, whole: np.ndarray, kept: "_Kept", dtype: Any) -> list[tuple[Entry, np.ndarray]]:
    tensors = []
    for i, entry in enumerate(target.entries):
        part = whole if entry.block is None else whole[i]
        if entry.transform is Transform.TAP:
            last = entry.transform.backward(part, entry.shape)[:, :, None]
            tensor = np.concatenate([kept.read(entry, dtype)[..., :-1, :, :], last], axis=2)
        else:
            tensor = entry.transform.backward(part, entry.shape)
        tensors.append((entry, tensor))
    return tensors


class _Kept:
    """Stored tensors of the initial checkpoint."""

    def __init__(self, folder: Path, component: Component):
        self._reader = TensorReader(stored_tensors(folder))
        self._names = {new: name for name, new in released_names(component, self._reader.tensors).items()}

    def read(self, entry: Entry, dtype: Any) -> np.ndarray:
        """The stored tensor of an entry, padded with zeros for the channels by which a VAE was extended."""
        stored = self._reader[self._names[entry.name]].astype(dtype)
        if stored.shape == entry.shape:
            return stored
        out = np.zeros(entry.shape, dtype)
        out[tuple(slice(size) for size in stored.shape)] = stored
        return out


def gathered(x: Array) -> np.ndarray:
    """A whole array on the host; all processes must call this function."""
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def config_of(folder: Path, component: Component, **changed: Any) -> dict[str, Any]:
    """The content of a component's config.json with some keys changed."""
    return {**component_config(folder, component), **changed}
