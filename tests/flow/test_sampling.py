"""Guidance and Euler steps, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from qil_jax.flow import Rescale, euler, euler_step, guide


def velocities(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 5, 6)).astype(np.float32)


def test_guidance_with_and_without_rescale():
    c, u, scale = velocities(0), velocities(1), np.array([4.0, 2.5], np.float32)
    guided = u + scale[:, None, None] * (c - u)
    np.testing.assert_allclose(guide(*map(jnp.asarray, (c, u, scale)), Rescale.NONE), guided, rtol=1e-5, atol=1e-5)
    length = lambda x: np.linalg.norm(x, axis=-1, keepdims=True)
    expected = guided * length(c) / length(guided)
    np.testing.assert_allclose(guide(*map(jnp.asarray, (c, u, scale)), Rescale.NORM), expected, rtol=1e-4, atol=1e-5)


def test_a_zero_token_stays_finite():
    """The reference divides 0 by 0 here (diffusers `pipeline_qwenimage_layered.py`)."""
    c, u = np.array(velocities(0)), np.array(velocities(1))
    c[0, 2] = u[0, 2] = 0  # guided is zero and so is its target
    u[1, 3] = c[1, 3] * 4 / 3  # guided is (nearly) zero, its target is not
    c[1, 4], u[1, 4] = 3, 4  # guided is exactly zero: 4 + 4 (3 - 4)
    guided = np.asarray(guide(jnp.asarray(c), jnp.asarray(u), jnp.full(2, 4.0), Rescale.NORM))
    assert np.isfinite(guided).all()
    assert not guided[0, 2].any() and not guided[1, 4].any()


@pytest.mark.parametrize("rescale", Rescale)
def test_a_scale_of_one_is_the_conditional_velocity_exactly(rescale):
    c, u = jnp.asarray(velocities(0)), jnp.asarray(velocities(1))
    mixed = guide(c, u, jnp.array([1.0, 3.0]), rescale)
    np.testing.assert_array_equal(mixed[0], c[0])
    assert np.abs(mixed[1] - c[1]).max() > 0.1


def test_euler_integrates_exactly_and_leaves_the_condition_alone():
    """A velocity that is constant along the path, noise - data, arrives at the data whatever the steps."""
    noise, data = jnp.asarray(velocities(0)), jnp.asarray(velocities(1))
    is_target = jnp.asarray([[True] * 3 + [False] * 2, [True] * 5])
    sigmas = jnp.asarray(np.stack([[1.0, 0.7, 0.2, 0.0], [1.0, 0.9, 0.5, 0.0]], axis=1), jnp.float32)
    final = euler(
        lambda x, extra: (noise - data) * extra,
        noise,
        sigmas=sigmas,
        is_target=is_target,
        step_inputs=jnp.ones(3),
    )
    np.testing.assert_allclose(np.where(is_target[..., None], data, noise), final, atol=1e-6)
    np.testing.assert_array_equal(final[0, 3:], noise[0, 3:])
    stepped = noise
    for i in range(3):
        stepped = euler_step(stepped, noise - data, sigmas=sigmas[i : i + 2], is_target=is_target)
    np.testing.assert_allclose(stepped, final, atol=1e-6)
