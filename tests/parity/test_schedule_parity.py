"""Noise levels against diffusers' FlowMatchEulerDiscreteScheduler."""

import numpy as np
import pytest
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from sizes import SCHEDULER

from qil_jax.flow import Schedule, mu
from qil_jax.models.config import ConfigError


@given(
    steps=st.integers(2, 120),
    tokens=st.integers(4, 20000),
    shift_type=st.sampled_from(["linear", "exponential"]),
    terminal=st.sampled_from([None, 0.02, 0.1]),
)
def test_grid(steps, tokens, shift_type, terminal):
    if terminal is not None:  # the reference stretches in fp32, which loses digits where all levels are near 1
        steps, tokens = max(steps, 10), min(tokens, 1600)
    config = {**SCHEDULER, "time_shift_type": shift_type, "shift_terminal": terminal}
    reference = FlowMatchEulerDiscreteScheduler(**config)
    reference.set_timesteps(sigmas=np.linspace(1.0, 0, steps + 1)[:-1], mu=(tokens / 256) ** 0.5)
    sigmas = Schedule.from_json(config).sigmas(steps, tokens=tokens)
    assert np.abs(sigmas - reference.sigmas.numpy()).max() <= 1e-6


def test_constant_shift():
    config = {**SCHEDULER, "use_dynamic_shifting": False, "shift": 3.0}
    reference = FlowMatchEulerDiscreteScheduler(**config)
    reference.set_timesteps(sigmas=np.linspace(1.0, 0, 9)[:-1])
    assert np.abs(Schedule.from_json(config).sigmas(8, tokens=99) - reference.sigmas.numpy()).max() <= 1e-6


def test_released_grid_is_not_qwen_images():
    """The released noise levels at 640x640 (docs/specification.md, 6), which other shifts and spacings miss."""
    sigmas = Schedule.from_json(SCHEDULER).sigmas(50, tokens=1600)
    assert mu(1600) == 2.5
    assert sigmas[[0, 1, 10, 25, 40, 49, 50]] == pytest.approx(
        [1, 0.99190, 0.90909, 0.71429, 0.38462, 0.04854, 0], abs=1e-5
    )
    other = Schedule.from_json({**SCHEDULER, "time_shift_type": "exponential", "shift_terminal": 0.02})
    wrong = other.sigmas(50, tokens=1600)[[0, 1, 10, 25, 40, 49]]
    assert wrong == pytest.approx([1, 0.99795, 0.97539, 0.90718, 0.69754, 0.02], abs=1e-5)


@pytest.mark.parametrize("change", [{"time_shift_type": "cubic"}, {"use_karras_sigmas": True}, {"invert_sigmas": True}])
def test_unsupported_schedules_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        Schedule.from_json({**SCHEDULER, **change})


def test_steps_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Schedule().sigmas(0, tokens=256)
