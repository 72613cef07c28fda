"""The tensor table of the VAE, with 194 tensors in the release; temporal convolutions and unused taps are SIDECAR."""

from qil_jax.models.rgba_vae import VAEConfig
from qil_jax.weights.tables.entries import Entry, Transform, plain


def vae_table(config: VAEConfig) -> list[Entry]:
    """The tensors of the encoder, the quantisation convolutions and the decoder."""
    z = config.z_dim
    return [
        *_conv("quant_conv", "quant_conv", (2 * z, 2 * z), 1),
        *_conv("post_quant_conv", "post_quant_conv", (z, z), 1),
        *_encoder(config),
        *_decoder(config),
    ]


def _encoder(config: VAEConfig) -> list[Entry]:
    widths = [config.base_dim * m for m in (1, *config.dim_mult)]
    table = _conv("encoder.conv_in", "encoder/conv_in", (widths[0], config.input_channels), 3)
    index = 0
    for level, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        for j in range(config.num_res_blocks):
            table += _res(f"encoder.down_blocks.{index}", f"encoder/down/{index}", (b, a if j == 0 else b))
            index += 1
        if level < len(config.dim_mult) - 1:
            name = f"encoder.down_blocks.{index}"
            table += _resample(name, f"encoder/down/{index}/conv", (b, b))
            if config.temperal_downsample[level]:
                table += _time_conv(name, (b, b))
            index += 1
    table += _middle("encoder", widths[-1])
    table += _conv("encoder.conv_out", "encoder/conv_out", (2 * config.z_dim, widths[-1]), 3)
    return table


def _decoder(config: VAEConfig) -> list[Entry]:
    reverse = config.dim_mult[::-1]
    widths = [config.base_dim * m for m in (reverse[0], *reverse)]
    temporal = config.temperal_downsample[::-1]
    table = _conv("decoder.conv_in", "decoder/conv_in", (widths[0], config.z_dim), 3)
    table += _middle("decoder", widths[0])
    for level, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        name, path = f"decoder.up_blocks.{level}", f"decoder/up/{level}"
        first = a if level == 0 else a // 2
        for j in range(config.num_res_blocks + 1):
            table += _res(f"{name}.resnets.{j}", f"{path}/res/{j}", (b, first if j == 0 else b))
        if level < len(reverse) - 1:
            table += _resample(f"{name}.upsamplers.0", f"{path}/upsample", (b // 2, b))
            if temporal[level]:
                table += _time_conv(f"{name}.upsamplers.0", (2 * b, b))
    table += _middle_norm("decoder", widths[-1])
    table += _conv("decoder.conv_out", "decoder/conv_out", (config.input_channels, widths[-1]), 3)
    return table


def _middle(side: str, width: int) -> list[Entry]:
    name, path = f"{side}.mid_block", f"{side}/mid"
    attention = f"{name}.attentions.0"
    table = _res(f"{name}.resnets.0", f"{path}/0", (width, width))
    table += _res(f"{name}.resnets.1", f"{path}/2", (width, width))
    table.append(_gamma(f"{attention}.norm", f"{path}/1/norm", (width, 1, 1)))
    for part, path_part, out in (("to_qkv", "qkv", 3 * width), ("proj", "proj", width)):
        weight = (out, width, 1, 1)
        where = f"{path}/1/{path_part}"
        table.append(
            Entry(
                name=f"{attention}.{part}.weight",
                shape=weight,
                path=f"{where}/kernel",
                transform=Transform.POINTWISE,
            )
        )
        table.append(plain(f"{attention}.{part}.bias", f"{where}/bias", (out,)))
    if side == "encoder":
        table += _middle_norm(side, width)
    return table


def _middle_norm(side: str, width: int) -> list[Entry]:
    return [_gamma(f"{side}.norm_out", f"{side}/norm_out", (width, 1, 1, 1))]


def _res(name: str, path: str, sizes: tuple[int, int]) -> list[Entry]:
    out, inner = sizes
    table = [_gamma(f"{name}.norm1", f"{path}/norm1", (inner, 1, 1, 1))]
    table.append(_gamma(f"{name}.norm2", f"{path}/norm2", (out, 1, 1, 1)))
    table += _conv(f"{name}.conv1", f"{path}/conv1", sizes, 3)
    table += _conv(f"{name}.conv2", f"{path}/conv2", (out, out), 3)
    if out != inner:
        table += _conv(f"{name}.conv_shortcut", f"{path}/shortcut", sizes, 1)
    return table


def _gamma(name: str, path: str, shape: tuple[int, ...]) -> Entry:
    return Entry(name=f"{name}.gamma", shape=shape, path=f"{path}/scale", transform=Transform.FLAT)


def _conv(name: str, path: str, sizes: tuple[int, int], side: int) -> list[Entry]:
    """Entries of a causal 3-D convolution with a cubic kernel."""
    transform = Transform.TAP if side == 3 else Transform.POINTWISE
    shape = (*sizes, side, side, side)
    weight = Entry(name=f"{name}.weight", shape=shape, path=f"{path}/kernel", transform=transform)
    return [weight, plain(f"{name}.bias", f"{path}/bias", sizes[:1])]


def _resample(name: str, path: str, sizes: tuple[int, int]) -> list[Entry]:
    weight = Entry(
        name=f"{name}.resample.1.weight", shape=(*sizes, 3, 3), path=f"{path}/kernel", transform=Transform.CONV
    )
    return [weight, plain(f"{name}.resample.1.bias", f"{path}/bias", sizes[:1])]


def _time_conv(name: str, sizes: tuple[int, int]) -> list[Entry]:
    parts = {"weight": (*sizes, 3, 1, 1), "bias": sizes[:1]}
    return [
        Entry(
            name=f"{name}.time_conv.{part}",
            shape=shape,
            path=f"{name}.time_conv.{part}",
            transform=Transform.SIDECAR,
        )
        for part, shape in parts.items()
    ]
