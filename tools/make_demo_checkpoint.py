"""Write a tiny checkpoint with RANDOM weights in the released folder layout.

It is for trying the programs without a download, or for training the demonstration model from it.

python tools/make_demo_checkpoint.py DST [--overwrite]
python tools/make_demo_checkpoint.py DST --preset train --captions RECORDS
"""

import json
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qil_jax.command_line import Parser
from qil_jax.errors import say
from qil_jax.files import recover, whole_folder
from qil_jax.programs import run_main
from qil_jax.records.sources import open_source

if TYPE_CHECKING:
    from qil_jax.weights.tables.entries import Entry

CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {
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
    "vae": {
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
    "text_encoder": {
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
"""Configs of the random checkpoint by component."""
TRAIN_CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": CONFIGS["transformer"]
    | {"attention_head_dim": 64, "axes_dims_rope": [16, 24, 24], "num_attention_heads": 4, "num_layers": 6},
    "vae": CONFIGS["vae"] | {"base_dim": 8, "dim_mult": [1, 4, 8, 8]},
    "text_encoder": CONFIGS["text_encoder"] | {"vocab_size": 4096},
}
"""Configs of the demonstration model."""
CAPTION_CONFIGS: dict[str, dict[str, Any]] = CONFIGS | {
    "text_encoder": CONFIGS["text_encoder"]
    | {
        "vision_config": CONFIGS["text_encoder"]["vision_config"]
        | {"depth": 2, "fullatt_block_indexes": [1], "window_size": 112}
    }
}
"""Configs of the checkpoint that captions; `image_token_id` follows from its tokenizer."""
PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "temporal_patch_size": 2,
}
GENERATION = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "top_p": 0.001}
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
MOST_CAPTIONS = 20_000
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


class Preset(StrEnum):
    """Purpose of the random weights."""

    TRY = "try"  # every weight acts, but there are no captions
    CAPTION = "caption"  # every weight acts; with all that captions need
    TRAIN = "train"  # blocks begin as the identity and the velocity as 0, as diffusion transformers are trained


QUIET = ("_mod.1.weight", "norm_out.linear.weight", "proj_out.weight", "addition_t_embedding.weight")
QUIET_IN_VAE = (".conv2.weight", "attentions.0.proj.weight")
"""Suffixes of the names of weights initialised to 0 for training: the output projections of residual branches."""


def random_tensor(entry: "Entry", generator: np.random.Generator, preset: Preset) -> np.ndarray:
    """Weights that keep activations near unit scale; norms 1, biases 0."""
    from qil_jax.weights.tables.entries import Transform

    if entry.path.endswith("scale"):
        return np.ones(entry.shape, np.float32)
    if entry.path.endswith("bias") or (preset is Preset.TRAIN and entry.name.endswith(QUIET + QUIET_IN_VAE)):
        return np.zeros(entry.shape, np.float32)
    taps = 3 if preset is Preset.TRAIN and entry.transform is Transform.TAP else 1  # images use one of them
    fan_in = int(np.prod(entry.shape[1:])) // taps
    return (generator.standard_normal(entry.shape) / np.sqrt(fan_in)).astype(np.float32)


def small_tokenizer(texts: Sequence[str] = (), vocabulary: int = 500, special: Sequence[str] = SPECIAL) -> Tokenizer:
    """A byte-level BPE tokenizer of Qwen's kind, trained on the prompt template and these texts."""
    from qil_jax.encoders.tokenizer import PREFIX, SUFFIX
    from qil_jax.weights.tokenizer import SPLIT

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
    tokenizer.train_from_iterator([PREFIX, SUFFIX, *texts], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def write_component(folder: Path, component: str, config: Mapping[str, Any], preset: Preset) -> None:
    """Write config and random weights of one component."""
    from qil_jax.weights.tables import table_of
    from qil_jax.weights.tables.entries import Component

    generator, part = np.random.default_rng(0), folder / component
    part.mkdir(parents=True)
    _write_json(part / "config.json", config)
    tensors = {entry.name: random_tensor(entry, generator, preset) for entry in table_of(Component(component), config)}
    stem = Component(component).stem
    save_file(tensors, part / f"{stem}.safetensors", metadata={"format": "pt"})


def write_checkpoint(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    preset: Preset = Preset.TRY,
    captions: Sequence[str] = (),
) -> None:
    """Write all files of the layout that inference reads; the tokenizer is trained on `captions`."""
    from qil_jax.weights.tables.entries import Component

    defaults = {Preset.TRY: CONFIGS, Preset.TRAIN: TRAIN_CONFIGS, Preset.CAPTION: CAPTION_CONFIGS}
    configs = dict(configs or defaults[preset])
    special = SPECIAL + VISION * (preset is Preset.CAPTION)
    words = configs[Component.TEXT_ENCODER]["vocab_size"] - 2 * len(SPECIAL)
    tokenizer = small_tokenizer(captions, words if captions else 500, special)
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    if preset is Preset.CAPTION:
        token = {"image_token_id": tokenizer.token_to_id("<|image_pad|>")}
        configs[Component.TEXT_ENCODER] = {**configs[Component.TEXT_ENCODER], **token}
    for component in Component:
        write_component(folder, component, configs[component], preset)
    if preset is Preset.CAPTION:
        stop, pad = (tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
        ids = {"bos_token_id": pad, "eos_token_id": [stop, pad], "pad_token_id": pad}
        _write_json(folder / "text_encoder" / "generation_config.json", GENERATION | ids)
        _write_json(folder / "processor" / "preprocessor_config.json", PROCESSOR)
    scheduler = SCHEDULER if preset is not Preset.TRAIN else {**SCHEDULER, "use_dynamic_shifting": False, "shift": 3.0}
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "model_index.json", INDEX)


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")


def captions_of(records: str) -> list[str]:
    """The first captions of a dataset's train split."""
    source = open_source(records)
    return [source[index].caption for index in range(min(len(source), MOST_CAPTIONS))]


def main(argv: list[str]) -> int:
    """Write the checkpoint, whole; returns 0. A folder is replaced with --overwrite only."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint in that folder")
    parser.add_argument(
        "--preset",
        type=Preset,
        choices=tuple(Preset),
        default=Preset.TRY,
        help="what the weights are for (default %(default)s)",
    )
    parser.add_argument("--captions", metavar="RECORDS", help="a dataset whose captions the tokenizer learns from")
    arguments = parser.parse_args(argv)
    if arguments.folder.parent.is_dir():
        recover(arguments.folder.parent)
    if os.path.lexists(arguments.folder):
        if not arguments.overwrite:
            parser.error(f"{arguments.folder} exists; give another folder, or --overwrite")
        if not (arguments.folder / "model_index.json").is_file():
            parser.error(f"{arguments.folder} is no checkpoint and is left alone; give another folder")
    captions = [] if arguments.captions is None else captions_of(arguments.captions)
    with whole_folder(arguments.folder, overwrite=arguments.overwrite) as draft:
        write_checkpoint(draft, preset=arguments.preset, captions=captions)
    say(f"Wrote a tiny checkpoint with random weights to {arguments.folder}")
    return 0


if __name__ == "__main__":
    run_main(main)
