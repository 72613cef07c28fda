"""Seeded damage to JSON, XML and archives; that to bytes is `tools.fuzz.cases.mutate`."""

import copy
import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from tools.fuzz.cases import mutate

ODD = [
    *(None, True, False, 0, 1, 2, 3, -1, 7, 1.5, -0.0, 60.0, 1e308, 2**31, 2**63, 2**64, 10**40),
    *("", "3", "nan", "\x00", "é", "\ud800", "F32", "BF16", "I4", "../a", "a.safetensors", "x" * 3000),
    *([], [1], [0, 8], [1, 2, 3], ["a", "b"], [[[]]], {}, {"a": 1}, {"": {}}, [True, False]),
]
ODD_VALUES = (
    b"",
    b" ",
    b"-1",
    b"0",
    b"0.5",
    b"1.5",
    b"1e400",
    b"nan",
    b"inf",
    b"9" * 25,
    b"9" * 5000,
    b"-2147483649",
    b"x",
)
ODD_VALUES += (b"true", b"hidden", b"../a", b"&amp;", b"\xc3\xa9", b"svg:multiply", b"svg:src-over", b"a" * 3000)
"""Values of attributes in XML."""
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
            node[rng.choice(("new", "_new", "__metadata__", "dtype", "metadata"))] = copy.deepcopy(rng.choice(ODD))
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


def damaged_xml(text: bytes, rng: random.Random) -> bytes:
    """XML near `text`: values replaced or exchanged, elements removed or doubled; sometimes no XML at all."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        values = list(re.finditer(rb'(?<==")[^"]*(?=")', text))
        elements = list(re.finditer(rb"<[A-Za-z][^<>]*/>", text))
        if not values or not elements:
            return mutate(text, rng)
        value, element = rng.choice(values), rng.choice(elements)
        match rng.randrange(8):
            case 0:
                text = text[: element.start()] + text[element.end() :]
            case 1:
                text = text[: element.end()] + element[0] + text[element.end() :]
            case 2:
                text = mutate(text, rng)
            case 3 if rng.random() < 0.1:
                text = text[: element.start()] + b"<stack>" * DEEP + text[element.start() :]
            case 4:
                other = rng.choice(values)[0]
                text = text[: value.start()] + other + text[value.end() :]
            case _:
                text = text[: value.start()] + rng.choice(ODD_VALUES) + text[value.end() :]
    return text


def members_of(data: bytes) -> dict[str, bytes]:
    """The files of a ZIP."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def damaged_archive(
    members: Mapping[str, bytes], others: Mapping[str, bytes], rng: random.Random, **damage: Callable[..., bytes]
) -> bytes:
    """A ZIP near one of `members`, whose checksums are right; in one of five cases its bytes are damaged after all.

    Args:
      members: the files.
      others: files of another archive, which may take the place of some.
      rng: source of what is done.
      damage: how files are damaged, by the ending of their names; others are by `mutate`.
    """
    files = dict(members)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice([*files] or ["a"])
        match rng.randrange(8):
            case 0:
                files.pop(name, None)
            case 1:
                files[name] = rng.choice([*others.values()])
            case 2:
                files[rng.choice([*files] or ["a"])] = files.get(name, b"")
            case 3:
                files[name] = b""
            case _:
                how = damage.get(name.rpartition(".")[2], mutate)
                files[name] = how(files[name], rng) if files.get(name) else b""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return mutate(stream.getvalue(), rng) if rng.random() < 0.2 else stream.getvalue()
