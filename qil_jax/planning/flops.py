"""FLOPs of the transformer as its mathematics needs them: products of unpadded tokens."""

from qil_jax.models.vld_mmdit import MMDiTConfig


def forward_flops(config: MMDiTConfig, *, image: int, text: int) -> float:
    """FLOPs of the backbone on one row: linear maps of all blocks, attention, and the maps at both ends.

    The modulation is left out: its table of all steps is made once.

    Args:
      config: config of the transformer.
      image: number of image tokens, conditions included.
      text: number of text tokens.
    """
    d, joint = config.width, image + text
    linear = config.num_layers * 2 * 12 * d**2 * joint
    ends = 2 * d * (image * (config.in_channels + config.patch_size**2 * config.out_channels))
    ends += 2 * d * text * config.joint_attention_dim
    return float(linear + ends + config.num_layers * 4 * joint**2 * d)
