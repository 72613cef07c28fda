"""Train a stage, or resume its run: qil train configs/demo/rgba_vae.py --out RUN [--set NAME=VALUE ...]."""

from qil_jax.cli.train_arguments import Arguments, parse_arguments
from qil_jax.compilation_cache import use_compilation_cache
from qil_jax.errors import QilError, complain, say
from qil_jax.launch import connected
from qil_jax.programs import INTERRUPTED, UNUSABLE
from qil_jax.training.disk import quiet_late_errors
from qil_jax.training.watchdog import Watchdog


def main(argv: list[str]) -> int:
    """The same as `trained`, in a process of its own: what orbax says after the end is left out."""
    quiet_late_errors()
    return trained(argv)


def trained(argv: list[str]) -> int:
    """Parse the arguments, check the experiment, train, and export.

    Returns the exit status: 0 if finished, stopped by a signal, or checked, 2 for unusable input, 130 after a Ctrl-C
    with nothing to save. A hang, or the loss of another process, ends it with 75.
    """
    arguments = parse_arguments(argv)
    try:
        with Watchdog(arguments.hang_timeout, arguments.out, last_words=arguments.last_words) as watch:
            return run(arguments, watch)
    except KeyboardInterrupt:
        complain(f"interrupted: {arguments.standing()}")
        return INTERRUPTED


def run(arguments: Arguments, watch: Watchdog) -> int:
    """Train by the arguments of the command line, with the other processes, and return the exit status."""
    from qil_jax.training.checkpoints import SaveError

    watch.now("connecting to the other processes and starting the devices")
    use_compilation_cache()
    try:
        with connected(arguments.distributed, wait=arguments.wait):
            say(work(arguments, watch))
        return 0
    except (SaveError, OSError) as error:
        complain(f"error: {error}\n{arguments.standing()}")
    except QilError as error:
        complain(f"error: {error}")
    return UNUSABLE


def work(arguments: Arguments, watch: Watchdog) -> str:
    """Check or train, and return what is printed at the end; JAX is imported here, after the arguments were checked."""
    import jax

    from qil_jax.mesh import make_mesh
    from qil_jax.training.check import check_run
    from qil_jax.training.config_file import load_experiment
    from qil_jax.training.finish import export_run, exported, result_of
    from qil_jax.training.loop import RunStatus, train
    from qil_jax.training.signals import StopSignal
    from qil_jax.training.start import LORA_FILE

    experiment = load_experiment(arguments.config, arguments.set)
    mesh = make_mesh(experiment.mesh)
    watch.known_as(jax.process_index(), jax.process_count())
    if arguments.check:
        watch.now("preparing the run and compiling its step")
        return "\n".join(check_run(experiment, arguments.out, mesh))
    with StopSignal(arguments.last_words) as stop, arguments.progress(experiment.steps) as show:
        status, state, prepared = train(
            experiment, arguments.out, mesh, stop=stop, show=show, watch=watch, **arguments.options()
        )
        watch.now("agreeing with the other processes whether to stop")
        if stop.finish() or status is RunStatus.STOPPED:
            return f"stopped after step {int(state.step)}; to go on: {arguments.command()}"
        watch.now("exporting the checkpoint")
        if not exported(destination := result_of(experiment, arguments.out)):
            export_run(prepared, state, destination)
    result = f"checkpoint is {destination}" if experiment.lora is None else f"LoRA is {destination / LORA_FILE}"
    return f"trained {experiment.steps} steps; the {result}"
