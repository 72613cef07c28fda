"""The captioner and the text encoder are one language model, which is loaded once."""

import collections

import jax
import numpy as np
import pytest
from PIL import Image

from qil_jax.choices import Residency
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.inference.memory import plan_memory
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, ResolvedSettings, Settings
from qil_jax.weights import Checkpoint

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
PICTURES = [Image.fromarray(NOISE), Image.new("RGBA", (64, 64), (255, 0, 0, 90))]
SETTINGS = Settings(steps=2)


@pytest.fixture
def loaded(monkeypatch) -> collections.Counter[str]:
    """How often each part of a checkpoint was read."""
    counts = collections.Counter[str]()
    load = Checkpoint.load

    def counting(checkpoint, part, *arguments, **options):
        counts[str(part)] += 1
        return load(checkpoint, part, *arguments, **options)

    monkeypatch.setattr(Checkpoint, "load", counting)
    return counts


def buffers(state) -> dict[str, int]:
    """The addresses of a state's buffers by path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf.unsafe_buffer_pointer() for path, leaf in leaves}


@pytest.mark.full
def test_phases_load_the_language_model_once(captioning, loaded):
    pipeline = Pipeline.load(captioning, residency=Residency.PHASES)
    captions = pipeline.captions(PICTURES, resolution=64, batch=2)
    assert captions == [pipeline.captions([picture], resolution=64)[0] for picture in PICTURES]
    assert len(set(captions)) == 2 and pipeline.captions([], resolution=64) == []
    assert loaded == {"vision_language": 1}
    captioner = pipeline.components.captioner().captioner
    vision = jax.tree.leaves((captioner.state["visual"], captioner.state["lm_head"]))
    (made,) = pipeline.decompose([Request(image=PICTURES[0], layers=2, resolution=64)], SETTINGS)
    assert loaded == dict.fromkeys(("vision_language", "modulation", "backbone", "vae"), 1)
    assert not pipeline.components.captioner.is_loaded and all(leaf.is_deleted() for leaf in vision)
    assert made.request.prompt == made.layered.caption == captions[0] and "caption" in made.timings
    assert pipeline.captions(PICTURES[:1], resolution=64) == captions[:1] and loaded["vision_language"] == 2


@pytest.mark.full
def test_all_share_the_language_model(captioning, loaded):
    pipeline = Pipeline.load(captioning)
    assert loaded == dict.fromkeys(("text_encoder", "modulation", "backbone", "vae"), 1)
    before = pipeline.prompts(["a barn"], max_tokens=9)["a barn"]
    captions = pipeline.captions(PICTURES, resolution=64, batch=2)
    assert loaded["vision_language"] == 1
    after = pipeline.prompts(["a barn"], max_tokens=9)["a barn"]
    np.testing.assert_array_equal(after, before)
    shared = buffers(pipeline.components.captioner().state["language"])
    assert sorted(buffers(pipeline.prompts.state).values()) == sorted(shared.values())
    assert pipeline.captions(PICTURES, resolution=64, batch=2) == captions
    assert loaded["vision_language"] == loaded["text_encoder"] == 1


@pytest.mark.full
def test_memory_of_captions_is_planned(captioning):
    checkpoint = LayeredCheckpoint.open(captioning)
    size = checkpoint.size
    stored = sum(file.stat().st_size for file in (captioning / "text_encoder").glob("*.safetensors"))
    assert 0.95 * stored < size.text_encoder + size.vision < stored and size.vision > 0.2 * size.text_encoder
    plan = lambda captioned: plan_memory(
        [], ResolvedSettings(steps=1, guidance=1.0), checkpoint, residency=Residency.PHASES, captioned=captioned
    )
    assert plan(1).before >= size.text_encoder + size.vision and plan(0).parameters == plan(1).parameters
