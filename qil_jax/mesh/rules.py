"""The mesh axes that split each logical axis."""

import dataclasses
from collections.abc import Iterable, Mapping
from enum import StrEnum

from jax.sharding import PartitionSpec

from qil_jax.choices import Weights
from qil_jax.errors import ProblemsError
from qil_jax.models.axes import Axes, Axis


class MeshError(ProblemsError):
    """Devices, mesh axes, rules and shapes are inconsistent. The message lists every problem."""

    def __init__(self, problems: Iterable[str]):
        super().__init__("the mesh does not fit", problems)


class MeshAxis(StrEnum):
    """The axes of a mesh, outermost first; unused ones have size 1."""

    CFG = "cfg"  # conditional and unconditional pass of guidance
    DATA = "data"  # samples
    FSDP = "fsdp"  # samples, and the parameters' residual width
    CONTEXT = "context"  # tokens of a sequence
    TENSOR = "tensor"  # heads and feed-forward width


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axes that split each logical axis.

    Attributes:
      table: mapping from each logical axis to its mesh axes; an absent axis is replicated on every device.
    """

    table: Mapping[Axis, tuple[MeshAxis, ...]]

    def spec(self, axes: Axes) -> PartitionSpec:
        """The partition of an array with these logical axes.

        Raises:
          MeshError: if one mesh axis would split two dimensions of the array.
        """
        parts = [self.table.get(axis, ()) if axis is not None else () for axis in axes]
        used: dict[MeshAxis, Axis | None] = {}
        problems = []
        for axis, mesh_axes in zip(axes, parts, strict=True):
            for mesh_axis in mesh_axes:
                if mesh_axis in used:
                    problems.append(
                        f"mesh axis '{mesh_axis}' would split both '{used[mesh_axis]}' and '{axis}' of one array "
                        f"{_show(axes)}: map one of them to another mesh axis"
                    )
                used[mesh_axis] = axis
        if problems:
            raise MeshError(problems)
        return PartitionSpec(*(None if not p else str(p[0]) if len(p) == 1 else tuple(map(str, p)) for p in parts))


def _show(axes: Axes) -> str:
    return "(" + ", ".join("-" if a is None else str(a) for a in axes) + ")"


class Task(StrEnum):
    """What a mesh is used for."""

    INFERENCE = "inference"  # guidance passes and samples are split over cfg, data and fsdp
    TRAINING = "training"  # rows are split over data and fsdp


def rules_for(task: Task, weights: Weights = Weights.SPLIT) -> Rules:
    """The rules of a task.

    Rows are split over the axes of the task, tokens over context, heads and feed-forward width over tensor, kernels
    over tensor and, by their residual width, over fsdp (and context). The residual stream's tokens are split over
    tensor too, so that element-wise work is shared (arXiv 2205.05198): they are gathered before a product with
    parameters and reduced and scattered after it. The vision tower's feed-forward width divides by few numbers (3420 in
    the release), so its kernels are split by their residual width alone. The VAE is whole on every device.
    """
    rows = (MeshAxis.DATA, MeshAxis.FSDP)
    width = (MeshAxis.FSDP, MeshAxis.CONTEXT) if weights is Weights.SPLIT else (MeshAxis.FSDP,)
    return Rules(
        {
            **_SHARED,
            Axis.EMBED: width,
            Axis.VISION: (*width, MeshAxis.TENSOR),
            Axis.SAMPLE: rows,
            Axis.BATCH: (MeshAxis.CFG, *rows) if task is Task.INFERENCE else rows,
        }
    )


_SHARED = {
    Axis.HEADS: (MeshAxis.TENSOR,),
    Axis.MLP: (MeshAxis.TENSOR,),
    Axis.MODULATION: (MeshAxis.TENSOR,),
    Axis.VOCAB: (MeshAxis.TENSOR,),
    Axis.TOKENS: (MeshAxis.CONTEXT,),
    Axis.RESIDUAL: (MeshAxis.CONTEXT, MeshAxis.TENSOR),
}

INFERENCE_RULES = rules_for(Task.INFERENCE)
"""The rules of inference, with kernels in parts."""

TRAINING_RULES = rules_for(Task.TRAINING)
"""The rules of training, with kernels in parts."""
