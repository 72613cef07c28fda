"""Loading of stored parameters onto a mesh; each device's shard is read directly from the files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Float

from qil_jax.mesh import Sharding, shardings
from qil_jax.models.paths import slashed
from qil_jax.weights.architecture import Architecture, Part, TransformerPart
from qil_jax.weights.assemble import Placed, assemble
from qil_jax.weights.extension import ExtendedSource
from qil_jax.weights.merge import Scaled, merged, require_fit
from qil_jax.weights.source import ParameterSource
from qil_jax.weights.stored import StoredComponent
from qil_jax.weights.tables.entries import Target


def load_part(
    stored: StoredComponent,
    architecture: Architecture,
    part: Part,
    sharding: Sharding,
    *,
    dtype: Any,
    loras: Sequence[Scaled],
) -> nnx.Module:
    """The module of `Checkpoint.load`, which gives the arguments and errors.

    `architecture` is the stored one or that of a layered model, where parameters that are not stored have their initial
    values.
    """
    prefix = f"{part}/" if isinstance(part, TransformerPart) else ""
    module = architecture.abstract(part)
    placements = shardings(module, sharding)
    require_fit(stored.component, architecture.table, loras)
    wanted = architecture.targets
    source = ExtendedSource(stored.source(), stored.targets)
    state = nnx.state(module, nnx.Param)
    parameters = {slashed(path): parameter for path, parameter in nnx.to_flat_state(state)}
    chosen = {
        path: _placed(source, wanted[path], placements[path], dtype, loras)
        for path in parameters
        if path.startswith(prefix)
    }
    for path, values in assemble(chosen).items():
        parameters[path].set_value(values)
    nnx.update(module, state)
    return module


def _placed(
    source: ParameterSource, target: Target, sharding: NamedSharding, dtype: Any | None, loras: Sequence[Scaled]
) -> Placed:
    stored = source.dtype(target)
    wanted = target.loaded_dtype(stored, dtype)
    return Placed(
        shape=target.shape,
        dtype=wanted,
        itemsize=stored.itemsize,
        sharding=sharding,
        read=lambda index: merged(source.read(target, index), target, index, loras, wanted),
    )


def placed_shapes(stored: StoredComponent, part: Part, sharding: Sharding, *, dtype: Any) -> nnx.Module:
    """The module that `load_part` returns, with shapes, dtypes and shardings in place of parameters."""
    module, wanted, source = stored.architecture.abstract(part), stored.targets, stored.source()
    placements = shardings(module, sharding)
    state = nnx.state(module, nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        name = slashed(path)
        kind = wanted[name].loaded_dtype(source.dtype(wanted[name]), dtype)
        parameter.set_value(jax.ShapeDtypeStruct(parameter.shape, kind, sharding=placements[name]))
    nnx.update(module, state)
    return module


class MergedParams(Mapping[str, np.ndarray]):
    """The fp32 kernels of a stored transformer that LoRAs change, by path; each is read and changed on access."""

    def __init__(self, stored: StoredComponent, loras: Sequence[Scaled]):
        """Open the transformer; `loras` are LoRAs, each with its factor.

        Raises:
          LoRAError: if LoRAs do not fit the transformer.
          WeightsError: if the files cannot be read.
        """
        require_fit(stored.component, stored.table, loras)
        self._source, self._loras = stored.source(), loras
        changed = {f"{module}.weight" for lora, _ in loras for module in lora.changes}
        self._targets = {
            path: target
            for path, target in stored.targets.items()
            if any(entry.name in changed for entry in target.entries)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __contains__(self, path: object) -> bool:
        return path in self._targets

    def __getitem__(self, path: str) -> Float[np.ndarray, "..."]:
        target = self._targets[path]
        whole = tuple(map(slice, target.shape))
        return merged(self._source.read(target, whole), target, whole, self._loras, np.float32)
