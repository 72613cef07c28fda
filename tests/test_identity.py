"""Fingerprints: equal for equal settings, whatever their order in memory, and different for different ones."""

import dataclasses
import json
from enum import StrEnum
from pathlib import Path

import pytest

from qil_jax.identity import fingerprint, to_json


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Part:
    sizes: tuple[tuple[int, int], ...] = ((1, 2),)
    colour: Colour = Colour.RED
    folder: Path = Path("a/b")


@dataclasses.dataclass(frozen=True)
class Settings:
    part: Part = Part()
    share: float = 0.25
    names: dict[str, int | None] = dataclasses.field(default_factory=lambda: {"x": 1, "y": None})


def test_settings_are_plain_json():
    expected = {"sizes": [[1, 2]], "colour": "red", "folder": "a/b"}
    assert to_json(Settings()) == {"part": expected, "share": 0.25, "names": {"x": 1, "y": None}}
    assert json.loads(json.dumps(to_json(Settings()))) == to_json(Settings())


def test_fingerprints_differ_where_settings_do():
    assert fingerprint(Settings()) == fingerprint(Settings(names={"y": None, "x": 1}))
    others = [Settings(part=Part(colour=Colour.BLUE)), Settings(share=0.5), Settings(names={}), Settings(part=Part(()))]
    assert len({fingerprint(Settings()), fingerprint(Settings(), b"data"), *map(fingerprint, others)}) == 6


def test_what_json_cannot_express_is_refused():
    with pytest.raises(TypeError, match="of type function cannot be written as JSON"):
        fingerprint(lambda: 0)
