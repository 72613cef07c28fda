"""The programs whose figures docs/pods.md shows, by name."""

import dataclasses
from collections.abc import Callable, Iterator

from qil_jax.kernels import Spread
from qil_jax.mesh import MeshShape, Weights
from qil_jax.models.quantised import Quantisation
from qil_jax.planning.cache import Results
from qil_jax.planning.inference import InferencePlan, name_of, plan_inference
from qil_jax.planning.result import Result
from qil_jax.planning.sweep import candidates
from qil_jax.planning.training import TrainingPlan, plan_training
from qil_jax.training.experiment import Experiment
from qil_jax.training.stages.kinds import Stage
from tools.presets import SLICES, preset

Make = Callable[[Results], Result]
"""Compiles a program, or finds its result among those that are kept."""
MESHES = {
    "v5e:2x4": (MeshShape(cfg=2, tensor=4), Weights.SPLIT),
    "v6e:2x4": (MeshShape(cfg=2, context=4), Weights.WHOLE),
    "v5p:2x2x1": (MeshShape(cfg=2, context=2), Weights.WHOLE),
}
"""The slices of the tables, each with its mesh and what devices along `context` hold of the kernels."""
LAYERS, RESOLUTIONS = (1, 4, 8, 20), (640, 1024)
CHIPS = 64
"""Devices of v5p:4x4x4."""


def sizes() -> Iterator[InferencePlan]:
    """All numbers of layers and resolutions on all slices."""
    for topology, (mesh, weights) in MESHES.items():
        for resolution in RESOLUTIONS:
            for layers in LAYERS:
                yield InferencePlan(topology=topology, mesh=mesh, weights=weights, layers=layers, resolution=resolution)


def smallest() -> Iterator[InferencePlan]:
    """The least slices that hold a step: one chip, and L = 20 at 1024; and one with modulation beside it."""
    plan = InferencePlan(topology="v5p:1x1x1", mesh=MeshShape())
    yield plan
    yield dataclasses.replace(plan, keep_modulation=True)
    yield dataclasses.replace(plan, topology="v6e:1x1", quantize=Quantisation.INT8)
    yield dataclasses.replace(plan, topology="v6e:1x1", quantize=Quantisation.FP8)
    wide = MeshShape(cfg=2, context=4)
    yield dataclasses.replace(plan, topology="v5p:2x2x2", mesh=wide, layers=20, resolution=1024)


def swept(topology: str) -> Iterator[InferencePlan]:
    """All meshes of a slice for L = 4 at 640, with Ulysses where sequences are split."""
    plans = candidates(InferencePlan(topology=topology, mesh=MeshShape()))
    yield from (plan for plan in plans if plan.spread is Spread.ULYSSES)


def full_finetuning(chips: int) -> Experiment:
    """Fine-tuning of all parameters on samples of 4 layers at 640 pixels, one on each chip."""
    made = preset("finetune")
    loader = made.data.loader
    buckets = dataclasses.replace(loader.buckets, row_tokens=InferencePlan.tokens(layers=4, resolution=640))
    data = dataclasses.replace(
        made.data, loader=dataclasses.replace(loader, rows=chips, buckets=buckets, max_layers=4), text_tokens=256
    )
    return dataclasses.replace(made, data=data, mesh=MeshShape(fsdp=chips))


def on_chips(experiment: Experiment, chips: int) -> Experiment:
    """The experiment on so many chips, with as many rows on each."""
    mesh = experiment.mesh
    more = chips // mesh.devices
    wider = dataclasses.replace(mesh, data=mesh.data * more) if mesh.data > 1 else None
    mesh = wider or dataclasses.replace(mesh, fsdp=mesh.fsdp * more)
    loader = dataclasses.replace(experiment.data.loader, rows=experiment.data.loader.rows * more)
    return dataclasses.replace(experiment, mesh=mesh, data=dataclasses.replace(experiment.data, loader=loader))


def training() -> dict[str, TrainingPlan]:
    """Steps of training by name."""
    found = {
        f"{topology} full fine-tuning": TrainingPlan(topology=topology, experiment=full_finetuning(chips))
        for topology, chips in (("v5p:4x4x4", CHIPS), ("v5p:4x4x8", 2 * CHIPS))
    }
    for name in SLICES:
        experiment = on_chips(preset(name), CHIPS)
        found[f"v5p:4x4x4 {name}"] = TrainingPlan(topology="v5p:4x4x4", experiment=experiment)
    return found


def programs() -> dict[str, Make]:
    """All programs by name."""
    plans = [*sizes(), *smallest(), *(plan for topology in MESHES for plan in swept(topology))]
    found: dict[str, Make] = {name_of(plan): lambda kept, plan=plan: plan_inference(plan, kept=kept) for plan in plans}
    for name, plan in training().items():
        # The VAE's convolutions take the compiler more than ten minutes otherwise.
        effort = -1.0 if plan.experiment.stage is Stage.RGBA_VAE else 0.0
        found[name] = lambda kept, plan=plan, name=name, effort=effort: plan_training(
            plan, effort=effort, kept=kept, name=name
        )
    return found
