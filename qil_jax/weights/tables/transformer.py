"""The tensor table of the VLD-MMDiT."""

from qil_jax.models.vld_mmdit import SINUSOID, MMDiTConfig
from qil_jax.weights.tables.entries import Entry, linear, plain


def transformer_table(config: MMDiTConfig) -> list[Entry]:
    """The transformer's tensors: 1,934 in the layered release, 1,933 in Qwen-Image."""
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
