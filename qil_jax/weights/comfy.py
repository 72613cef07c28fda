"""Reading of transformer files that ComfyUI quantised to float8_e4m3fn, layer by layer or as a whole.

A quantised layer NAME holds NAME.weight in e4m3 and a scale, NAME.weight_scale or in older files NAME.scale_weight; its
weight is their product. NAME.comfy_quant holds JSON that names the format, as uint8. Sensitive layers keep a higher
precision. Plain e4m3 files have no scales. All names may begin with `model.diffusion_model.`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float32

from qil_jax.models.config import shown
from qil_jax.weights.names import released_names
from qil_jax.weights.safetensors_io import TensorReader
from qil_jax.weights.strict import WeightsError, parse_object, read_header, read_metadata
from qil_jax.weights.structure import FLOATS
from qil_jax.weights.tables.entries import Component, Entry

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
SCALES = (".weight_scale", ".scale_weight")
"""What a layer's scale is called; the weight is NAME.weight."""
INPUT_SCALES = (".input_scale", ".scale_input")
"""Scales of activations, which are not quantised here."""
LAYER_FORMAT = ".comfy_quant"
MARK = "scaled_fp8"
"""An empty tensor of older files, whose dtype is that of the quantised weights."""
FORMATS_KEY = "_quantization_metadata"
"""The text of the header in which some files name the formats of all layers."""
HARMLESS = {"full_precision_matrix_mult"}
"""Keys beside `format` that tell ComfyUI how to multiply, and do not change the weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComfyFile:
    """A transformer's tensors in a file of ComfyUI.

    Attributes:
      reader: reader of the stored tensors.
      names: stored name of each tensor of the transformer, by released name.
      scales: scale of each quantised weight, by released name, [1] or [o]; 1 where the file has none.
      scaled: number of quantised weights that have scales in the file.
    """

    reader: TensorReader
    names: Mapping[str, str]
    scales: Mapping[str, Float32[np.ndarray, " o"]]
    scaled: int

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The stored dtype of each tensor of the transformer, by released name."""
        return {released: self.reader.tensors[name].dtype for released, name in self.names.items()}


def read_comfy(file: Path, table: list[Entry]) -> ComfyFile:
    """Read the names, formats and scales of a transformer file.

    Raises:
      WeightsError: if the file is damaged, lacks tensors or holds others, or quantised layers in another way; all
        problems are listed.
    """
    reader = TensorReader(read_header(file))
    stored = {released: name for name, released in released_names(Component.TRANSFORMER, reader.tensors).items()}
    expected = {entry.name: entry.shape for entry in table}
    problems = [] if len(stored) == len(reader.tensors) else [f"{file}: some tensors have two names"]
    problems += [f"{file}: {name} {list(expected[name])} is missing" for name in expected if name not in stored]
    formats, scales = _header_formats(file, problems), {}
    for released, name in stored.items():
        info, layer = reader.tensors[name], released.rpartition(".")[0]
        if released in expected:
            problems += _tensor_problems(file, released, info.shape, expected[released], info.dtype)
        elif released.endswith(SCALES):
            scales[f"{layer}.weight"] = reader[name]
        elif released.endswith(LAYER_FORMAT):
            formats[layer] = _format(file, released, reader[name], problems)
        elif not released.endswith(INPUT_SCALES) and released != MARK:
            problems.append(f"{file}: {released} is not read; give a file of float8_e4m3fn or of full precision")
    quantised = {name for name in expected if name in stored and reader.tensors[stored[name]].dtype == E4M3}
    for layer, said in formats.items():
        problems += _layer_problems(file, layer, said, quantised, scales)
    for name, scale in scales.items():
        problems += _scale_problems(file, name, scale, expected, quantised)
    if problems:
        raise WeightsError(problems)
    one = np.ones(1, np.float32)
    return ComfyFile(
        reader=reader,
        names={name: stored[name] for name in expected},
        scales={name: scales[name].astype(np.float32).reshape(-1) if name in scales else one for name in quantised},
        scaled=len(scales),
    )


def _header_formats(file: Path, problems: list[str]) -> dict[str, Any]:
    """What the header says of each layer, by released name."""
    text = read_metadata(file).get(FORMATS_KEY)
    layers = {} if text is None else parse_object(text.encode(), where=f"{file}: {FORMATS_KEY}").get("layers", {})
    if not isinstance(layers, dict):
        problems.append(f"{file}: {FORMATS_KEY}: layers must be an object by name")
        return {}
    names = released_names(Component.TRANSFORMER, layers)
    return {names[layer]: said for layer, said in layers.items()}


def _format(file: Path, name: str, data: np.ndarray, problems: list[str]) -> Any:
    try:
        return parse_object(data.tobytes(), where=f"{file}: {name}")
    except WeightsError as error:
        problems += error.problems
        return {"format": "float8_e4m3fn"}


def _tensor_problems(
    file: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...], dtype: np.dtype
) -> list[str]:
    if shape != expected:
        return [f"{file}: {name} has shape {list(shape)}, the base asks for {list(expected)}"]
    if dtype != E4M3 and dtype.name not in FLOATS:
        return [f"{file}: {name} has dtype {dtype.name}, supported are {', '.join(FLOATS)}, {E4M3.name}"]
    return []


def _layer_problems(
    file: Path, layer: str, said: Any, quantised: set[str], scales: Mapping[str, np.ndarray]
) -> list[str]:
    """The problems of a layer whose format the file names."""
    if not isinstance(said, dict) or said.get("format") != "float8_e4m3fn" or said.keys() - HARMLESS != {"format"}:
        text = json.dumps(said) if isinstance(said, dict) else said
        return [f"{file}: {layer} is quantised as {shown(text)}; only float8_e4m3fn with a scale is read"]
    weight = f"{layer}.weight"
    if weight not in quantised or weight not in scales:
        return [f"{file}: {layer} is said to be float8_e4m3fn, but lacks such a weight or its scale; download it again"]
    return []


def _scale_problems(
    file: Path, name: str, scale: np.ndarray, expected: Mapping[str, tuple[int, ...]], quantised: set[str]
) -> list[str]:
    """The problems of the scale of the weight `name`."""
    if name not in quantised:
        return [f"{file}: {name} has a scale, but is not stored as {E4M3.name}"]
    if scale.dtype.name not in FLOATS or scale.shape not in ((), (1,), expected[name][:1], (expected[name][0], 1)):
        return [f"{file}: the scale of {name} is {scale.dtype.name} {list(scale.shape)}, not one float or one per row"]
    if not (np.isfinite(scale) & (scale > 0)).all():
        return [f"{file}: the scale of {name} is no positive number; download it again"]
    return []
