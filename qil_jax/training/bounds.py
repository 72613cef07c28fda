"""The bounds of every number of an experiment."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from qil_jax.choices import MAX_SEED

COUNT = 2**31 - 1
"""The largest number of steps, which the state counts in int32, and of whatever has no smaller bound of its own."""
WEIGHT = 1e9
"""The largest weight, norm or scale."""
BELOW_ONE = math.nextafter(1, 0)
SIDE = 2**16
"""The largest side of a picture in pixels, and the largest rank."""
BOUNDS: dict[str, tuple[float, float]] = {
    "steps": (1, COUNT),
    "seed": (0, MAX_SEED),
    "log_every": (1, COUNT),
    "give_up": (1, COUNT),
    "checkpoints.every": (1, COUNT),
    "checkpoints.keep_last": (1, COUNT),
    "checkpoints.keep_every": (0, COUNT),
    "validation.every": (0, COUNT),
    "validation.batches": (1, COUNT),
    "validation.samples": (1, 10_000),
    "validation.steps": (1, 10_000),
    "data.text_tokens": (1, 2**17),
    "data.workers.processes": (0, 1000),
    "data.workers.threads": (1, 1000),
    "data.workers.ahead": (0, 1000),
    "data.loader.rows": (1, 2**24),
    "data.loader.seed": (0, MAX_SEED),
    "data.loader.epochs": (1, COUNT),
    "data.loader.max_layers": (1, 10_000),
    "data.loader.tasks.mix": (0, WEIGHT),
    "data.loader.tasks.flatten": (0, 1),
    "data.loader.buckets.resolutions": (1, SIDE),
    "data.loader.buckets.aspect_ratios": (1, SIDE),
    "data.loader.buckets.multiple": (1, SIDE),
    "data.loader.buckets.token_pixels": (1, SIDE),
    "data.loader.buckets.row_tokens": (1, COUNT),
    "loss.logit_mean": (-100, 100),
    "loss.logit_std": (0, 100),
    "loss.shift": (0, WEIGHT),
    "loss.composite_weight": (0, WEIGHT),
    "loss.layer_weight": (0, WEIGHT),
    "loss.caption_dropout": (0, 1),
    "loss.pixel": (0, WEIGHT),
    "loss.colour": (0, WEIGHT),
    "loss.perceptual": (0, WEIGHT),
    "loss.kl": (0, WEIGHT),
    "loss.reference_kl": (0, WEIGHT),
    "optimiser.learning_rate": (0, 1000),
    "optimiser.adamw_learning_rate": (0, 1000),
    "optimiser.warmup_steps": (0, COUNT),
    "optimiser.final_fraction": (0, 1),
    "optimiser.beta1": (0, BELOW_ONE),
    "optimiser.beta2": (0, BELOW_ONE),
    "optimiser.epsilon": (0, 1),
    "optimiser.weight_decay": (0, 1000),
    "optimiser.clip_norm": (0, WEIGHT),
    "optimiser.accumulate": (1, COUNT),
    "optimiser.ema_decay": (0, BELOW_ONE),
    "lora.rank": (1, SIDE),
    "lora.alpha": (0, WEIGHT),
    "lora.dropout": (0, BELOW_ONE),
    "mesh.cfg": (1, 2),
    "mesh.data": (1, 2**20),
    "mesh.fsdp": (1, 2**20),
    "mesh.context": (1, 2**20),
    "mesh.tensor": (1, 2**20),
}
"""The least and the largest value of every number by its dotted name; configs exclude some, such as a rate of 0."""


def number_problems(experiment: Any) -> list[str]:
    """A message for each number of an experiment outside its bounds, such as nan, which is within none."""
    found = []
    for name, value in numbers(experiment):
        least, most = BOUNDS[name]
        if not least <= value <= most:
            bounds = f"at least {least}" if value < least and most == COUNT else f"from {least:.16g} to {most:.16g}"
            found.append(f"{name} is {value:.16g} and must be {bounds}")
    return found


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers of nested dataclasses and tuples by dotted name; those of a tuple have the tuple's."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)
    elif isinstance(value, tuple):
        for part in value:
            yield from numbers(part, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
