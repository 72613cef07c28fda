"""What the folder of one component holds, in either layout."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from qil_jax.models.config import ConfigError
from qil_jax.weights.architecture import Architecture
from qil_jax.weights.names import released_names
from qil_jax.weights.safetensors_io import TensorReader, read_headers, stored_tensors
from qil_jax.weights.source import PARAMS, SIDECAR, Layout, OrbaxSource, ParameterSource, SafetensorsSource
from qil_jax.weights.strict import COPY, TensorInfo, WeightsError, read_json
from qil_jax.weights.tables.entries import Component, Entry, Target


def read_config(file: Path) -> dict[str, Any]:
    """The content of a config.

    Raises:
      ConfigError: if the file is absent or holds no JSON object.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: missing; copy the whole {file.parent.name}/ folder of the release")
    try:
        return read_json(file, fix=COPY)
    except WeightsError as error:
        raise ConfigError(error.problems[0]) from error


class StoredComponent:
    """A component's folder as it was when its files were first read.

    Configs and headers are read once, when they are asked for. No tensor is kept in memory, and no file stays open but
    those of a reader or a source as long as that lives. Members that need the config raise a ConfigError if it is
    missing or not one that the models support, those that need the headers a WeightsError if files cannot be read.

    Attributes:
      folder: folder of the component.
      component: the component.
    """

    def __init__(self, folder: Path, component: Component):
        self.folder, self.component = folder, component

    @functools.cached_property
    def layout(self) -> Layout:
        """The storage format of the weights."""
        return Layout.ORBAX if (self.folder / PARAMS).is_dir() else Layout.DIFFUSERS

    @functools.cached_property
    def json(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_config(self.folder / "config.json")

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The architecture that config.json describes."""
        return Architecture(self.component, self.json)

    @property
    def is_described(self) -> bool:
        """Whether there is a config of an architecture that the models support."""
        try:
            return bool(self.table)
        except ConfigError:
            return False

    @property
    def table(self) -> list[Entry]:
        """The table of all stored tensors."""
        return self.architecture.table

    @property
    def targets(self) -> dict[str, Target]:
        """The stored parameters by path."""
        return self.architecture.targets

    @functools.cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """The tensors of the safetensors files, by their names in these; of orbax those that are stored beside it."""
        if self.layout is Layout.DIFFUSERS:
            return stored_tensors(self.folder)
        return read_headers([self.folder / SIDECAR]) if self.component is Component.VAE else {}

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """The name of each of `tensors` in the files, by its released name."""
        return {released: name for name, released in released_names(self.component, self.tensors).items()}

    def reader(self) -> TensorReader:
        """A new reader of `tensors`."""
        return TensorReader(self.tensors)

    def source(self) -> ParameterSource:
        """A reader of the parameters."""
        return SafetensorsSource(self.reader(), self.names) if self.layout is Layout.DIFFUSERS else self.arrays

    @functools.cached_property
    def arrays(self) -> OrbaxSource:
        """The parameters of the layout orbax, whose metadata are read once; it keeps neither values nor open files."""
        return OrbaxSource(self.folder)

    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of each stored tensor that is part of a parameter, by released name."""
        source = self.source()
        return {entry.name: source.dtype(target) for target in self.targets.values() for entry in target.entries}
