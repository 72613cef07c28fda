"""Noise levels of the sampler (docs/specification.md, 6; diffusers `scheduling_flow_match_euler_discrete.py`)."""

import dataclasses
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from jaxtyping import Float32

from qil_jax.errors import QilError, shown
from qil_jax.models.config import require_none
from qil_jax.options import Number, read_fields

CLASS = "FlowMatchEulerDiscreteScheduler"
"""The diffusers scheduler that is implemented here."""


class TimeShift(StrEnum):
    """The shift of a uniform grid u towards noise: mu u / (1 + (mu - 1) u), with e^mu for mu in EXPONENTIAL."""

    LINEAR = "linear"
    EXPONENTIAL = "exponential"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The keys of scheduler/scheduler_config.json that affect sampling.

    Attributes:
      time_shift_type: formula by which mu shifts the grid.
      use_dynamic_shifting: whether mu is computed from the picture's size; otherwise mu is `shift`.
      shift: value of mu, positive, if `use_dynamic_shifting` is false.
      shift_terminal: the last noise level before 0, to which the grid is stretched, in (0, 1); None: not stretched.
    """

    time_shift_type: TimeShift = TimeShift.LINEAR
    use_dynamic_shifting: bool = True
    shift: Number = 1.0
    shift_terminal: Number | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "scheduler/scheduler_config.json") -> "Schedule":
        """Parse the released JSON.

        Raises:
          ConfigError: if the file is empty, a value has a wrong type, or the scheduler, shift type or sigma spacing
            is not supported.
        """
        problems = [] if values else ["it is empty: copy it from the release"]
        unsupported = ("invert_sigmas", "stochastic_sampling", "use_beta_sigmas", "use_exponential_sigmas")
        problems += [f"{k} is not supported" for k in (*unsupported, "use_karras_sigmas") if values.get(k)]
        for key, supported in {"_class_name": CLASS, "num_train_timesteps": 1000}.items():
            if values.get(key, supported) != supported:
                problems.append(f"{key} = {shown(values[key])} is not supported (only {supported!r})")
        acting = {"time_shift_type": TimeShift.EXPONENTIAL, "use_dynamic_shifting": False, **values}
        if acting.get("shift_terminal") is False:  # in the release false means that there is none
            acting["shift_terminal"] = None
        found = read_fields(cls, acting, problems)
        if found.get("shift", 1.0) <= 0:
            problems.append(f"shift = {found['shift']}: must be positive")
        if not 0 <= (found.get("shift_terminal") or 0) < 1:
            problems.append(f"shift_terminal = {found['shift_terminal']}: must be from 0 to below 1")
        require_none(problems, where)
        return cls(**{**found, "shift_terminal": found.get("shift_terminal") or None})

    def sigmas(self, steps: int, *, tokens: int) -> Float32[np.ndarray, " steps1"]:
        """`steps` decreasing noise levels from 1, and a final 0.

        Args:
          steps: number of Euler steps.
          tokens: number of tokens of one picture, which determines mu = sqrt(tokens / 256).

        Raises:
          QilError: if steps < 1.
        """
        if steps < 1:
            raise QilError(f"steps must be at least 1, got {steps}")
        grid = np.linspace(1.0, 0.0, steps + 1)[:-1]
        if self.use_dynamic_shifting:
            shift = mu(tokens) if self.time_shift_type is TimeShift.LINEAR else math.exp(mu(tokens))
        else:
            shift = self.shift
        grid = shift * grid / (1 + (shift - 1) * grid)
        if self.shift_terminal is not None and grid[-1] < 1:
            grid = 1 - (1 - grid) * (1 - self.shift_terminal) / (1 - grid[-1])
        return np.append(grid, 0.0).astype(np.float32)


def mu(tokens: int) -> float:
    """The dynamic shift of a picture of `tokens` tokens: 1 at 256x256 pixels, 2.5 at 640x640, 4 at 1024x1024."""
    return math.sqrt(tokens / 256)
