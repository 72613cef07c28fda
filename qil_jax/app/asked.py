"""What a client asks for, as the options of infer.py."""

from collections.abc import Mapping
from typing import Any

from qil_jax.app.limits import LONGEST_PROMPT, MOST_DEPTH, MOST_STEPS
from qil_jax.errors import ProblemsError
from qil_jax.inference.cli import AUTO
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.options import options_of
from qil_jax.inference.request import JobOptions, Settings
from qil_jax.limits import MAX_LAYERS, integer_problems

OF_PICTURES, OF_BATCHES = ("layers", "prompt", "seed", "exact", "depth"), ("steps", "guidance")
MOST = {"layers": MAX_LAYERS, "depth": MOST_DEPTH, "steps": MOST_STEPS}
"""Upper bounds for clients."""


def asked(values: Mapping[str, Any], defaults: Defaults) -> tuple[JobOptions, Settings]:
    """The options of a decomposition, with the checkpoint's defaults for those that are None.

    Args:
      values: the options OF_PICTURES and OF_BATCHES, of JSON; `layers` may be `auto`, and an empty prompt is none.
      defaults: the checkpoint's.

    Raises:
      ProblemsError: listing everything that is no option's value, or more than a client may ask for.
    """
    given: dict[str, Any] = {name: _read(name, value) for name, value in values.items() if value is not None}
    is_auto = given.get("layers") == AUTO
    if is_auto:
        given["layers"] = defaults.auto_layers
    kinds = options_of(JobOptions) | options_of(Settings)
    problems = [problem for name, value in given.items() for problem in kinds[name].problems(name, value)]
    problems = problems or _too_much(given)
    if problems:
        raise ProblemsError("cannot start", problems)
    given["prompt"] = given.get("prompt", "").strip() or None
    options = JobOptions(auto=is_auto, **{name: given[name] for name in OF_PICTURES if name in given})
    settings = Settings(**{name: given[name] for name in OF_BATCHES if name in given})
    return options.filled(defaults), settings.filled(defaults)


def _read(name: str, value: Any) -> Any:
    """A value as JSON means it: whole numbers are integers, and a number of layers may be text, as a menu gives it."""
    if name == "layers" and isinstance(value, str) and value.isdecimal():
        return int(value[:9])
    if name == "guidance":
        return float(value) if type(value) is int else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _too_much(given: Mapping[str, Any]) -> list[str]:
    bounded = {name: most for name, most in MOST.items() if name in given}
    found = [x for name, most in bounded.items() for x in integer_problems(name, given[name], least=1, most=most)]
    length = len(given.get("prompt", ""))
    return found + ([f"prompt has {length} characters, {LONGEST_PROMPT} at most"] if length > LONGEST_PROMPT else [])
