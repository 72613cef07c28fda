"""Seconds, shares and outcomes, by numbers that are worked out by hand."""

import dataclasses

import pytest

from qil_jax.errors import QilError
from qil_jax.planning.chips import CHIPS, GIB, Topology
from qil_jax.planning.collectives import Collective, CollectiveKind
from qil_jax.planning.compiling import Memory, needed_bytes
from qil_jax.planning.network import network_seconds, permute_seconds, seconds
from qil_jax.planning.report import report
from qil_jax.planning.result import Result, Roofline

V5E, V5P = Topology.parse("v5e:2x4"), Topology.parse("v5p:4x4x4")
FLAT = [(x, y) for x in range(2) for y in range(4)]
SOLID = [(x, y, z) for x in range(4) for y in range(4) for z in range(4)]


def made(kind: CollectiveKind, *groups: tuple[int, ...], count: int = 1) -> Collective:
    """A collective of 9 GB."""
    return Collective(kind=kind, bytes=9_000_000_000, groups=groups, count=count)


@pytest.mark.parametrize(
    ("kind", "groups", "expected"),
    [
        (CollectiveKind.ALL_GATHER, ((0, 4), (1, 5)), 0.5 * 9 / 45),  # neighbours: one link
        (CollectiveKind.ALL_GATHER, ((0, 1, 4, 5), (2, 3, 6, 7)), 0.75 * 9 / 90),  # 2 x 2: two links a chip
        (CollectiveKind.ALL_REDUCE, ((0, 1, 4, 5),), 2 * 0.75 * 9 / 90),
        (CollectiveKind.REDUCE_SCATTER, ((0, 1, 2, 3),), 0.75 * 9 / 45),  # a line: its ends have one link
        (CollectiveKind.ALL_GATHER, (tuple(range(8)),), 7 / 8 * 9 / 90),  # a corner of 2 x 4 has two
        (CollectiveKind.ALL_GATHER, ((0, 2), (1, 3)), 0.5 * 9 / 45 * 3 / 2),  # boxes of three, filled by two
        (CollectiveKind.ALL_TO_ALL, ((0, 1, 2, 3),), 9 / 45),  # half of it crosses the middle: 4 x 9 / 4
        (CollectiveKind.PERMUTE, ((0, 1), (1, 0)), 9 / 45),  # both directions at once
        (CollectiveKind.PERMUTE, ((0, 3), (1, 2)), 2 * 9 / 45),  # both over the middle link
    ],
)
def test_seconds_on_a_flat_slice(kind, groups, expected):
    assert seconds(made(kind, *groups), V5E, FLAT) == pytest.approx(expected)


def test_seconds_on_a_torus():
    line, cube = tuple(range(4)), tuple(range(64))
    assert seconds(made(CollectiveKind.ALL_GATHER, line), V5P, SOLID) == pytest.approx(0.75 * 9 / 180)
    assert seconds(made(CollectiveKind.ALL_GATHER, cube), V5P, SOLID) == pytest.approx(63 / 64 * 9 / 540)
    assert permute_seconds([made(CollectiveKind.PERMUTE, (0, 3))], V5P, SOLID) == pytest.approx(9 / 90)


def test_collectives_are_added_and_permutes_share_links():
    gather = made(CollectiveKind.ALL_GATHER, (0, 4), count=3)
    there, back = made(CollectiveKind.PERMUTE, (0, 1)), made(CollectiveKind.PERMUTE, (1, 0))
    assert network_seconds([gather], V5E, FLAT) == pytest.approx(3 * 0.1)
    assert network_seconds([gather, there, back], V5E, FLAT) == pytest.approx(3 * 0.1 + 0.2)
    assert network_seconds([there, there], V5E, FLAT) == pytest.approx(0.4)


RESULT = Result(
    topology="v5e:2x4",
    mesh={"cfg": 2, "tensor": 4},
    memory=Memory(fits=True, arguments=6 * GIB, temporaries=GIB, peak=7 * GIB),
    available=16 * GIB,
    beside={"VAE": GIB},
    minimum_flops=8 * 0.1 * 197e12,
    device_flops=0.11 * 197e12,
    hbm=1000,
    roofline=Roofline(compute=0.11, memory=0.05, network=0.2),
)


def test_a_result():
    assert RESULT.fits and RESULT.resident == 8 * GIB and RESULT.spare == 0.5
    assert RESULT.repeated == pytest.approx(1.1)
    assert RESULT.mfu(197e12) == pytest.approx(0.5)
    assert RESULT.roofline is not None
    assert (RESULT.roofline.bound, RESULT.roofline.limit) == (0.2, "network")
    assert RESULT.roofline.in_turn == pytest.approx(0.36)


def test_the_report_says_what_it_is():
    lines = report(RESULT, steps=50)
    assert lines.startswith("compiled, not run")
    assert "fits: 8.00 GiB of 16.00 GiB a device, 50 % to spare" in lines
    assert "50 steps: at least 10.00 s, 18.00 s without overlap" in lines and "MFU 50 %" in lines


def test_too_little_memory_is_an_answer():
    needed = needed_bytes("RESOURCE_EXHAUSTED: the total memory (25.62G) exceeds available HBM (15.75G).")
    assert needed == int(25.62 * GIB)
    small = dataclasses.replace(RESULT, memory=Memory(fits=False, peak=26 * GIB), roofline=None)
    assert not small.fits and "does not fit: needs 27.00 GiB of 16.00 GiB a device, 11.00 GiB too much" in report(small)
    crowded = dataclasses.replace(RESULT, beside={"text encoder": 10 * GIB})
    assert crowded.memory.fits and not crowded.fits
    assert needed_bytes("INTERNAL: something else") is None
    assert needed_bytes("RESOURCE_EXHAUSTED: Used 17.50G of 15.75G hbm.") == int(17.5 * GIB)


@pytest.mark.parametrize("name", ["v5e:3x5", "v9:2x2", "v5e", "v5e:", "v5p:2x2", "v5p:3x2x1", "h100:2x2", "v5e:0x2"])
def test_unknown_topologies_are_refused(name):
    with pytest.raises(QilError, match=r"not known.*v5e and v6e have.*h100:8"):
        Topology.parse(name)


@pytest.mark.parametrize("name", ["v5e:2x4", "v6e:1x1", "v5p:1x1x1", "v5p:2x2x1", "v5p:4x4x8", "h100:8"])
def test_known_topologies(name):
    assert str(Topology.parse(name)) == name
    assert Topology.parse("v5p:4x4x8").devices == 128


def test_rings_of_a_topology():
    assert not any(V5E.wrapped(i) for i in range(2)) and all(V5P.wrapped(i) for i in range(3))
    assert Topology.parse("v5e:16x16").wrapped(0) and not Topology.parse("v5p:2x2x1").wrapped(0)
    assert CHIPS["v5p"].wraps == 4
