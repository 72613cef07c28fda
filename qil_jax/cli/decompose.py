"""Decompose pictures into editable RGBA layers: qil decompose PICTURE... --out DIR; also as infer.py."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from qil_jax.choices import MAX_PROMPT_TOKENS, Residency
from qil_jax.cli.decompose_arguments import (
    SHOWN,
    Arguments,
    Ledger,
    parse_arguments,
    report,
    show_compilation,
    show_loading,
    show_pictures,
    show_progress,
)
from qil_jax.errors import ProblemsError, QilError, complain, say
from qil_jax.launch import connected
from qil_jax.programs import INTERRUPTED, command, interruptible, run_main

if TYPE_CHECKING:
    from qil_jax.inference.caption_job import Pictures
    from qil_jax.inference.checkpoint import LayeredCheckpoint
    from qil_jax.inference.job import PlannedResult
    from qil_jax.inference.pictures import Found
    from qil_jax.inference.pipeline import Pipeline
    from qil_jax.inference.request import Settings
    from qil_jax.mesh import Sharding

SKIPPED = 3
"""Exit status if all results were written except those of pictures that --skip-bad left out."""


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, check the inputs, load the checkpoint, decompose, and report.

    Returns:
      The exit status: 2 for unusable input, 3 if bad pictures were skipped, 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    ledger = Ledger()
    try:
        arguments = parse_arguments(argv)
        interruptible(lambda: decompose(arguments, ledger))
    except (KeyboardInterrupt, QilError, OSError) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        complain("\nstopped" if stopped else f"error: {error}")
        if stopped or ledger.left:
            complain(f"{ledger.summary()}; to go on: {command(argv)}")
        return INTERRUPTED if stopped else 2
    return SKIPPED if ledger.skipped else 0


def decompose(arguments: Arguments, ledger: Ledger) -> None:
    """Connect to the other processes, check the inputs, load the checkpoint, decompose and report.

    The first process alone prints. `ledger` records the results, also of an interrupted run.
    """
    with connected(arguments.distributed, wait=arguments.wait):
        # JAX is imported only after the arguments have been checked.
        import jax

        first = jax.process_index() == 0
        with (
            Path(os.devnull).open("w", encoding="utf-8", errors="replace") as nowhere,
            redirect_stdout(sys.stdout if first else nowhere),
        ):
            work(arguments, ledger)


def work(arguments: Arguments, ledger: Ledger) -> None:
    """What `decompose` does once the processes are connected."""
    from qil_jax.cli.decompose_captions import caption_files, captioned
    from qil_jax.compilation_cache import use_compilation_cache
    from qil_jax.inference.ahead import arranged, compile_programs, outline_of
    from qil_jax.inference.job import require_same_plan, results_left, run_job
    from qil_jax.inference.pictures import find_pictures
    from qil_jax.weights.assemble import reporting

    options, settings = arguments.options, arguments.settings
    use_compilation_cache()
    with show_pictures() as on_picture:
        found = find_pictures(arguments.inputs, resolution=options.resolution, on_picture=on_picture)
    for line in [*found.beside, *found.notes()]:
        say(line)
    checkpoint = open_checkpoint(arguments, found)
    plan = planner(arguments, checkpoint)
    ledger.planned, ledger.skipped = plan(found.pictures), found.bad
    out = arguments.out
    if arguments.caption_only or out is None:
        require_same_plan(ledger.planned, arguments.command)
        ledger.planned = []
        sharding = open_sharding(arguments, checkpoint)
        caption_files(arguments, checkpoint, found.pictures, ledger, sharding=sharding)
        return
    pipeline = open_pipeline(arguments, checkpoint)
    mesh = pipeline.components.sharding.mesh
    require_same_plan(ledger.planned, arguments.command)
    ledger.planned = plan(captioned(arguments, pipeline, found.pictures, plan, ledger, out=out))
    if arguments.compile_only:
        arguments.require_memory(ledger.planned, checkpoint, mesh)
        outlines = [outline_of(result) for result in arranged(ledger.planned, pipeline, settings)]
        with show_compilation() as on_program:
            compile_programs(outlines, pipeline, settings, batch=arguments.batch, on_program=on_program)
        return
    left = results_left(ledger.planned, out, overwrite=arguments.overwrite)
    tell_cuts(left, pipeline, settings)
    ledger.left = left
    if left:
        arguments.require_memory(left, checkpoint, mesh)
        left = arranged(left, pipeline, settings)
        ledger.announce(options.resolution)
        say(f"loading {arguments.checkpoint}")
        with show_loading() as on_bytes, reporting(on_bytes):
            pipeline.prepare([outline_of(result) for result in left], settings, batch=arguments.batch)
            load_rest(pipeline)
        with show_progress(len(left), arguments.batch) as on_step:
            written = run_job(
                left, pipeline, settings, batch=arguments.batch, overwrite=arguments.overwrite, on_step=on_step
            )
            ledger.done.extend(written)
    report(ledger)


def planner(arguments: Arguments, checkpoint: "LayeredCheckpoint") -> "Callable[[Pictures], list[PlannedResult]]":
    """The function from pictures to the results that the command line asks for."""
    from qil_jax.inference.job import plan_results
    from qil_jax.inference.request import result_settings

    return functools.partial(
        plan_results,
        out=arguments.out or Path(),
        options=arguments.options,
        checkpoint={"folder": checkpoint.folder.resolve().name, "fingerprint": checkpoint.fingerprint()},
        settings=result_settings(arguments.options, arguments.settings, arguments.dtype),
        loras=[lora.made_from for lora in checkpoint.loras],
    )


def tell_cuts(left: "Sequence[PlannedResult]", pipeline: "Pipeline", settings: "Settings") -> None:
    """Print which prompts have more tokens than are read.

    Raises:
      JobError: if the descriptions of layers would be cut, which stand at the end of the prompt.
    """
    from qil_jax.inference.ahead import outline_of
    from qil_jax.inference.job import JobError

    cuts = {result.picture.path: pipeline.cuts(outline_of(result), settings) for result in left}
    lines = [f"{path.name}: {cut}" for path, some in cuts.items() for cut in some]
    described = any(result.options.described and pipeline.unread(result.prompt, settings) for result in left)
    fix = f"shorten it, or give --max-prompt-tokens, up to {MAX_PROMPT_TOKENS}"
    if described:
        raise JobError([*lines, f"descriptions of layers stand at the end of the prompt: {fix}"])
    for line in lines[:SHOWN]:
        say(f"{line}: {fix}")
    if len(lines) > SHOWN:
        say(f"and {len(lines) - SHOWN} more prompts that are cut")


def load_rest(pipeline: "Pipeline") -> None:
    """Load the components that each picture needs, in place of those that only the preparation needed."""
    components = pipeline.components
    components.enter(components.autoencoder, components.denoiser)
    components.autoencoder()
    components.denoiser()


def open_pipeline(arguments: Arguments, checkpoint: "LayeredCheckpoint") -> "Pipeline":
    """The pipeline of the command line, which has read no tensor yet; with --compile-only it never will.

    Raises:
      MeshError: if mesh, rules, attention and parameters do not fit together.
      QilError: if the parameters do not fit into memory, or the mesh splits sequential passes.
    """
    from qil_jax.inference.pipeline import Pipeline

    return Pipeline.of(
        checkpoint,
        sharding=open_sharding(arguments, checkpoint),
        attention=arguments.attention,
        spread=arguments.spread,
        passes=arguments.passes,
        residency=Residency.PHASES,
        is_abstract=arguments.compile_only,
    )


def open_sharding(arguments: Arguments, checkpoint: "LayeredCheckpoint") -> "Sharding":
    """Mesh and rules of the command line, after a check that they divide the parameters; without --mesh, one device.

    Raises:
      MeshError: if sizes and devices differ, if the parameters do not divide, or if several processes have no mesh.
    """
    import jax

    from qil_jax.mesh import (
        Axis,
        MeshError,
        MeshShape,
        Sharding,
        Task,
        make_mesh,
        rules_for,
        shardings,
        single_device_mesh,
    )
    from qil_jax.weights import Component

    text = arguments.mesh
    if not text and jax.process_count() > 1:
        count = jax.device_count()
        raise MeshError([f"{jax.process_count()} processes have {count} devices: give --mesh, such as tensor={count}"])
    mesh = make_mesh(MeshShape.parse(text)) if text else single_device_mesh()
    sharding = Sharding(mesh, rules_for(Task.INFERENCE, arguments.weights))
    heads, ways = checkpoint.transformer.num_attention_heads, sharding.ways(Axis.HEADS)
    problems = [f"transformer: {heads} attention heads do not divide into {ways} parts"] if heads % ways else []
    for component in Component:
        try:
            shardings(checkpoint.abstract(component), sharding)
        except MeshError as error:
            problems += [f"{component}/{problem}" for problem in error.problems]
    if problems:
        raise MeshError(problems)
    return sharding


def open_checkpoint(arguments: Arguments, found: "Found") -> "LayeredCheckpoint":
    """Open the checkpoint and its LoRAs.

    Raises:
        JobError: what is wrong with the pictures, and with the checkpoint, together.
        ProblemsError: what is wrong with the checkpoint or its LoRAs alone.
    """
    from qil_jax.inference.checkpoint import LayeredCheckpoint
    from qil_jax.inference.job import JobError

    refused = [] if arguments.skip_bad else found.bad
    problems = [*found.problems, *refused]
    hint = ["or give --skip-bad to go on without them"] if refused else []
    try:
        checkpoint = LayeredCheckpoint.open(arguments.checkpoint, dtype=arguments.dtype, loras=arguments.loras)
    except ProblemsError as error:
        if not problems:
            raise
        raise JobError([*problems, *hint, *error.problems]) from error
    if problems:
        raise JobError([*problems, *hint])
    for line in checkpoint.advice:
        say(f"note: {line}")
    return checkpoint


def program() -> NoReturn:
    """Run `main` on the command line's arguments as a program."""
    run_main(main)


if __name__ == "__main__":
    program()
