"""What a client asks for, as the options of infer.py."""

from collections.abc import Mapping
from typing import Any

from qil_jax.app.limits import LONGEST_PROMPT, MOST_DEPTH, MOST_STEPS
from qil_jax.errors import ProblemsError
from qil_jax.inference.cli import AUTO
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.request import JobOptions, Settings
from qil_jax.limits import integer_problems

OF_PICTURES, OF_BATCHES = ("prompt", "seed", "exact", "depth"), ("steps", "guidance")


def asked(values: Mapping[str, Any], defaults: Defaults) -> tuple[JobOptions, Settings]:
    """The options of a decomposition, with the checkpoint's defaults for those that are None.

    Args:
      values: `layers` (a number or `auto`), and the options OF_PICTURES and OF_BATCHES; an empty prompt is none.
      defaults: the checkpoint's.

    Raises:
      ProblemsError: listing everything that is no option's value, or more than a client may ask for.
    """
    given = {name: _number(value) for name, value in values.items() if value is not None}
    auto, layers = given.get("layers") == AUTO, given.get("layers", defaults.layers)
    said = {name: given[name] for name in OF_PICTURES if name in given}
    if isinstance(said.get("prompt"), str):
        said["prompt"] = said["prompt"].strip() or None
    number = defaults.auto_layers if auto else int(layers) if str(layers).isdecimal() else layers
    batch = {name: given[name] for name in OF_BATCHES if name in given}
    options, settings = JobOptions(**said, layers=number, auto=auto), Settings(**batch)
    problems = [*options.problems(), *settings.problems()] or _bounds(options, settings)
    if problems:
        raise ProblemsError("cannot start", problems)
    return options.filled(defaults), settings.filled(defaults)


def _bounds(options: JobOptions, settings: Settings) -> list[str]:
    found = integer_problems("depth", options.depth, least=1, most=MOST_DEPTH)
    if settings.steps is not None:
        found += integer_problems("steps", settings.steps, least=1, most=MOST_STEPS)
    length = len(options.prompt or "")
    return found + ([f"prompt has {length} characters, {LONGEST_PROMPT} at most"] if length > LONGEST_PROMPT else [])


def _number(value: Any) -> Any:
    """A whole number as an integer, which JSON does not tell from other numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
