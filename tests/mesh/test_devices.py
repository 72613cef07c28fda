"""Mesh shapes from text, and meshes from shapes."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from qil_jax.mesh import MeshAxis, MeshError, MeshShape, make_mesh, single_device_mesh
from qil_jax.mesh.compat import by_process, device_grid

SHAPES = {
    "": MeshShape(),
    "data=8": MeshShape(data=8),
    " data=4 , tensor=2,": MeshShape(data=4, tensor=2),
    "fsdp=2,context=2,tensor=2": MeshShape(fsdp=2, context=2, tensor=2),
    "cfg=2,fsdp=4": MeshShape(cfg=2, fsdp=4),
}


@pytest.mark.parametrize("text", SHAPES)
def test_text_becomes_a_shape(text):
    assert MeshShape.parse(text) == SHAPES[text]


@given(st.dictionaries(st.sampled_from(list(MeshAxis)), st.integers(1, 10_000)))
def test_any_shape_survives_its_text(sizes):
    shape = MeshShape.parse(",".join(f"{axis}={size}" for axis, size in sizes.items()))
    assert shape == MeshShape(**{axis.value: size for axis, size in sizes.items()})


@pytest.mark.parametrize("size", ["0", "-2", "2.0", "two", "", " 2", "1e1"])
def test_sizes_must_be_positive_integers(size):
    with pytest.raises(MeshError, match="positive integer"):
        MeshShape.parse(f"data={size}")


def test_every_mistake_in_the_text_is_reported():
    with pytest.raises(MeshError) as error:
        MeshShape.parse("data=2,model=4,data=4,tensor=0,fsdp")
    unknown, twice, zero, missing = error.value.problems
    assert "'model' is no mesh axis" in unknown and "cfg, data, fsdp, context, tensor" in unknown
    assert "'data' is given twice" in twice
    assert "'tensor=0'" in zero and "'fsdp'" in missing
    assert all(problem in str(error.value) for problem in error.value.problems)


@pytest.mark.parametrize("text", ["data=8", "fsdp=8", "data=2,tensor=4", "fsdp=2,context=2,tensor=2", "cfg=2,data=4"])
def test_a_mesh_has_all_axes_and_all_devices(text):
    mesh = make_mesh(MeshShape.parse(text))
    assert mesh.axis_names == tuple(axis.value for axis in MeshAxis)
    assert mesh.axis_types == (AxisType.Auto,) * 5
    assert {**mesh.shape} == {axis.value: getattr(MeshShape.parse(text), axis.value) for axis in MeshAxis}
    assert mesh.devices.size == MeshShape.parse(text).devices == 8
    assert {*mesh.devices.flat} == {*jax.devices()}


def test_tensor_neighbours_are_device_neighbours():
    grid = make_mesh(MeshShape(data=2, tensor=4)).devices.reshape(2, 4)
    assert [[device.id for device in row] for row in grid] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("text", ["", "data=7", "data=4,tensor=4", "data=16"])
def test_sizes_must_multiply_to_the_devices(text):
    shape = MeshShape.parse(text)
    with pytest.raises(MeshError, match=f"makes {shape.devices} devices, but 8 are given"):
        make_mesh(shape)


def test_a_mesh_of_some_devices():
    devices = jax.devices()[2:6]
    assert [*make_mesh(MeshShape(tensor=4), devices).devices.flat] == devices
    assert [*single_device_mesh().devices.flat] == jax.devices()[:1]


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh reads of a TPU: 2 x 4 chips of two hosts, as a v5e slice has them."""

    id: int

    platform = "tpu"
    device_kind = "TPU v5 lite"
    core_on_chip = 0

    @property
    def process_index(self) -> int:
        return self.id // 4

    @property
    def coords(self) -> tuple[int, int, int]:
        return self.id % 2, self.id // 2, 0


CHIPS = [Chip(i) for i in range(8)]


def test_axes_of_a_tpu_lie_along_its_torus():
    """The eight devices of an axis are a ring: successive ones are neighbours, but for the way a block is walked."""
    grid = device_grid(CHIPS, (1, 1, 1, 1, 8)).flatten()
    assert {*grid} == {*CHIPS} and [*grid] != CHIPS
    steps = [max(abs(a - b) for a, b in zip(x.coords, y.coords, strict=True)) for x, y in itertools.pairwise(grid)]
    assert steps[3] == 2 and sorted(steps)[:-1] == [1] * 6


def test_part_of_a_slice_keeps_the_order_of_its_devices():
    assert [*device_grid(CHIPS[:3], (1, 3, 1, 1, 1)).flat] == CHIPS[:3]


def test_rows_follow_the_processes():
    """Groups along fsdp change places as a whole."""
    grid = np.array([CHIPS[i] for i in (4, 5, 0, 1, 6, 7, 2, 3)], object).reshape(1, 1, 4, 1, 2)
    ordered = by_process(grid).reshape(4, 2)
    assert [[chip.id for chip in group] for group in ordered] == [[0, 1], [2, 3], [4, 5], [6, 7]]
