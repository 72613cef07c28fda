"""Train a stage: python train.py configs/demo/rgba_vae.py --out RUN [--set name=value ...]. It goes on where it was."""

import sys

from qil_jax.training.cli import Arguments, parse_arguments


def main(argv: list[str]) -> int:
    """Parse, check, train, export. Returns 0 when finished or stopped by SIGTERM, 2 for what cannot be trained."""
    arguments: Arguments = parse_arguments(argv)
    # The heavy imports wait until the arguments make sense.
    from qil_jax.mesh import make_mesh
    from qil_jax.training.experiment import load_experiment
    from qil_jax.training.finish import CHECKPOINT, export_run
    from qil_jax.training.loop import Outcome, TrainingError, train
    from qil_jax.training.signals import StopSignal, start_distributed

    try:
        start_distributed(arguments.distributed)
        experiment = load_experiment(arguments.config, arguments.set)
        mesh = make_mesh(experiment.mesh)
        with StopSignal() as stop, arguments.progress(experiment.steps) as show:
            outcome, state, parts = train(
                experiment, arguments.out, mesh, stop=stop, show=show, profile=arguments.profile
            )
            if outcome is Outcome.STOPPED:
                print(f"stopped after step {int(state.step)}; to go on: {arguments.command()}", flush=True)
                return 0
            destination = arguments.out / CHECKPOINT
            if not destination.exists():
                export_run(parts, state, destination)
    except (ValueError, OSError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"trained {experiment.steps} steps; the checkpoint is {destination}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
