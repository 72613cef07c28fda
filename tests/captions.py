"""Tiny vision-language models that write varied text, and prompts with pictures for them."""

import numpy as np
import torch
from checkpoints import tiny_text_encoder
from transformers import Qwen2_5_VLForConditionalGeneration

IMAGE, VOCABULARY = 300, 392
SIZES = {
    "hidden_size": 72,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 104,
    "num_hidden_layers": 3,
    "vocab_size": VOCABULARY,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 2, 3]},
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "patch_size": 6,
    "window_size": 48,
    "fullatt_block_indexes": [1],
}
Inputs = tuple[list[list[int]], list[np.ndarray], list[tuple[int, int]]]


def tiny_writer(**changes) -> Qwen2_5_VLForConditionalGeneration:
    """A reference model of which no size equals another, whose attention is sharp enough for text that varies."""
    vision = {**VISION, **changes.pop("vision", {})}
    reference = tiny_text_encoder(**{**SIZES, **changes}, vision=vision)
    reference.config.image_token_id = IMAGE
    with torch.no_grad():
        for name, parameter in reference.model.language_model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(2)
    return reference


def pictures(grids: list[tuple[int, int]], width: int, *, words: int = 9) -> Inputs:
    """Prompts with the picture's id once each, patches and grids; prompt i has `words` + i words."""
    random = np.random.default_rng(7)
    prompts = [random.integers(0, IMAGE, words + i).tolist() for i in range(len(grids))]
    for i, prompt in enumerate(prompts):
        prompt.insert(3 + i, IMAGE)
    return prompts, [random.standard_normal((h * w, width)).astype(np.float32) for h, w in grids], grids


def reference_inputs(inputs: Inputs, row: int) -> dict[str, torch.Tensor]:
    """What transformers takes for one row."""
    prompt, picture, (high, wide) = (part[row] for part in inputs)
    at = prompt.index(IMAGE)
    ids = torch.tensor([[*prompt[:at], *[IMAGE] * (high * wide // 4), *prompt[at + 1 :]]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.from_numpy(picture),
        "image_grid_thw": torch.tensor([[1, high, wide]]),
    }
