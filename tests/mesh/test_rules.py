"""Rules: logical axes to partitions, and what cannot be a rule."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from qil_jax.mesh import (
    INFERENCE_RULES,
    TRAINING_RULES,
    Axis,
    MeshAxis,
    MeshError,
    MeshShape,
    Rules,
    Sharding,
    Task,
    Weights,
    make_mesh,
    rules_for,
)

PRESETS = {"inference": INFERENCE_RULES, "training": TRAINING_RULES}
BOTH = pytest.mark.parametrize("rules", PRESETS.values(), ids=PRESETS)
KERNELS: dict = {
    (Axis.BLOCK, Axis.EMBED, Axis.HEADS): PartitionSpec(None, ("fsdp", "context"), "tensor"),
    (Axis.BLOCK, Axis.HEADS, Axis.EMBED): PartitionSpec(None, "tensor", ("fsdp", "context")),
    (Axis.BLOCK, Axis.EMBED, Axis.MLP): PartitionSpec(None, ("fsdp", "context"), "tensor"),
    (Axis.BLOCK, Axis.EMBED, Axis.MODULATION): PartitionSpec(None, ("fsdp", "context"), "tensor"),
    (Axis.VOCAB, Axis.EMBED): PartitionSpec("tensor", ("fsdp", "context")),
    (None, None, Axis.CHANNELS_IN, Axis.CHANNELS_OUT): PartitionSpec(None, None, None, None),
    (None,): PartitionSpec(None),
    (): PartitionSpec(),
}


def mesh(text: str = "data=2,fsdp=2,tensor=2"):
    return make_mesh(MeshShape.parse(text))


def loose(table) -> Rules:
    """Rules as a user without the type hook can write them."""
    rules = Rules({})
    object.__setattr__(rules, "table", table)
    return rules


@BOTH
@pytest.mark.parametrize("axes", KERNELS, ids=str)
def test_parameters_are_split_over_fsdp_and_tensor(rules, axes):
    assert rules.spec(axes) == KERNELS[axes]


@pytest.mark.parametrize("task", Task)
def test_whole_weights_are_not_split_over_context(task):
    split, whole = rules_for(task), rules_for(task, Weights.WHOLE)
    assert split is not whole and split.table[Axis.EMBED] == (MeshAxis.FSDP, MeshAxis.CONTEXT)
    vision = (MeshAxis.FSDP, MeshAxis.TENSOR)
    assert whole.table == {**split.table, Axis.EMBED: (MeshAxis.FSDP,), Axis.VISION: vision}


@BOTH
def test_the_residual_stream_is_split_over_tensor_too(rules):
    assert rules.spec((Axis.BATCH, Axis.RESIDUAL, None))[1] == ("context", "tensor")
    assert Sharding(mesh("context=2,tensor=4"), rules).ways(Axis.RESIDUAL) == 8


def test_the_guidance_axis_splits_batches_in_inference_only():
    tokens = (Axis.BATCH, Axis.TOKENS, Axis.HEADS, None)
    assert INFERENCE_RULES.spec(tokens) == PartitionSpec(("cfg", "data", "fsdp"), "context", "tensor", None)
    assert TRAINING_RULES.spec(tokens) == PartitionSpec(("data", "fsdp"), "context", "tensor", None)
    assert INFERENCE_RULES.spec((Axis.SAMPLE, Axis.TOKENS)) == PartitionSpec(("data", "fsdp"), "context")


@BOTH
def test_presets_name_every_axis_of_a_mesh(rules):
    assert Sharding(mesh(), rules).problems() == []
    assert set().union(*rules.table.values()) <= set(MeshAxis)


@BOTH
def test_ways_is_the_product_of_the_mesh_axes(rules):
    sharding = Sharding(mesh("data=2,fsdp=4"), rules)
    assert [sharding.ways(axis) for axis in (Axis.BATCH, Axis.EMBED, Axis.HEADS, Axis.BLOCK)] == [8, 4, 1, 1]


def test_one_mesh_axis_cannot_split_two_dimensions():
    with pytest.raises(MeshError) as error:
        INFERENCE_RULES.spec((Axis.BATCH, None, Axis.EMBED))
    (problem,) = error.value.problems
    assert "'fsdp'" in problem and "'batch'" in problem and "'embed'" in problem and "another mesh axis" in problem


def test_every_collision_is_reported():
    with pytest.raises(MeshError) as error:
        INFERENCE_RULES.spec((Axis.EMBED, Axis.HEADS, Axis.MLP, Axis.EMBED))
    assert len(error.value.problems) == 3
    assert all(problem in str(error.value) for problem in error.value.problems)


def test_mistakes_in_rules_are_reported_together():
    twice = (MeshAxis.TENSOR, MeshAxis.TENSOR)
    bad = loose({"widht": (MeshAxis.DATA,), Axis.EMBED: ("pipeline",), Axis.MLP: twice})
    unknown, absent, twice = Sharding(mesh(), bad).problems()
    assert "'widht' is no logical axis" in unknown and "'embed'" in unknown
    assert "'embed' is mapped to 'pipeline'" in absent and "'tensor'" in absent
    assert "'mlp' names a mesh axis twice" in twice


def test_a_mesh_without_an_axis_of_the_rules_is_refused():
    narrow = Mesh(np.asarray(jax.devices()), ("data",))
    problems = Sharding(narrow, TRAINING_RULES).problems()
    assert any("'embed' is mapped to 'fsdp', the mesh has only ['data']" in problem for problem in problems)
    assert not any("'data'," in problem for problem in problems)
