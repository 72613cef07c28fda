"""The captioner: meshes, few programs, parameters that are shared and freed, inputs that are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from captions import IMAGE, pictures, tiny_writer
from flax import nnx

from qil_jax.encoders.captioner import Captioner
from qil_jax.encoders.generation import FILE, Generation
from qil_jax.errors import QilError
from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.models.config import ConfigError
from qil_jax.weights import Checkpoint, Component, TextEncoderPart, WeightsError

EVEN = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    "vision": {"hidden_size": 64, "num_heads": 4, "intermediate_size": 40},
}
"""Sizes that split over 4 devices."""
GRIDS = [(4, 6), (2, 2), (6, 4)]
STOP = (7, 11)
GENERATION = Generation(max_new_tokens=20, repetition_penalty=1.1, eos_token_id=STOP)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_writer(**EVEN).save_pretrained(folder / Component.TEXT_ENCODER)
    return folder


def load(checkpoint, mesh) -> Captioner:
    model = Checkpoint(checkpoint).load(TextEncoderPart.VISION_LANGUAGE, Sharding(mesh, INFERENCE_RULES))
    return Captioner(model, sharding=Sharding(mesh, INFERENCE_RULES))


@pytest.fixture(scope="module")
def captioner(checkpoint):
    return load(checkpoint, single_device_mesh())


@pytest.fixture(scope="module")
def inputs(captioner):
    return pictures(GRIDS, captioner.config.vision.patch_width)


def compiled(work) -> int:
    """The number of programs that are compiled meanwhile."""
    found = []

    def listener(event: str, duration: float, **_: object) -> None:
        found.extend([duration] * (event == "/jax/core/compile/backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(listener)
    work()
    jax.monitoring.unregister_event_duration_listener(listener)
    return len(found)


@pytest.fixture(scope="module")
def expected(captioner, inputs):
    """What one device writes, by two programs."""
    texts = []
    assert compiled(lambda: texts.extend(captioner.generate(*inputs, GENERATION))) == 2
    return texts


@pytest.mark.parametrize("shape", ["tensor=4,data=2", "fsdp=2,context=2,tensor=2"])
@pytest.mark.full
def test_a_mesh_writes_what_one_device_writes(checkpoint, inputs, expected, shape):
    """Three rows on two shards of rows; two heads of keys, whole on four devices and split over two."""
    found = load(checkpoint, make_mesh(MeshShape.parse(shape))).generate(*inputs, GENERATION)
    assert found == expected and len(found) == 3 and len(set(expected[0])) > 10


@pytest.mark.full
def test_what_changes_and_compiles_nothing(captioner, inputs, expected):
    """Other pictures of similar size, one row more, longer prompts, other choices and seeds, a lower limit."""
    width = captioner.config.vision.patch_width
    other = pictures([(2, 6), (4, 4), (6, 4), (4, 2)], width, words=8)
    sampled = Generation(max_new_tokens=17, do_sample=True, temperature=0.7, top_k=9, top_p=0.8, eos_token_id=STOP)
    texts = {}

    def work() -> None:
        for seeds in ((1, 2, 3, 4), (1, 5, 3, 4), None):
            texts[seeds] = captioner.generate(*other, sampled, seeds=seeds)
        assert captioner.generate(*inputs, GENERATION) == expected

    assert compiled(work) == 0
    one, two, _ = texts.values()
    assert all(0 < len(ids) <= 17 for ids in one)
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, False, True, True]


@pytest.mark.full
def test_the_text_encoder_shares_parameters_and_outlives_the_tower(checkpoint, inputs):
    mesh = single_device_mesh()
    captioner = load(checkpoint, mesh)
    encoder = captioner.text_encoder()
    ours, theirs = (
        nnx.to_flat_state(nnx.state(x, nnx.Param)) for x in (encoder, nnx.merge(captioner._graph, captioner.state))
    )
    shared = {path: parameter.get_value() for path, parameter in theirs if path[0] == "language"}
    assert len(ours) == len(shared)
    assert all(parameter.get_value() is shared[path] for path, parameter in ours)
    tower = jax.tree.leaves(captioner.state["visual"])
    captioner.free_vision()
    assert all(leaf.is_deleted() for leaf in tower)
    alone = Checkpoint(checkpoint).load(Component.TEXT_ENCODER, Sharding(mesh, INFERENCE_RULES))
    ids = jnp.arange(14).reshape(2, 7)
    states = [model(ids, jnp.asarray([[True] * 7, [True] * 5 + [False] * 2])) for model in (encoder, alone)]
    np.testing.assert_array_equal(*states)
    with pytest.raises(QilError, match="freed"):
        captioner.generate(*inputs, GENERATION)


def test_inputs_that_are_refused(captioner, inputs):
    prompts, patches, grids = inputs
    bad = {
        "as many": (prompts[:2], patches, grids),
        "prompt 1 has the picture's id 300 0 times": ([prompts[0], [1, 2], prompts[2]], patches, grids),
        "prompt 0 has the picture's id 300 2 times": ([[IMAGE, IMAGE], *prompts[1:]], patches, grids),
        "picture 2 has patches": (prompts, patches, [*grids[:2], (4, 4)]),
        "picture 1 has patches": (prompts, [patches[0], patches[1][:2], patches[2]], [grids[0], (1, 2), grids[2]]),
    }
    for message, given in bad.items():
        with pytest.raises(QilError, match=message):
            captioner.generate(*given, GENERATION)
    assert captioner.generate([], [], [], GENERATION) == []


RELEASED = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.1,
    "top_k": 1,
    "top_p": 0.001,
    "transformers_version": "4.52.0",
}


def written(folder, **changes):
    file = folder / FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**RELEASED, **changes}))
    return folder


def test_generation_config(tmp_path):
    released = Generation.of(written(tmp_path))
    assert (released.max_new_tokens, released.repetition_penalty) == (512, 1.05)
    assert (released.eos_token_id, released.pad_token_id) == ((151645, 151643), 151643)
    assert not released.is_sampled, "the most likely id is all that top_k leaves"
    base = Generation.of(written(tmp_path, temperature=1e-6, top_k=None, top_p=None, eos_token_id=3))
    assert not base.is_sampled and (base.top_k, base.top_p, base.eos_token_id) == (50, 1.0, (3,))
    assert Generation.of(written(tmp_path, top_k=20)).is_sampled
    assert not Generation.of(written(tmp_path, top_k=20, do_sample=False)).is_sampled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token_id": None}, "'eos_token_id' is missing: copy it from the release"),
        ({"eos_token_id": "end"}, "eos_token_id = 'end': must be a list"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0: must be a number above 0"),
        (
            {"top_p": 1.5, "temperature": -1.0},
            r"temperature = -1.0: must be a number of at least 0\n  top_p = 1.5: must be a number from 0 to 1",
        ),
        ({"top_k": -1}, "top_k = -1: must be a whole number from 0"),
    ],
)
def test_generation_configs_that_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=f"generation_config.json:\n  {message}"):
        Generation.of(written(tmp_path, **changes))


def test_a_missing_generation_config(tmp_path):
    with pytest.raises(WeightsError, match=r"generation_config\.json: missing; copy it from the release"):
        Generation.of(tmp_path)
    with pytest.raises(ConfigError, match="max_new_tokens = 0: must be a whole number from 1"):
        Generation(max_new_tokens=0)
