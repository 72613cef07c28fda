"""What `qil plan` does after its command line is parsed."""

import argparse
import dataclasses

from etils import epath

from qil_jax.errors import say
from qil_jax.files import write_whole
from qil_jax.mesh import MeshShape
from qil_jax.models.attention import AttentionKind
from qil_jax.planning.cache import RESULT, Results
from qil_jax.planning.chips import Topology
from qil_jax.planning.inference import InferencePlan, plan_inference
from qil_jax.planning.picture import draw
from qil_jax.planning.report import report
from qil_jax.planning.result import Result
from qil_jax.planning.sweep import ranking, swept
from qil_jax.planning.training import TrainingPlan, plan_training
from qil_jax.training.config_file import load_experiment


def run(arguments: argparse.Namespace) -> int:
    """Plan and print.

    Raises:
      QilError: if topology, mesh, rules, config or installed packages do not fit.
    """
    match arguments.program:
        case "infer" if arguments.sweep:
            _sweep(arguments)
        case "infer":
            _tell(plan_inference(_inference(arguments), effort=arguments.effort), arguments, steps=arguments.steps)
        case "train":
            _tell(plan_training(_training(arguments), effort=arguments.effort), arguments)
    return 0


def _tell(result: Result, arguments: argparse.Namespace, *, steps: int | None = None) -> None:
    say(report(result, steps=steps))
    if arguments.json is not None:
        write_whole(epath.Path(arguments.json), RESULT.dump_json(result, indent=1))


def _inference(arguments: argparse.Namespace) -> InferencePlan:
    default = AttentionKind.CUDNN if Topology.parse(arguments.topology).chip.switched else AttentionKind.SPLASH
    return InferencePlan(
        topology=arguments.topology,
        mesh=MeshShape.parse(arguments.mesh or ""),
        transformer=arguments.transformer,
        layers=arguments.layers,
        resolution=arguments.resolution,
        batch=arguments.batch,
        guidance=arguments.guidance,
        text=arguments.text,
        passes=arguments.passes,
        attention=arguments.attention or default,
        spread=arguments.spread,
        weights=arguments.weights,
        quantize=arguments.quantize,
        keep_modulation=arguments.keep_modulation,
        keep_text_encoder=arguments.keep_text_encoder,
    )


def _training(arguments: argparse.Namespace) -> TrainingPlan:
    experiment = load_experiment(arguments.config, arguments.set)
    if arguments.mesh is not None:
        experiment = dataclasses.replace(experiment, mesh=MeshShape.parse(arguments.mesh))
    return TrainingPlan(topology=arguments.topology, experiment=experiment)


def _sweep(arguments: argparse.Namespace) -> None:
    plan = _inference(arguments)
    results = swept(plan, Results(arguments.cache), effort=arguments.effort)
    say(ranking(results, steps=arguments.steps))
    if arguments.picture is not None:
        draw(results, arguments.picture)
