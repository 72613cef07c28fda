"""What a client asks for, as the options of `qil decompose`."""

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Interval

from qil_jax.app.limits import LONGEST_PROMPT, MOST_DEPTH, MOST_STEPS, Limits
from qil_jax.choices import AUTO, MAX_LAYERS
from qil_jax.errors import ProblemsError, QilError
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.request import JobOptions, ResolvedOptions, ResolvedSettings, Settings
from qil_jax.options import problems_in, value_problems

OF_PICTURES, OF_BATCHES = ("layers", "prompt", "seed", "exact", "depth"), ("steps", "guidance")
MOST = {"layers": MAX_LAYERS, "depth": MOST_DEPTH, "steps": MOST_STEPS}
BOUNDED = {name: Annotated[int, Interval(ge=1, le=most)] for name, most in MOST.items()}
"""What clients may ask for."""
LONGEST_NUMBER = 20
"""The most digits of a number that is given as text."""


def asked(values: Mapping[str, Any], defaults: Defaults, limits: Limits) -> tuple[ResolvedOptions, ResolvedSettings]:
    """The options of a decomposition, with the checkpoint's defaults for those that are None.

    Args:
      values: the options OF_PICTURES and OF_BATCHES, of JSON; `layers` may be `auto`, and an empty prompt is none.
      defaults: the checkpoint's.
      limits: what a client may ask for.

    Raises:
      ProblemsError: listing everything that is no option's value, or more than a client may ask for.
      QilError: if all together is more work than a client may ask for.
    """
    given: dict[str, Any] = {name: _read(name, value) for name, value in values.items() if value is not None}
    is_auto = given.get("layers") == AUTO
    if is_auto:
        given["layers"] = defaults.auto_layers
    of_pictures, of_batches = ({name: given[name] for name in n if name in given} for n in (OF_PICTURES, OF_BATCHES))
    problems = problems_in(JobOptions, of_pictures) + problems_in(Settings, of_batches) or _too_much(given)
    if problems:
        raise ProblemsError("cannot start", problems)
    of_pictures["prompt"] = given.get("prompt", "").strip() or None
    options = JobOptions(auto=is_auto, **of_pictures).filled(defaults)
    settings = Settings(**of_batches).filled(defaults)
    _check_work(options, settings, defaults, limits)
    return options, settings


def work(*, layers: int, steps: int, guidance: float, depth: int = 1) -> int:
    """The work of a decomposition: Euler steps of one layer, over all levels, and twice that with guidance.

    The sampler's sequence holds the picture and the composite beside the layers. For a checkpoint's sampler all
    pictures have the same number of pixels, so they do not count here; those of the result have their own limit.
    """
    return _decompositions(layers, depth) * (layers + 2) * steps * (2 if guidance > 1 else 1)


def _decompositions(layers: int, depth: int) -> int:
    return sum(layers**level for level in range(depth))


def _check_work(options: ResolvedOptions, settings: ResolvedSettings, defaults: Defaults, limits: Limits) -> None:
    layers, steps = options.layers, settings.steps
    wanted = work(layers=layers, steps=steps, guidance=settings.guidance, depth=options.depth)
    usual = work(layers=defaults.layers, steps=defaults.steps, guidance=defaults.guidance)
    if wanted <= limits.work * usual:
        return
    count = _decompositions(layers, options.depth)
    parts = "1 decomposition" if count == 1 else f"up to {count} decompositions"
    raise QilError(
        f"this is {wanted / usual:.1f} times the work of a usual call ({parts} of {layers} layers with {steps} steps), "
        f"and {limits.work} times at most is taken here: ask for a smaller depth, fewer layers or fewer steps"
    )


def _read(name: str, value: Any) -> Any:
    """A value as JSON means it: whole numbers are integers, and a number of layers may be text, as a menu gives it."""
    if name == "layers" and isinstance(value, str) and value.isdecimal() and len(value) <= LONGEST_NUMBER:
        return int(value)
    if name == "guidance":
        return float(value) if type(value) is int and abs(value) < 2**53 else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _too_much(given: Mapping[str, Any]) -> list[str]:
    found = [x for n, kind in BOUNDED.items() if n in given for x in value_problems(n, given[n], kind)]
    length = len(given.get("prompt", ""))
    return found + ([f"prompt has {length} characters, {LONGEST_PROMPT} at most"] if length > LONGEST_PROMPT else [])
