"""Checks of a checkpoint's structure that report all problems together and read no tensors but scales.

`Checkpoint.problems` puts them together.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from qil_jax.errors import ProblemsError
from qil_jax.models.config import ConfigError, shown
from qil_jax.models.paths import dotted
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig
from qil_jax.models.rgba_vae import VAEConfig
from qil_jax.models.vld_mmdit import MMDiTConfig
from qil_jax.weights.names import released_names
from qil_jax.weights.source import PARAMS, SIDECAR, Layout
from qil_jax.weights.stored import StoredComponent
from qil_jax.weights.strict import CONVERT, COPY, TensorInfo, WeightsError, read_json
from qil_jax.weights.tables.entries import Entry, Target, Transform
from qil_jax.weights.tables.quantised import is_scale

FLOATS = ("bfloat16", "float16", "float32")
INDEX = "model_index.json"
CLASSES = {
    "transformer": ("QwenImageTransformer2DModel",),
    "vae": ("AutoencoderKLQwenImage",),
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
}
"""The classes that model_index.json may name for each component."""
OTHER = "QwenImage21"
"""The beginning of the classes of Qwen-Image 2.1, which has another transformer, VAE and text encoder."""
ORBAX_FILES = ("_METADATA", "_CHECKPOINT_METADATA")
MOST_CHUNKS = 4
"""Maximum number of damaged chunks of one parameter that are reported."""


class StructureError(ProblemsError):
    """A checkpoint is inconsistent with its configs. `problems` lists every inconsistency."""

    def __init__(self, checkpoint: Path, problems: list[str]):
        super().__init__(f"{checkpoint} is not a sound checkpoint", problems)


def pipeline_problems(file: Path) -> list[str]:
    """The problems of model_index.json."""
    try:
        values = read_json(file, fix=COPY)
    except WeightsError as error:
        return list(error.problems)
    name = values.get("_class_name")
    problems = []
    if isinstance(name, str) and name.startswith(OTHER):
        return [f"{file}: _class_name is {name}: Qwen-Image 2.1 is another model; give Qwen-Image-Layered"]
    if not isinstance(name, str) or not name.startswith("QwenImage"):
        problems.append(f"{file}: _class_name is {shown(name)}, not a pipeline of Qwen-Image; {COPY}")
    for part, classes in CLASSES.items():
        named = values.get(part, [None, classes[0]])
        if not isinstance(named, list) or len(named) != 2 or named[1] not in classes:
            problems.append(f"{file}: {part} is {shown(named)}, supported is {' or '.join(classes)}")
    return problems


def component_problems(stored: StoredComponent) -> list[str]:
    """All problems of one component's files with respect to its config."""
    try:
        table = stored.table
    except ConfigError as error:
        return [str(error)]
    if stored.layout is Layout.ORBAX:
        return _orbax_problems(stored)
    try:
        tensors = stored.tensors
    except WeightsError as error:
        return list(error.problems)
    folder, names = stored.folder, released_names(stored.component, tensors)
    found = {released: tensors[name] for name, released in names.items()}
    expected = {entry.name: entry.shape for entry in table}
    problems = _tensor_problems(f"{folder}", expected, found, _dtypes(table))
    problems += [
        f"{folder}: {', '.join(same)} are one tensor, {released}; remove all but one"
        for released, same in _grouped(names).items()
        if len(same) > 1
    ]
    problems = problems or _mixture_problems(folder, stored.targets, found)
    reader = stored.reader()
    for entry in filter(is_scale, table):
        info = found.get(entry.name)
        if info is not None and (info.shape, info.dtype) == (entry.shape, entry.dtype):
            problems += _scale_problems(f"{info.file}", entry, reader[stored.names[entry.name]])
    return problems


def _grouped(names: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, released in names.items():
        groups.setdefault(released, []).append(name)
    return groups


def _dtypes(table: Iterable[Entry]) -> dict[str, tuple[str, ...]]:
    """The dtypes that each tensor of a table may have."""
    return {entry.name: FLOATS if entry.dtype is None else (entry.dtype.name,) for entry in table}


def _tensor_problems(
    where: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, TensorInfo],
    dtypes: Mapping[str, tuple[str, ...]],
) -> list[str]:
    problems = [f"{where}: {name} {list(expected[name])} is missing" for name in expected if name not in found]
    for name, info in found.items():
        if name not in expected:
            problems.append(f"{info.file}: {name} {list(info.shape)} is not in the model that config.json describes")
        elif info.shape != expected[name]:
            want = list(expected[name])
            problems.append(f"{info.file}: {name} has shape {list(info.shape)}, config.json asks for {want}")
        elif info.dtype.name not in dtypes[name]:
            problems.append(f"{info.file}: {name} has dtype {info.dtype.name}, supported are {', '.join(dtypes[name])}")
    if problems:
        problems.append(f"{where}: {len(found)} tensors found, {len(expected)} expected; is this its config.json?")
    return problems


def _mixture_problems(folder: Path, wanted: Mapping[str, Target], found: Mapping[str, TensorInfo]) -> list[str]:
    """Messages for parameters whose blocks have different dtypes, which a stacked array cannot hold losslessly."""
    problems = []
    for target in wanted.values():
        dtypes = sorted({found[entry.name].dtype.name for entry in target.entries})
        if len(dtypes) > 1:
            names = f"{target.entries[0].name} ... {target.entries[-1].name}"
            problems.append(f"{folder}: {names} mix the dtypes {', '.join(dtypes)}; cast them to one")
    return problems


def _orbax_problems(stored: StoredComponent) -> list[str]:
    table, expected, source = stored.table, stored.targets, stored.arrays
    params, dtypes, supported = stored.folder / PARAMS, {}, _dtypes(table)
    problems = [f"{params / name}: missing; {CONVERT}" for name in ORBAX_FILES if not (params / name).is_file()]
    for target in expected.values():
        try:
            array = source.array(target.path)
            dtype = np.dtype(array.dtype.numpy_dtype)
        except FileNotFoundError:
            problems.append(f"{params}: {target.path} {list(target.shape)} is missing; {CONVERT}")
            continue
        except WeightsError as error:
            problems += error.problems
            continue
        dtypes |= {entry.name: dtype.name for entry in target.entries}
        if tuple(array.shape) != target.shape:
            problems.append(f"{params}: {target.path} has shape {list(array.shape)}, not {list(target.shape)}")
        elif dtype.name not in (known := supported[target.entries[0].name]):
            problems.append(f"{params}: {target.path} has dtype {dtype.name}, supported are {', '.join(known)}")
        else:
            damaged = _chunk_problems(params / dotted(target.path), array)
            problems += damaged
            if is_scale(target.entries[0]) and not damaged:
                values = zip(target.entries, array.read().result(), strict=True)
                problems += [problem for each in values for problem in _scale_problems(f"{params}", *each)]
    names = {dotted(path) for path in expected}
    there = sorted(p.name for p in params.iterdir() if p.is_dir())
    problems += [f"{params}: {n} is not in the model that config.json describes" for n in there if n not in names]
    kept = {e.name: e.shape for e in table if e.transform is Transform.SIDECAR}
    kept |= {e.name: (*e.shape[:2], 2, *e.shape[3:]) for e in table if e.transform is Transform.TAP}
    return problems + (_sidecar_problems(stored, kept, dtypes) if kept else [])


def _scale_problems(where: str, entry: Entry, scale: Float32[np.ndarray, " o"]) -> list[str]:
    """A message for a scale of a quantised linear map, the only tensors that are read here, unless it is positive."""
    bad = int(np.sum(~(np.isfinite(scale) & (scale > 0))))
    return [f"{where}: {entry.name}: {bad} of {scale.size} scales are no positive numbers; {CONVERT}"] if bad else []


def _sidecar_problems(
    stored: StoredComponent, kept: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> list[str]:
    """The problems of the stored temporal taps and convolutions; a tap must have the dtype of its parameter."""
    file = stored.folder / SIDECAR
    try:
        found = stored.tensors
    except WeightsError as error:
        return list(error.problems)
    problems = _tensor_problems(str(file), kept, found, dict.fromkeys(kept, FLOATS))
    for name, info in found.items():
        if dtypes.get(name, info.dtype.name) != info.dtype.name:
            problems.append(f"{file}: {name} has dtype {info.dtype.name}, its parameter {dtypes[name]}; {CONVERT}")
    return problems


def _chunk_problems(folder: Path, array: Any) -> list[str]:
    """Messages for chunk files of an uncompressed array that are absent (they would read as zeros) or truncated."""
    chunk = array.chunk_layout.read_chunk.shape
    size = math.prod(chunk) * np.dtype(array.dtype.numpy_dtype).itemsize
    counts = [-(-s // c) for s, c in zip(array.shape, chunk, strict=True)]

    def damaged() -> Iterator[str]:
        for index in np.ndindex(*counts):
            file = folder / ".".join(map(str, index))
            if not file.is_file() or file.stat().st_size != size:
                yield f"{file}: missing or not {size} bytes long; {CONVERT}"

    return list(itertools.islice(damaged(), MOST_CHUNKS))


def misfits(mmdit: MMDiTConfig, vae: VAEConfig, text_encoder: Qwen2_5VLConfig) -> list[str]:
    """Messages for components whose sizes do not fit each other."""
    width, problems = text_encoder.hidden_size, []
    if mmdit.use_layer3d_rope and vae.input_channels != 4:
        problems.append(
            f"vae/config.json: input_channels is {vae.input_channels}, the layered transformer needs the "
            "RGBA-VAE with 4; use the vae/ folder of Qwen-Image-Layered, not Qwen-Image's"
        )
    if width != mmdit.joint_attention_dim:
        problems.append(f"transformer/config.json: joint_attention_dim does not match the text encoder's width {width}")
    patch = mmdit.patch_size**2
    latent = f"z_dim {vae.z_dim} x {patch} of vae/config.json"
    for name, channels in (
        ("in_channels", mmdit.in_channels),
        (f"out_channels x {patch} =", mmdit.out_channels * patch),
    ):
        if channels != vae.z_dim * patch:
            problems.append(f"transformer/config.json: {name} {channels} does not hold {latent}")
    return problems
