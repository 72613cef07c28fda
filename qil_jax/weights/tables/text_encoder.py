"""The tensor table of Qwen2.5-VL."""

from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig
from qil_jax.weights.tables.entries import Entry, Transform, linear, plain


def text_encoder_table(config: Qwen2_5VLConfig) -> list[Entry]:
    """The 729 tensors of the release by their names on disk: `model.*`, `lm_head`, `visual.*`."""
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
