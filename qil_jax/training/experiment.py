"""What a training run is: a frozen dataclass, made by a function in configs/, changed by dotted names, kept as JSON."""

import dataclasses
import json
import re
import runpy
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from qil_jax.errors import QilError
from qil_jax.flow.loss import FlowLoss
from qil_jax.limits import MAX_SEED
from qil_jax.loader.config import LoaderConfig, Workers
from qil_jax.mesh import MeshShape
from qil_jax.models.attention import AttentionKind
from qil_jax.models.stack import Remat
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages import Inputs, Made, Precision, Stage, Start
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
      made_by: how the folders that it reads are made, for whoever has not got them.
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
    made_by: tuple[Made, ...] = ()

    def __post_init__(self) -> None:
        wanted = VAELoss if self.stage is Stage.RGBA_VAE else FlowLoss
        if not isinstance(self.loss, wanted):
            raise ExperimentError(f"the stage {self.stage} needs a {wanted.__name__}, not {self.loss}")
        counts = {
            "steps": self.steps,
            "log_every": self.log_every,
            "give_up": self.give_up,
            "checkpoints.every": self.checkpoints.every,
            "checkpoints.keep_last": self.checkpoints.keep_last,
            "validation.batches": self.validation.batches,
        }
        below = [f"{name} is {count} and must be at least 1" for name, count in counts.items() if count < 1]
        if not 0 <= self.seed <= MAX_SEED:
            below.append(f"seed is {self.seed} and must be from 0 to {MAX_SEED}")
        if below:
            raise ExperimentError("\n  ".join(below))
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


class ExperimentError(QilError):
    """A config file, an override, or what they ask for, that cannot be trained. The message says what and the fix."""


def load_experiment(file: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of `config()` in a Python file, with overrides such as "optimiser.learning_rate=1e-4".

    Raises:
      ExperimentError: if the file cannot be run, has no such function, or overrides name or give what is not there.
    """
    if not file.is_file():
        raise ExperimentError(f"{file}: no such file: give one of configs/")
    experiment = _made(file)
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"{file}: config() returns {type(experiment).__name__}, not an Experiment")
    _check_types(experiment, f"{file}: ")
    values, problems = {}, []
    for override in overrides:
        try:
            path, value = _read(experiment, override)
            values[path] = value
        except ExperimentError as error:
            problems.append(str(error))
    if problems:
        raise ExperimentError("\n  ".join(problems))
    return _changed(experiment, values)


def _made(file: Path) -> Any:
    """What `config()` returns. Whatever goes wrong in the file is told with its line."""
    with _importable(file):
        try:
            config: Callable[[], Any] | None = runpy.run_path(str(file)).get("config")
            if callable(config):
                return config()
        except SyntaxError as error:
            raise ExperimentError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
            where = f"{file}, line {lines[-1]}" if lines else str(file)
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ExperimentError(f"{where}: {kind}{error}") from error
    raise ExperimentError(f"{file}: defines no function config() that returns an Experiment")


@contextmanager
def refusing() -> Iterator[None]:
    """A ValueError of another room, about what the experiment asks for, as an ExperimentError."""
    try:
        yield
    except QilError as error:
        raise ExperimentError(str(error)) from error


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


def to_json(value: Any) -> Any:
    """A config as JSON: dataclasses are objects, enums their values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _read(config: Any, override: str) -> tuple[tuple[str, ...], Any]:
    """Path and value of "name=value", the value of the type that the field has."""
    name, equals, text = override.partition("=")
    if not equals:
        raise ExperimentError(f"'{override}': write an override as name=value, such as steps=100")
    path, kind = tuple(name.split(".")), type(config)
    for i, part in enumerate(path):
        if not dataclasses.is_dataclass(config):
            raise ExperimentError(f"'{name}': '{path[i - 1]}' has no parts, its value is {config!r}")
        fields = [field.name for field in dataclasses.fields(config)]
        if part not in fields:
            raise ExperimentError(f"'{name}': {type(config).__name__} has no '{part}', it has {', '.join(fields)}")
        kind = typing.get_type_hints(type(config))[part]
        config = getattr(config, part)
    if dataclasses.is_dataclass(config):
        parts = ", ".join(f"{name}.{field.name}" for field in dataclasses.fields(config))
        raise ExperimentError(f"'{name}': '{text}' is given for a whole {type(config).__name__}: set a part, {parts}")
    return path, _parsed(kind, text, name)


def _changed(config: Any, values: Mapping[tuple[str, ...], Any], above: str = "") -> Any:
    """The config with the fields at these paths replaced, all together: what is checked is the result."""
    changes = {}
    for first in dict.fromkeys(path[0] for path in values):
        below = {path[1:]: value for path, value in values.items() if path[0] == first}
        changes[first] = below[()] if () in below else _changed(getattr(config, first), below, f"{above}{first}.")
    try:
        return dataclasses.replace(config, **changes)
    except ExperimentError:
        raise
    except ValueError as error:
        names = ", ".join(f"'{above}{name}'" for name in changes)
        raise ExperimentError(f"{names}: {error}") from error


def _parsed(kind: Any, text: str, name: str) -> Any:
    """Text as a value of a field's type: numbers, truth, text, enums, optional ones, and tuples as JSON lists."""
    choices = typing.get_args(kind)
    try:
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            if text.lower() == "none" and type(None) in choices:
                return None
            return _parsed(next(choice for choice in choices if choice is not type(None)), text, name)
        if typing.get_origin(kind) is tuple:
            return _listed(kind, json.loads(text))
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(f"'{name}': '{text}' is not {_spelled(kind)}") from error


def _spelled(kind: Any) -> str:
    """A field's type, as one says it: a whole number, one of a, b or c, a JSON list of text."""
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if choice is type(None) else _spelled(choice) for choice in choices)
    if origin is tuple:
        if choices[-1] is ...:
            return f"a JSON list of {_spelled(choices[0])}"
        return f"[{', '.join(map(_spelled, choices))}]"
    if issubclass(kind, Enum):
        *others, last = (str(member.value) for member in kind)
        return f"one of {', '.join(others)} or {last}" if others else last
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return plain.get(kind, str(kind.__name__))


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
