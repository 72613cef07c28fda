"""What `qil decompose` does about captions: before results are planned, or alone."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qil_jax.cli.decompose_arguments import Arguments, Ledger, show_captions, show_loading
from qil_jax.encoders.caption_prompts import caption_chat
from qil_jax.encoders.caption_writer import CaptionConfig, CaptionWriter
from qil_jax.errors import say
from qil_jax.inference.caption_job import (
    Pictures,
    captions_of,
    compile_captions,
    kept_captions,
    require_captionable,
    without_prompt,
    write_captions,
    written_by_model,
)
from qil_jax.inference.captions import FOLDER, CaptionFiles, CaptionStore, KeptCaptions
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.inference.job import JobError, PlannedResult, results_left
from qil_jax.inference.memory import MemoryPlan, require_memory
from qil_jax.inference.pipeline import Pipeline
from qil_jax.mesh import Sharding, of_first
from qil_jax.weights.assemble import reporting


def captioned(
    arguments: Arguments,
    pipeline: Pipeline,
    pictures: Pictures,
    plan: Callable[[Pictures], list[PlannedResult]],
    ledger: Ledger,
    *,
    out: Path,
) -> Pictures:
    """The pictures, each with a prompt: its own, or a caption, which an earlier run has kept or this one writes.

    If the checkpoint cannot caption, it is an empty one. Captions are kept in `out`. With --compile-only nothing is
    written, and pictures whose captions are not kept yet are left out. All processes must call this function.

    Raises:
      ConfigError: if files of the checkpoint do not fit together.
      JobError: if pictures cannot be captioned, or their results not be written; raised before any compute.
      QilError: if the parameters do not fit into memory.
    """
    options, checkpoint = arguments.options, pipeline.checkpoint
    if options.prompt is not None:
        return pictures
    if not checkpoint.has_vision:
        return {name: dataclasses.replace(p, prompt=p.prompt or "") for name, p in pictures.items()}
    asked = {
        "checkpoint": checkpoint.fingerprint(),
        "dtype": checkpoint.dtype,
        "resolution": options.resolution,
        "chat_sha256": hashlib.sha256(caption_chat(options.caption_language).encode()).hexdigest(),
    }
    store = KeptCaptions(folder=out / FOLDER, asked=asked)
    wanted, pictures = without_prompt(pictures), kept_captions(pictures, store, _written_by(arguments))
    missing = without_prompt(pictures)
    if len(missing) < len(wanted):
        say(f"{len(wanted) - len(missing)} captions of an earlier run are used")
    if missing and arguments.compile_only:
        _require_captionable(arguments, checkpoint, missing)
        count = compile_captions(missing, _captioner(pipeline), batch=arguments.batch, **_asked(arguments))
        say(
            f"compiled {count} programs that caption {len(missing)} pictures, but none that depend on the captions' "
            "lengths: for these, write the captions first, with --caption-only"
        )
        return {name: picture for name, picture in pictures.items() if name not in missing}
    if missing:
        mesh = pipeline.components.sharding.mesh
        ledger.left = results_left(plan(pictures), out, overwrite=arguments.overwrite)
        arguments.require_memory(ledger.left, checkpoint, mesh, captioned=len(missing))
        pictures = _write(arguments, checkpoint, pictures, store, lambda: _captioner(pipeline), ledger)
    return pictures


def caption_files(
    arguments: Arguments, checkpoint: LayeredCheckpoint, pictures: Pictures, ledger: Ledger, *, sharding: Sharding
) -> None:
    """Write the captions of pictures that have no prompt to text files; files that are there stay as they are.

    Raises:
      ConfigError: if the checkpoint cannot caption, or files of it do not fit together.
      JobError: if pictures cannot be captioned, or files not be written; raised before any compute.
      QilError: if the parameters do not fit into memory.
    """
    store, wanted = CaptionFiles(folder=arguments.out), without_prompt(pictures)
    problems = of_first(store.problems(wanted))
    if problems:
        raise JobError(problems)
    missing = without_prompt(kept_captions(wanted, store, {}))
    say(f"{len(pictures) - len(missing)} of {len(pictures)} pictures have a prompt")
    if missing:
        size = checkpoint.size
        require_memory(MemoryPlan(parameters=size.text_encoder + size.vision), sharding.mesh)
        load = functools.partial(CaptionWriter.load, checkpoint, sharding=sharding, dtype=checkpoint.dtype)
        _write(arguments, checkpoint, missing, store, load, ledger)


def _captioner(pipeline: Pipeline) -> CaptionWriter:
    pipeline.components.enter(pipeline.components.captioner)
    return pipeline.components.captioner()


def _write(
    arguments: Arguments,
    checkpoint: LayeredCheckpoint,
    pictures: Pictures,
    store: CaptionStore,
    load: Callable[[], CaptionWriter],
    ledger: Ledger,
) -> Pictures:
    """Caption the pictures without a prompt, print and keep what is written."""
    missing, batch = without_prompt(pictures), arguments.batch
    _require_captionable(arguments, checkpoint, missing)
    say(f"loading {arguments.checkpoint} to caption {len(missing)} pictures")
    with show_loading() as on_bytes, reporting(on_bytes):
        writer = load()
    write = functools.partial(captions_of, writer=writer, batch=batch, **_asked(arguments))
    with show_captions(len(missing), ledger) as on_caption:
        by = _written_by(arguments)
        return write_captions(pictures, store, write, written_by=by, batch=batch, on_caption=on_caption)


def _require_captionable(arguments: Arguments, checkpoint: LayeredCheckpoint, missing: Pictures) -> None:
    config = CaptionConfig.of(checkpoint)
    require_captionable(missing, config.pixels, arguments.options.resolution)


def _asked(arguments: Arguments) -> dict[str, Any]:
    options = arguments.options
    return {"resolution": options.resolution, "language": options.caption_language}


def _written_by(arguments: Arguments) -> dict[str, str]:
    return written_by_model(arguments.options.caption_language)
