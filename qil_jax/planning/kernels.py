"""FLOPs and repeated reads of Pallas and cuDNN kernels, which are opaque, from the shapes of their operands."""

import dataclasses
import math
import re
from collections.abc import Iterator

from qil_jax.planning.hlo import ArrayType, Computation, Instruction, Module
from qil_jax.planning.walk import executed

TARGET, CUDNN = "tpu_custom_call", "__cudnn$fmha"
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "fused": 5}
"""Products of tokens by tokens in a pass of attention: scores and sums forward; scores, their gradients and one or two
results backward."""
BLOCKS = {"fwd": "block_q", "dq": "block_q_dq", "dkv": "block_kv_dkv", "fused": "block_kv_dkv"}
"""The block of a pass for which the other operands are read once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel of a program.

    Attributes:
      name: its name in the program.
      count: how often it runs.
      flops: FLOPs of one run; None if the kernel is not known here.
      repeated: bytes that one run reads from main memory beyond one read of each operand.
    """

    name: str
    count: int
    flops: int | None
    repeated: int


def kernels(module: Module) -> list[Kernel]:
    """The kernels of a program that are no HLO, those of splash attention and of cuDNN's with their FLOPs."""
    return list(_kernels(module))


def _kernels(module: Module) -> Iterator[Kernel]:
    for computation, instruction, times in executed(module):
        if instruction.target == TARGET:
            flops, repeated = _splash(computation, instruction)
            yield Kernel(name=instruction.name, count=times, flops=flops, repeated=repeated)
        elif instruction.target.startswith(CUDNN):
            yield Kernel(name=instruction.name, count=times, flops=_cudnn(computation, instruction), repeated=0)


def _splash(computation: Computation, instruction: Instruction) -> tuple[int | None, int]:
    """FLOPs and repeated bytes of splash attention, whose operands [..., tokens, width] begin with q, k and v."""
    wide = [t for name in instruction.operands for t in computation.instructions[name].types if _is_heads(t)]
    kind = _pass_of(instruction)
    if kind is None or len(wide) < 3:
        return None, 0
    q, k, v = wide[:3]
    *heads, queries, width = q.shape
    keys = k.shape[-2]
    flops = PRODUCTS[kind] * 2 * math.prod(heads) * queries * keys * width
    block = re.search(rf'{BLOCKS[kind]}\\*": (\d+)', instruction.attributes)
    if block is None:
        return flops, 0
    streamed, tokens = ([k, v], queries) if kind in ("fwd", "dq") else ([q, *wide[3:4]], keys)
    again = -(-tokens // int(block[1])) - 1
    return flops, again * sum(kept.bytes for kept in streamed if kept.memory == 0)


def _cudnn(computation: Computation, instruction: Instruction) -> int | None:
    """FLOPs of cuDNN's attention of q [b, t, n, d] to k and v [b, s, n, d]; None for its backward pass."""
    if "Backward" in instruction.target:
        return None
    q, k = (computation.instructions[name].types[0] for name in instruction.operands[:2])
    return 4 * q.size * k.shape[1]


def _pass_of(instruction: Instruction) -> str | None:
    found = re.search(r"splash_\w*?_(fwd|dq|dkv)", instruction.name + instruction.attributes[:4000])
    if found is None:
        return None
    fused = 'use_fused_bwd_kernel\\": true' in instruction.attributes
    return "fused" if found[1] == "dkv" and fused else found[1]


def _is_heads(kept: ArrayType) -> bool:
    return len(kept.shape) in (3, 4) and kept.dtype in ("bf16", "f32") and min(kept.shape[-2:]) >= 64
