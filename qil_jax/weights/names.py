"""Translation of other programs' tensor names to the released ones (docs/specification.md, 7)."""

import re
from collections.abc import Iterable

from qil_jax.weights.tables.entries import Component

COMFY_PREFIX = "model.diffusion_model."

_WAN_ENCODER = {"conv1": "conv_in", "middle.0": "mid_block.resnets.0", "middle.1": "mid_block.attentions.0"}
_WAN_SHARED = {"middle.2": "mid_block.resnets.1", "head.0": "norm_out", "head.2": "conv_out"}
_WAN_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}


def released_names(component: Component, names: Iterable[str]) -> dict[str, str]:
    """Mapping from each given name to the released name; unknown names map to themselves.

    Known are ComfyUI's `model.diffusion_model.` prefix (transformer), its Wan-style names (VAE), and the names that
    transformers 5 uses in memory, `model.visual.*` and `model.language_model.*` (text encoder).
    """
    rename = {
        Component.TRANSFORMER: lambda name: name.removeprefix(COMFY_PREFIX),
        Component.VAE: _vae_name,
        Component.TEXT_ENCODER: _text_encoder_name,
    }[component]
    return {name: rename(name) for name in names}


def _text_encoder_name(name: str) -> str:
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name)


def _vae_name(name: str) -> str:
    top = {"conv1.": "quant_conv.", "conv2.": "post_quant_conv."}
    for wan, released in top.items():
        if name.startswith(wan):
            return released + name.removeprefix(wan)
    match = re.match(r"(encoder|decoder)\.(.*)", name)
    if match is None:
        return name
    side, rest = match.groups()
    rest = re.sub(r"^upsamples\.(\d{1,4})\.", _wan_upsample, rest)
    rest = re.sub(r"^downsamples\.(\d+)\.", r"down_blocks.\1.", rest)
    for wan, released in {**_WAN_ENCODER, **_WAN_SHARED}.items():
        if rest.startswith(wan + "."):
            rest = released + rest.removeprefix(wan)
    for wan, released in _WAN_RESIDUAL.items():
        rest = rest.replace(f".{wan}.", f".{released}.")
    return f"{side}.{re.sub(r'[.]shortcut[.]', '.conv_shortcut.', rest)}"


def _wan_upsample(match: re.Match[str]) -> str:
    """Wan numbers the decoder's blocks and upsamplers consecutively: per level, three blocks and one upsampler."""
    level, part = divmod(int(match[1]), 4)
    return f"up_blocks.{level}." + ("upsamplers.0." if part == 3 else f"resnets.{part}.")
