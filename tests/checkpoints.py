"""Tiny random checkpoints in the released layout, made by the reference classes themselves."""

import base64
import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageLayeredPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from sizes import SCHEDULER, TEXT, TRANSFORMER, VAE, VISION
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that keep activations near unit scale, norms unlike 1, biases unlike 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "gamma" in name or (("norm" in name or "ln_q" in name) and "weight" in name and parameter.ndim == 1):
                parameter.copy_(1 + 0.2 * noise)
            elif "embed_tokens" in name or "addition_t_embedding" in name:
                parameter.copy_(noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / np.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.1 * noise)
    return module.eval()


def tiny_transformer(seed: int = 1, **changes) -> QwenImageTransformer2DModel:
    return randomise(QwenImageTransformer2DModel(**{**TRANSFORMER, **changes}), seed)


def tiny_vae(seed: int = 2, **changes) -> AutoencoderKLQwenImage:
    return randomise(AutoencoderKLQwenImage(**{**VAE, **changes}), seed)


def tiny_text_encoder(seed: int = 3, *, vision=None, **changes) -> Qwen2_5_VLForConditionalGeneration:
    text = {**TEXT, **changes}
    sizes = {**VISION, "out_hidden_size": text["hidden_size"], **(vision or {})}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=sizes, tie_word_embeddings=False)
    return randomise(Qwen2_5_VLForConditionalGeneration(config), seed)


@cache
def qwen_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Qwen's byte-level vocabulary and merges, from the ranks that a public package carries."""
    package = importlib.util.find_spec("dashscope")
    assert package is not None and package.origin is not None
    lines = (Path(package.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    letters = _byte_letters()
    text = lambda token: "".join(letters[b] for b in token)
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            left, right = _last_merge(token, ranks, rank)
            merges.append((text(left), text(right)))
    return {text(token): rank for token, rank in ranks.items()}, merges


def _last_merge(token: bytes, ranks: dict[bytes, int], rank: int) -> tuple[bytes, bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        scores = [ranks.get(a + b, rank) for a, b in zip(parts[:-1], parts[1:], strict=True)]
        best = scores.index(min(scores))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _byte_letters() -> dict[int, str]:
    """The printable stand-in of every byte in byte-level BPE."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def write_tokenizer(folder: Path) -> None:
    """The files of the released tokenizer/ folder."""
    folder.mkdir(parents=True)
    vocabulary, merges = qwen_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    added = {token: len(vocabulary) + i for i, token in enumerate(SPECIAL)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    decoder = {str(i): {"content": t, "special": True, "normalized": False} for t, i in added.items()}
    config = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": decoder}))


@cache
def reference_tokenizer() -> Qwen2Tokenizer:
    vocabulary, merges = qwen_vocabulary()
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, pad_token=SPECIAL[0])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return tokenizer


TEXT_TO_IMAGE_SCHEDULER = {**SCHEDULER, "shift_terminal": 0.02, "time_shift_type": "exponential"}
EVEN_TRANSFORMER = {"num_attention_heads": 4, "joint_attention_dim": 48}
EVEN_TEXT = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
}
"""Changes that make every sharded width divide by 8, for meshes."""


def build_tiny_checkpoint(folder: Path, *, transformer=None, text=None) -> QwenImageLayeredPipeline:
    """Write a whole tiny checkpoint and return the reference pipeline that holds the same weights."""
    parts = {
        "transformer": tiny_transformer(**(transformer or {})),
        "vae": tiny_vae(),
        "text_encoder": tiny_text_encoder(**(text or {})),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    scheduler.save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "QwenImageLayeredPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    tokenizer = reference_tokenizer()
    return QwenImageLayeredPipeline(scheduler=scheduler, tokenizer=tokenizer, processor=None, **parts)


def build_tiny_text_to_image(folder: Path) -> None:
    """Write a whole tiny checkpoint of Qwen-Image, of even sizes."""
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**TEXT_TO_IMAGE_SCHEDULER),
        vae=tiny_vae(input_channels=3),
        text_encoder=tiny_text_encoder(**EVEN_TEXT),
        tokenizer=reference_tokenizer(),
        transformer=tiny_transformer(**EVEN_TRANSFORMER, use_additional_t_cond=False, use_layer3d_rope=False),
    )
    pipeline.save_pretrained(folder)


def layers_of(pipeline: QwenImageLayeredPipeline, image, start: np.ndarray, *, layers: int, steps: int) -> np.ndarray:
    """Layers [n, y, x, 4] that diffusers makes of a picture, from initial noise [1, layers + 1, 16, 24, z]."""
    latents = torch.from_numpy(start.transpose(0, 1, 4, 2, 3)).to(pipeline.transformer.dtype)
    packed = pipeline._pack_latents(latents, 1, VAE["z_dim"], 16, 24, layers + 1)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        image=image,
        prompt="a cat on a mat",
        negative_prompt=" ",
        true_cfg_scale=4.0,
        cfg_normalize=True,
        num_inference_steps=steps,
        layers=layers,
        resolution=640,
        latents=packed,
    )
    return np.stack([np.asarray(layer) for layer in made.images[0]])


def assert_same_layers(ours: np.ndarray, theirs: np.ndarray) -> None:
    """8-bit layers equal but for 1 % of the values, none of which differs by more than 1."""
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert ours.std() > 10, "the pictures must not be flat"
    assert (difference == 0).mean() >= 0.99
    assert difference.max() <= 1
