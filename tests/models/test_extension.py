"""The RGB VAE extended to RGBA starts as the RGB VAE on opaque pictures (docs/specification.md, 1)."""

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import VAE
from flax import nnx

from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig, extend_rgb_to_rgba


@pytest.fixture(scope="module")
def rgb() -> RGBAVAE:
    return RGBAVAE(VAEConfig.from_json({**VAE, "input_channels": 3}), rngs=nnx.Rngs(7))


def test_it_starts_where_the_rgb_vae_is(rgb):
    rgba = extend_rgb_to_rgba(rgb)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 40, 24, 4)).astype(np.float32)
    expected, actual = rgb.encode(jnp.asarray(pixels[..., :3])), rgba.encode(jnp.asarray(pixels))
    np.testing.assert_allclose(actual.mean, expected.mean, atol=1e-5)  # whatever alpha says: its column is zero
    np.testing.assert_allclose(actual.logvar, expected.logvar, atol=1e-5)
    z = jnp.asarray(np.random.default_rng(1).standard_normal((1, 5, 3, VAE["z_dim"])), jnp.float32)
    picture = rgba.decode(z)
    np.testing.assert_allclose(picture[..., :3], rgb.decode(z), atol=1e-5)
    np.testing.assert_array_equal(picture[..., 3], 1.0)


def test_new_parameters_are_the_paper_s(rgb):
    old, new = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (rgb, extend_rgb_to_rgba(rgb)))
    assert not np.asarray(new["encoder"]["conv_in"]["kernel"][:, :, 3]).any()
    assert not np.asarray(new["decoder"]["conv_out"]["kernel"][..., 3]).any()
    assert float(new["decoder"]["conv_out"]["bias"][3]) == 1
    np.testing.assert_array_equal(new["decoder"]["conv_out"]["bias"][:3], old["decoder"]["conv_out"]["bias"])


def test_it_refuses_four_channels(rgb):
    with pytest.raises(ValueError, match="this one has 4 channels"):
        extend_rgb_to_rgba(extend_rgb_to_rgba(rgb))
