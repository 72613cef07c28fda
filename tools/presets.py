"""The tables of docs/training.md that follow from configs/released: presets, and shardings of all parameters."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from qil_jax.errors import QilError
from qil_jax.mesh import TRAINING_RULES, AbstractSharding, MeshShape, abstract_mesh, shardings
from qil_jax.models.paths import slashed
from qil_jax.planning.abstract import fresh_network, network
from qil_jax.training.config_file import load_experiment
from qil_jax.training.experiment import Experiment
from qil_jax.training.lora import FACTORS
from qil_jax.training.stages.kinds import Stage
from qil_jax.weights import Component

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "training.md"
SLICES = {
    "rgba_vae": "v5p-16",
    "stage1_text_to_rgba": "v5p-128",
    "stage2_text_to_layers": "v5p-128",
    "stage3_image_to_layers": "v5p-128",
    "finetune": "v5p-32",
    "finetune_lora": "v6e-8",
}
"""The presets in the order of the page, and the slice for which each is meant; v5p counts two cores a chip."""
MOMENTS = 2


def preset(name: str) -> Experiment:
    """The experiment of a preset."""
    return load_experiment(ROOT / "configs" / "released" / f"{name}.py")


def trained_network(experiment: Experiment) -> nnx.Module:
    """The component that a run trains, with the factors of its LoRA if it has one, without parameters."""
    if experiment.lora is None:
        return network(experiment.stage.component)
    model = fresh_network(Component.TRANSFORMER)
    experiment.lora.add_to(model)
    return model


def state_bytes(experiment: Experiment) -> int:
    """Bytes of a device's share of what a run trains: fp32 parameters, EMA and two moments."""
    model, sharding = trained_network(experiment), AbstractSharding(abstract_mesh(experiment.mesh), TRAINING_RULES)
    placed = shardings(model, sharding)
    sizes = {slashed(path): parameter.shape for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    trained = [path for path in sizes if experiment.lora is None or re.search(FACTORS, path)]
    elements = sum(math.prod(placed[path].shard_shape(sizes[path])) for path in trained)
    return (2 + MOMENTS) * elements * jnp.dtype(jnp.float32).itemsize


def presets_table() -> str:
    """One row for each preset."""
    columns = ("preset", "slice", "mesh", "rows a step", "pictures a row", "image tokens a step", "state a chip")
    rows = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, slice_name in SLICES.items():
        experiment = preset(name)
        loader = experiment.data.loader
        side = loader.buckets.resolutions[0]
        pictures = loader.buckets.row_tokens // (side // loader.buckets.token_pixels) ** 2
        latents = 4 if experiment.stage is Stage.RGBA_VAE else 1  # which it counts in place of tokens
        tokens = loader.rows * loader.buckets.row_tokens * latents
        axes = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(experiment.mesh).items() if v > 1)
        state = f"{state_bytes(experiment) / 1e9:.1f} GB"
        rows.append(
            f"| `{name}` | {slice_name} | {axes} | {loader.rows} | {pictures} of {side} x {side} | {tokens:,} "
            f"| {state} |"
        )
    return "\n".join(rows)


def shardings_table() -> str:
    """One row for each kind of parameter; those of both streams share one, and those that nothing splits are summed."""
    sharding = AbstractSharding(abstract_mesh(MeshShape(fsdp=4, tensor=2)), TRAINING_RULES)
    rows = ["| parameter | shape | split over |", "|---|---|---|"]
    for component in (Component.TRANSFORMER, Component.VAE):
        model = network(component)
        placed = shardings(model, sharding)
        seen: dict[str, None] = {}
        whole = count = 0
        for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
            name = slashed(path)
            spec = [*placed[name].spec, *[None] * (len(parameter.shape) - len(placed[name].spec))]
            if not any(spec):
                whole, count = whole + math.prod(parameter.shape), count + 1
                continue
            kind = re.sub(r"/(image|text)/", "/*/", name)
            shape = ", ".join(map(str, parameter.shape))
            parts = ", ".join(" x ".join(part) if isinstance(part, tuple) else part or "-" for part in spec)
            seen[f"| `{component}` `{kind}` | [{shape}] | {parts} |"] = None
        rows += seen
        rows.append(f"| `{component}`, {count} others with {whole:,} elements | | - |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {"presets": presets_table, "shardings": shardings_table}


def page() -> str:
    """The text of the page with the tables of now.

    Raises:
      QilError: if the page lacks the marks between which a table stands.
    """
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in text or end not in text:
            raise QilError(f"{PAGE}: the marks {begin} and {end} are missing: put them where the table shall stand")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text
