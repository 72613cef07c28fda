"""Seeded damage to JSON; that to bytes is `tools.fuzz.cases.mutate`."""

import copy
import json
import random
from typing import Any

from tools.fuzz.cases import mutate

ODD = [
    *(None, True, False, 0, 1, 2, 3, -1, 7, 1.5, -0.0, 60.0, 1e308, 2**31, 2**63, 2**64, 10**40),
    *("", "3", "nan", "\x00", "é", "\ud800", "F32", "BF16", "I4", "../a", "a.safetensors", "x" * 3000),
    *([], [1], [0, 8], [1, 2, 3], ["a", "b"], [[[]]], {}, {"a": 1}, {"": {}}, [True, False]),
]
DEEP = 200_000


def damaged_json(values: Any, rng: random.Random) -> bytes:
    """A JSON text near `values`: one to three nodes replaced, removed, added or renamed; sometimes no JSON at all."""
    values = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _edit(values, rng)
    text = json.dumps(values)
    match rng.randrange(24):
        case 0:
            return mutate(text.encode(), rng)
        case 1:  # a key twice
            return text.replace("{", '{"a": 1, "a": 2, ', 1).encode()
        case 2:
            return text.replace("1", rng.choice(["NaN", "Infinity", "1e999", "9" * 5000, "-0"]), 1).encode()
        case 3 if rng.random() < 0.2:
            opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
            return (opening * DEEP + "1" + closing * DEEP).encode()
        case 4:
            return json.dumps(rng.choice(ODD)).encode()
    return text.encode()


def _edit(values: Any, rng: random.Random) -> None:
    node = rng.choice([n for n in _nodes(values) if n] or [values])
    if isinstance(node, dict) and node:
        _edit_object(node, values, rng)
    elif isinstance(node, list) and node:
        _edit_list(node, rng)


def _edit_object(node: dict[str, Any], values: Any, rng: random.Random) -> None:
    key = rng.choice([*node])
    match rng.randrange(8):
        case 0:
            del node[key]
        case 1:
            node[key + rng.choice((" ", "x", "é"))] = node.pop(key)
        case 2:
            node[rng.choice(("new", "_new", "__metadata__", "dtype", "metadata"))] = rng.choice(ODD)
        case 3:
            node[key] = copy.deepcopy(rng.choice([*_nodes(values)]))
        case 4 if isinstance(node[key], int | float):
            node[key] += rng.choice((-1, 1, 8))
        case _:
            node[key] = copy.deepcopy(rng.choice(ODD))


def _edit_list(node: list[Any], rng: random.Random) -> None:
    spot = rng.randrange(len(node))
    match rng.randrange(4):
        case 0:
            del node[spot]
        case 1:
            node.insert(spot, copy.deepcopy(rng.choice(ODD)))
        case 2 if isinstance(node[spot], int | float):
            node[spot] += rng.choice((-8, -1, 1, 4))
        case _:
            node[spot] = copy.deepcopy(rng.choice(ODD))


def _nodes(values: Any) -> list[Any]:
    """All objects and lists, the outermost first."""
    nodes = [values]
    for node in nodes:
        inner = node.values() if isinstance(node, dict) else node
        nodes += [child for child in inner if isinstance(child, dict | list)]
    return nodes
