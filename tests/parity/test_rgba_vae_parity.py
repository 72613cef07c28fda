"""The RGBA-VAE against diffusers' AutoencoderKLQwenImage, fp32."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import VAE, randomise, tiny_vae
from diffusers import AutoencoderKLQwenImage
from flax import nnx
from parity_inputs import channels_last, pixels
from reference import error, ours

from qil_jax.models.tiling import STRIDE, TILE, decode_tiled, encode_tiled

torch.set_grad_enabled(False)


@nnx.jit
def encode(vae, x):
    """Mean and logarithm of the variance."""
    posterior = vae.encode(x)
    return posterior.mean, posterior.logvar


decode = nnx.jit(lambda vae, z: vae.decode(z))


@pytest.fixture(scope="module", params=[3, 4])
def released(request, tmp_path_factory):
    """Both released configurations (RGB and RGBA) at full width."""
    reference = randomise(AutoencoderKLQwenImage(input_channels=request.param))
    return reference, ours(reference, "vae", tmp_path_factory.mktemp("vae"))


@pytest.mark.parametrize("size", [(32, 48), (40, 24)])
@pytest.mark.full
def test_released_width(released, size):
    reference, vae = released
    x = pixels(*size, reference.config.input_channels)
    expected = reference.encode(x).latent_dist
    mean, logvar = encode(vae, channels_last(x))
    assert error(mean, channels_last(expected.mean)) <= 2e-5
    assert error(logvar, channels_last(expected.logvar)) <= 2e-5
    z = torch.randn(expected.mean.shape, generator=torch.Generator().manual_seed(6))
    assert error(decode(vae, channels_last(z)), channels_last(reference.decode(z).sample)) <= 2e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    reference = tiny_vae()
    return reference, ours(reference, "vae", tmp_path_factory.mktemp("tiny"))


def test_tiny_other_structure(tiny):
    reference, vae = tiny
    x = pixels(40, 24)
    expected = reference.encode(x).latent_dist
    assert error(encode(vae, channels_last(x))[0], channels_last(expected.mode())) <= 2e-5


@pytest.mark.full
def test_unused_temporal_weights_do_not_act(tiny):
    """Taps 0 and 1 and the temporal convolutions never see a single picture: we may drop them."""
    reference, vae = tiny
    changed = tiny_vae()
    for name, parameter in changed.named_parameters():
        if "time_conv" in name:
            parameter.add_(1)
        elif parameter.ndim == 5 and parameter.shape[2] == 3:
            parameter[:, :, :2] += 1
    x = pixels(32, 48)
    assert torch.equal(changed.encode(x).latent_dist.mean, reference.encode(x).latent_dist.mean)
    assert error(encode(vae, channels_last(x))[0], channels_last(changed.encode(x).latent_dist.mean)) <= 2e-5


@pytest.mark.full
def test_encoded_tiles_match_the_reference(tiny):
    reference, vae = tiny
    x = pixels(320, 456)
    expected = reference.tiled_encode(x)[:, : VAE["z_dim"]]
    mean = lambda tile: encode(vae, tile)[0]
    assert error(encode_tiled(mean, jnp.asarray(channels_last(x)), scale=8), channels_last(expected)) <= 2e-5


@pytest.mark.full
def test_decoded_tiles_match_the_reference(tiny):
    """Everywhere those of the reference with its tiles clamped as a plain decode is; diffusers forgets that clamp.

    Against diffusers as it is, clamped at the end, they are equal where tiles do not overlap. In the seams a clamped
    value is blended instead of an unclamped one, so that the two differ by what the clamp cuts off at most.
    """
    reference, vae = tiny
    z = 4 * torch.randn(1, VAE["z_dim"], 1, 40, 57, generator=torch.Generator().manual_seed(7))
    tiles = np.asarray(decode_tiled(lambda tile: decode(vae, tile), jnp.asarray(channels_last(z)), scale=8))
    assert np.abs(tiles).max() <= 1
    unclamped = channels_last(reference.tiled_decode(z).sample)
    assert np.abs(unclamped).max() > 1, "the test needs values that the clamp acts on"
    hook = reference.decoder.register_forward_hook(lambda *call: call[-1].clamp(-1, 1))
    clamped = channels_last(reference.tiled_decode(z).sample)
    hook.remove()
    assert error(tiles, clamped) <= 2e-5
    assert np.abs(clamped - unclamped.clip(-1, 1)).max() > 0.01, "the clamp must show in the seams"
    alone = ~(blended(tiles.shape[1])[:, None] | blended(tiles.shape[2]))
    assert 0.3 < alone.mean() < 0.9
    assert error(tiles[:, alone], unclamped.clip(-1, 1)[:, alone]) <= 2e-5


def blended(size: int) -> np.ndarray:
    """Which lines of pixels lie in the overlap of two tiles."""
    line = np.arange(size)
    return (line >= STRIDE) & (line % STRIDE < TILE - STRIDE)


def test_normalisation_reads_the_config(tiny):
    _, vae = tiny
    mean, std = (np.array(VAE[k], np.float32) for k in ("latents_mean", "latents_std"))
    z = np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)
    assert error(vae.normalise(jnp.asarray(z)), (z - mean) / std) <= 1e-6
    assert error(vae.denormalise(vae.normalise(jnp.asarray(z))), z) <= 1e-6
