"""Compilation of a lowered program for absent devices, of which too little memory is one outcome."""

import dataclasses
import re
import time
from typing import Any

import jax

from qil_jax.planning.chips import GIB

SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": GIB, "T": 1 << 40}
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of main memory of a program on one device.

    Attributes:
      fits: whether the compiler found room for it.
      arguments: arguments; 0 if it does not fit and the compiler does not tell.
      temporaries: what exists while it runs.
      peak: the most that exists at once, or what is needed if it does not fit.
    """

    fits: bool
    arguments: int = 0
    temporaries: int = 0
    peak: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """The outcome of a compilation.

    Attributes:
      memory: memory of the program.
      text: optimised HLO; empty if the program does not fit.
      flops, accessed: the compiler's own count of FLOPs and bytes, in which a loop's body counts once and a Pallas
        kernel not at all.
      seconds: CPU seconds of the compiling process.
    """

    memory: Memory
    text: str = ""
    flops: float = 0.0
    accessed: float = 0.0
    seconds: float = 0.0


def compiled(lowered: jax.stages.Lowered, *, effort: float = 0.0) -> Compiled:
    """Compile a program.

    Args:
      lowered: program for absent devices.
      effort: effort of the optimiser, from -1 to 1; below 0 the compilation is several times faster, and only its
        memory is of use.

    Raises:
      JaxRuntimeError: if the compiler fails for another reason than too little memory.
    """
    since = time.process_time()
    options: dict[str, Any] = {"exec_time_optimization_effort": effort} if effort else {}
    try:
        done = lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        return Compiled(memory=Memory(fits=False, peak=needed), seconds=time.process_time() - since)
    analysis, cost = done.memory_analysis(), done.cost_analysis() or {}
    assert analysis is not None
    return Compiled(
        memory=Memory(
            fits=True,
            arguments=analysis.argument_size_in_bytes,
            temporaries=analysis.temp_size_in_bytes,
            peak=max(getattr(analysis, "peak_memory_in_bytes", 0), analysis.argument_size_in_bytes),
        ),
        text=done.as_text() or "",
        flops=cost.get("flops", 0.0),
        accessed=cost.get("bytes accessed", 0.0),
        seconds=time.process_time() - since,
    )


def needed_bytes(message: str) -> int | None:
    """The bytes that a program needs, by the compiler's message of too little memory; None for other messages."""
    if OUT_OF_MEMORY not in message:
        return None
    found = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds|Used ([\d.]+)([KMGT]?) of", message)
    if found is None:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * SIZES[unit])
