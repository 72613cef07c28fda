"""Training of low-rank changes of the transformer (LoRA): its config, the factors' initial values, their dropout.

The factors are the trained parameters of a run, everything else is frozen (docs/training.md).
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding
from jaxtyping import Float, Key

from qil_jax.errors import QilError
from qil_jax.mesh import Sharding, shardings
from qil_jax.models.lora import add_lora
from qil_jax.models.paths import slashed
from qil_jax.training.parameters import Params
from qil_jax.weights.lora import LoRA, LowRank
from qil_jax.weights.tables.entries import Entry

TARGETS = r"^backbone/blocks/(image|text)/(q|k|v|out|mlp_out)$|^modulation/(image|text)$"
"""The maps that DiffSynth-Studio changes: attention, the output of both MLPs, and the modulation of all blocks."""
FACTORS = r"/lora/[ab]$"
"""Regular expression that the paths of factors contain."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Settings of low-rank changes of linear maps: the kernel becomes kernel + alpha / rank * a @ b.

    The defaults are those of DiffSynth-Studio's script for Qwen-Image-Layered, which has alpha equal to rank.

    Attributes:
      rank: number of columns of factor a and of rows of factor b, 1 or more.
      alpha: numerator of the scale alpha / rank of a change, above 0.
      dropout: probability, in [0, 1), with which a training step omits an input feature of a change; the features that
        remain are divided by its complement. A step omits the same features for all tokens of its batch.
      targets: regular expression that the paths of changed maps must contain, such as backbone/blocks/image/q.
    """

    rank: int = 32
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise QilError(
                f"LoRAConfig: rank {self.rank} must be at least 1, and alpha {self.alpha} above 0 and finite"
            )
        if not 0 <= self.dropout < 1:
            raise QilError(f"LoRAConfig: dropout {self.dropout} must be at least 0 and below 1")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise QilError(f"LoRAConfig: targets '{self.targets}' is no regular expression: {error}") from error

    def add_to(self, model: nnx.Module) -> list[str]:
        """Add abstract factors to the targets in a (possibly abstract) model, in place, and return their paths."""
        return add_lora(model, rank=self.rank, alpha=self.alpha, targets=re.compile(self.targets).search)


Stored = Mapping[str, Float[np.ndarray, "..."]]
"""Factors of a LoRA file by path."""


def initial_factors(model: nnx.Module, sharding: Sharding, seed: int, stored: Stored = MappingProxyType({})) -> Params:
    """The factors of a model before the first step, placed on a mesh: a is random, b is zero.

    a is drawn from U(-1/sqrt(i), 1/sqrt(i)) for i input features, which is Kaiming's uniform distribution as PEFT uses
    it. The values depend on the seed and the path, but not on the mesh.

    Args:
      model: model with abstract factors, from `LoRAConfig.add_to`.
      seed: seed of the run.
      stored: factors of a LoRA file by path, which replace the initial values.

    Raises:
      MeshError: if rules, mesh and shapes are inconsistent.
    """
    placements = shardings(model, sharding)
    shapes = {slashed(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    return {
        path: _stored(stored[path], where) if path in stored else _initial_factor(path, shapes[path], where, seed)
        for path, where in placements.items()
        if re.search(FACTORS, path)
    }


def _stored(values: np.ndarray, where: NamedSharding) -> Array:
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def _initial_factor(path: str, shape: tuple[int, ...], where: NamedSharding, seed: int) -> Array:
    def draw(key: Array) -> Array:
        bound = shape[-2] ** -0.5
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound) if path.endswith("/a") else jnp.zeros(shape)

    return jax.jit(draw, out_shardings=where)(_key_of(jax.random.key(seed), path))


def _key_of(key: Key[Array, ""], path: str) -> Key[Array, ""]:
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def with_dropout(params: Params, key: Key[Array, ""], rate: float) -> Params:
    """The factors with a random part of the input features omitted: rows of every a, drawn by the key and the path.

    A feature is omitted for all tokens alike (variational dropout, arXiv 1512.05287): a mask per token, as in PEFT,
    would need as many random bits as the inputs of all targets have elements, and a microbatch its own draws.

    Args:
      params: trained parameters by path; those that are no factor a stay as they are.
      rate: probability with which a feature is omitted.
    """
    keep = lambda path, a: jax.random.bernoulli(_key_of(key, path), 1 - rate, (*a.shape[:-1], 1))
    return {
        path: jnp.where(keep(path, value), value / (1 - rate), 0) if path.endswith("/lora/a") else value
        for path, value in params.items()
    }


def stored_factors(lora: LoRA, table: list[Entry]) -> dict[str, Float[np.ndarray, "..."]]:
    """The factors of a LoRA by path, stacked over blocks: the inverse of `lora_of`."""
    blocks: dict[str, list[LowRank]] = {}
    stacked = set()
    for entry in sorted(_maps(table).values(), key=lambda entry: entry.block or 0):
        change = lora.changes.get(entry.name.removesuffix(".weight"))
        if change is not None:
            path = entry.path.removesuffix("/kernel")
            blocks.setdefault(path, []).append(change)
            stacked |= {path} if entry.block is not None else set()
    joined = lambda path, factors: np.stack(factors) if path in stacked else factors[0]
    return {f"{path}/lora/a": joined(path, [c.a for c in changes]) for path, changes in blocks.items()} | {
        f"{path}/lora/b": joined(path, [c.b for c in changes]) for path, changes in blocks.items()
    }


def differences(lora: LoRA, config: LoRAConfig, table: list[Entry], targets: list[str]) -> list[str]:
    """What prevents a LoRA from being trained further with a config whose targets have these paths."""
    wanted = {name for name, entry in _maps(table).items() if entry.path.removesuffix("/kernel") in targets}
    problems = [f"{name}: is a target, but is not in the file" for name in sorted(wanted - lora.changes.keys())]
    problems += [f"{name}: is in the file, but is no target" for name in sorted(lora.changes.keys() - wanted)]
    for name in sorted(wanted & lora.changes.keys()):
        change, scale = lora.changes[name], config.alpha / config.rank
        rank = change.a.shape[1]
        if rank != config.rank:
            problems.append(f"{name}: has rank {rank}, but lora.rank is {config.rank}")
        elif not math.isclose(change.scale, scale, rel_tol=1e-6):
            problems.append(f"{name}: has scale {change.scale:g}, but lora.alpha / lora.rank is {scale:g}")
    return problems


def _maps(table: list[Entry]) -> dict[str, Entry]:
    """The entries of kernels by the released name of their module."""
    return {entry.name.removesuffix(".weight"): entry for entry in table if entry.path.endswith("/kernel")}


def lora_of(
    params: Mapping[str, Float[np.ndarray, "..."]], config: LoRAConfig, table: list[Entry], origin: Mapping[str, Any]
) -> LoRA:
    """The LoRA of trained factors: one change for each released module.

    Args:
      params: factors by path, stacked over blocks.
      config: config of the run.
      table: table of the transformer's tensors.
      origin: stage and step of the run.
    """
    changes = {}
    for name, entry in _maps(table).items():
        path = entry.path.removesuffix("/kernel")
        if f"{path}/lora/a" in params:
            a, b = (params[f"{path}/lora/{factor}"] for factor in "ab")
            if entry.block is not None:
                a, b = a[entry.block], b[entry.block]
            changes[name] = LowRank(a=a, b=b, scale=config.alpha / config.rank)
    return LoRA(changes=changes, origin=origin)
