"""A result as text: what fits, where the time goes at least, and how each number is put together."""

from collections.abc import Iterator

from qil_jax.planning.chips import CHIPS, GIB, Topology
from qil_jax.planning.result import Result

HEADING = "compiled, not run: every number is read from a compiled program or computed from peak rates"


def report(result: Result, *, steps: int | None = None) -> str:
    """All that is known of a result, in lines.

    Args:
      result: the result.
      steps: number of steps for which the bound is multiplied; None: not at all.
    """
    return "\n".join([HEADING, *_memory(result), *_program(result), *_time(result, steps), *_how(result)])


def mesh_text(result: Result) -> str:
    """The mesh as the command line has it."""
    return ",".join(f"{axis}={size}" for axis, size in result.mesh.items()) or "one device"


def gib(count: int | float) -> str:
    """A number of bytes in GiB."""
    return f"{count / GIB:.2f} GiB"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds."""
    return f"{1e3 * seconds:.1f} ms"


def _memory(result: Result) -> Iterator[str]:
    memory = result.memory
    yield f"{result.topology}, mesh {mesh_text(result)}, {result.devices} devices"
    if result.fits:
        yield f"fits: {gib(result.resident)} of {gib(result.available)} a device, {100 * result.spare:.0f} % to spare"
    else:
        needed = max(result.resident - result.available, 0)
        yield (
            f"does not fit: needs {gib(result.resident)} of {gib(result.available)} a device, {gib(needed)} too much: "
            f"use more devices, another mesh, or --quantize"
        )
    if memory.fits:
        sizes = {"arguments": memory.arguments, "temporaries": memory.temporaries, "peak": memory.peak}
        yield "  program: " + ", ".join(f"{name} {gib(size)}" for name, size in sizes.items())
    else:
        yield f"  program: {gib(memory.peak)}, by the compiler's message"
    if result.beside:
        yield "  beside it: " + ", ".join(f"{name} {gib(size)}" for name, size in result.beside.items())


def _program(result: Result) -> Iterator[str]:
    yield f"FLOPs of the step: at least {result.minimum_flops:.4g} in all"
    if result.roofline is None:
        return
    yield (
        f"  a device computes {result.device_flops:.4g}, of it {result.kernel_flops:.4g} in kernels: "
        f"{result.repeated:.3f} x the minimum, with padding and repetitions"
    )
    yield (
        f"  the compiler counts {result.compiler_flops:.4g} FLOPs and {result.compiler_bytes:.4g} bytes, bodies of "
        f"loops once and kernels not at all"
    )
    for name in result.unknown_kernels:
        yield f"  not counted: the kernel {name}"
    yield f"main memory: {result.hbm / 1e9:.1f} GB read and written by a device"
    yield "collectives of a device:" if result.traffic else "collectives: none"
    for traffic in result.traffic:
        yield (
            f"  {traffic.kind} over {'+'.join(traffic.axes)} ({traffic.size} devices): {traffic.count} times, "
            f"{traffic.bytes / 1e9:.3f} GB, {traffic.sent / 1e9:.3f} GB sent, {milliseconds(traffic.seconds)}"
        )


def _time(result: Result, steps: int | None) -> Iterator[str]:
    roofline = result.roofline
    if roofline is None:
        yield (
            "time: not known, because the program does not fit"
            if not result.memory.fits
            else ("time: not known, because the program was compiled with little effort, for its memory only")
        )
        return
    chip = Topology.parse(result.topology).chip
    yield (
        f"roofline: compute {milliseconds(roofline.compute)}, memory {milliseconds(roofline.memory)}, network "
        f"{milliseconds(roofline.network)}: bound by {roofline.limit}"
    )
    yield (
        f"a step takes at least {milliseconds(roofline.bound)} (MFU {100 * result.mfu(chip.flops):.0f} %), and "
        f"{milliseconds(roofline.in_turn)} if nothing overlaps"
    )
    if steps:
        bound, in_turn = steps * roofline.bound, steps * roofline.in_turn
        yield f"{steps} steps: at least {bound:.2f} s, {in_turn:.2f} s without overlap"


def _how(result: Result) -> Iterator[str]:
    chip = CHIPS[Topology.parse(result.topology).chip.name]
    if result.roofline is None:
        return
    yield (
        f"compute: products in the HLO with the loops' trip counts, and attention's kernels by their operands' shapes, "
        f"over {chip.flops / 1e12:.0f} TFLOP/s"
    )
    yield (
        f"memory: operands and results that lie in main memory, of every instruction, and keys and values once for "
        f"each block of queries, over {chip.bandwidth / 1e9:.0f} GB/s"
    )
    links = "each device sends at" if chip.switched else "a group uses the links of its box of the slice,"
    yield f"network: {links} {chip.link / 1e9:.0f} GB/s each way, one collective after another"
    yield f"compiled in {result.compile_seconds:.0f} CPU seconds"
