"""Reading and writing with pictures against transformers' Qwen2.5-VL, fp32."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from captions import VOCABULARY, pictures, reference_inputs, tiny_writer
from flax import nnx
from reference import error, our_vision_language
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from vision_language import padded, written

from qil_jax.encoders.captioner import Captioner
from qil_jax.encoders.generation import Generation
from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
from qil_jax.models.decoding import filtered, penalised, prefill, read_token
from qil_jax.models.qwen2_5_vl import prompt_positions

torch.set_grad_enabled(False)

GRIDS = [(2, 2), (46, 70), (18, 6), (10, 14)]
"""Patches of pictures from 28 x 28 to 644 x 980 pixels, as the release has them."""
COUNT = 64
NEVER = (VOCABULARY, VOCABULARY + 1)
"""As many ids that end a text as in the other tests, for the same program."""
PENALTIES = (1.0, 1.2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    reference = tiny_writer()
    model = our_vision_language(reference, tmp_path_factory.mktemp("tiny"))
    inputs = pictures(GRIDS, model.config.vision.patch_width)
    texts = {
        p: [written(reference, inputs, i, COUNT, repetition_penalty=p) for i in range(len(GRIDS))] for p in PENALTIES
    }
    captioner = Captioner(model, sharding=Sharding(single_device_mesh(), INFERENCE_RULES))
    return SimpleNamespace(reference=reference, model=model, inputs=inputs, texts=texts, captioner=captioner)


@pytest.mark.full
def test_positions(tiny):
    batch = padded(tiny.inputs, tiny.model, extra=5)
    positions = jax.jit(lambda ids, mask, grids: prompt_positions(ids, mask, grids, tiny.model.config))
    found = np.asarray(positions(batch.ids, batch.mask, batch.grids))
    for i, length in enumerate(batch.lengths):
        given = reference_inputs(tiny.inputs, i)
        keys = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        expected, _ = tiny.reference.model.get_rope_index(**{key: given[key] for key in keys})
        np.testing.assert_array_equal(found[i, :length], expected[:, 0].T)
        assert not found[i, length:].any()
    text = jnp.arange(6)[None]
    plain = positions(text, text < 4, jnp.zeros((1, 2), jnp.int32))
    np.testing.assert_array_equal(plain[0, :, 1], [0, 1, 2, 3, 0, 0])


def test_logits_of_prompts_and_of_each_written_token(tiny):
    """All rows in one padded batch, which reads the ids that the reference wrote."""
    graph, state = nnx.split(tiny.model)
    texts = tiny.texts[PENALTIES[0]]
    ids = jnp.asarray([ids for ids, _ in texts])

    @jax.jit
    def run(state, batch, ids):
        model = nnx.merge(graph, state)
        first, cache = prefill(model, batch, room=COUNT)

        def step(cache, ids):
            logits, cache = read_token(model, ids, cache)
            return cache, logits

        return jnp.concatenate([first[:, None], jnp.moveaxis(jax.lax.scan(step, cache, ids.T)[1], 0, 1)], axis=1)

    found = run(state, padded(tiny.inputs, tiny.model, extra=3), ids[:, :-1])
    for row, (_, logits) in zip(found, texts, strict=True):
        assert error(row, logits) <= 5e-5


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.full
def test_most_likely_ids(tiny, penalty):
    """Of pictures in one batch, and of the smallest and the largest alone."""
    expected = [ids for ids, _ in tiny.texts[penalty]]
    assert min(len(set(ids)) for ids in expected) > 30, "a text that repeats itself shows nothing"
    generation = Generation(max_new_tokens=COUNT, repetition_penalty=penalty, eos_token_id=NEVER)
    assert tiny.captioner.generate(*tiny.inputs, generation) == expected
    for row in (0, 1):
        alone = [part[row : row + 1] for part in tiny.inputs]
        assert tiny.captioner.generate(*alone, generation) == expected[row : row + 1]


def test_the_penalty_acts(tiny):
    without, with_penalty = ([ids for ids, _ in tiny.texts[penalty]] for penalty in PENALTIES)
    assert all(a != b for a, b in zip(without, with_penalty, strict=True))


@pytest.mark.full
def test_ids_that_end_a_text(tiny):
    """Each of two ids ends the text of its row where it first stands; a third row's goes on to the limit."""
    texts = [ids for ids, _ in tiny.texts[PENALTIES[1]]]
    stops = [next(i for i in texts[0][10:] if i not in texts[2]), next(i for i in texts[1][20:] if i not in texts[2])]
    generation = Generation(max_new_tokens=COUNT, repetition_penalty=PENALTIES[1], eos_token_id=tuple(stops))
    found = tiny.captioner.generate(*tiny.inputs, generation)
    for i, ids in enumerate(found):
        expected, _ = written(
            tiny.reference, tiny.inputs, i, COUNT, repetition_penalty=PENALTIES[1], eos_token_id=stops
        )
        assert ids == (expected[:-1] if expected[-1] in stops else expected)
    assert len(found[2]) == COUNT and max(len(found[0]), len(found[1])) < COUNT
    shorter = dataclasses.replace(generation, max_new_tokens=COUNT - 10, eos_token_id=NEVER)
    assert tiny.captioner.generate(*tiny.inputs, shorter) == [ids[:-10] for ids in texts]


def test_filters_of_scores():
    """Temperature, top-k and top-p as transformers applies them, all of them different from row to row."""
    scores = 3 * torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(1))
    temperature, top_k, top_p = (
        [1.0, 0.5, 2.0, 1.3, 0.1, 1.0],
        [50, VOCABULARY, 7, 1, 3, 9999],
        [1.0, 0.8, 0.5, 0.9, 0.001, 0.0],
    )
    found = np.asarray(filtered(*map(jnp.asarray, (scores.numpy(), temperature, top_k, top_p))))
    for row, t, k, p in zip(range(6), temperature, top_k, top_p, strict=True):
        expected = scores[row : row + 1]
        for warper in (TemperatureLogitsWarper(t), TopKLogitsWarper(k), TopPLogitsWarper(p)):
            expected = warper(None, expected)
        np.testing.assert_allclose(found[row], expected[0], rtol=1e-6)
    assert [np.isfinite(row).sum() for row in found][2:] == [3, 1, 1, 1]


def test_penalty_of_repeated_ids():
    scores = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(2))
    ids = torch.randint(0, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(3))
    seen = np.zeros(scores.shape, bool)
    np.put_along_axis(seen, ids.numpy(), True, axis=1)
    found = penalised(jnp.asarray(scores.numpy()), jnp.asarray(seen), jnp.asarray([1.3, 0.7]))
    for row, penalty in enumerate([1.3, 0.7]):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids[row : row + 1], scores[row : row + 1])
        np.testing.assert_allclose(found[row], expected[0], rtol=1e-6)
