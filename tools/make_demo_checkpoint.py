"""Write a tiny checkpoint with RANDOM weights in the released folder layout, to try the programs without a download.

python tools/make_demo_checkpoint.py DST [--overwrite]
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qil_jax.inference.prompts import PREFIX, SPLIT, SUFFIX
from qil_jax.weights.tables import Component, Entry, table_of

CONFIGS: dict[Component, dict[str, Any]] = {
    Component.TRANSFORMER: {
        "_class_name": "QwenImageTransformer2DModel",
        "attention_head_dim": 32,
        "axes_dims_rope": [8, 12, 12],
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": 64,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 16,
        "patch_size": 2,
        "use_additional_t_cond": True,
        "use_layer3d_rope": True,
        "zero_cond_t": False,
    },
    Component.VAE: {
        "_class_name": "AutoencoderKLQwenImage",
        "attn_scales": [],
        "base_dim": 16,
        "dim_mult": [1, 2, 2, 2],
        "dropout": 0.0,
        "input_channels": 4,
        "latents_mean": [0.0] * 16,
        "latents_std": [1.0] * 16,
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    },
    Component.TEXT_ENCODER: {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        "vocab_size": 512,
        "vision_config": {
            "depth": 1,
            "hidden_size": 32,
            "in_chans": 3,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    },
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "time_shift_type": "linear",
    "use_dynamic_shifting": True,
}
INDEX = {
    "_class_name": "QwenImageLayeredPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def random_tensor(entry: Entry, generator: np.random.Generator) -> np.ndarray:
    """Weights that keep activations near unit scale; norms 1, biases 0."""
    if entry.path.endswith("scale"):
        return np.ones(entry.shape, np.float32)
    if entry.path.endswith("bias"):
        return np.zeros(entry.shape, np.float32)
    fan_in = int(np.prod(entry.shape[1:]))
    return (generator.standard_normal(entry.shape) / np.sqrt(fan_in)).astype(np.float32)


def small_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of Qwen's kind that has read nothing but the prompt template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
    tokenizer.train_from_iterator([PREFIX, SUFFIX], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def write_component(folder: Path, component: Component, config: Mapping[str, Any]) -> None:
    """One component's config and random weights."""
    generator, part = np.random.default_rng(0), folder / component
    part.mkdir(parents=True)
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {entry.name: random_tensor(entry, generator) for entry in table_of(component, config)}
    stem = "model" if component is Component.TEXT_ENCODER else "diffusion_pytorch_model"
    save_file(tensors, part / f"{stem}.safetensors", metadata={"format": "pt"})


def write_checkpoint(folder: Path, configs: Mapping[Component, Mapping[str, Any]] | None = None) -> None:
    """All files of the layout that inference reads; a few MB with the configs of the demonstration."""
    for component in Component:
        write_component(folder, component, (configs or CONFIGS)[component])
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
    (folder / "tokenizer").mkdir()
    small_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")


def main(argv: list[str]) -> int:
    """Write the checkpoint; refuses to replace a folder unless told to."""
    parser = argparse.ArgumentParser(description="Write a tiny checkpoint with random weights in the released layout.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint in that folder")
    arguments = parser.parse_args(argv)
    if arguments.folder.exists():
        if not arguments.overwrite:
            parser.error(f"{arguments.folder} exists; give another folder, or --overwrite")
        if not (arguments.folder / "model_index.json").is_file():
            parser.error(f"{arguments.folder} is no checkpoint and is left alone; give another folder")
        shutil.rmtree(arguments.folder)
    write_checkpoint(arguments.folder)
    print(f"Wrote a tiny checkpoint with random weights to {arguments.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
