"""Two thousand broken documents: each is read or dropped for a reason, within the limits of time and memory."""

import io
import random
import struct
import time
from collections import Counter
from pathlib import Path

import psd_files
import pytest
from psd_tools.psd import PSD

from qil_jax.data.psd import PSDDocument, PSDLimits, read_psd
from qil_jax.data.reasons import Dropped, Reason
from qil_jax.data.sandbox import ProcessLimits, Sandbox

CARRIED = Path(__file__).parents[1] / "data" / "documents"
LIMITS = ProcessLimits(seconds=20.0, memory=1 << 30)
SMALL = PSDLimits(pixels=4_000_000)


def mutate(data: bytes, seed: int) -> bytes:
    """A few bytes flipped, a length inflated, a stretch removed, doubled or zeroed, or the end cut off."""
    chance = random.Random(seed)
    mutant = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(len(mutant))
        match chance.randrange(6):
            case 0:
                mutant[at] ^= 1 << chance.randrange(8)
            case 1:
                mutant[at : at + 4] = struct.pack(">I", chance.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 28]))
            case 2:
                del mutant[at : at + chance.randrange(1, 64)]
            case 3:
                mutant[at:at] = mutant[at : at + chance.randrange(1, 64)]
            case 4:
                mutant[at : at + 16] = bytes(len(mutant[at : at + 16]))
            case _:
                del mutant[max(at, 30) :]
        if not mutant:
            break
    return bytes(mutant)


def originals() -> list[bytes]:
    """The design tests write, and small real documents; errors near the start hit headers, so they come twice."""
    names = ["adjustment_clipping.psd", "vector-mask2.psd", "16bit5x5.psd", "4x4_16bit_lab.psd", "opacity-fill.psd"]
    return [psd_files.design(), *((CARRIED / name).read_bytes() for name in names)]


def test_two_thousand_mutants_are_survived(capfd):
    documents, counts, slowest = originals(), Counter(), 0.0
    with Sandbox(LIMITS) as sandbox:
        for seed in range(2000):
            mutant = mutate(documents[seed % len(documents)], seed)
            start = time.monotonic()
            try:
                counts["read"] += isinstance(sandbox(read_psd, mutant, SMALL), PSDDocument)
            except Dropped as dropped:
                assert dropped.detail
                counts[dropped.reason] += 1
            slowest = max(slowest, time.monotonic() - start)
    assert counts.total() == 2000 and set(counts) <= {"read", *Reason}
    assert counts["read"] > 100 and counts[Reason.UNREADABLE] > 100  # both sides of the fence were visited
    assert slowest < LIMITS.seconds + 10
    assert capfd.readouterr() == ("", "")


def test_a_bomb_costs_one_document():
    with Sandbox(ProcessLimits(seconds=3.0, memory=1 << 29)) as sandbox:
        for function, argument, reason in [
            (time.sleep, 60, Reason.TIME_LIMIT),
            (bytearray, 1 << 31, Reason.MEMORY_LIMIT),
            (_die, 3, Reason.CRASHED),
            (_drop, "why", Reason.TOO_FLAT),
        ]:
            with pytest.raises(Dropped) as dropped:
                sandbox(function, argument)
            assert dropped.value.reason is reason and dropped.value.detail
            assert sandbox(len, "next") == 4


def test_ten_thousand_layers_end_at_the_limit():
    """A document of ten thousand layers on a large canvas: read or dropped, but within its limits."""
    psd = psd_files.document()
    psd.create_pixel_layer(psd_files.texture(0, 40, 40), name="one of many")
    file = PSD.read(io.BytesIO(psd_files.saved(psd)))
    info = file.layer_and_mask_information.layer_info
    info.layer_count = 10_000
    for items in (info.layer_records, info.channel_image_data):
        items.extend(items[0] for _ in range(9_999))
    stream = io.BytesIO()
    file.write(stream)
    with Sandbox(ProcessLimits(seconds=60.0, memory=1 << 30)) as sandbox:
        try:
            count = len(sandbox(read_psd, stream.getvalue(), SMALL).layers)
        except Dropped as dropped:
            assert dropped.reason in (Reason.TIME_LIMIT, Reason.MEMORY_LIMIT)
        else:
            assert count == 10_000


def _die(code: int) -> None:
    import os

    os._exit(code)


def _drop(why: str) -> None:
    raise Dropped(Reason.TOO_FLAT, why)
