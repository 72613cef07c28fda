"""Parameters and activations on eight simulated devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qil_jax.mesh import (
    INFERENCE_RULES,
    TRAINING_RULES,
    Axis,
    MeshAxis,
    MeshError,
    MeshShape,
    Rules,
    Sharding,
    constrain,
    describe,
    make_mesh,
    place,
    shardings,
    single_device_mesh,
)
from qil_jax.models.axes import unconstrained
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder, VisionLanguage
from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig
from qil_jax.models.vld_mmdit import MMDiTConfig, TokenLayout, VLDMMDiT

MESHES = ["data=8", "fsdp=8", "data=2,tensor=4", "fsdp=2,context=2,tensor=2", "cfg=2,data=2,fsdp=2"]
PRESETS = {"inference": INFERENCE_RULES, "training": TRAINING_RULES}
ON_EVERY_MESH = pytest.mark.parametrize("text", MESHES)
WITH_BOTH_PRESETS = pytest.mark.parametrize("rules", PRESETS.values(), ids=PRESETS)
SMALL = MMDiTConfig(
    num_layers=2,
    num_attention_heads=4,
    attention_head_dim=16,
    joint_attention_dim=24,
    in_channels=12,
    out_channels=3,
    axes_dims_rope=(4, 6, 6),
    use_additional_t_cond=True,
    use_layer3d_rope=True,
)
RELEASED = {
    "transformer": (lambda rngs: VLDMMDiT(MMDiTConfig(use_additional_t_cond=True), rngs=rngs), 20_430_407_232),
    "language": (lambda rngs: TextEncoder(Qwen2_5VLConfig(), rngs=rngs), 7_070_619_136),
    "vision language": (lambda rngs: VisionLanguage(Qwen2_5VLConfig(), rngs=rngs), 8_292_166_656),
    "vae": (lambda rngs: RGBAVAE(VAEConfig(latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16), rngs=rngs), None),
}


def mesh_of(text: str) -> Mesh:
    return make_mesh(MeshShape.parse(text))


def sharding_of(text: str, rules: Rules = INFERENCE_RULES) -> Sharding:
    return Sharding(mesh_of(text), rules)


@functools.cache
def template() -> tuple:
    model = VLDMMDiT(SMALL, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    leaves = [leaf + 0.01 for leaf in jax.tree.leaves(state)]  # no zero biases
    return graph, jax.tree.unflatten(jax.tree.structure(state), leaves)


def small_model() -> VLDMMDiT:
    return nnx.merge(*template())


def abstract_model() -> VLDMMDiT:
    return nnx.eval_shape(lambda: VLDMMDiT(SMALL, rngs=nnx.Rngs(0)))


@functools.cache
def released(name: str) -> nnx.Module:
    return nnx.eval_shape(lambda: RELEASED[name][0](nnx.Rngs(0)))


def parameters(model: nnx.Module) -> dict[str, jax.Array]:
    return {"/".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def bytes_on(array: jax.Array, device: jax.Device) -> int:
    return sum(shard.data.nbytes for shard in array.addressable_shards if shard.device == device)


def described(table: str) -> dict[str, int]:
    """Name to bytes per device, as a reader finds them in the table."""
    lines = [line.split() for line in table.splitlines()[1:]]
    return {line[0]: int(line[-1].replace(",", "")) for line in lines}


@ON_EVERY_MESH
@WITH_BOTH_PRESETS
@pytest.mark.full
def test_placement_splits_bytes_and_keeps_values(text, rules):
    sharding, model = sharding_of(text, rules), small_model()
    mesh = sharding.mesh
    before = {name: np.asarray(value) for name, value in parameters(model).items()}
    place(model, sharding)
    after, wanted = parameters(model), shardings(model, sharding)
    assert after.keys() == before.keys() == wanted.keys()
    for name, value in after.items():
        assert value.sharding.is_equivalent_to(wanted[name], value.ndim), name
        np.testing.assert_array_equal(np.asarray(value), before[name])
    parts = mesh.shape["fsdp"] * mesh.shape["context"] * mesh.shape["tensor"]
    for name in ("backbone/blocks/image/q/kernel", "backbone/blocks/text/mlp_out/kernel", "modulation/image/kernel"):
        assert [bytes_on(after[name], device) * parts for device in mesh.devices.flat] == [before[name].nbytes] * 8


@ON_EVERY_MESH
@WITH_BOTH_PRESETS
@pytest.mark.full
def test_describe_gives_the_bytes_that_devices_hold(text, rules):
    sharding, model = sharding_of(text, rules), small_model()
    place(model, sharding)
    table, held = described(describe(model, sharding)), parameters(model)
    assert table.keys() == {*held, "total"}
    for device in sharding.mesh.devices.flat:
        here = {name: bytes_on(value, device) for name, value in held.items()}
        assert {**here, "total": sum(here.values())} == table


def test_describe_needs_no_arrays():
    sharding = sharding_of("fsdp=2,tensor=4")
    assert describe(abstract_model(), sharding) == describe(small_model(), sharding)


def test_describe_shows_axes_and_partition():
    table = describe(abstract_model(), sharding_of("fsdp=2,tensor=4")).splitlines()
    assert [word in table[0] for word in ("parameter", "shape", "logical axes", "partition", "bytes per device")]
    (row,) = [line for line in table if line.startswith("backbone/blocks/image/q/kernel ")]
    for part in (
        "2x64x64",
        "block embed heads",
        str(PartitionSpec(None, ("fsdp", "context"), "tensor")),
        f"{2 * 64 * 64 * 4 // 8:,}",
    ):
        assert part in row


@pytest.mark.parametrize("text", [*MESHES, "tensor=8"])
@WITH_BOTH_PRESETS
@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.full
def test_released_networks_fit_every_mesh(text, rules, name):
    model, count = released(name), RELEASED[name][1]
    shapes = {"/".join(map(str, p)): v.shape for p, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    placed = shardings(model, sharding_of(text, rules))
    assert placed.keys() == sizes.keys()
    if count is None:  # the VAE is small and whole on every device
        assert all(sharding.is_fully_replicated for sharding in placed.values())
        return
    assert sum(sizes.values()) == count
    here = sum(math.prod(sharding.shard_shape(shapes[path])) for path, sharding in placed.items())
    shape = MeshShape.parse(text)
    assert 0 <= here - count / (shape.fsdp * shape.context * shape.tensor) <= count / 1000, (
        "too much is whole on every device"
    )


def test_dimensions_that_do_not_divide_are_reported_together():
    mesh, model = make_mesh(MeshShape(tensor=3, fsdp=2), jax.devices()[:6]), small_model()
    before = {name: value.sharding for name, value in parameters(model).items()}
    for refuse in (shardings, place, describe):
        with pytest.raises(MeshError) as error:
            refuse(model, Sharding(mesh, INFERENCE_RULES))
        message = str(error.value)
        assert "backbone/blocks/image/q/kernel: dimension 'heads' of 64 does not divide into 3 parts" in message
        assert "backbone/blocks/text/mlp_in/bias: dimension 'mlp' of 256" in message and "tensor=3" in message
        assert len(error.value.problems) > 20 and "'embed'" not in message
    assert {name: value.sharding for name, value in parameters(model).items()} == before, "nothing may have moved"


def test_collisions_in_parameters_are_reported_with_their_paths():
    rules = Rules({Axis.EMBED: (MeshAxis.FSDP,), Axis.HEADS: (MeshAxis.FSDP,)})
    with pytest.raises(MeshError) as error:
        place(small_model(), sharding_of("fsdp=8", rules))
    assert len(error.value.problems) == 2 * 4  # q, k, v and out of both streams
    assert any(p.startswith("backbone/blocks/text/out/kernel: mesh axis 'fsdp'") for p in error.value.problems)


def test_rules_that_do_not_fit_the_mesh_are_refused():
    with pytest.raises(MeshError, match="'heads' is mapped to 'tensor'"):
        place(small_model(), Sharding(Mesh(np.asarray(jax.devices()), ("fsdp",)), INFERENCE_RULES))


def test_activations_are_pinned():
    mesh = mesh_of("fsdp=2,context=2,tensor=2")
    pin = constrain(Sharding(mesh, INFERENCE_RULES))
    axes = (Axis.BATCH, Axis.TOKENS, Axis.HEADS, None)
    pinned = jax.jit(lambda x: pin(x * 2, axes))(jnp.ones((2, 6, 4, 5)))
    wanted = NamedSharding(mesh, PartitionSpec(("cfg", "data", "fsdp"), "context", "tensor", None))
    assert pinned.sharding.is_equivalent_to(wanted, 4)
    assert {shard.data.shape for shard in pinned.addressable_shards} == {(1, 3, 2, 5)}
    with pytest.raises(MeshError, match="would split both 'batch' and 'embed'"):
        jax.jit(lambda x: pin(x, (Axis.BATCH, Axis.EMBED)))(jnp.ones((2, 2)))


def test_one_device_needs_no_pins():
    x = jnp.ones((3, 5))
    assert constrain(Sharding(single_device_mesh(), INFERENCE_RULES))(x, (Axis.BATCH, Axis.TOKENS)) is x
    assert unconstrained(x, (Axis.BATCH, Axis.TOKENS)) is x


@functools.cache
def inputs() -> dict:
    random = np.random.default_rng(7)
    rows, image, text = 8, 16, 8
    positions = lambda count: random.integers(-4, 5, (rows, count, 3)).astype(np.int32)
    text_segments = np.ones((rows, text), np.int32)
    text_segments[3, 4:] = 0  # padding
    return {
        "image": random.standard_normal((rows, image, SMALL.in_channels)).astype(np.float32),
        "text": random.standard_normal((rows, text, SMALL.joint_attention_dim)).astype(np.float32),
        "layout": TokenLayout(
            image_positions=jnp.asarray(positions(image)),
            text_positions=jnp.asarray(positions(text)),
            image_segments=jnp.ones((rows, image), jnp.int32),
            text_segments=jnp.asarray(text_segments),
        ),
        "sigma": np.linspace(0.1, 1.0, rows, dtype=np.float32),
        "target_kind": np.arange(rows, dtype=np.int32) % 2,
    }


def forward(model: VLDMMDiT, pin) -> np.ndarray:
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state, inputs: nnx.merge(graph, state)(**inputs, constrain=pin))(state, inputs()))


@functools.cache
def alone() -> np.ndarray:
    return forward(small_model(), unconstrained)


@pytest.mark.parametrize(
    ("text", "rules"), [*((text, INFERENCE_RULES) for text in MESHES), ("fsdp=2,context=2,tensor=2", TRAINING_RULES)]
)
@pytest.mark.full
def test_a_mesh_does_not_change_the_result(text, rules):
    sharding, model = sharding_of(text, rules), small_model()
    place(model, sharding)
    together = forward(model, constrain(sharding))
    assert np.abs(alone()).max() > 0.1
    assert np.abs(together - alone()).max() <= 2e-5 * np.abs(alone()).max()
