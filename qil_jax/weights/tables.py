"""Every tensor of a released checkpoint: its name and shape, where it goes in our tree, and how (checkpoint.md 3).

A table is derived from a component's config and read in both directions; nothing is written twice.
"""

import dataclasses
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np

from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig
from qil_jax.models.rgba_vae import VAEConfig
from qil_jax.models.vld_mmdit import SINUSOID, MMDiTConfig


class Component(StrEnum):
    """The folders of a checkpoint that hold weights."""

    TRANSFORMER = "transformer"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"


class Transform(StrEnum):
    """How a stored tensor becomes a parameter."""

    COPY = "copy"
    LINEAR = "linear"  # [out, in] -> [in, out]
    POINTWISE = "pointwise"  # [out, in, 1, ...] -> [in, out]
    CONV = "conv"  # [out, in, 3, 3] -> [3, 3, in, out]
    TAP = "tap"  # [out, in, 3, 3, 3] -> the last temporal tap, [3, 3, in, out]
    FLAT = "flat"  # [C, 1, ...] -> [C]
    PATCH = "patch"  # [out, c, t, y, x] -> [c t y x, out]
    SIDECAR = "sidecar"  # kept whole beside the parameters; no picture ever reads it

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Stored tensor to parameter, as a view."""
        match self:
            case Transform.COPY | Transform.SIDECAR:
                return x
            case Transform.LINEAR:
                return x.T
            case Transform.POINTWISE:
                return x.reshape(x.shape[:2]).T
            case Transform.CONV:
                return x.transpose(2, 3, 1, 0)
            case Transform.TAP:
                return x[:, :, -1].transpose(2, 3, 1, 0)
            case Transform.FLAT:
                return x.reshape(-1)
            case Transform.PATCH:
                return x.reshape(x.shape[0], -1).T

    def backward(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Parameter to a stored tensor of `shape`, as a view; TAP gives the last temporal tap, [out, in, 3, 3]."""
        match self:
            case Transform.CONV | Transform.TAP:
                return x.transpose(3, 2, 0, 1)
            case Transform.LINEAR | Transform.POINTWISE | Transform.PATCH:
                return x.T.reshape(shape)
            case Transform.COPY | Transform.SIDECAR | Transform.FLAT:
                return x.reshape(shape)

    @property
    def leading(self) -> int:
        """Which axis of the parameter is the first of the stored tensor."""
        return 0 if self in (Transform.COPY, Transform.FLAT, Transform.SIDECAR) else -1

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the parameter made of a stored tensor."""
        out, *rest = stored
        match self:
            case Transform.COPY | Transform.SIDECAR:
                return stored
            case Transform.FLAT:
                return (math.prod(stored),)
            case Transform.LINEAR | Transform.POINTWISE | Transform.PATCH:
                return (math.prod(rest), out)
            case Transform.CONV | Transform.TAP:
                return (*rest[-2:], rest[0], out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored tensor."""

    name: str  # released name
    shape: tuple[int, ...]
    path: str  # slash-joined path in our tree; for SIDECAR, the released name
    transform: Transform
    block: int | None = None  # index on the leading axis of a stacked parameter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One parameter of our tree and the stored tensors it is made of: one, or one per block."""

    path: str
    shape: tuple[int, ...]
    entries: tuple[Entry, ...]


def targets(table: list[Entry]) -> dict[str, Target]:
    """The parameters that a table makes, by path."""
    groups: dict[str, list[Entry]] = {}
    for entry in table:
        if entry.transform is not Transform.SIDECAR:
            groups.setdefault(entry.path, []).append(entry)
    result = {}
    for path, entries in groups.items():
        shape = entries[0].transform.shape(entries[0].shape)
        if entries[0].block is not None:
            entries.sort(key=lambda e: e.block or 0)
            shape = (len(entries), *shape)
        result[path] = Target(path=path, shape=shape, entries=tuple(entries))
    return result


def table_of(component: Component, config: Mapping[str, Any]) -> list[Entry]:
    """The table of a component from its config.json.

    Raises:
      ConfigError: if the config is not one that the models support.
    """
    from qil_jax.weights.tables_vae import vae_table

    match component:
        case Component.TRANSFORMER:
            return transformer_table(MMDiTConfig.from_json(config))
        case Component.VAE:
            return vae_table(VAEConfig.from_json(config))
        case Component.TEXT_ENCODER:
            return text_encoder_table(Qwen2_5VLConfig.from_json(config))


def linear(name: str, path: str, sizes: tuple[int, int], block: int | None = None, *, bias: bool = True) -> list[Entry]:
    """Weight and bias of a linear map; `sizes` are (out, in)."""
    entries = [
        Entry(name=f"{name}.weight", shape=sizes, path=f"{path}/kernel", transform=Transform.LINEAR, block=block)
    ]
    return entries + ([plain(f"{name}.bias", f"{path}/bias", sizes[:1], block)] if bias else [])


def plain(name: str, path: str, shape: tuple[int, ...], block: int | None = None) -> Entry:
    """A tensor that is stored as we use it."""
    return Entry(name=name, shape=shape, path=path, transform=Transform.COPY, block=block)


def transformer_table(config: MMDiTConfig) -> list[Entry]:
    """1,934 tensors in the layered release, 1,933 in Qwen-Image."""
    d, text = config.width, config.joint_attention_dim
    out = config.patch_size**2 * config.out_channels
    table = [
        *linear("time_text_embed.timestep_embedder.linear_1", "modulation/time_in", (d, SINUSOID)),
        *linear("time_text_embed.timestep_embedder.linear_2", "modulation/time_out", (d, d)),
        plain("txt_norm.weight", "backbone/text_norm/scale", (text,)),
        *linear("img_in", "backbone/image_in", (d, config.in_channels)),
        *linear("txt_in", "backbone/text_in", (d, text)),
        *linear("norm_out.linear", "modulation/out", (2 * d, d)),
        *linear("proj_out", "backbone/image_out", (out, d)),
    ]
    if config.use_additional_t_cond:
        table.append(plain("time_text_embed.addition_t_embedding.weight", "modulation/addition/embedding", (2, d)))
    for k in range(config.num_layers):
        block = f"transformer_blocks.{k}"
        for side, stream in (("img", "image"), ("txt", "text")):
            table += linear(f"{block}.{side}_mod.1", f"modulation/{stream}", (6 * d, d), k)
            table += linear(f"{block}.{side}_mlp.net.0.proj", f"backbone/blocks/{stream}/mlp_in", (4 * d, d), k)
            table += linear(f"{block}.{side}_mlp.net.2", f"backbone/blocks/{stream}/mlp_out", (d, 4 * d), k)
        for stream, names in _ATTENTION.items():
            for part, name in names.items():
                path = f"backbone/blocks/{stream}/{part}"
                if part.endswith("_norm"):
                    shape = (config.attention_head_dim,)
                    table.append(plain(f"{block}.attn.{name}.weight", f"{path}/scale", shape, k))
                else:
                    table += linear(f"{block}.attn.{name}", path, (d, d), k)
    return table


_ATTENTION = {
    "image": {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0", "q_norm": "norm_q", "k_norm": "norm_k"},
    "text": {
        "q": "add_q_proj",
        "k": "add_k_proj",
        "v": "add_v_proj",
        "out": "to_add_out",
        "q_norm": "norm_added_q",
        "k_norm": "norm_added_k",
    },
}


def text_encoder_table(config: Qwen2_5VLConfig) -> list[Entry]:
    """729 tensors in the release, under their names on disk: `model.*`, `lm_head`, `visual.*`."""
    d, hidden = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    table = [
        plain("model.embed_tokens.weight", "language/embed/embedding", (config.vocab_size, d)),
        plain("model.norm.weight", "language/norm/scale", (d,)),
        *linear("lm_head", "lm_head", (config.vocab_size, d), bias=False),
    ]
    for k in range(config.num_hidden_layers):
        layer, path = f"model.layers.{k}", "language/layers"
        table += linear(f"{layer}.self_attn.q_proj", f"{path}/q", (q, d), k)
        table += linear(f"{layer}.self_attn.k_proj", f"{path}/k", (kv, d), k)
        table += linear(f"{layer}.self_attn.v_proj", f"{path}/v", (kv, d), k)
        table += linear(f"{layer}.self_attn.o_proj", f"{path}/o", (d, q), k, bias=False)
        table += linear(f"{layer}.mlp.gate_proj", f"{path}/gate", (hidden, d), k, bias=False)
        table += linear(f"{layer}.mlp.up_proj", f"{path}/up", (hidden, d), k, bias=False)
        table += linear(f"{layer}.mlp.down_proj", f"{path}/down", (d, hidden), k, bias=False)
        table.append(plain(f"{layer}.input_layernorm.weight", f"{path}/input_norm/scale", (d,), k))
        table.append(plain(f"{layer}.post_attention_layernorm.weight", f"{path}/post_norm/scale", (d,), k))
    return table + _vision_entries(config)


def _vision_entries(config: Qwen2_5VLConfig) -> list[Entry]:
    vision = config.vision
    d, hidden = vision.hidden_size, vision.intermediate_size
    merged = d * vision.spatial_merge_size**2
    patch = (d, vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    table = [
        Entry(
            name="visual.patch_embed.proj.weight",
            shape=patch,
            path="visual/patch_embed/kernel",
            transform=Transform.PATCH,
        ),
        plain("visual.merger.ln_q.weight", "visual/merger/norm/scale", (d,)),
        *linear("visual.merger.mlp.0", "visual/merger/fc_in", (merged, merged)),
        *linear("visual.merger.mlp.2", "visual/merger/fc_out", (vision.out_hidden_size, merged)),
    ]
    for k in range(vision.depth):
        block, path = f"visual.blocks.{k}", "visual/blocks"
        table += linear(f"{block}.attn.qkv", f"{path}/qkv", (3 * d, d), k)
        table += linear(f"{block}.attn.proj", f"{path}/proj", (d, d), k)
        table += linear(f"{block}.mlp.gate_proj", f"{path}/gate", (hidden, d), k)
        table += linear(f"{block}.mlp.up_proj", f"{path}/up", (hidden, d), k)
        table += linear(f"{block}.mlp.down_proj", f"{path}/down", (d, hidden), k)
        table += [plain(f"{block}.{norm}.weight", f"{path}/{norm}/scale", (d,), k) for norm in ("norm1", "norm2")]
    return table
