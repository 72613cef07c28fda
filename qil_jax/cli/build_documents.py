"""What `qil build-dataset` does: from its command line to the dataset and the report."""

import argparse
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from etils import epath
from rich.console import Console

from qil_jax.documents.build import WORK, Workplace, caption_all, contents_of, prepare_all
from qil_jax.documents.captions import Captioner, EndpointCaptioner, EndpointConfig, ModelCaptioner, SidecarCaptioner
from qil_jax.documents.dataset import NAME, VERSION, BuildInfo, write_dataset
from qil_jax.documents.limits import CleaningConfig, PSDLimits
from qil_jax.documents.prepare import PrepareConfig
from qil_jax.documents.report import write_report
from qil_jax.documents.rows import ReportRow, find_documents
from qil_jax.documents.runners import IN_PROCESS, beam_options
from qil_jax.documents.sandbox import ProcessLimits
from qil_jax.errors import QilError, complain, say
from qil_jax.files import read_text, write_whole
from qil_jax.identity import to_json
from qil_jax.terminal import Table

if TYPE_CHECKING:
    from qil_jax.cli.model_captions import DocumentCaptions

Result = TypeVar("Result")


class BuildError(QilError):
    """The build cannot be carried out. The message says what is wrong, where, and how to mend it."""


def _tried(problems: list[str], function: Callable[..., Result], *args: Any) -> Result | None:
    """The function's result; None if it raises an error, whose message is appended to `problems`."""
    try:
        return function(*args)
    except (OSError, QilError) as error:
        problems.append(str(error))
        return None


def build(args: argparse.Namespace, for_beam: Sequence[str]) -> int:
    """Build the dataset; returns 0, or 1 if no document is kept.

    Raises:
      BuildError: before any document is read, if the input cannot be used; or if there is a dataset of other input.
    """
    out = epath.Path(args.out)
    problems: list[str] = []
    tried = functools.partial(_tried, problems)
    options = None if args.runner == "none" else tried(beam_options, args.runner or IN_PROCESS, for_beam)
    model = tried(_model, args, out / WORK)
    make_captioner = tried(_make_captioner, args, model, out / WORK)
    documents = tried(find_documents, args.source)
    if out.exists() and not out.is_dir():
        problems.append(f"--out {out} is no folder: give another")
    if problems or documents is None or make_captioner is None:
        raise BuildError("\n  ".join(problems))
    out.mkdir(parents=True, exist_ok=True)
    config = PrepareConfig(
        psd=PSDLimits(recomposition_psnr=args.min_psnr, stored_psnr=args.min_stored_psnr),
        cleaning=CleaningConfig(
            merging=args.merge,
            min_layer_pixels=args.min_layer_pixels,
            max_layers=args.max_layers,
            min_side=args.min_side,
        ),
        process=ProcessLimits(seconds=args.seconds, memory=int(args.memory_gib * 2**30)),
    )
    place = Workplace(config=config, work=out / WORK, options=options)
    say(f"reading {len(documents)} documents")
    rows = prepare_all(documents, place)
    if model is not None:
        model.write(rows, place)
    rows = caption_all(rows, documents, make_captioner, place)
    counts = write_report(rows, place.done, out)
    _show(counts)
    if not counts["kept"]:
        complain(f"no document is kept: {out / 'report.html'} says why")
        return 1
    return _write(rows, BuildInfo(source=args.source_name, licence=args.licence), place, out)


def disk_error(error: BaseException) -> str | None:
    """The message of the OSError that ended a build; None if there is none. Beam's errors hold it in their text."""
    if isinstance(error, OSError):
        return str(error)
    found = re.findall(r"^\w*Error: (\[Errno \d+\] [^\n]*)", str(error), re.MULTILINE)
    return found[-1] if found else None


def _write(rows: list[ReportRow], info: BuildInfo, place: Workplace, out: epath.Path) -> int:
    """Write the dataset unless the same one is there already."""
    kept = [
        [row.document, row.digest, row.source, row.licence, row.category, _caption(row, place)]
        for row in rows
        if row.reason is None
    ]
    identity = json.dumps({"info": to_json(info), "fingerprint": place.config.fingerprint, "documents": kept})
    stamp, folder = out / WORK / "written.json", out / NAME / VERSION
    if folder.exists():
        if stamp.exists() and stamp.read_text() == identity:
            say(f"{folder} is up to date")
            return 0
        raise BuildError(f"{folder} was built from other documents or settings: remove it or choose another --out")
    write_whole(stamp, identity.encode())
    write_dataset(contents_of(rows, info, place), info, out, place.options)
    say(f"wrote {folder}; see {out / 'report.html'}")
    return 0


def _caption(row: ReportRow, place: Workplace) -> str:
    return (place.done / f"{row.digest}.txt").read_text()


def _model(args: argparse.Namespace, work: epath.Path) -> "DocumentCaptions | None":
    """The checkpoint that captions, if there is one; raises QilError if it cannot be used."""
    if args.caption_checkpoint is None:
        return None
    from qil_jax.cli.model_captions import DocumentCaptions

    return DocumentCaptions(
        Path(args.caption_checkpoint), work / "captions", batch=args.caption_batch, mesh=args.caption_mesh
    )


def _make_captioner(
    args: argparse.Namespace, model: "DocumentCaptions | None", work: epath.Path
) -> Callable[[], Captioner]:
    """Raises QilError if the file with the instruction cannot be read."""
    if model is not None:
        return functools.partial(ModelCaptioner, asked=model.captioner.asked, cache=model.captioner.cache)
    if args.caption_url is None:
        return SidecarCaptioner
    config = EndpointConfig(
        url=args.caption_url, model=args.caption_model, key=os.environ.get("CAPTION_API_KEY", "none")
    )
    if args.caption_prompt is not None:
        try:
            prompt = read_text(epath.Path(args.caption_prompt))
        except (OSError, QilError) as error:
            raise QilError(f"--caption-prompt {args.caption_prompt}: cannot be read as UTF-8: {error}") from error
        config = dataclasses.replace(config, prompt=prompt)
    return functools.partial(EndpointCaptioner, config, work / "captions")


def _show(counts: dict[str, Any]) -> None:
    table = Table("", "documents")
    for name, count in [("in", counts["documents"]), ("kept", counts["kept"]), *counts["dropped"].items()]:
        table.add_row(name, str(count))
    Console().print(table)
