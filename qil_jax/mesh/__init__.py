"""Sharding of logical axes over device meshes: rules, placement, and checks before compilation."""

from qil_jax.choices import Weights
from qil_jax.mesh.agreement import gathered, of_first
from qil_jax.mesh.devices import MeshShape, abstract_mesh, make_mesh, single_device_mesh
from qil_jax.mesh.placement import constrain, describe, place, shardings
from qil_jax.mesh.rules import INFERENCE_RULES, TRAINING_RULES, MeshAxis, MeshError, Rules, Task, rules_for
from qil_jax.mesh.sharding import AbstractSharding, Sharding
from qil_jax.mesh.transfer import fetch, put
from qil_jax.models.axes import Axis

__all__ = [
    "INFERENCE_RULES",
    "TRAINING_RULES",
    "AbstractSharding",
    "Axis",
    "MeshAxis",
    "MeshError",
    "MeshShape",
    "Rules",
    "Sharding",
    "Task",
    "Weights",
    "abstract_mesh",
    "constrain",
    "describe",
    "fetch",
    "gathered",
    "make_mesh",
    "of_first",
    "place",
    "put",
    "rules_for",
    "shardings",
    "single_device_mesh",
]
