"""What a training run is: a frozen dataclass, made by a function in configs/, changed by dotted names, kept as JSON."""

import dataclasses
import json
import re
import runpy
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from qil_jax.data.pipeline import LoaderConfig, Workers
from qil_jax.flow.velocity import FlowLoss
from qil_jax.mesh import MeshShape
from qil_jax.models.attention import AttentionKind
from qil_jax.models.stack import Remat
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages import Inputs, Precision, Stage, Start
from qil_jax.training.vae_loss import VAELoss


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where batches come from.

    Attributes:
      sources: folders of records (docs/data.md), or of cached latents where `inputs` says so.
      inputs: whether pictures and captions are encoded while training, or were by `tools/cache_latents.py`.
      loader: rows, buckets, tasks.
      text_tokens: places of text that a sample has; longer prompts are cut at the end.
      workers: threads and processes that decode; they do not change the batches.
    """

    sources: tuple[str, ...]
    inputs: Inputs = Inputs.PICTURES
    loader: LoaderConfig
    text_tokens: int = 512
    workers: Workers = dataclasses.field(default_factory=Workers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of a run is kept.

    Attributes:
      every: steps between checkpoints.
      keep_last: so many of the newest stay.
      keep_every: those whose step is a multiple of this stay for ever; 0: none.
    """

    every: int = 1000
    keep_last: int = 2
    keep_every: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is looked at now and then, on records that are not trained on.

    Attributes:
      every: steps between validations; 0: never.
      split: of the sources.
      batches: of the loader's rows, always the same.
      samples: pictures on the sample sheet.
      steps: of the sampler, for the sheet.
    """

    every: int = 0
    split: str = "validation"
    batches: int = 4
    samples: int = 4
    steps: int = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A stage of training, whole: two equal experiments give equal runs on equal meshes.

    Attributes:
      start: where parameters come from.
      steps: optimiser steps of the run.
      loss: a VAELoss for the stage rgba_vae, else a FlowLoss.
      precision: of compute; parameters, moments and averages are always fp32.
      unroll: compile every block by itself: a longer compilation, and a tenth faster on a CPU.
      trainable: regular expression that the paths of trained parameters contain; "" is all of them.
      log_every: steps between lines of metrics.
      give_up: successive steps without a finite loss after which the run stops.
    """

    stage: Stage
    start: Start
    data: DataConfig
    loss: FlowLoss | VAELoss
    steps: int
    seed: int = 0
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    precision: Precision = Precision.BF16
    attention: AttentionKind = AttentionKind.XLA
    remat: Remat = Remat.NONE
    unroll: bool = False
    trainable: str = ""
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    checkpoints: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    log_every: int = 20
    give_up: int = 20

    def __post_init__(self) -> None:
        wanted = VAELoss if self.stage is Stage.RGBA_VAE else FlowLoss
        if not isinstance(self.loss, wanted):
            raise ExperimentError(f"the stage {self.stage} needs a {wanted.__name__}, not {self.loss}")
        for name in ("steps", "log_every", "give_up"):
            if getattr(self, name) < 1:
                raise ExperimentError(f"{name} is {getattr(self, name)} and must be at least 1")
        try:
            re.compile(self.trainable)
        except re.error as error:
            raise ExperimentError(f"trainable '{self.trainable}' is no regular expression: {error}") from error
        if self.data.loader.rows % self.optimiser.accumulate:
            raise ExperimentError(
                f"data.loader.rows {self.data.loader.rows} is no multiple of optimiser.accumulate "
                f"{self.optimiser.accumulate}: raise the one or lower the other"
            )
        wrong = [task for task, _ in self.data.loader.tasks.mix if task not in self.stage.tasks]
        if wrong:
            raise ExperimentError(
                f"the stage {self.stage} cannot train {', '.join(wrong)}: its tasks are {', '.join(self.stage.tasks)}"
            )


class ExperimentError(ValueError):
    """A config file, an override, or what they ask for, that cannot be trained. The message says what and the fix."""


def load_experiment(file: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of `config()` in a Python file, with overrides such as "optimiser.learning_rate=1e-4".

    Raises:
      ExperimentError: if the file has no such function, or an override names or gives what is not there.
    """
    if not file.is_file():
        raise ExperimentError(f"{file}: no such file: give one of configs/")
    with _importable(file):
        made: Callable[[], Any] | None = runpy.run_path(str(file)).get("config")
        if not callable(made):
            raise ExperimentError(f"{file}: defines no function config() that returns an Experiment")
        try:
            experiment = made()
        except (TypeError, ValueError) as error:
            raise ExperimentError(f"{file}: {error}") from error
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"{file}: config() returns {type(experiment).__name__}, not an Experiment")
    _check_types(experiment, f"{file}: ")
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ExperimentError(f"'{override}': write an override as name=value, such as steps=100")
        experiment = _replaced(experiment, name.split("."), value, name)
    return experiment


@contextmanager
def _importable(file: Path) -> Iterator[None]:
    """Let a config import those beside it, as configs.demo.common, wherever the program was called."""
    roots = [str(folder.parent) for folder in file.resolve().parents if folder.name == "configs"]
    before = list(sys.path)
    sys.path[:0] = roots
    try:
        yield
    finally:
        sys.path[:] = before


def _check_types(config: Any, where: str) -> None:
    """Refuse numbers, text and enums of another type than their field's; parts are checked in their turn."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        kind, value = hints[field.name], getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check_types(value, f"{where}{field.name}.")
            continue
        choices = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
        plain = tuple(typing.get_origin(choice) or choice for choice in choices)
        plain += (int,) if float in plain else ()
        if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
            raise ExperimentError(f"{where}{field.name} is {value!r}, which is not {_spelled(kind)}")


def _spelled(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def to_json(value: Any) -> Any:
    """A config as JSON: dataclasses are objects, enums their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _replaced(config: Any, path: list[str], text: str, name: str) -> Any:
    """The config with one field, however deep, read from text."""
    first, *rest = path
    fields = {field.name: field for field in dataclasses.fields(config)}
    if first not in fields:
        raise ExperimentError(f"'{name}': {type(config).__name__} has no '{first}', it has {', '.join(fields)}")
    now = getattr(config, first)
    if rest:
        if not dataclasses.is_dataclass(now):
            raise ExperimentError(f"'{name}': '{first}' has no parts, its value is {now!r}")
        value = _replaced(now, rest, text, name)
    else:
        value = _parsed(typing.get_type_hints(type(config))[first], text, name)
    try:
        return dataclasses.replace(config, **{first: value})
    except ExperimentError:
        raise
    except ValueError as error:
        raise ExperimentError(f"'{name}': {error}") from error


def _parsed(kind: Any, text: str, name: str) -> Any:
    """Text as a value of a field's type: numbers, truth, text, enums, optional ones, and tuples as JSON lists."""
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if text.lower() == "none" and type(None) in choices:
            return None
        return _parsed(next(choice for choice in choices if choice is not type(None)), text, name)
    if isinstance(kind, type) and issubclass(kind, Enum):
        values = {str(member.value): member for member in kind}
        if text not in values:
            raise ExperimentError(f"'{name}': '{text}' is none of {', '.join(values)}")
        return values[text]
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ExperimentError(f"'{name}': '{text}' is neither true nor false")
        return text.lower() == "true"
    try:
        if kind in (int, float, str):
            return kind(text)
        if origin is tuple:
            return _listed(kind, json.loads(text))
    except ValueError as error:
        shape = f"a JSON list for {kind}" if origin is tuple else f"of type {kind.__name__}"
        raise ExperimentError(f"'{name}': '{text}' is not {shape}") from error
    raise ExperimentError(f"'{name}': a whole {getattr(kind, '__name__', kind)} cannot be given; name one of its parts")


def _listed(kind: Any, value: Any) -> Any:
    """JSON's value as one of a tuple's type or of what it holds; ValueError if it is of another."""
    if typing.get_origin(kind) is tuple:
        first, *rest = typing.get_args(kind)
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list")
        kinds = [first] * len(value) if rest == [...] else [first, *rest]
        return tuple(_listed(k, v) for k, v in zip(kinds, value, strict=True))
    if issubclass(kind, Enum):
        return kind(value)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{value!r} is not of type {kind.__name__}")
    return kind(value)
