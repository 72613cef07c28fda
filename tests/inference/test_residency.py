"""Components in device memory: all of them, or those of the running phase."""

import collections
import gc

import jax
import numpy as np
import pytest
from PIL import Image

from qil_jax.choices import Passes, Residency
from qil_jax.errors import ProblemsError
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.memory import Drawing, plan_memory
from qil_jax.inference.outline import Outline
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, ResolvedSettings, Settings
from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh
from qil_jax.weights import Checkpoint

SETTINGS = Settings(steps=2)


def asked(width: int, height: int, prompt: str) -> Request:
    image = Image.effect_noise((width, height), 80).convert("RGB")
    return Request(image=image, layers=1, resolution=64, prompt=prompt)


REQUESTS = [asked(64, 64, "a red barn"), asked(96, 48, "a cat")]


@pytest.fixture
def loaded(monkeypatch) -> collections.Counter[str]:
    """How often each part of a checkpoint was read."""
    counts = collections.Counter[str]()
    load = Checkpoint.load

    def counting(checkpoint, part, **arguments):
        counts[str(part)] += 1
        return load(checkpoint, part, **arguments)

    monkeypatch.setattr(Checkpoint, "load", counting)
    return counts


def live_bytes() -> int:
    """Bytes of the buffers of all arrays; several arrays may share a buffer."""
    gc.collect()
    parts = [shard.data for array in jax.live_arrays() for shard in array.addressable_shards]
    return sum({part.unsafe_buffer_pointer(): part.nbytes for part in parts}.values())


@pytest.mark.full
def test_phases_give_the_same_layers_and_load_each_component_once(loaded):
    kept = Pipeline.load()
    assert sum(loaded.values()) == 4
    expected = [kept.decompose([request], SETTINGS)[0] for request in REQUESTS]
    assert sum(loaded.values()) == 4
    loaded.clear()
    pipeline = Pipeline.load(residency=Residency.PHASES)
    assert not loaded
    outlines = [Outline.of(request.image.size, request.filled(Defaults()), request.prompt) for request in REQUESTS]
    pipeline.prepare(outlines, SETTINGS)
    for request, there in zip(REQUESTS, expected, strict=True):
        made = pipeline.decompose([request], SETTINGS)[0]
        np.testing.assert_array_equal(made.layered.layers, there.layered.layers)
    assert set(loaded.values()) == {1} and len(loaded) == 4


@pytest.mark.full
def test_what_a_phase_does_not_need_leaves_the_devices():
    size = LayeredCheckpoint.open().size
    before = live_bytes()
    pipeline = Pipeline.load(residency=Residency.PHASES)
    peaks = []
    pipeline.decompose(REQUESTS[:1], SETTINGS, on_step=lambda *_: peaks.append(live_bytes() - before))
    small = 0.5 * min(size.text_encoder, size.modulation)
    assert len(peaks) == 2 and max(peaks) < size.backbone + size.vae + small
    pipeline.components.enter()
    assert live_bytes() - before < small
    assert np.isfinite(pipeline.decompose(REQUESTS[:1], SETTINGS)[0].latents).all()
    pipeline.components.enter()
    kept = Pipeline.load()
    assert live_bytes() - before > 0.999 * size.parameters
    del kept


def test_memory_is_planned_by_phase():
    checkpoint, settings = LayeredCheckpoint.open(), ResolvedSettings(steps=50, guidance=4.0)
    size, drawings = checkpoint.size, [Drawing(size=(640, 640), pictures=6)]
    everything, phases = (plan_memory(drawings, settings, checkpoint, residency=policy) for policy in Residency)
    assert everything.parameters == size.parameters and phases.parameters == size.backbone + size.vae
    assert everything.total - phases.total == size.text_encoder + size.modulation
    nothing = plan_memory([], settings, checkpoint, residency=Residency.PHASES)
    assert nothing.total >= max(size.text_encoder, size.modulation)
    sequential = plan_memory(drawings, settings, checkpoint, passes=Passes.SEQUENTIAL)
    assert 2 * sequential.denoise == everything.denoise


def test_a_mesh_for_guidance_without_guidance_is_refused():
    sharding = Sharding(make_mesh(MeshShape(cfg=2), jax.devices()[:2]), INFERENCE_RULES)
    pipeline = Pipeline.load(sharding=sharding, residency=Residency.PHASES)
    for request, settings in (
        (REQUESTS[0], Settings(steps=1, guidance=1.0)),
        (Request(image=REQUESTS[0].image, layers=1, resolution=64, negative_prompt=None), SETTINGS),
    ):
        with pytest.raises(ProblemsError, match="use data=2 in place of cfg=2"):
            pipeline.decompose([request], settings)
