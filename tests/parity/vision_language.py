"""What transformers' Qwen2.5-VL makes of prompts and pictures, and the same inputs for ours."""

import jax.numpy as jnp
import numpy as np
import torch
from captions import reference_inputs
from flax import nnx
from reference import error

from qil_jax.models.decoding import Prompts
from qil_jax.models.qwen2_5_vl import VisionLanguage
from qil_jax.models.vision_tower import VisionTower

see = nnx.jit(lambda tower, patches, grids: tower(patches, grids))


def prompt_ids(lengths: list[int], words: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids below `words` and mask [prompt, token] of a batch that is padded on the right."""
    longest = max(lengths)
    ids = np.random.default_rng(3).integers(0, words, (len(lengths), longest))
    return ids, np.arange(longest) < np.array(lengths)[:, None]


def hidden_states(reference, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The last hidden states of valid tokens."""
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask.astype(int))}
    return reference.model(**given, output_hidden_states=True).hidden_states[-1].float().numpy()[mask]


def picture_patches(grids: list[tuple[int, int]], width: int, *, count: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Patches of pictures, padded with what a picture might hold."""
    sizes = np.array(grids, np.int32)
    patches = np.random.default_rng(5).standard_normal((len(grids), max(count, *sizes.prod(1)), width))
    return patches.astype(np.float32), sizes


def tower_error(reference, tower: VisionTower, patches: np.ndarray, grids: np.ndarray) -> float:
    """The largest error of a picture in a padded batch, where the reference sees each picture alone."""
    actual = np.asarray(see(tower, jnp.asarray(patches), jnp.asarray(grids)))
    assert np.isfinite(actual).all()
    errors = []
    for tokens, pixels, (rows, columns) in zip(actual, patches, grids, strict=True):
        picture = torch.from_numpy(pixels[: rows * columns])
        expected = reference.model.visual(picture, torch.tensor([[1, rows, columns]])).pooler_output
        errors.append(error(tokens[: len(expected)], expected))
    return max(errors)


def padded(inputs, model: VisionLanguage, *, extra: int) -> Prompts:
    """All rows in one batch, with `extra` columns and patches of padding beyond the longest."""
    rows = [reference_inputs(inputs, i) for i in range(len(inputs[0]))]
    ids, patches = ([row[key].numpy() for row in rows] for key in ("input_ids", "pixel_values"))
    longest = max(row.shape[1] for row in ids) + extra
    most = max(map(len, patches)) + 4 * extra
    return Prompts(
        ids=jnp.asarray([np.pad(row[0], (0, longest - row.shape[1]), constant_values=5) for row in ids]),
        lengths=jnp.asarray([row.shape[1] for row in ids]),
        patches=jnp.asarray([np.pad(row, ((0, most - len(row)), (0, 0))) for row in patches]),
        grids=jnp.asarray(inputs[2]),
    )


def written(reference, inputs, row: int, count: int, **options):
    """The `count` ids that transformers writes for one row alone, and their logits."""
    given = reference_inputs(inputs, row)
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    out = reference.generate(**given, **options, output_logits=True, return_dict_in_generate=True)
    return out.sequences[0, given["input_ids"].shape[1] :].tolist(), torch.stack(out.logits, dim=1)[0]
