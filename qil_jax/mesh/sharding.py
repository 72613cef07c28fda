"""A mesh and the rules by which arrays are split over it, as one value."""

import dataclasses

from jax.sharding import AbstractMesh, Mesh, NamedSharding

from qil_jax.mesh.rules import Rules
from qil_jax.models.axes import Axes, Axis


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh with the rules by which arrays are split over it.

    Attributes:
      mesh: mesh on which parameters and batches are placed.
      rules: the mesh axes that split each logical axis.
    """

    mesh: Mesh
    rules: Rules

    def named(self, axes: Axes) -> NamedSharding:
        """The sharding of an array with these logical axes; of none, the whole array on every device.

        Raises:
          MeshError: if one mesh axis would split two dimensions of the array.
        """
        return NamedSharding(self.mesh, self.rules.spec(axes))

    def ways(self, axis: Axis) -> int:
        """The number of shards into which the mesh splits a logical axis."""
        ways = 1
        for mesh_axis in self.rules.table.get(axis, ()):
            ways *= self.mesh.shape[mesh_axis]
        return ways

    def parts(self, axis: Axis) -> str:
        """The mesh axes that split a logical axis with their sizes, for messages: "fsdp=2, tensor=4"."""
        return ", ".join(f"{mesh_axis}={self.mesh.shape[mesh_axis]}" for mesh_axis in self.rules.table[axis])

    def problems(self) -> list[str]:
        """Messages for unknown logical axes, and for those mapped to an absent mesh axis or twice to one axis."""
        found = []
        for axis, mesh_axes in self.rules.table.items():
            if axis not in tuple(Axis):
                found.append(f"'{axis}' is no logical axis: use one of {[*map(str, Axis)]}")
            found += [
                f"logical axis '{axis}' is mapped to '{m}', the mesh has only {list(self.mesh.shape)}"
                for m in mesh_axes
                if m not in self.mesh.shape
            ]
            if len(set(mesh_axes)) < len(mesh_axes):
                found.append(f"logical axis '{axis}' names a mesh axis twice: {[*map(str, mesh_axes)]}")
        return found


@dataclasses.dataclass(frozen=True)
class AbstractSharding(Sharding):
    """A sharding over a mesh without devices, by which arrays of a larger machine can be split on paper.

    Attributes:
      mesh: mesh that has sizes only.
      rules: the mesh axes that split each logical axis.
    """

    mesh: AbstractMesh  # type: ignore[assignment] # places nothing
