"""Train a stage: python train.py configs/demo/rgba_vae.py --out RUN [--set name=value ...]. It goes on where it was."""

import sys

from qil_jax.programs import INTERRUPTED
from qil_jax.training.cli import Arguments, parse_arguments
from qil_jax.training.disk import tell_once


def main(argv: list[str]) -> int:
    """Parse, check, train, export. Returns 0 when finished or told to stop, 2 for what cannot be done, 130 after Ctrl-C
    where there was nothing to save."""
    arguments = parse_arguments(argv)
    try:
        return run(arguments)
    except KeyboardInterrupt:
        print(f"interrupted: {arguments.standing()}", file=sys.stderr)
        return INTERRUPTED


def run(arguments: Arguments) -> int:
    """Train as the command line says; the exit status."""
    # The heavy imports wait until the arguments make sense.
    from qil_jax.loader.samples import RecordError
    from qil_jax.mesh import MeshError, make_mesh
    from qil_jax.models.config import ConfigError
    from qil_jax.training.checkpoints import CheckpointError, SaveError
    from qil_jax.training.experiment import ExperimentError, load_experiment
    from qil_jax.training.finish import CHECKPOINT, export_run
    from qil_jax.training.loop import Outcome, TrainingError, train
    from qil_jax.training.signals import StopSignal, start_distributed
    from qil_jax.weights import StructureError, WeightsError
    from qil_jax.weights.export import ExportError

    refusals = (ExperimentError, CheckpointError, TrainingError, RecordError, MeshError, ConfigError, StructureError)
    destination = arguments.out / CHECKPOINT
    try:
        start_distributed(arguments.distributed)
        experiment = load_experiment(arguments.config, arguments.set)
        mesh = make_mesh(experiment.mesh)
        with StopSignal(arguments.last_words) as stop, arguments.progress(experiment.steps) as show:
            outcome, state, parts = train(
                experiment, arguments.out, mesh, stop=stop, show=show, profile=arguments.profile
            )
            if stop.finish() or outcome is Outcome.STOPPED:
                print(f"stopped after step {int(state.step)}; to go on: {arguments.command()}", flush=True)
                return 0
            if not destination.exists():
                export_run(parts, state, destination)
    except (SaveError, OSError) as error:
        print(f"error: {error}\n{arguments.standing()}", file=sys.stderr)
        return 2
    except (*refusals, WeightsError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"trained {experiment.steps} steps; the checkpoint is {destination}", flush=True)
    return 0


if __name__ == "__main__":
    tell_once()
    sys.exit(main(sys.argv[1:]))
