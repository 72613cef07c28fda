"""Stored parameters onto a mesh: each device gets its own part, read straight from the files."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from qil_jax.mesh import Rules, shardings
from qil_jax.weights.names import released_names
from qil_jax.weights.safetensors_io import TensorReader, stored_tensors
from qil_jax.weights.source import Layout, OrbaxSource, ParameterSource, SafetensorsSource, layout_of
from qil_jax.weights.structure import component_config
from qil_jax.weights.tables import table_of
from qil_jax.weights.tables.entries import Component, Target, targets

Model = TypeVar("Model", bound=nnx.Module)


def open_source(folder: Path, component: Component) -> ParameterSource:
    """A reader of a component folder of either layout.

    Raises:
      WeightsError: if its files cannot be read.
    """
    if layout_of(folder) is Layout.ORBAX:
        return OrbaxSource(folder)
    reader = TensorReader(stored_tensors(folder))
    names = {released: name for name, released in released_names(component, reader.tensors).items()}
    return SafetensorsSource(reader, names)


def load_model(folder: Path, model: Model, *, mesh: Mesh, rules: Rules, dtype: Any | None = None) -> Model:
    """Fill an abstract model with the parameters of a component folder, placed on the mesh.

    Only what the model holds is read; host memory stays near one parameter.

    Args:
      folder: a component folder, such as CHECKPOINT/transformer, of either layout.
      model: an abstract model (`nnx.eval_shape`); it is filled in place and returned.
      mesh: the devices.
      rules: how logical axes map to the mesh.
      dtype: of the parameters; None: as stored.

    Raises:
      MeshError: if rules, mesh and shapes do not fit, before anything is read.
      WeightsError: if the files cannot be read.
    """
    component = Component(folder.name)
    placements = shardings(model, mesh, rules)
    wanted = targets(table_of(component, component_config(folder.parent, component)))
    source = open_source(folder, component)
    state = nnx.state(model, nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        name = "/".join(map(str, path))
        parameter.set_value(_load(source, wanted[name], placements[name], dtype))
    nnx.update(model, state)
    return model


def _load(source: ParameterSource, target: Target, sharding: jax.sharding.Sharding, dtype: Any | None) -> jax.Array:
    wanted = np.dtype(source.dtype(target) if dtype is None else dtype)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return source.read(target, index).astype(wanted, copy=False)

    return jax.make_array_from_callback(target.shape, sharding, part)


def fingerprint_of(folder: Path) -> str:
    """A short digest of a component's config and stored bytes: equal for equal weights in one layout.

    Cost: reads all files once.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]
