"""Trained parameters as a checkpoint folder of the released layout, beside the parts that were not trained."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from qil_jax.weights.names import released_names
from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan, TensorReader, read_headers, weight_files
from qil_jax.weights.source import Layout, layout_of
from qil_jax.weights.structure import component_config
from qil_jax.weights.tables import Component, Entry, Target, Transform, table_of, targets

UNFINISHED = ".unfinished"


class ExportError(ValueError):
    """A checkpoint folder cannot be written. The message says why; nothing was replaced."""


def export_checkpoint(
    destination: Path,
    *,
    component: Component,
    params: Mapping[str, Array],
    config: Mapping[str, Any],
    others: Mapping[Component, Path],
    origin: Mapping[str, Any],
    dtype: str = "float32",
) -> None:
    """Write a whole checkpoint folder; it appears when it is complete.

    Args:
      component: what was trained.
      params: all its parameters by path, over the mesh; every process must call.
      config: its config.json.
      others: checkpoint folders of the released layout that give each part; that of `component` gives what the
        parameters do not hold: temporal taps of the VAE, the vision tower.
      origin: written to training.json.
      dtype: of the trained tensors.

    Raises:
      ExportError: if the destination exists, or a part is stored by orbax.
    """
    if destination.exists():
        raise ExportError(f"{destination} exists: give another folder, or remove it")
    for part, folder in others.items():
        if layout_of(folder / part) is Layout.ORBAX:
            raise ExportError(f"{folder / part} is stored by orbax: run tools/convert.py to-diffusers on it first")
    writing = jax.process_index() == 0
    folder = destination.with_name(destination.name + UNFINISHED)
    if writing:
        shutil.rmtree(folder, ignore_errors=True)
        _carry(folder, component, others)
        (folder / component / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        (folder / "training.json").write_text(json.dumps(dict(origin), indent=2) + "\n")
    _write_component(folder / component, others[component] / component, component, config, params, np.dtype(dtype))
    if writing:
        folder.rename(destination)


def _carry(folder: Path, component: Component, others: Mapping[Component, Path]) -> None:
    """Copy the parts that were not trained, and the files that are no part."""
    base = others[Component.TRANSFORMER]
    folder.mkdir(parents=True)
    for item in sorted(base.iterdir()):
        if item.name in tuple(Component) or item.name in ("training.json",) or item.name.startswith("."):
            continue
        shutil.copytree(item, folder / item.name) if item.is_dir() else shutil.copyfile(item, folder / item.name)
    for part, source in others.items():
        if part is not component:
            shutil.copytree(source / part, folder / part)
    (folder / component).mkdir()


def _write_component(
    folder: Path, base: Path, component: Component, config: Mapping[str, Any], params: Mapping[str, Array], dtype: Any
) -> None:
    """The trained tensors under their released names, one parameter in host memory at a time."""
    table = table_of(component, config)
    wanted = targets(table)
    trained = {path: target for path, target in wanted.items() if path in params}
    missing = [path for path in wanted if path not in trained]
    if missing and component is not Component.TEXT_ENCODER:
        raise ExportError(f"{component}: no parameters for {', '.join(missing[:4])}")
    writing = jax.process_index() == 0
    kept = _Kept(base, component) if writing else None
    writer = None
    if writing:
        stem = "model" if component is Component.TEXT_ENCODER else "diffusion_pytorch_model"
        writer = ShardedWriter(folder, stem, [TensorPlan(name=e.name, dtype=dtype, shape=e.shape) for e in table])
    for path, target in trained.items():
        whole = _gathered(params[path]).astype(dtype)
        if writer is not None and kept is not None:
            for entry, tensor in _stored(target, whole, kept, dtype):
                writer.write(entry.name, np.ascontiguousarray(tensor))
    if writer is not None and kept is not None:
        for entry in table:
            if entry.transform is Transform.SIDECAR:
                writer.write(entry.name, kept.read(entry, dtype))
        writer.close()


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
    """Stored tensors of the checkpoint that training started from."""

    def __init__(self, folder: Path, component: Component):
        self._reader = TensorReader(read_headers(weight_files(folder)))
        self._names = {new: name for name, new in released_names(component, self._reader.tensors).items()}

    def read(self, entry: Entry, dtype: Any) -> np.ndarray:
        """A tensor; of an extended VAE, whose channels the base lacks, zeros where it has none."""
        stored = self._reader[self._names[entry.name]].astype(dtype)
        if stored.shape == entry.shape:
            return stored
        out = np.zeros(entry.shape, dtype)
        out[tuple(slice(size) for size in stored.shape)] = stored
        return out


def _gathered(x: Array) -> np.ndarray:
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def config_of(folder: Path, component: Component, **changed: Any) -> dict[str, Any]:
    """A component's config.json with some keys changed."""
    return {**component_config(folder, component), **changed}
