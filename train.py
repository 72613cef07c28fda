"""Train a stage, or resume its run: python train.py configs/demo/rgba_vae.py --out RUN [--set name=value ...]."""

import sys

from qil_jax.errors import QilError
from qil_jax.programs import INTERRUPTED, UNUSABLE
from qil_jax.training.cli import Arguments, parse_arguments
from qil_jax.training.disk import quiet_late_errors
from qil_jax.training.watchdog import Watchdog


def main(argv: list[str]) -> int:
    """Parse the arguments, check the experiment, train, and export.

    Returns the exit status: 0 if finished, stopped by a signal, or checked, 2 for unusable input, 130 after a Ctrl-C
    with nothing to save. A hang ends the process with 75, whatever it is in.
    """
    arguments = parse_arguments(argv)
    try:
        with Watchdog(arguments.hang_timeout, arguments.out, last_words=arguments.last_words) as watch:
            return run(arguments, watch)
    except KeyboardInterrupt:
        print(f"interrupted: {arguments.standing()}", file=sys.stderr)
        return INTERRUPTED


def run(arguments: Arguments, watch: Watchdog) -> int:
    """Train by the arguments of the command line and return the exit status."""
    # JAX is imported only after the arguments have been checked.
    import jax

    from qil_jax.compilation_cache import use_compilation_cache
    from qil_jax.mesh import make_mesh
    from qil_jax.training.check import check_run
    from qil_jax.training.checkpoints import SaveError
    from qil_jax.training.config_file import load_experiment
    from qil_jax.training.finish import export_run, exported, result_of
    from qil_jax.training.loop import RunStatus, train
    from qil_jax.training.signals import StopSignal, start_distributed
    from qil_jax.training.start import LORA_FILE

    try:
        watch.now("connecting to the other processes and starting the devices")
        use_compilation_cache()
        start_distributed(arguments.distributed)
        experiment = load_experiment(arguments.config, arguments.set)
        mesh = make_mesh(experiment.mesh)
        watch.known_as(jax.process_index(), jax.process_count())
        if arguments.check:
            watch.now("preparing the run and compiling its step")
            print("\n".join(check_run(experiment, arguments.out, mesh)), flush=True)
            return 0
        with StopSignal(arguments.last_words) as stop, arguments.progress(experiment.steps) as show:
            status, state, prepared = train(
                experiment, arguments.out, mesh, stop=stop, show=show, watch=watch, **arguments.options()
            )
            watch.now("agreeing with the other processes whether to stop")
            if stop.finish() or status is RunStatus.STOPPED:
                print(f"stopped after step {int(state.step)}; to go on: {arguments.command()}", flush=True)
                return 0
            destination = result_of(experiment, arguments.out)
            watch.now("exporting the checkpoint")
            if not exported(destination):
                export_run(prepared, state, destination)
    except (SaveError, OSError) as error:
        print(f"error: {error}\n{arguments.standing()}", file=sys.stderr)
        return UNUSABLE
    except QilError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    result = f"checkpoint is {destination}" if experiment.lora is None else f"LoRA is {destination / LORA_FILE}"
    print(f"trained {experiment.steps} steps; the {result}", flush=True)
    return 0


if __name__ == "__main__":
    quiet_late_errors()
    sys.exit(main(sys.argv[1:]))
