"""Layouts of LoRA files: which stored tensor is which factor of which linear map, and their scales.

Nothing but headers and single numbers is read. The names of several programs are known (`LoRALayout`).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from qil_jax.errors import ProblemsError
from qil_jax.programs import called
from qil_jax.weights.adapter_config import CONFIG_KEY, MOST_ALPHA, AdapterConfig, AdapterConfigError
from qil_jax.weights.lora_advice import advice_on
from qil_jax.weights.safetensors_io import PICKLES, TensorReader
from qil_jax.weights.strict import TensorInfo, WeightsError, parse_object, read_header, read_metadata
from qil_jax.weights.tables.entries import Entry, Transform
from qil_jax.weights.tables.quantised import is_quantised

FLOATS = ("bfloat16", "float16", "float32")
ORIGIN_KEY = "qil_jax.origin"
"""The text of the header that says which stage and step made the file."""
MOST_KEYS = 10
"""Maximum number of keys of one file that a message names."""
OTHER_MODEL = "give a LoRA that was trained for Qwen-Image-Layered or Qwen-Image"


class LoRAError(ProblemsError):
    """A LoRA cannot be read, written or applied. The message lists every problem."""

    def __init__(self, problems: list[str]):
        super().__init__("cannot use the LoRA", problems)


class LoRALayout(StrEnum):
    """The programs whose names of LoRA tensors are read."""

    LIGHTNING = "lightning"  # NAME.lora_down.weight, NAME.lora_up.weight, NAME.alpha
    KOHYA = "kohya"  # lora_unet_NAME with _ for each dot; also of musubi-tuner, lora_transformer_NAME of OneTrainer
    COMFYUI = "comfyui"  # diffusion_model.NAME, model.diffusion_model.NAME
    PEFT = "peft"  # NAME.lora_A.default.weight, base_model.model.NAME; also of DiffSynth, pipe.dit.NAME
    DIFFUSERS = "diffusers"  # transformer.NAME.lora_A.weight, or without the prefix; once NAME.lora.down.weight


class Part(StrEnum):
    """The tensors of one module's LoRA."""

    DOWN = "lora_A (lora_down)"  # [rank, in]
    UP = "lora_B (lora_up)"  # [out, rank]
    ALPHA = "alpha"  # one number


RAW = "base_model.model."
"""The prefix of names that PEFT itself writes, with the alphas in adapter_config.json beside the file."""
_FLAT = ("lora_unet_", "lora_transformer_")
"""Prefixes of names that have _ for each dot."""
_PREFIXES = {
    **dict.fromkeys(_FLAT, LoRALayout.KOHYA),
    "model.diffusion_model.": LoRALayout.COMFYUI,
    "diffusion_model.": LoRALayout.COMFYUI,
    RAW: LoRALayout.PEFT,
    "pipe.dit.": LoRALayout.PEFT,
    "transformer.": None,
    "unet.": None,
    "": None,
}
_SUFFIXES = {
    ".lora.down.weight": (Part.DOWN, LoRALayout.DIFFUSERS),
    ".lora.up.weight": (Part.UP, LoRALayout.DIFFUSERS),
    ".lora_linear_layer.down.weight": (Part.DOWN, LoRALayout.DIFFUSERS),
    ".lora_linear_layer.up.weight": (Part.UP, LoRALayout.DIFFUSERS),
    ".lora_down.weight": (Part.DOWN, LoRALayout.LIGHTNING),
    ".lora_up.weight": (Part.UP, LoRALayout.LIGHTNING),
    ".lora_A.default.weight": (Part.DOWN, LoRALayout.PEFT),
    ".lora_B.default.weight": (Part.UP, LoRALayout.PEFT),
    ".lora_A.weight": (Part.DOWN, LoRALayout.DIFFUSERS),
    ".lora_B.weight": (Part.UP, LoRALayout.DIFFUSERS),
    ".alpha": (Part.ALPHA, None),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredLowRank:
    """The stored LoRA of one linear map.

    Attributes:
      layout: the program whose names the tensors have.
      down: name of the tensor [rank, in].
      up: name of the tensor [out, rank].
      rank: the number of columns that the factors share.
      scale: alpha over rank; 1 if the file states no alpha.
      dtype: dtype of the first factor.
    """

    layout: LoRALayout
    down: str
    up: str
    rank: int
    scale: float
    dtype: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAHeader:
    """What a LoRA file holds.

    Attributes:
      tensors: all tensors of the file by name.
      modules: the stored LoRA of each linear map by its released name.
      origin: stage and step that made the file, as in training.json; empty if the file does not say.
      advice: what a LoRA that is known needs, of which the file says nothing.
    """

    tensors: Mapping[str, TensorInfo]
    modules: Mapping[str, StoredLowRank]
    origin: Mapping[str, Any]
    advice: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Key:
    name: str
    module: str
    part: Part
    prefix: str
    style: LoRALayout | None

    @property
    def layout(self) -> LoRALayout | None:
        return _PREFIXES[self.prefix] or self.style


def linear_maps(table: Iterable[Entry]) -> dict[str, tuple[int, int]]:
    """The linear maps of a tensor table by released name, each with its (in, out)."""
    linear = (entry for entry in table if entry.transform is Transform.LINEAR)
    return {entry.name.removesuffix(".weight"): (entry.shape[1], entry.shape[0]) for entry in linear}


def require_full_precision(table: Iterable[Entry]) -> None:
    """Check that low-rank changes can be added to the kernels of a tensor table.

    Raises:
      LoRAError: if they are quantised, where a small change would be lost in rounding.
    """
    if any(map(is_quantised, table)):
        raise LoRAError(
            [
                "LoRAs cannot be added to a quantised transformer: add them to the checkpoint of full precision, or "
                f"write one with {called('convert dequantize')}"
            ]
        )


def read_lora_header(file: Path, table: list[Entry]) -> LoRAHeader:
    """Read and check everything of a LoRA file except its factors.

    Args:
      file: safetensors file.
      table: the transformer's tensor table.

    Raises:
      LoRAError: if the file is damaged, or holds anything but LoRAs of the table's linear maps; all keys that do not
        fit are counted, and the first of them named. Also if the table is that of a quantised transformer.
    """
    require_full_precision(table)
    if file.suffix in PICKLES:
        raise LoRAError([f"{file}: pickles run code when read; convert it to safetensors"])
    try:
        tensors = read_header(file)
        metadata = read_metadata(file)
        origin = parse_object(metadata[ORIGIN_KEY].encode(), where=str(file)) if ORIGIN_KEY in metadata else {}
        config = AdapterConfig.parse(metadata[CONFIG_KEY], where=str(file)) if CONFIG_KEY in metadata else None
        if config is None and any(name.startswith(RAW) for name in tensors):
            config = AdapterConfig.beside(file)
    except (WeightsError, AdapterConfigError) as error:
        raise LoRAError(list(error.problems)) from error
    maps = linear_maps(table)
    keys, problems = _keys(tensors, maps)
    reader, modules = TensorReader(tensors), {}
    for module, parts in keys.items():
        try:
            modules[module] = _stored(parts, reader, maps[module], config)
        except _MisfitError as error:
            problems |= error.reasons
    other = _other_kind(tensors)
    if other is not None:
        raise LoRAError([f"{file}: {other}"])
    if problems:
        raise LoRAError([_listed(file, problems, len(tensors))])
    if not modules:
        raise LoRAError([f"{file}: holds no tensors; {OTHER_MODEL}"])
    factors = [(module, stored.down, stored.rank) for module, stored in modules.items()]
    texts = [*metadata.values(), "" if config is None else config.base_model_name_or_path]
    return LoRAHeader(tensors=tensors, modules=modules, origin=origin, advice=advice_on(file, factors, texts))


class _MisfitError(Exception):
    """Reasons, by key, why the tensors of one module cannot be used."""

    def __init__(self, reasons: dict[str, str]):
        super().__init__(reasons)
        self.reasons = reasons


def _listed(file: Path, problems: Mapping[str, str], count: int) -> str:
    shown = [f"\n    {name}: {reason}" for name, reason in list(problems.items())[:MOST_KEYS]]
    rest = len(problems) - MOST_KEYS
    more = f"\n    ... and {rest} more" if rest > 0 else ""
    return f"{file}: {len(problems)} of its {count} keys cannot be used; {OTHER_MODEL}:{''.join(shown)}{more}"


def _keys(names: Iterable[str], modules: Iterable[str]) -> tuple[dict[str, list[_Key]], dict[str, str]]:
    """The keys of each module, and the reason for each key that belongs to none."""
    by_name = {module: module for module in modules}
    by_flat_name = {module.replace(".", "_"): module for module in by_name}
    keys: dict[str, list[_Key]] = {}
    problems = {}
    for name in names:
        suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
        stem = name.removesuffix(suffix or "")
        prefix = next(prefix for prefix in _PREFIXES if stem.startswith(prefix))
        module = (by_flat_name if prefix in _FLAT else by_name).get(stem.removeprefix(prefix))
        if suffix is None or module is None:
            problems[name] = _reason(name)
        else:
            part, style = _SUFFIXES[suffix]
            keys.setdefault(module, []).append(_Key(name, module, part, prefix, style))
    return keys, problems


OTHER_KINDS = {"lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT", "boft_": "BOFT", "glora_": "GLoRA"}
"""Changes that are no product of two factors, by what is in the names of their tensors."""


def _other_kind(tensors: Mapping[str, TensorInfo]) -> str | None:
    """What a file of changes is that are not read, whatever model they are for; None if it is none of these."""
    kinds = [kind for part, kind in OTHER_KINDS.items() if any(f".{part}" in name for name in tensors)]
    if kinds:
        return f"is a {kinds[0]}, which is not read; give a LoRA"
    if any(name.endswith(".diff") for name in tensors):
        return "holds whole differences of weights (.diff), which are not read; give a LoRA of factors alone"
    if any(info.dtype.name.startswith("float8") for info in tensors.values()):
        return f"is stored in fp8, and {', '.join(FLOATS)} are read; give the LoRA as it was before it was rounded"
    return None


def _reason(name: str) -> str:
    if "dora_scale" in name or "lora_magnitude_vector" in name:
        return "belongs to a DoRA, which is not read"
    if name.startswith(("text_encoder", "lora_te")):
        return "belongs to a text encoder, and only the transformer's are read"
    if name.endswith((".bias", ".diff_b")):
        return "is a bias, which is not read"
    return "belongs to no linear map of this transformer"


def _stored(
    keys: list[_Key], reader: TensorReader, sizes: tuple[int, int], config: AdapterConfig | None
) -> StoredLowRank:
    """The LoRA of one module, whose linear map has `sizes` (in, out)."""
    parts = {key.part: key for key in keys}
    prefixes, styles = {key.prefix for key in keys}, {key.style for key in keys} - {None}
    if len(parts) < len(keys) or len(prefixes) > 1 or len(styles) > 1:
        names = ", ".join(key.name for key in keys)
        raise _MisfitError({key.name: f"is one of two LoRAs of {key.module} ({names})" for key in keys})
    lacking = [part for part in (Part.DOWN, Part.UP) if part not in parts]
    if lacking:
        raise _MisfitError({key.name: f"comes without its {' and its '.join(lacking)}" for key in keys})
    down, up = parts[Part.DOWN], parts[Part.UP]
    rank = _rank(down.name, up.name, reader.tensors, sizes)
    layout = down.layout
    assert layout is not None
    return StoredLowRank(
        layout=layout,
        down=down.name,
        up=up.name,
        rank=rank,
        scale=_scale(down, parts.get(Part.ALPHA), rank, reader, config),
        dtype=reader.tensors[down.name].dtype.name,
    )


def _rank(down: str, up: str, tensors: Mapping[str, TensorInfo], sizes: tuple[int, int]) -> int:
    wide, high = sizes
    shape = tensors[down].shape
    rank = shape[0] if shape else 0
    reasons = {}
    for name, wanted in ((down, (rank, wide)), (up, (high, rank))):
        info = tensors[name]
        if info.dtype.name not in FLOATS:
            reasons[name] = f"has dtype {info.dtype.name}, and {', '.join(FLOATS)} are read"
        elif info.shape != wanted:
            reasons[name] = f"has shape {list(info.shape)}, and {list(wanted)} is needed"
        elif not 1 <= rank <= max(sizes):
            reasons[name] = f"has rank {rank}, and 1 to {max(sizes)} make sense for {wide} to {high} channels"
    if reasons:
        raise _MisfitError(reasons)
    return rank


def _scale(down: _Key, alpha: _Key | None, rank: int, reader: TensorReader, config: AdapterConfig | None) -> float:
    """Alpha over rank from the alpha beside the factors, or else from the header."""
    said = None
    if alpha is not None:
        values = reader[alpha.name].astype(np.float64).reshape(-1)
        if values.size != 1 or not 0 < values[0] <= MOST_ALPHA:
            raise _MisfitError({alpha.name: f"must be one number above 0 and at most {MOST_ALPHA:g}"})
        said = float(values[0]) / rank
    if config is None:
        return 1.0 if said is None else said
    if config.rank(down.module) != rank:
        reason = f"has rank {rank}, and the header's {CONFIG_KEY} says {config.rank(down.module)}"
        raise _MisfitError({down.name: reason})
    scale = config.scale(down.module)
    if said not in (None, scale):
        reason = f"makes the scale {said:g}, and the header's {CONFIG_KEY} says {scale:g}"
        raise _MisfitError({down.name if alpha is None else alpha.name: reason})
    return scale
