"""Seconds that collectives take on a slice's links at least.

A group of devices that fills a box of the slice uses the box's links. Of these bounds the larger holds:

- each device receives its share over its own links within the box, the corner of a box having the fewest;
- half of an all-to-all's traffic crosses the middle of the box's longest side.

Groups whose boxes overlap share their links evenly. A permute sends over the shortest way, one dimension after another,
and the busiest link of all permutes counts. Collectives follow one another: their seconds are added.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from qil_jax.planning.chips import Coordinates, Topology
from qil_jax.planning.collectives import Collective, CollectiveKind

Link = tuple[Coordinates, Coordinates]


def network_seconds(found: Iterable[Collective], topology: Topology, places: Sequence[Coordinates]) -> float:
    """Seconds of all collectives of a program.

    Args:
      found: collectives of the program.
      topology: slice.
      places: coordinates of each partition's device, in the order of the mesh.
    """
    found = list(found)
    permutes = [collective for collective in found if collective.kind is CollectiveKind.PERMUTE]
    others = sum(seconds(c, topology, places) * c.count for c in found if c.kind is not CollectiveKind.PERMUTE)
    return others + permute_seconds(permutes, topology, places)


def seconds(collective: Collective, topology: Topology, places: Sequence[Coordinates]) -> float:
    """Seconds of one run of a collective, without what else its links carry."""
    if collective.kind is CollectiveKind.PERMUTE:
        return permute_seconds([collective], topology, places) / max(collective.count, 1)
    if topology.chip.switched:
        return collective.sent / topology.chip.link
    return max(_group_seconds(collective, [places[d] for d in group], topology) for group in collective.groups)


def _group_seconds(collective: Collective, members: list[Coordinates], topology: Topology) -> float:
    sides = [(min(axis), max(axis) - min(axis) + 1) for axis in zip(*members, strict=True)]
    closed = [topology.wrapped(i) and size == topology.shape[i] for i, (_, size) in enumerate(sides)]
    extents = [size for _, size in sides]
    shared = len(members) / math.prod(extents)  # of a box that several groups fill
    if len(members) == 1:
        return 0.0
    # The corner of a box has one link along each of its sides, two where the side closes to a ring of three or more.
    links = sum((2 if ring and size > 2 else 1) for size, ring in zip(extents, closed, strict=True) if size > 1)
    received = collective.sent / (links * shared * topology.chip.link)
    if collective.kind is not CollectiveKind.ALL_TO_ALL:
        return received
    longest = max(range(len(extents)), key=lambda i: extents[i])
    n, side = len(members), extents[longest]
    cut = math.prod(extents) / side * (2 if closed[longest] and side > 2 else 1) * shared
    crossing = (side // 2) * (side - side // 2) / side**2 * n * collective.bytes
    return max(received, crossing / (cut * topology.chip.link))


def permute_seconds(permutes: Iterable[Collective], topology: Topology, places: Sequence[Coordinates]) -> float:
    """Seconds of permutes that may run at the same time: those of the busiest link."""
    load: Counter[Link] = Counter()
    for permute in permutes:
        for source, target in permute.groups:
            for link in route(places[source], places[target], topology):
                load[link] += permute.bytes * permute.count
    return max(load.values(), default=0) / topology.chip.link


def route(start: Coordinates, end: Coordinates, topology: Topology) -> list[Link]:
    """The links from one device to another, one dimension after another, each the shorter way round."""
    if topology.chip.switched:
        return [(start, end)]
    links, at = [], list(start)
    for i, size in enumerate(topology.shape):
        distance = end[i] - at[i]
        if topology.wrapped(i) and abs(distance) > size / 2:
            distance -= math.copysign(size, distance)
        for _ in range(int(abs(distance))):
            before = tuple(at)
            at[i] = (at[i] + (1 if distance > 0 else -1)) % size
            links.append((before, tuple(at)))
    return links
