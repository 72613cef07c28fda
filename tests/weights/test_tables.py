"""The key tables against the release: every name and shape, counts, hashes, and the names' other spellings."""

import csv
import math
import re
from pathlib import Path

import pytest
from flax import nnx

from qil_jax.models.paths import slashed
from qil_jax.weights import Architecture, TextEncoderPart
from qil_jax.weights.names import released_names
from qil_jax.weights.released import CONFIGS, STRUCTURE_HASHES, structure_hash
from qil_jax.weights.tables import table_of
from qil_jax.weights.tables.entries import Component, Transform, targets

SPEC = Path(__file__).resolve().parents[3] / "shared" / "spec"
PARTS = list(Component)


def shapes(component: Component, **changes) -> dict[str, tuple[int, ...]]:
    table = table_of(component, {**CONFIGS[component], **changes})
    found = {entry.name: entry.shape for entry in table}
    assert len(found) == len(table)
    return found


@pytest.mark.parametrize(
    ("component", "changes", "tensors", "parameters", "name"),
    [
        (Component.TRANSFORMER, {}, 1934, 20_430_407_232, "Qwen-Image-Layered transformer"),
        (Component.VAE, {}, 194, 126_897_716, "Qwen-Image-Layered RGBA-VAE"),
        (Component.TEXT_ENCODER, {}, 729, 8_292_166_656, "Qwen2.5-VL-7B text encoder"),
        (
            Component.TRANSFORMER,
            {"use_additional_t_cond": False, "use_layer3d_rope": False},
            1933,
            20_430_401_088,
            "Qwen-Image transformer",
        ),
        (Component.VAE, {"input_channels": 3}, 194, 126_892_531, "Qwen-Image RGB VAE"),
    ],
)
def test_counts_and_published_hashes(component, changes, tensors, parameters, name):
    found = shapes(component, **changes)
    assert len(found) == tensors
    assert sum(map(math.prod, found.values())) == parameters
    assert STRUCTURE_HASHES[structure_hash(found.items())] == name


@pytest.mark.parametrize("component", PARTS)
def test_names_and_shapes_of_the_specification(component):
    file = SPEC / f"keys_{component}.tsv"
    if not file.is_file():
        pytest.skip("the specification's tables of tensors are not beside this repository")
    expected = {}
    with file.open() as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            span = re.search(r"\{0\.\.(\d+)\}", row["pattern"])
            shape = tuple(map(int, re.findall(r"\d+", row["shape"])))
            for i in range(int(span[1]) + 1) if span else [0]:
                expected[re.sub(r"\{.*?\}", str(i), row["pattern"])] = shape
    expected.pop("TOTAL", None)
    assert len(expected) >= 194
    assert shapes(component) == expected


@pytest.mark.parametrize("part", [*PARTS, TextEncoderPart.VISION_LANGUAGE])
@pytest.mark.full
def test_the_table_fills_the_model_exactly(part):
    component = Component.TEXT_ENCODER if isinstance(part, TextEncoderPart) else part
    state = nnx.to_flat_state(nnx.state(Architecture(component, CONFIGS[component]).abstract(part), nnx.Param))
    model = {slashed(path): parameter.get_value().shape for path, parameter in state}
    made = {path: target.shape for path, target in targets(table_of(component, CONFIGS[component])).items()}
    if part is Component.TEXT_ENCODER:  # the vision tower and the output head serve captions
        made = {path: shape for path, shape in made.items() if path.startswith("language/")}
    assert model == made


def test_released_names_map_to_themselves():
    for component in PARTS:
        assert all(a == b for a, b in released_names(component, shapes(component)).items())


def test_other_spellings_of_the_transformer_and_the_text_encoder():
    names = released_names(
        Component.TRANSFORMER, ["model.diffusion_model.img_in.weight", "transformer_blocks.0.attn.to_q.weight"]
    )
    assert list(names.values()) == ["img_in.weight", "transformer_blocks.0.attn.to_q.weight"]
    released = shapes(Component.TEXT_ENCODER)
    memory = {}  # as transformers 5 names them once loaded
    for name in released:
        if name.startswith("visual."):
            memory[f"model.{name}"] = name
        elif name.startswith("model."):
            memory[name.replace("model.", "model.language_model.", 1)] = name
        else:
            memory[name] = name
    assert released_names(Component.TEXT_ENCODER, memory) == memory


def wan_name(name: str) -> str:
    """The released VAE name in ComfyUI's Wan style, the translation of names.py read from right to left."""
    name = re.sub(r"^quant_conv\.", "conv1.", name)
    name = re.sub(r"^post_quant_conv\.", "conv2.", name)
    is_block = re.search(r"resnets|down_blocks\.\d+\.(norm|conv\d|conv_shortcut)", name)
    if is_block:
        for ours, wan in (("norm1", 0), ("conv1", 2), ("norm2", 3), ("conv2", 6)):
            name = name.replace(f".{ours}.", f".residual.{wan}.")
        name = name.replace(".conv_shortcut.", ".shortcut.")
    for ours, wan in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
        name = name.replace(f"mid_block.{ours}.", f"middle.{wan}.")
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"upsamples.{4 * int(m[1]) + 3}.", name)
    name = name.replace("down_blocks.", "downsamples.")
    name = re.sub(r"^(encoder|decoder)\.conv_in\.", r"\1.conv1.", name)
    return name.replace(".norm_out.", ".head.0.").replace(".conv_out.", ".head.2.")


def test_wan_style_names_of_the_vae():
    released = shapes(Component.VAE)
    wan = {wan_name(name): name for name in released}
    assert len(wan) == len(released)
    assert sum(a == b for a, b in wan.items()) < 10  # nearly every name differs, so the map is put to use
    assert released_names(Component.VAE, wan) == wan


def test_every_transform_is_used_and_none_invents_a_parameter():
    used = {entry.transform for component in PARTS for entry in table_of(component, CONFIGS[component])}
    assert used == set(Transform)
    for component in PARTS:
        table = table_of(component, CONFIGS[component])
        for target in targets(table).values():
            stored = sum(math.prod(e.shape) for e in target.entries)
            taps = 3 if target.entries[0].transform is Transform.TAP else 1
            assert math.prod(target.shape) * taps == stored
