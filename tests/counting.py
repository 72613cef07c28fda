"""How often the files of a checkpoint are parsed, and how often what follows from them is made."""

import collections
import json
import struct
from pathlib import Path

import pytest

from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder, VisionLanguage
from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT
from qil_jax.weights import tables

CONFIGS = (MMDiTConfig, VAEConfig, Qwen2_5VLConfig)
TABLES = ("transformer_table", "vae_table", "text_encoder_table")
MODULES = (VLDMMDiT, RGBAVAE, TextEncoder, VisionLanguage)


class Counts:
    """Counts since this object was made, at doors that nothing goes around.

    Attributes:
      parsed: number of times that JSON with the content of a file of the checkpoint was parsed, by path; of a
        safetensors file the header's.
      made: number of times that a config was fitted to its class, a table built or a module made, by name.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.parsed, self.made = collections.Counter[str](), collections.Counter[str]()
        texts = {file.read_text(): str(file.relative_to(folder)) for file in folder.rglob("*.json")}
        texts |= {header(file): str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")}
        loads = json.loads

        def counted(text, *arguments, **hooks):
            name = texts.get(text if isinstance(text, str) else bytes(text).decode(errors="replace"))
            self.parsed.update([name] if name else [])
            return loads(text, *arguments, **hooks)

        monkeypatch.setattr(json, "loads", counted)
        for config in CONFIGS:
            self._count(monkeypatch, config, "from_json", config.__name__)
        for table in TABLES:
            self._count(monkeypatch, tables, table, table)
        for module in MODULES:
            self._count(monkeypatch, module, "__init__", module.__name__)

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner, attribute: str, name: str) -> None:
        """Count the calls of an attribute, which a class method hands on with its class."""
        call = getattr(owner, attribute)

        def counted(*arguments, **options):
            self.made[name] += 1
            return call(*arguments, **options)

        is_bound = attribute == "from_json"
        monkeypatch.setattr(owner, attribute, staticmethod(counted) if is_bound else counted)

    def of_weights(self) -> dict[str, int]:
        """The counts of `parsed` for what describes weights: configs of components, indexes and headers."""
        parts = ("transformer", "vae", "text_encoder")
        names = [name for name in self.parsed if name.startswith(parts) and "generation" not in name]
        return {name: self.parsed[name] for name in sorted(names)}


def header(file: Path) -> str:
    """The JSON of a safetensors header."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return stream.read(length).decode()
