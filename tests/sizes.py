"""Configs of the tiny random checkpoints."""

# All sizes differ from one another, and z_dim is not 4 (a 4-channel picture would be taken for latents).
TRANSFORMER = {
    "num_layers": 3,
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "joint_attention_dim": 40,
    "in_channels": 24,
    "out_channels": 6,
    "patch_size": 2,
    "axes_dims_rope": (4, 6, 6),
    "use_additional_t_cond": True,
    "use_layer3d_rope": True,
}
VAE = {
    "base_dim": 8,
    "z_dim": 6,
    "dim_mult": [1, 2, 3, 3],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "input_channels": 4,
    "latents_mean": [0.1, -0.2, 0.3, 0.05, -0.4, 0.2],
    "latents_std": [1.1, 0.9, 1.3, 0.7, 1.2, 0.8],
}
TEXT = {
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "intermediate_size": 56,
    "vocab_size": 151704,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_heads": 2,
    "patch_size": 14,
    "fullatt_block_indexes": [1],
}
SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "time_shift_type": "linear",
    "use_dynamic_shifting": True,
}
