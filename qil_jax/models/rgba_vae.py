"""RGBA-VAE: the Qwen-Image autoencoder on single pictures, as a 2-D network (docs/specification.md, 1).

The released network is a causal video VAE. On one picture only the last temporal tap of each 3-D convolution
sees data, so conversion keeps that tap, and all convolutions here are two-dimensional, on channels-last arrays.

    pixels [b, 8h, 8w, c] in [-1, 1]  --encode-->  Posterior(mean, logvar) [b, h, w, z]
    latents [b, h, w, z]              --decode-->  pixels [b, 8h, 8w, c], clamped to [-1, 1]
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from qil_jax.choices import AttentionKind
from qil_jax.models.attention import attention
from qil_jax.models.config import Blocks, ConfigError, Flags, Numbers, Size, Sizes, parse_config
from qil_jax.models.layers import ChannelNorm, Conv, conv3x3, pointwise, rounded
from qil_jax.models.products import convolution

MOST_LEVELS = 8
"""Maximum number of resolutions in the network: 8 give 128 pixels per latent; the release has 8 pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Keys of the released vae/config.json. The latent statistics have no default, since they differ by checkpoint.

    Attributes:
      latents_mean: mean of each latent channel, `z_dim` numbers.
      latents_std: standard deviation of each latent channel, `z_dim` positive numbers.
      base_dim: number of channels after the first convolution.
      z_dim: number of channels of the latents.
      dim_mult: number of channels of each resolution in units of `base_dim`; sides halve from one to the next.
      num_res_blocks: number of residual blocks per resolution of the encoder; the decoder has one more.
      temperal_downsample: whether time is halved with each resolution (the release's spelling); no effect on a picture.
      input_channels: number of channels of the pictures, 3 for RGB or 4 for RGBA.
    """

    latents_mean: Numbers
    latents_std: Numbers
    base_dim: Size = 96
    z_dim: Size = 16
    dim_mult: Sizes = (1, 2, 4, 4)
    num_res_blocks: Blocks = 2
    temperal_downsample: Flags = (False, True, True)
    input_channels: Size = 3

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "vae/config.json") -> "VAEConfig":
        """Parse the released JSON.

        Raises:
          ConfigError: for absent latent statistics, unknown keys, values of wrong types, or attention scales.
        """
        config = parse_config(cls, values, where=where, fixed={"attn_scales": ()}, ignored=("dropout",))
        for name in ("latents_mean", "latents_std"):
            if len(getattr(config, name)) != config.z_dim:
                raise ConfigError(f"{where}: {name} has {len(getattr(config, name))} values for z_dim {config.z_dim}")
        if not all(s > 0 for s in config.latents_std):
            raise ConfigError(f"{where}: latents_std must be positive, got {config.latents_std}")
        if not 1 <= len(config.dim_mult) <= MOST_LEVELS:
            raise ConfigError(f"{where}: dim_mult has {len(config.dim_mult)} values, 1 to {MOST_LEVELS} are supported")
        if len(config.temperal_downsample) != len(config.dim_mult) - 1:
            raise ConfigError(f"{where}: temperal_downsample needs one entry fewer than dim_mult {config.dim_mult}")
        return config

    @property
    def scale_factor(self) -> int:
        """The number of pixels per latent along each side (8 in the release)."""
        return 2 ** (len(self.dim_mult) - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Posterior:
    """The diagonal Gaussian q(z | x).

    Attributes:
      mean: mean of the Gaussian, equal to its mode.
      logvar: logarithm of the variance, in [-30, 20].
    """

    mean: Float[Array, "b h w c"]
    logvar: Float[Array, "b h w c"]

    def mode(self) -> Float[Array, "b h w c"]:
        """The mode of the Gaussian, which is its mean."""
        return self.mean

    def sample(self, key: Key[Array, ""]) -> Float[Array, "b h w c"]:
        """A reparametrised sample, mean + standard deviation * noise."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class ResBlock(nnx.Module):
    """A residual block: norm, SiLU, conv, norm, SiLU, conv, plus the input (by a 1x1 convolution if widths differ)."""

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
        self.norm1 = ChannelNorm(channels_in)
        self.conv1 = conv3x3(channels_in, channels_out, rngs=rngs)
        self.norm2 = ChannelNorm(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out, rngs=rngs)
        if channels_in != channels_out:
            self.shortcut = pointwise(channels_in, channels_out, rngs=rngs)

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x d"]:
        """The block's output."""
        residual = self.shortcut(x) if hasattr(self, "shortcut") else x
        x = self.conv1(jax.nn.silu(self.norm1(x)))
        return residual + self.conv2(jax.nn.silu(self.norm2(x)))


class AttentionBlock(nnx.Module):
    """Single-head self-attention over all positions of one picture, with a residual."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = ChannelNorm(channels)
        self.qkv = pointwise(channels, 3 * channels, rngs=rngs)
        self.proj = pointwise(channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        """The block's output."""
        b, height, width, c = x.shape
        q, k, v = jnp.split(self.qkv(self.norm(x)).reshape(b, height * width, 1, 3 * c), 3, axis=-1)
        mixed = attention(q, k, v, kind=AttentionKind.XLA_CHUNKED)
        return x + self.proj(mixed.reshape(b, height, width, c))


class Downsample(nnx.Module):
    """Zero padding of one pixel at the right and at the bottom, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = conv3x3(channels, channels, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y2 x2 c"]:
        """The array at half the size."""
        return self.conv(x)


class UpBlock(nnx.Module):
    """Residual blocks, then (except in the last block) nearest upsampling and a 3x3 convolution to C/2 channels."""

    def __init__(self, channels_in: int, channels_out: int, *, blocks: int, upsample: bool, rngs: nnx.Rngs):
        widths = [channels_in] + [channels_out] * blocks
        self.res = nnx.List([ResBlock(a, b, rngs=rngs) for a, b in zip(widths[:-1], widths[1:], strict=True)])
        if upsample:
            self.upsample = conv3x3(channels_out, channels_out // 2, rngs=rngs)

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y2 x2 d"]:
        """The block's output, at twice the size unless it is the last block."""
        for block in self.res:
            x = block(x)
        return doubled_conv3x3(self.upsample, x) if hasattr(self, "upsample") else x


def doubled_conv3x3(conv: Conv, x: Float[Array, "b y x c"]) -> Float[Array, "b y2 x2 d"]:
    """`conv` applied to `x` upsampled by 2 with nearest neighbours, without materialising the upsampled array.

    An output pixel of parity (i, j) depends on 2x2 distinct input pixels: for each parity the 3x3 kernel reduces to a
    2x2 kernel whose taps are sums of the original ones. This takes 16 multiplications per input pixel instead of 36.
    """
    kernel = conv.kernel[...].astype(jnp.float32)  # sums of taps in full precision
    b, height, width, _ = x.shape
    top = jnp.stack([kernel[0], kernel[1] + kernel[2]])  # even rows see input rows y-1 and y
    bottom = jnp.stack([kernel[0] + kernel[1], kernel[2]])  # odd rows see input rows y and y+1
    phases = [_fold_columns(rows, odd) for rows in (top, bottom) for odd in (0, 1)]
    outs = [
        rounded(convolution(x, phase.astype(x.dtype), 1, ((1 - i, i), (1 - j, j)), conv.precision), conv.bias, x.dtype)
        for phase, (i, j) in zip(phases, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
    ]
    grid = jnp.stack(outs, axis=3).reshape(b, height, width, 2, 2, -1)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * height, 2 * width, -1)


def _fold_columns(rows: Array, odd: int) -> Array:
    left, middle, right = rows[:, 0], rows[:, 1], rows[:, 2]
    return jnp.stack([left + middle, right] if odd else [left, middle + right], axis=1)


def _mid(channels: int, *, rngs: nnx.Rngs) -> nnx.List:
    parts = (ResBlock(channels, channels, rngs=rngs), AttentionBlock(channels, rngs=rngs))
    return nnx.List([*parts, ResBlock(channels, channels, rngs=rngs)])


class Encoder(nnx.Module):
    """The network from pixels to the 2 z_dim channels that `quant_conv` maps to mean and logvar."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        widths = [config.base_dim * m for m in (1, *config.dim_mult)]
        self.conv_in = conv3x3(config.input_channels, widths[0], rngs=rngs)
        down: list[nnx.Module] = []
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            down += [ResBlock(a if j == 0 else b, b, rngs=rngs) for j in range(config.num_res_blocks)]
            if i < len(config.dim_mult) - 1:
                down.append(Downsample(b, rngs=rngs))
        self.down = nnx.List(down)
        self.mid = _mid(widths[-1], rngs=rngs)
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = conv3x3(widths[-1], 2 * config.z_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b h w z2"]:
        """The moments of pixels, before `quant_conv`."""
        x = self.conv_in(x)
        for block in (*self.down, *self.mid):
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Decoder(nnx.Module):
    """The network from the output of `post_quant_conv` to pixels, before the clamp."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        reverse = config.dim_mult[::-1]
        widths = [config.base_dim * m for m in (reverse[0], *reverse)]
        self.conv_in = conv3x3(config.z_dim, widths[0], rngs=rngs)
        self.mid = _mid(widths[0], rngs=rngs)
        last = len(reverse) - 1
        self.up = nnx.List(
            [
                UpBlock(a if i == 0 else a // 2, b, blocks=config.num_res_blocks + 1, upsample=i < last, rngs=rngs)
                for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True))
            ]
        )
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = conv3x3(widths[-1], config.input_channels, rngs=rngs)

    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b y x c"]:
        """The pixels of latents, not clamped."""
        x = self.conv_in(z)
        for block in (*self.mid, *self.up):
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class RGBAVAE(nnx.Module):
    """The autoencoder of RGB or RGBA pictures: of 126.9 M stored parameters, 44.6 M act on a single picture."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.quant_conv = pointwise(2 * config.z_dim, 2 * config.z_dim, rngs=rngs)
        self.post_quant_conv = pointwise(config.z_dim, config.z_dim, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, pixels: Float[Array, "b y x c"]) -> Posterior:
        """The posterior over raw (not normalised) latents of pixels in [-1, 1]."""
        mean, logvar = jnp.split(self.quant_conv(self.encoder(pixels)), 2, axis=-1)
        return Posterior(mean=mean, logvar=jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latents: Float[Array, "b h w z"]) -> Float[Array, "b y x c"]:
        """Pixels of raw latents, clamped to [-1, 1]."""
        return jnp.clip(self.decoder(self.post_quant_conv(latents)), -1.0, 1.0)

    def normalise(self, latents: Float[Array, "... z"]) -> Float[Array, "... z"]:
        """Raw latents normalised to zero mean and unit variance per channel, as the transformer's input."""
        mean, std = (jnp.asarray(v, latents.dtype) for v in (self.config.latents_mean, self.config.latents_std))
        return (latents - mean) / std

    def denormalise(self, latents: Float[Array, "... z"]) -> Float[Array, "... z"]:
        """The inverse of `normalise`."""
        mean, std = (jnp.asarray(v, latents.dtype) for v in (self.config.latents_mean, self.config.latents_std))
        return latents * std + mean
