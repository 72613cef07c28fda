"""Everything that can be wrong with a checkpoint, found before any tensor is read and reported at once."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qil_jax.models.config import ConfigError
from qil_jax.weights.names import released_names
from qil_jax.weights.safetensors_io import TensorInfo, WeightsError, read_headers, weight_files
from qil_jax.weights.source import PARAMS, SIDECAR, Layout, OrbaxSource, layout_of
from qil_jax.weights.tables import Component, Target, Transform, table_of, targets

FLOATS = ("bfloat16", "float16", "float32")
ADDITION = "time_text_embed.addition_t_embedding.weight"


class StructureError(ValueError):
    """A checkpoint is not what its configs say. `problems` lists everything that was found."""

    def __init__(self, checkpoint: Path, problems: list[str]):
        self.problems = tuple(problems)
        shown = [*problems[:40], *([f"... and {len(problems) - 40} more"] if len(problems) > 40 else [])]
        super().__init__(f"{checkpoint} is not a sound checkpoint:\n  " + "\n  ".join(shown))


def component_config(checkpoint: Path, component: str) -> dict[str, Any]:
    """The parsed JSON of a component's config.

    Raises:
      ConfigError: if it is absent or no JSON object.
    """
    file = checkpoint / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: missing; copy the whole {component}/ folder of the release") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}; copy it again from the release") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: holds no JSON object; copy it again from the release")
    return values


def require_sound(checkpoint: Path) -> None:
    """Check the structure of a whole checkpoint.

    Raises:
      StructureError: with every problem.
    """
    problems = checkpoint_problems(checkpoint)
    if problems:
        raise StructureError(checkpoint, problems)


def checkpoint_problems(checkpoint: Path) -> list[str]:
    """Everything wrong with the folder: configs, files, names, shapes, dtypes, and parts that do not fit together."""
    if not checkpoint.is_dir():
        return [f"{checkpoint}: no such folder; give the one that holds model_index.json"]
    if not (checkpoint / "model_index.json").is_file():
        return [f"{checkpoint}/model_index.json: missing; give the top folder of the release"]
    problems = []
    configs: dict[Component, dict[str, Any]] = {}
    for component in Component:
        try:
            configs[component] = component_config(checkpoint, component)
        except ConfigError as error:
            problems.append(str(error))
            continue
        problems += component_problems(checkpoint / component, component, configs[component])
    try:
        component_config(checkpoint, "scheduler")
    except ConfigError as error:
        problems.append(str(error))
    return problems + _misfits(configs)


def component_problems(folder: Path, component: Component, config: Mapping[str, Any]) -> list[str]:
    """Everything wrong with one component's files against its config."""
    try:
        table = table_of(component, config)
    except ConfigError as error:
        return [str(error)]
    try:
        if layout_of(folder) is Layout.ORBAX:
            return _orbax_problems(folder, component, config)
        tensors = read_headers(weight_files(folder))
    except WeightsError as error:
        return list(error.problems)
    found = {released: tensors[name] for name, released in released_names(component, tensors).items()}
    expected = {entry.name: entry.shape for entry in table}
    problems = _tensor_problems(f"{folder}", expected, found) + _index_problems(folder, found)
    return problems or _mixture_problems(folder, targets(table), found)


def _tensor_problems(where: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorInfo]) -> list[str]:
    problems = [f"{where}: {name} {list(expected[name])} is missing" for name in expected if name not in found]
    for name, info in found.items():
        if name not in expected:
            problems.append(f"{info.file}: {name} {list(info.shape)} is not in the model that config.json describes")
        elif info.shape != expected[name]:
            want = list(expected[name])
            problems.append(f"{info.file}: {name} has shape {list(info.shape)}, config.json asks for {want}")
        elif info.dtype.name not in FLOATS:
            problems.append(f"{info.file}: {name} has dtype {info.dtype.name}, supported are {', '.join(FLOATS)}")
    if problems:
        problems.append(f"{where}: {len(found)} tensors found, {len(expected)} expected; is this its config.json?")
    return problems


def _mixture_problems(folder: Path, wanted: Mapping[str, Target], found: Mapping[str, TensorInfo]) -> list[str]:
    """Parameters whose blocks are stored with unlike dtypes: as one stacked array they cannot be kept losslessly."""
    problems = []
    for target in wanted.values():
        dtypes = sorted({found[entry.name].dtype.name for entry in target.entries})
        if len(dtypes) > 1:
            names = f"{target.entries[0].name} ... {target.entries[-1].name}"
            problems.append(f"{folder}: {names} mix the dtypes {', '.join(dtypes)}; cast them to one")
    return problems


def _index_problems(folder: Path, found: Mapping[str, TensorInfo]) -> list[str]:
    """What the shards' index says against what the shards hold."""
    problems = []
    for file in sorted(folder.glob("*.safetensors.index.json")) if folder.is_dir() else []:
        index = json.loads(file.read_text())
        inside = {info.file.name for info in found.values()}
        lost = sorted(set(index["weight_map"].values()) - inside)
        problems += [f"{file}: {name} holds no tensor" for name in lost]
        total = index.get("metadata", {}).get("total_size")
        size = sum(math.prod(info.shape) * info.dtype.itemsize for info in found.values())
        if total is not None and total != size:
            problems.append(f"{file}: total_size is {total}, the shards hold {size} bytes; download both again")
    return problems


def _orbax_problems(folder: Path, component: Component, config: Mapping[str, Any]) -> list[str]:
    table = table_of(component, config)
    source = OrbaxSource(folder)
    problems = []
    expected = targets(table)
    for target in expected.values():
        try:
            array = source.array(target.path)
        except ValueError:
            problems.append(f"{folder / PARAMS}: {target.path} {list(target.shape)} is missing; convert again")
            continue
        if tuple(array.shape) != target.shape:
            problems.append(f"{folder / PARAMS}: {target.path} has shape {list(array.shape)}, not {list(target.shape)}")
        else:
            problems += _chunk_problems(folder, target.path, array)
    names = {path.replace("/", ".") for path in expected}
    stored = {p.name for p in (folder / PARAMS).iterdir() if p.is_dir()}
    problems += [f"{folder / PARAMS}: {n} is not in the model that config.json describes" for n in stored - names]
    kept = {e.name: e.shape for e in table if e.transform is Transform.SIDECAR}
    kept |= {e.name: (*e.shape[:2], 2, *e.shape[3:]) for e in table if e.transform is Transform.TAP}
    if kept:
        problems += _tensor_problems(str(folder / SIDECAR), kept, read_headers([folder / SIDECAR]))
    return problems


def _chunk_problems(folder: Path, path: str, array: Any) -> list[str]:
    """Chunk files of an uncompressed array that are absent or cut short (absent ones would read as zeros)."""
    chunk = array.chunk_layout.read_chunk.shape
    size = math.prod(chunk) * np.dtype(array.dtype.numpy_dtype).itemsize
    where = folder / PARAMS / path.replace("/", ".")
    problems = []
    for index in np.ndindex(*(-(-s // c) for s, c in zip(array.shape, chunk, strict=True))):
        file = where / ".".join(map(str, index))
        if not file.is_file() or file.stat().st_size != size:
            problems.append(f"{file}: missing or not {size} bytes long; convert again")
    return problems


def _misfits(configs: Mapping[Component, Mapping[str, Any]]) -> list[str]:
    """Components that are sound each for itself but do not belong together."""
    if len(configs) < len(Component):
        return []
    mmdit, vae, text = (configs[c] for c in (Component.TRANSFORMER, Component.VAE, Component.TEXT_ENCODER))
    problems = []
    if mmdit.get("use_layer3d_rope") and vae.get("input_channels", 3) != 4:
        problems.append(
            f"vae/config.json: input_channels is {vae.get('input_channels', 3)}, the layered transformer needs the "
            "RGBA-VAE with 4; use the vae/ folder of Qwen-Image-Layered, not Qwen-Image's"
        )
    width = {**text, **text.get("text_config", {})}.get("hidden_size")
    if width != mmdit.get("joint_attention_dim", 3584):
        problems.append(f"transformer/config.json: joint_attention_dim does not match the text encoder's width {width}")
    patch = mmdit.get("patch_size", 2) ** 2
    if mmdit.get("in_channels", 64) != vae.get("z_dim", 16) * patch:
        problems.append(
            f"transformer/config.json: in_channels {mmdit.get('in_channels', 64)} does not hold "
            f"z_dim {vae.get('z_dim', 16)} x {patch} of vae/config.json"
        )
    return problems
