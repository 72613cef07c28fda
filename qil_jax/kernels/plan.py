"""The plan of attention on a mesh, by arithmetic on sizes: what cannot run is refused before anything is traced."""

import dataclasses
import importlib.util
from collections.abc import Iterable

from qil_jax.choices import AttentionKind, Spread
from qil_jax.mesh.rules import MeshError
from qil_jax.mesh.sharding import Sharding
from qil_jax.models.attention import XLA_KINDS
from qil_jax.models.axes import Axis

Q_BLOCKS = (512, 384, 256, 128)
"""Numbers of queries that make a block of splash attention."""
KV_BLOCKS = {1024: 512, 768: 384, 640: 640, 512: 512, 384: 384, 256: 256, 128: 128}
"""Numbers of keys that are loaded as a block, and how many of them are multiplied at a time.

512 x 1024 x 512 compiles for the 16 MiB of scoped memory of a v5e with room: 2048 x 2048 does not.
"""
SPARE = 1 / 16
"""The share of a sequence that padding may add for the sake of larger blocks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Block sizes of splash attention, and the lengths that its sequences are padded to.

    Attributes:
      block_q: number of queries of a block, forward and backward.
      block_kv: number of keys of a block that is loaded at a time.
      block_kv_compute: number of keys that are multiplied at a time.
      queries, keys: numbers of queries and keys of one device after padding, multiples of their blocks.
    """

    block_q: int
    block_kv: int
    block_kv_compute: int
    queries: int
    keys: int

    @classmethod
    def of(cls, queries: int, keys: int) -> "Blocks":
        """The blocks for a number of queries and of keys on one device."""
        block_q, block_kv = _block(queries, Q_BLOCKS), _block(keys, KV_BLOCKS)
        return cls(
            block_q=block_q,
            block_kv=block_kv,
            block_kv_compute=KV_BLOCKS[block_kv],
            queries=_up(queries, block_q),
            keys=_up(keys, block_kv),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """What every device does in joint attention. `plan_attention` makes it.

    Attributes:
      kind: implementation that runs on each device, on the arrays that lie there.
      spread: how queries meet the keys of other devices; NONE where no sequence is split.
      heads: number of heads that a device multiplies at a time.
      context: number of devices that share a sequence.
      interpret: whether a Pallas kernel is interpreted, as tests on a CPU do.
    """

    kind: AttentionKind
    spread: Spread
    heads: int
    context: int = 1
    interpret: bool = False

    def blocks(self, tokens: int) -> Blocks:
        """The blocks of splash attention for the joint sequence of `tokens` text and image tokens of a row."""
        local = -(-tokens // self.context)
        queries = tokens if self.spread is Spread.ULYSSES else local
        return Blocks.of(queries, local if self.spread is Spread.RING else tokens)


def plan_attention(
    kind: AttentionKind,
    spread: Spread,
    *,
    heads: int,
    sharding: Sharding,
    platform: str,
    backward: bool = False,
) -> AttentionPlan:
    """The plan of one kind of attention on a mesh.

    Args:
      kind: implementation on each device.
      spread: how queries meet the keys of other devices; without effect where the rules split no sequence.
      heads: number of attention heads of the transformer.
      sharding: mesh and rules, which say what Axis.TOKENS and Axis.HEADS are split over; it may be abstract.
      platform: platform of the mesh's devices: "cpu", "gpu" or "tpu".
      backward: whether gradients are taken.

    Raises:
      MeshError: if the kind does not run on the platform, or heads or spread do not fit; all problems are listed.
    """
    problems = sharding.problems()
    if problems:
        raise MeshError(problems)
    context, tensor = sharding.ways(Axis.TOKENS), sharding.ways(Axis.HEADS)
    problems = _platform_problems(kind, platform)
    if heads % tensor:
        problems.append(f"{heads} heads do not divide over tensor={tensor}: use a divisor of {heads}")
    if context > 1 and spread is Spread.NONE:
        problems.append(f"context={context} splits sequences, and spread is none: use gather, ulysses or ring")
    if context > 1 and spread is Spread.ULYSSES and heads % (tensor * context):
        problems.append(
            f"ulysses needs tensor x context = {tensor} x {context} to divide {heads} heads: use gather or ring, or "
            f"fewer devices along these axes"
        )
    if context > 1 and spread is Spread.RING:
        problems += _ring_problems(kind, backward)
    if problems:
        raise MeshError(problems)
    spread = spread if context > 1 else Spread.NONE
    return AttentionPlan(
        kind=kind,
        spread=spread,
        heads=heads // tensor // (context if spread is Spread.ULYSSES else 1),
        context=context,
        interpret=kind is AttentionKind.SPLASH and platform == "cpu",
    )


def _platform_problems(kind: AttentionKind, platform: str) -> list[str]:
    if kind is AttentionKind.CUDNN and platform not in ("gpu", "cuda"):
        return [f"cudnn attention runs on NVIDIA GPUs, and the devices are {platform}: use {_advice(platform)}"]
    if kind is AttentionKind.SPLASH and platform not in ("tpu", "cpu"):
        return [f"splash attention runs on TPUs, and the devices are {platform}: use {_advice(platform)}"]
    if kind is AttentionKind.TOKAMAX and importlib.util.find_spec("tokamax") is None:
        return [f"the package tokamax is not installed: run 'pip install tokamax', or use {_advice(platform)}"]
    return []


def _ring_problems(kind: AttentionKind, backward: bool) -> list[str]:
    if kind is AttentionKind.SPLASH and backward:
        return ["splash attention has no gradient in a ring: use ulysses or gather, or the kind xla_chunked"]
    if kind is not AttentionKind.SPLASH and kind not in XLA_KINDS:
        return [f"{kind} attention does not run in a ring: use ulysses or gather, or the kind xla_chunked"]
    return []


def _advice(platform: str) -> AttentionKind:
    """The kind that runs on every device of a platform."""
    kinds = {"tpu": AttentionKind.SPLASH, "gpu": AttentionKind.CUDNN, "cuda": AttentionKind.CUDNN}
    return kinds.get(platform, AttentionKind.XLA_CHUNKED)


def _block(length: int, blocks: Iterable[int]) -> int:
    """The largest block whose padding is spared, or that of the least padding."""
    return min(blocks, key=lambda block: (max(_up(length, block), (1 + SPARE) * length), -block))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
